"""From the body of a request to a checked record, or to a refusal as OpenAI words it. Pure: knows no HTTP and no model.

What cannot be done is refused, not ignored: a client that asks for tools must not get an answer that never uses them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NoReturn

from arbitrage_cli.data.problems import encodable, make_problem
from arbitrage_cli.errors import ArbitrageError, UsageError
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.routing.menu import Menu
from arbitrage_cli.routing.route import Route
from arbitrage_cli.types import Limits, Message, MessageRole, Problem

Body = Mapping[str, Any]
Kind = Literal["chat", "text"]
"""Which endpoint: /v1/chat/completions, or /v1/completions."""

MAX_MESSAGES = 512
MAX_STOPS = 4
MAX_STOP_CHARS = 256
SEEDS = 2**63

DRAWING = frozenset(("max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop"))
USED = DRAWING | frozenset(("model", "messages", "prompt", "stream", "stream_options", "arbitrage"))
HARMLESS = frozenset(("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"))
"""Fields that change no answer."""
NEUTRAL: Mapping[str, Sequence[Any]] = MappingProxyType(
    {
        "n": (1,),
        "best_of": (1,),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "parallel_tool_calls": (True, False),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "logprobs": (False,),
        "top_logprobs": (0,),
        "response_format": ({"type": "text"},),
        "logit_bias": ({},),
        "presence_penalty": (0, 0.0),
        "frequency_penalty": (0, 0.0),
        "modalities": (["text"],),
        "suffix": ("",),
        "echo": (False,),
    }
)
"""Fields that can only have these values, with which they ask for nothing."""


class RefusedError(ArbitrageError):
    """A request that is not answered: the status, and OpenAI's words for the reason."""

    def __init__(
        self,
        message: str,
        hint: str = "",
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        parameter: str | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.status, self.kind, self.code, self.parameter = status, kind, code, parameter


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds unless a request says otherwise. The limits are also the highest that a request may ask for.

    Messages of more than `max_chars` do not fit in the context: they are not even tokenized, which takes long.
    """

    menu: Menu
    limits: Limits
    sampler: Sampler
    max_chars: int


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A request, checked. The id of its problem is its own id, `model` the name that it asks for."""

    kind: Kind
    problem: Problem
    model: str
    route: Route
    limits: Limits
    sampler: Sampler
    stops: tuple[str, ...] = ()
    streams: bool = False
    shows_usage: bool = False  # at the end of a stream
    shows_decisions: bool = False


def read_request(kind: Kind, body: bytes, identifier: str, defaults: Defaults) -> CompletionRequest:
    """The request in a body. RefusedError."""
    fields = _read_object(body)
    _refuse_other_fields(fields)
    stream_options = _typed(fields, "stream_options", dict, {})
    limits = defaults.limits
    most = _whole_number(fields, "max_completion_tokens", _whole_number(fields, "max_tokens", limits.max_tokens))
    sampler = Sampler(
        _number(fields, "temperature", 2.0, defaults.sampler.temperature),
        _number(fields, "top_p", 1.0, defaults.sampler.top_p),
        _seed(fields, defaults.sampler.seed),
    )
    problem = _conversation(fields, identifier) if kind == "chat" else _prompt(fields, identifier)
    model = _typed(fields, "model", str, defaults.menu.names[0])
    if _num_chars(problem) > defaults.max_chars:
        message = f"more than {defaults.max_chars:,} characters do not fit in the context of the models"
        raise RefusedError(message, code="context_length_exceeded", parameter="messages" if kind == "chat" else "prompt")
    return CompletionRequest(
        kind,
        problem,
        model,
        find_route(model, defaults.menu),
        Limits(limits.max_steps, min(most, limits.max_tokens), limits.max_step_tokens),
        sampler,
        _stops(fields),
        streams=_typed(fields, "stream", bool, False),
        shows_usage=_typed(stream_options, "include_usage", bool, False),
        shows_decisions=_typed(fields, "arbitrage", bool, False),
    )


def refuse(message: str, parameter: str | None = None) -> NoReturn:
    """Refuse a request for what it asks, in this field."""
    raise RefusedError(message, parameter=parameter)


def _read_object(body: bytes) -> Body:
    try:
        fields = json.loads(body, parse_constant=lambda name: refuse(f"{name} is not a number of JSON"))
    except (ValueError, RecursionError):
        refuse("the body is not JSON")
    if not isinstance(fields, dict):
        refuse("the body is not a JSON object")
    return {name: value for name, value in fields.items() if value is not None}


def _refuse_other_fields(fields: Body) -> None:
    for name, value in fields.items():
        if name in NEUTRAL:
            if not any(value == one and type(value) is type(one) for one in NEUTRAL[name]):
                refuse(f"{name} is not supported by this server, other than {json.dumps(NEUTRAL[name][0])}", name)
        elif name not in USED | HARMLESS:
            refuse(f"this server knows no field '{encodable(name)[:80]}'", encodable(name)[:80])


def find_route(name: str, menu: Menu) -> Route:
    """What a model's name stands for. RefusedError if it is not served."""
    try:
        return menu.find(name)
    except UsageError as error:
        message = encodable(error.message)
        raise RefusedError(message, error.hint, status=404, code="model_not_found", parameter="model") from error


# --- values


def _typed(fields: Body, name: str, kind: type, default: Any) -> Any:
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        words = {bool: "true or false", str: "a text", dict: "an object", list: "a list"}
        refuse(f"{name} must be {words[kind]}", name)
    return value


def _number(fields: Body, name: str, most: float, default: float) -> float:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        refuse(f"{name} must be a number from 0 to {most:g}", name)
    return float(value)


def _whole_number(fields: Body, name: str, default: int) -> int:
    value = fields.get(name, default)
    if type(value) is not int or value < 1:
        refuse(f"{name} must be a whole number above 0", name)
    return value


def _seed(fields: Body, default: int) -> int:
    value = fields.get("seed", default)
    if type(value) is not int or not -SEEDS <= value < SEEDS:
        refuse("seed must be a whole number of 64 bits", "seed")
    return value


def _stops(fields: Body) -> tuple[str, ...]:
    value = fields.get("stop", [])
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        refuse(f"stop must be a text, or a list of at most {MAX_STOPS}", "stop")
    if not all(isinstance(one, str) and 0 < len(one) <= MAX_STOP_CHARS for one in stops):
        refuse(f"each stop must be a text of 1 to {MAX_STOP_CHARS} characters", "stop")
    return tuple(stops)


# --- messages


def _prompt(fields: Body, identifier: str) -> Problem:
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        (prompt,) = prompt
    if not isinstance(prompt, str):
        refuse("prompt must be one text; lists of prompts and token ids are not supported", "prompt")
    return _problem(prompt, identifier, "prompt")


def _conversation(fields: Body, identifier: str) -> Problem:
    """The last message is the question. Messages of one role in a row are joined: most templates refuse them."""
    messages = _typed(fields, "messages", list, [])
    if not 0 < len(messages) <= MAX_MESSAGES:
        refuse(f"messages must be a list of 1 to {MAX_MESSAGES}", "messages")
    found = [_message(one, f"messages[{index}]") for index, one in enumerate(messages)]
    roles = [role for role, _ in found]
    num_system = next((index for index, role in enumerate(roles) if role != "system"), len(roles))
    if "system" in roles[num_system:]:
        refuse("system messages must come before all others", "messages")
    if roles[-1] != "user":
        refuse("the last message must be the user's", "messages")
    *turns, question = _joined(found[num_system:])
    problem = _problem(question.text, identifier, "messages")
    system = "\n\n".join(text for _, text in found[:num_system]) if num_system else None
    return Problem(problem.id, problem.question, tuple(turns), system)


def _num_chars(problem: Problem) -> int:
    return len(problem.question) + len(problem.system or "") + sum(len(turn.text) for turn in problem.turns)


def _message(message: Any, place: str) -> tuple[str, str]:
    """Its role and its text."""
    if not isinstance(message, dict):
        refuse(f"{place} must be an object", "messages")
    role = {"developer": "system"}.get(str(message.get("role")), message.get("role"))
    if role not in ("system", "user", "assistant"):
        refuse(f"{place}.role must be system, developer, user or assistant", "messages")
    if message.get("tool_calls") or message.get("function_call"):
        refuse(f"{place}: tools are not supported by this server", "messages")
    return role, _content(message.get("content"), place)


def _content(content: Any, place: str) -> str:
    """A text, or a list of parts that are all texts."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        refuse(f"{place}.content must be a text, or a list of text parts", "messages")
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            refuse(f"{place}.content: only text is supported by this server", "messages")
    text = "".join(part["text"] for part in parts)
    if "\0" in text:
        refuse(f"{place}.content contains a NUL character", "messages")
    return encodable(text)


def _joined(messages: Sequence[tuple[str, str]]) -> list[Message]:
    joined: list[Message] = []
    for role, text in messages:
        known: MessageRole = "assistant" if role == "assistant" else "user"
        if joined and joined[-1].role == known:
            text = f"{joined.pop().text}\n\n{text}"
        joined.append(Message(known, text))
    return joined


def _problem(question: str, identifier: str, parameter: str) -> Problem:
    try:
        return make_problem(question, identifier)
    except ValueError as error:
        raise RefusedError(str(error), parameter=parameter) from error

"""Parses and checks the body of a request. Errors are in OpenAI's format.

A request for another kind of answer, such as tool calls, is rejected. Other unknown fields are listed in a response header.
"""

import json
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import field, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from arbitrage_cli.errors import ArbitrageError, UsageError, in_plain_words
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.problems.rows import make_conversation
from arbitrage_cli.routing.policies import POLICIES, Policy
from arbitrage_cli.routing.route import Menu, Route
from arbitrage_cli.types import ByRole, Fields, Json, Limits, Problem, RoleLimits, frozen

OWN_NAME = "arbitrage"
MAX_MODEL_NAME = 100  # characters in a model name

NEUTRAL: Fields = {
    "n": 1,
    "tools": [],
    "functions": [],
    "logprobs": False,
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "grammar": "",
    "json_schema": {},
}
"""Unsupported fields. Each is accepted only with this value, which has no effect."""
HARMLESS = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "cache_prompt", *NEUTRAL)
)
"""Fields that cannot change an answer, or that are accepted only with a value that has no effect."""
WITHOUT_EFFECT: Fields = {
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "repetition_penalty": 1,
    "repeat_penalty": 1,
    "logit_bias": {},
    "parallel_tool_calls": True,
    "tool_choice": "none",
}
"""The values of unsupported fields that have no effect."""
MAX_IGNORED, MAX_IGNORED_NAME = 32, 40  # names in a response header, and characters of a name
KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""OpenAI's error types by HTTP status."""


class RefusedError(ArbitrageError):
    """The rejection of a request, with the fields of an OpenAI error. A client may retry after `retry_after` seconds."""

    def __init__(
        self,
        message: str,
        hint: str = "",
        *,
        status: int = 400,
        code: str | None = None,
        parameter: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.status = status
        self.code = code
        self.parameter = parameter
        self.retry_after = retry_after

    @property
    def kind(self) -> str:
        return "server_error" if self.status >= 500 else KINDS.get(self.status, "invalid_request_error")


def shutting_down() -> RefusedError:
    return RefusedError("the server is shutting down", "retry later", status=503, retry_after=0.0)


@frozen
class Defaults:
    """The server's settings. A request may override them within the limits.

    `thinking` applies to requests that turn thinking on, and is None if the models cannot think; `thinking_pair` then names
    the pair whose models can. `answering` applies to requests that turn thinking off, and is None if a model cannot answer
    without thinking. Conversations of more than `max_chars` characters are rejected without being tokenized. If
    `lacks_checker` is true, requests that need the checker are refused, because other solutions must not take its place.
    If `draws_seeds` is true, each request without a seed is sampled with another one. `context_sizes` are in tokens.
    `warnings_of` says why the models of a policy probably cannot solve a problem.
    """

    menu: Menu
    limits: RoleLimits
    thinking: RoleLimits | None
    answering: RoleLimits | None
    sampler: Sampler
    max_chars: int
    thinking_pair: str | None = None
    lacks_checker: bool = False
    draws_seeds: bool = False
    context_sizes: ByRole[int] = field(default_factory=dict)
    warnings_of: Callable[[Policy, Problem], Sequence[str]] = lambda policy, problem: ()

    @property
    def names(self) -> list[str]:
        """The model names to offer. `arbitrage` selects the default policy."""
        offered = [name for name in self.menu.names if not self.refusal_of(POLICIES[name.partition("@")[0]])]
        return list(dict.fromkeys([OWN_NAME, *offered]))

    def refusal_of(self, policy: Policy) -> RefusedError | None:
        """Return the error of requests that select a policy, or None if they may select it."""
        hint = "use another model"
        if self.limits.has_quick_answers and policy.mixes_models:  # the quick answers are whole solutions
            message = f"{policy.name} is not available with --think auto"
            return RefusedError(message, hint, status=404, code="model_not_found", parameter="model")
        if self.lacks_checker and policy.compares_answers:
            message = "the server of the checker could not be used when this server started"
            return RefusedError(message, hint, status=503, code="upstream_error", parameter="model")
        return None

    def context_size_of(self, policy: Policy) -> int | None:
        """Return the number of tokens that the models of a policy can read and write, or None if it is unknown."""
        return min((self.context_sizes[role] for role in policy.models if role in self.context_sizes), default=None)

    def seed_of(self, body: "Body") -> int:
        if body.seed is None and self.draws_seeds:
            return secrets.randbelow(1 << 31)
        return self.sampler.seed if body.seed is None else body.seed


class _StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)
    include_usage: bool = False


class _Part(BaseModel):
    type: Literal["text"]
    text: str


def _as_parts(content: object) -> object:
    """Return a text as a list of one part. Raises ValueError if the content is neither a text nor a list."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise ValueError("must be text or a list of text parts")
    return content


class _Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[_Part], BeforeValidator(_as_parts)]
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content)


class _TemplateVariables(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    enable_thinking: bool | None = None


def _token_limit(count: int) -> int:
    """Return the limit. Raises ValueError if it is neither positive nor -1."""
    if count < 1 and count != -1:
        raise ValueError("must be at least 1")
    return count


_Stop = Annotated[str, Field(min_length=1, max_length=256)]


class Body(BaseModel):
    """The supported fields. `_read_object` drops fields that are null.

    Of `reasoning_effort`, `none` turns thinking off, and `auto` leaves it to the server. All other values turn it on.
    """

    model_config = ConfigDict(strict=True, extra="allow")
    messages: Annotated[list[_Message], Field(min_length=1, max_length=512)]
    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1), AfterValidator(lambda count: max(0, count))] | None = None  # -1: unlimited
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Annotated[int, AfterValidator(_token_limit)] = -1  # -1: unlimited, as sent by clients of llama.cpp
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Annotated[
        list[_Stop], Field(max_length=4), BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else stop)
    ] = []
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()
    arbitrage: bool = False
    reasoning_effort: str | None = None
    chat_template_kwargs: _TemplateVariables = _TemplateVariables()

    @property
    def token_limit(self) -> int | None:
        limit = self.max_completion_tokens or self.max_tokens
        return None if limit == -1 else limit

    @property
    def thinks(self) -> bool | None:
        """Whether the request turns thinking on or off, or None if it does neither."""
        if (switch := self.chat_template_kwargs.enable_thinking) is not None:
            return switch
        return None if self.reasoning_effort in (None, "auto") else self.reasoning_effort != "none"

    @property
    def thinking_field(self) -> str:
        """The field that turns thinking on or off."""
        return "reasoning_effort" if self.chat_template_kwargs.enable_thinking is None else "chat_template_kwargs"

    @property
    def ignored(self) -> str:
        """The names of the fields without effect, for a response header. At most `MAX_IGNORED` names are listed."""
        fields = {name: value for name, value in (self.model_extra or {}).items() if name not in HARMLESS}
        names = [name for name, value in fields.items() if value != WITHOUT_EFFECT.get(name, ...)]
        names += [f"chat_template_kwargs.{name}" for name in self.chat_template_kwargs.model_extra or ()]
        shown = [re.sub("[^!-~]|,", "?", name[:MAX_IGNORED_NAME]) for name in names[:MAX_IGNORED]]
        return ", ".join(shown)


@frozen
class ChatRequest:
    """A checked request. `problem.id` is the id of the request. `warnings` are returned with the response."""

    body: Body
    problem: Problem
    model: str
    route: Route
    limits: RoleLimits
    sampler: Sampler
    warnings: Sequence[str] = ()

    @property
    def own_limits(self) -> Limits:
        """The limits of the route's solutions."""
        return self.limits.of(*self.route.policy.models)


def read_request(body: bytes, identifier: str, defaults: Defaults) -> ChatRequest:
    try:
        read = Body.model_validate(_read_object(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"][:5]))
        reason = "must be an object" if first["type"] == "model_type" else in_plain_words(first["msg"])
        raise RefusedError(f"{place}: {reason}", parameter=str(first["loc"][0])) from error
    problem = _conversation(read, identifier, defaults.max_chars)
    drawn = read.model_dump(include={"temperature", "top_p", "top_k", "min_p"}, exclude_none=True)
    sampler = replace(defaults.sampler, **drawn, seed=defaults.seed_of(read))
    ignored = [f"without effect: {read.ignored}"] if read.ignored else []
    model = _model_of(read, defaults)
    route = find_route(model, defaults)
    return ChatRequest(
        read,
        problem,
        model,
        route,
        _limits(read, defaults),
        sampler,
        [*defaults.warnings_of(route.policy, problem), *ignored],
    )


def _model_of(body: Body, defaults: Defaults) -> str:
    """Return the model name of a request.

    If the target thinks only if quick answers differ, a request that names no policy may turn thinking on or off.
    """
    if body.thinks is not None and _chooses_role(body, defaults):
        return "target" if body.thinks else "draft"
    return defaults.menu.default.policy.name if body.model is None else body.model


def _chooses_role(body: Body, defaults: Defaults) -> bool:
    """Return whether turning thinking on or off selects the model that thinks, or the one that does not."""
    return defaults.limits.has_quick_answers and body.model in (None, OWN_NAME)


def _limits(body: Body, defaults: Defaults) -> RoleLimits:
    """Return the limits of a request. Raises RefusedError if the models cannot think, or cannot answer without thinking."""
    if _chooses_role(body, defaults):
        return defaults.limits
    limits = {True: defaults.thinking, False: defaults.answering, None: defaults.limits}[body.thinks]
    if limits is None and body.thinks:
        pair = defaults.thinking_pair
        hint = f"start the server with --pair {pair}" if pair else "start the server with a model that thinks"
        raise RefusedError("the models of this server cannot think", hint, parameter=body.thinking_field)
    if limits is None:
        raise RefusedError("the models of this server cannot answer without thinking", parameter=body.thinking_field)
    asked = body.token_limit
    return limits.with_max_tokens(min(asked, limits.target.token_limit)) if asked else limits


def find_route(name: str, defaults: Defaults) -> Route:
    """Return the route for a model name. `arbitrage` selects the server's default route.

    Raises RefusedError if the name is unknown, or if its policy is not offered.
    """
    try:
        if len(name) > MAX_MODEL_NAME:
            raise UsageError(f"the model name has {len(name)} characters; the limit is {MAX_MODEL_NAME}")
        route = defaults.menu.default if name == OWN_NAME else defaults.menu.find(name)
    except UsageError as error:
        raise RefusedError(error.message, error.hint, status=404, code="model_not_found", parameter="model") from error
    if refusal := defaults.refusal_of(route.policy):
        raise refusal
    return route


def _read_object(body: bytes) -> Json:
    try:
        fields = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RefusedError("the body is not valid JSON") from error
    if not isinstance(fields, dict):
        raise RefusedError("the body is not a JSON object")
    fields = {name: value for name, value in fields.items() if value is not None}
    for name, accepted in NEUTRAL.items():
        if name in fields and (fields[name] != accepted or type(fields[name]) is not type(accepted)):
            message = f"{name} is not supported by this server, except for the value {json.dumps(accepted)}"
            raise RefusedError(message, parameter=name)
    return fields


def _conversation(body: Body, identifier: str, max_chars: int) -> Problem:
    messages = [(message.role, message.text) for message in body.messages]
    num_chars = sum(len(text) for _, text in messages)
    if num_chars > max_chars:
        message = f"the messages have {num_chars:,} characters; the models' context holds at most {max_chars:,}"
        raise RefusedError(message, code="context_length_exceeded", parameter="messages")
    if any("\0" in text for _, text in messages):
        raise RefusedError("a message contains a NUL character", parameter="messages")
    try:
        return make_conversation(messages, identifier)
    except ValueError as error:
        raise RefusedError(str(error), parameter="messages") from error

"""Renders chat templates with placeholders, so that templates never receive the user's text.

Because templates come from model files, they are rendered in a sandboxed child process with limited time and memory.
"""

import atexit
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from string import ascii_lowercase
from typing import Any

from arbitrage_cli.errors import TemplateError
from arbitrage_cli.inference.thinking import Variables, variables_for
from arbitrage_cli.system.child import Child, ChildError
from arbitrage_cli.types import MessageRole

MAX_RENDER_SECONDS = 2.0
MAX_RENDER_BYTES = 256 << 20
MAX_LAYOUTS = 32  # cached per model; also the number of cached renderings

Messages = list[dict[str, str]]
Render = Callable[[Messages, Mapping[str, Any]], str]  # takes template variables; raises the same errors as `render`

QUESTION: tuple[MessageRole, ...] = ("user",)
CONVERSATION: tuple[MessageRole, ...] = ("user", "assistant", "user")


@dataclass(frozen=True, slots=True)
class Layout:
    """A rendered template. `slots` are the placeholders for messages, and `system` is the placeholder for instructions."""

    text: str
    slots: Sequence[str]
    system: str = ""

    @property
    def end(self) -> str:
        return self.text.rpartition(self.slots[-1])[2]


class Layouts:
    """The layouts of one model's template, or plain question-and-answer layouts if there is no template."""

    def __init__(self, template: str | Render | None, variables: Mapping[str, Any], *, has_instructions: bool) -> None:
        self._template, self._variables, self._has_instructions = template, variables, has_instructions
        self.layout = lru_cache(MAX_LAYOUTS)(self._make)

    @cached_property
    def source(self) -> str:
        """The template's text, or rendered examples with thinking on and off if a server renders the template."""
        if not callable(self._template):
            return self._template or ""
        return self.shown(CONVERSATION) + "".join(self.shown(QUESTION, variables_for(on)) for on in (True, False))

    @property
    def question(self) -> Layout:
        """The layout of a single question. Raises TemplateError if rendering fails."""
        return self.layout(QUESTION, self._has_instructions)

    def shown(self, roles: Sequence[MessageRole], variables: Variables = ()) -> str:
        """Render placeholder messages with these roles. Return "" if rendering fails."""
        try:
            return self.layout(roles, self._has_instructions, variables).text
        except TemplateError:
            return ""

    def _make(self, roles: Sequence[MessageRole], has_instructions: bool, variables: Variables = ()) -> Layout:
        slots = [_placeholder(f"message {index}") for index in range(len(roles))]
        system = _placeholder("instructions") if has_instructions else ""
        if self._template is None:
            return Layout((system and f"{system}\n\n") + _without_template(roles, slots), slots, system)
        messages = [{"role": role, "content": text} for role, text in zip(roles, slots, strict=True)]
        reason = "it does not render every message exactly once, in order"
        attempts = [[{"role": "system", "content": system}, *messages]] if has_instructions else []
        for attempt in [*attempts, _within_first(system, messages)]:
            try:
                text = self._render(attempt, dict(variables))
            except RoleRefusedError as refusal:
                reason = f"it rejects the messages ({refusal})"
                continue
            is_complete = all(text.count(placeholder) == 1 for placeholder in [system, *slots] if placeholder)
            if is_complete and sorted(slots, key=text.index) == slots:
                return Layout(text, slots, system)
        raise unusable(reason)

    def _render(self, messages: Messages, variables: Mapping[str, Any]) -> str:
        if callable(self._template):
            return self._template(messages, variables)
        return render(self._template or "", messages, {**self._variables, **variables})


def _within_first(instructions: str, messages: Messages) -> Messages:
    first = next(index for index, message in enumerate(messages) if message["role"] == "user")
    content = "\n\n".join(filter(None, (instructions, messages[first]["content"])))
    return [*messages[:first], {"role": "user", "content": content}, *messages[first + 1 :]]


def _without_template(roles: Sequence[MessageRole], texts: Sequence[str]) -> str:
    layout = {"user": "Problem: {}\n\nSolution:", "assistant": " {}\n\n"}
    return "".join(layout[role].format(text) for role, text in zip(roles, texts, strict=True))


class RoleRefusedError(Exception):
    """Raised if the template calls `raise_exception`. Many templates do so for system messages."""


@cache
def _placeholder(name: str) -> str:
    """Return random letters that occur in no other text and are not changed by trimming, quoting or escaping.

    The same name always has the same placeholder, so that models with the same template share renderings.
    """
    return "slot" + "".join(secrets.choice(ascii_lowercase) for _ in range(24))


def render(template: str, messages: Messages, variables: Mapping[str, Any]) -> str:
    """Render a template. Raises TemplateError if rendering fails; RoleRefusedError if the template rejects messages."""
    try:
        kind, text = _rendered(template, json.dumps([messages, dict(variables)]))
    except ChildError as error:
        raise unusable(str(error)) from error
    if kind == "refused":
        raise RoleRefusedError(text)
    if kind == "broken":
        raise unusable(text)
    return text


@lru_cache(MAX_LAYOUTS)
def _rendered(template: str, arguments: str) -> tuple[str, str]:
    kind, text = renderer()(template, arguments)
    return str(kind), str(text)


@cache
def renderer() -> Child:
    """Return the child process that renders all templates."""
    child = Child("arbitrage_cli.inference.rendering:load", seconds=MAX_RENDER_SECONDS, memory=MAX_RENDER_BYTES)
    atexit.register(child.close)
    return child


def unusable(reason: str) -> TemplateError:
    return TemplateError(f"the model's chat template cannot be used: {reason}", "use another GGUF file of this model")

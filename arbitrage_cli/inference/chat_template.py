"""Builds prompts with the model's chat template. Control tokens are recognized only in the template's own text.

Templates are rendered with placeholders, so they never receive the user's text. Because they come from model files, they are
rendered in a sandboxed child process with limited time and memory (`inference.rendering`).
"""

import atexit
import json
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache, cached_property, lru_cache
from itertools import pairwise
from string import ascii_lowercase
from types import MappingProxyType

from arbitrage_cli.errors import ConversationError, TemplateError
from arbitrage_cli.inference.step_text import BLANK_LINE, THOUGHT_END, StepEnd, StepText
from arbitrage_cli.inference.thinking import CLOSING, THINK, THINKING_VARIABLES, PhaseState, ThinkFormat, find_format
from arbitrage_cli.system.child import Child, ChildError
from arbitrage_cli.types import Fields, MessageRole, Problem, Step, Trace, frozen

INSTRUCTIONS = "Please reason step by step, and put your final answer within \\boxed{}."  # from the paper

MAX_RENDER_SECONDS = 2.0
MAX_RENDER_BYTES = 256 << 20
MAX_LAYOUTS = 32  # cached per model; also the number of cached renderings

Messages = list[dict[str, str]]
RenderMessages = Callable[[Messages, Fields], str]
"""Renders messages with template variables. Raises the same errors as `render`."""

QUESTION: tuple[MessageRole, ...] = ("user",)
CONVERSATION: tuple[MessageRole, ...] = ("user", "assistant", "user")


@frozen
class PromptStyle:
    """The system prompt, and the rule by which a step of an answer ends."""

    instructions: str = INSTRUCTIONS
    step_end: StepEnd = BLANK_LINE


DEFAULT_STYLE = PromptStyle()


@frozen
class Control:
    """A control token in the template. If the control tokens are unknown, all template text is of this type."""

    text: str


@frozen
class Plain:
    """Text in which no control tokens are recognized."""

    text: str


Segment = Control | Plain

# Control tokens of known chat models, which are rare as ordinary text
SURELY_CONTROL = re.compile(
    r"<\|[^|\n]{1,64}\|>|<\uff5c[^\uff5c\n]{1,64}\uff5c>|<\|\w{3,32}>|<\w{3,32}\|>|</?s>|<(?:unk|pad|bos|eos|mask|fim_[a-z]+)>"
    r"|\](?:~b\]|~!b\[|!\w~\[)|\[e~\[|\]<\][\w ]{1,32}\[>\["  # MiniMax
)
# Texts that may be control tokens
LOOKS_LIKE_CONTROL = re.compile(rf"{SURELY_CONTROL.pattern}|<[^<>\s]{{1,64}}>|\[/?[a-z]?[A-Z_]{{1,32}}\]")


class ChatPrompt:
    """Builds one model's prompts, which end where the assistant begins to write.

    If the template does not support system messages, the instructions are placed before the question. `control_tokens` is
    None if a server with an unknown vocabulary renders the template. The tokenizer recognizes `marker_tokens` even in plain
    text, so questions and steps are split inside these markers. `always_thinks` is true if the prompt ends in the thinking
    phase even if thinking is turned off. `thinks_by_itself` is None if this is unknown.
    """

    def __init__(
        self,
        template: str | RenderMessages | None,
        control_tokens: Collection[str] | None,
        marker_tokens: Collection[str] = (),
        style: PromptStyle = DEFAULT_STYLE,
        variables: Fields = MappingProxyType({}),
    ) -> None:
        self._instructions = style.instructions.strip()
        self._step_end = style.step_end
        self._layouts = Layouts(template, variables, has_instructions=self._instructions != "")
        self._knows_controls = control_tokens is not None
        if control_tokens is None:
            control_tokens = LOOKS_LIKE_CONTROL.findall(style.instructions)
        special = [*control_tokens, *(marker for marker in marker_tokens if len(marker) > 1)]
        self.think_format = find_format(self._layouts.source, special)
        shown = self._layouts.question.text + self._layouts.shown(CONVERSATION)
        own_text = shown + self.think_format.opens + self.think_format.closes
        self._controls = _any_of(control_tokens)
        self._markers = _any_of(
            (marker for marker in marker_tokens if marker in own_text and len(marker) > 1), overlapping=True
        )
        off = self._layouts.shown(QUESTION, thinks=False).rpartition(self._layouts.question.slots[-1])[2]
        state_if_off = self.think_format.state_after(off)
        self.always_thinks = state_if_off == "thoughts"
        self.thinks_by_itself = self._thinks_by_default(state_if_off)

    @property
    def own_format(self) -> ThinkFormat | None:
        """The model's thinking format, or None if its markers do not occur in the template."""
        form = self.think_format
        source = self._layouts.source
        return form if form.end in source or form.start in source else None

    @property
    def can_think(self) -> bool:
        """Whether the model may think: it has a thinking format, or its chat template is unknown."""
        return self.own_format is not None or not self._layouts.source

    def _thinks_by_default(self, state_if_off: PhaseState) -> bool | None:
        form = self.think_format
        source = self._layouts.source
        layout = self._layouts.question
        state = form.state_after(layout.end)
        if state != "open":
            return state == "thoughts"
        if form.asks:
            return form.asks in layout.text
        if form.ends_turns or state_if_off == "answer":
            return True
        if form is THINK and form.end in source:  # models without thinking also handle it, in other models' messages
            return None
        return form.end in source

    def for_problem(self, problem: Problem) -> list[Segment]:
        """Return a problem's prompt. Raises ConversationError if the template rejects earlier turns or the system prompt."""
        try:
            return self.segments(problem)
        except TemplateError as error:
            raise ConversationError(error.message, "start a new conversation, or omit the system prompt") from error

    def segments(self, problem: Problem) -> list[Segment]:
        """Return a problem's prompt. Raises TemplateError if the template does not render every message."""
        roles = (*(turn.role for turn in problem.turns), *QUESTION)
        thinks = bool(problem.thinks)
        is_default = thinks == bool(self.thinks_by_itself) and problem.thinks is not False
        switch = None if is_default else thinks
        instructions = self._instructions if problem.system is None else problem.system.strip()
        layout = self._layouts.layout(roles, instructions != "", switch)
        messages = [*(turn.text for turn in problem.turns), problem.question]
        texts = {**dict(zip(layout.slots, map(str.strip, messages), strict=True)), layout.system: instructions}
        segments: list[Segment] = []
        for piece in _any_of(texts).split(layout.text):
            if piece in texts:
                self._append_data(segments, texts[piece])
            else:
                self._append_template_text(segments, piece)
        self._append_template_text(segments, self._phase_start(layout, problem.thinks))
        return segments

    def after(self, step: Step) -> list[Segment]:
        """Return the text between a kept step and the next step.

        After the last thought, the returned text closes the thinking phase.
        """
        segments: list[Segment] = []
        if step.ends_thoughts:
            forced = f"\n\n{CLOSING}\n" if step.stop == "think_budget" else ""
            self._append_template_text(segments, forced + self.think_format.closes)
        return segments

    def _phase_start(self, layout: "Layout", thinks: bool | None) -> str:
        form = self.think_format
        state = form.state_after(layout.end)
        if thinks:
            return "" if state == "thoughts" else form.opens
        if state == "thoughts":
            return f"\n{form.closes}"
        by_itself = thinks is False if self.thinks_by_itself is None else self.thinks_by_itself
        return form.empty if state == "open" and by_itself else ""

    def step_text(self, trace: Trace, prefix: str = "") -> StepText:
        """Return the text of the next step, which will not contain the model's markers."""
        form = self.think_format
        thinks = trace.phase == "think"
        return StepText(
            prefix,
            THOUGHT_END if thinks else self._step_end,
            form.end if thinks or form.ends_turns else "",
            removed=(form.start, form.end) if self.own_format or trace.problem.thinks else (),
        )

    def fragments(self, text: str) -> list[str]:
        """Split a question or another model's step so that no fragment contains a whole marker."""
        return cut_inside(text, self._markers.finditer(text))

    def _append_data(self, segments: list[Segment], text: str) -> None:
        first, *others = self.fragments(text)
        _append_plain(segments, first)
        segments.extend(Plain(other) for other in others)

    def _append_template_text(self, segments: list[Segment], text: str) -> None:
        if not self._knows_controls:
            segments.append(Control(text))
            return
        for index, piece in enumerate(self._controls.split(text)):
            if index % 2:  # split returns the matches at odd indices
                segments.append(Control(piece))
            else:
                _append_plain(segments, piece)


def cut_inside(text: str, matches: Iterable[re.Match[str]]) -> list[str]:
    """Split a text after the first character of each match."""
    cuts = [match.start() + 1 for match in matches]
    return [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]


def _any_of(texts: Iterable[str], *, overlapping: bool = False) -> re.Pattern[str]:
    found = sorted((text for text in texts if text), key=len, reverse=True)
    if not found:
        return re.compile("(?!)")  # matches nothing
    pattern = "(" + "|".join(map(re.escape, found)) + ")"
    return re.compile(f"(?={pattern})" if overlapping else pattern)


def _append_plain(segments: list[Segment], text: str) -> None:
    if not text:
        return
    if segments and isinstance(segments[-1], Plain):
        text = segments.pop().text + text
    segments.append(Plain(text))


# --- layouts


@frozen
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

    def __init__(self, template: str | RenderMessages | None, variables: Fields, *, has_instructions: bool) -> None:
        self._template = template
        self._variables = variables
        self._has_instructions = has_instructions
        self.layout = lru_cache(MAX_LAYOUTS)(self._make)

    @cached_property
    def source(self) -> str:
        """The template's text, or rendered examples with thinking on and off if a server renders the template."""
        if not callable(self._template):
            return self._template or ""
        return self.shown(CONVERSATION) + "".join(self.shown(QUESTION, thinks=on) for on in (True, False))

    @property
    def question(self) -> Layout:
        """The layout of a single question. Raises TemplateError if rendering fails."""
        return self.layout(QUESTION, self._has_instructions)

    def shown(self, roles: Sequence[MessageRole], *, thinks: bool | None = None) -> str:
        """Render placeholder messages with these roles. Return "" if rendering fails."""
        try:
            return self.layout(roles, self._has_instructions, thinks).text
        except TemplateError:
            return ""

    def _make(self, roles: Sequence[MessageRole], has_instructions: bool, thinks: bool | None = None) -> Layout:
        """Render placeholders. If `thinks` is None, the template's default applies.

        Raises TemplateError if rendering fails.
        """
        variables = {} if thinks is None else dict.fromkeys(THINKING_VARIABLES, thinks)
        slots = [_placeholder(f"message {index}") for index in range(len(roles))]
        system = _placeholder("instructions") if has_instructions else ""
        if self._template is None:
            return Layout((system and f"{system}\n\n") + _without_template(roles, slots), slots, system)
        messages = [{"role": role, "content": text} for role, text in zip(roles, slots, strict=True)]
        reason = "it does not render every message exactly once, in order"
        attempts = [[{"role": "system", "content": system}, *messages]] if has_instructions else []
        for attempt in [*attempts, _within_first(system, messages)]:
            try:
                text = self._render(attempt, variables)
            except RoleRefusedError as refusal:
                reason = f"it rejects the messages ({refusal})"
                continue
            is_complete = all(text.count(placeholder) == 1 for placeholder in [system, *slots] if placeholder)
            if is_complete and sorted(slots, key=text.index) == slots:
                return Layout(text, slots, system)
        raise unusable(reason)

    def _render(self, messages: Messages, variables: Mapping[str, bool]) -> str:
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


def render(template: str, messages: Messages, variables: Fields) -> str:
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

"""Builds prompts with the model's chat template. Control tokens are recognized only in the template's own text."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from arbitrage_cli.errors import ConversationError, TemplateError
from arbitrage_cli.inference.layouts import CONVERSATION, QUESTION, Layout, Layouts, Render
from arbitrage_cli.inference.step_text import BLANK_LINE, THOUGHT_END, StepEnd, StepText
from arbitrage_cli.inference.thinking import CLOSING, THINK, PhaseState, ThinkFormat, find_format, variables_for
from arbitrage_cli.types import Problem, Step, Trace

INSTRUCTIONS = "Please reason step by step, and put your final answer within \\boxed{}."  # from the paper


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """The system prompt, and the rule by which a step of an answer ends."""

    instructions: str = INSTRUCTIONS
    step_end: StepEnd = BLANK_LINE


DEFAULT_STYLE = PromptStyle()


@dataclass(frozen=True, slots=True)
class Control:
    """A control token in the template. If the control tokens are unknown, all template text is of this type."""

    text: str


@dataclass(frozen=True, slots=True)
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
    text, so questions and steps are split inside these markers.
    """

    def __init__(
        self,
        template: str | Render | None,
        control_tokens: Collection[str] | None,
        marker_tokens: Collection[str] = (),
        style: PromptStyle = DEFAULT_STYLE,
        variables: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._instructions, self._step_end = style.instructions.strip(), style.step_end
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

    @property
    def own_format(self) -> ThinkFormat | None:
        """The model's thinking format, or None if its markers do not occur in the template."""
        form, source = self.think_format, self._layouts.source
        return form if form.end in source or form.start in source else None

    @cached_property
    def thinks_by_itself(self) -> bool | None:
        """Whether the model thinks by default, or None if this is unknown."""
        form, source, layout = self.think_format, self._layouts.source, self._layouts.question
        state = form.state_after(layout.end)
        if state != "open":
            return state == "thoughts"
        if form.asks:
            return form.asks in layout.text
        if form.ends_turns or self._state_if_off == "answer":
            return True
        if form is THINK and form.end in source:  # models without thinking also handle it, in other models' messages
            return None
        return form.end in source

    @property
    def always_thinks(self) -> bool:
        """Whether the prompt ends in the thinking phase even if thinking is turned off."""
        return self._state_if_off == "thoughts"

    @property
    def _state_if_off(self) -> PhaseState:
        shown = self._layouts.shown(QUESTION, variables_for(False))
        return self.think_format.state_after(shown.rpartition(self._layouts.question.slots[-1])[2])

    @property
    def supports_effort(self) -> bool:
        low, high = (self._layouts.shown(QUESTION, variables_for(effort=effort)) for effort in ("low", "high"))
        return low != high and bool(low and high)

    def for_problem(self, problem: Problem) -> list[Segment]:
        """Return a problem's prompt. Raises ConversationError if the template rejects earlier turns or the system prompt."""
        try:
            return self.segments(problem)
        except TemplateError as error:
            if problem.effort is not None:  # the template may reject this value
                return self.for_problem(replace(problem, effort=None))
            raise ConversationError(error.message, "start a new conversation, or omit the system prompt") from error

    def segments(self, problem: Problem) -> list[Segment]:
        """Return a problem's prompt. Raises TemplateError if the template does not render every message."""
        roles, thinks = (*(turn.role for turn in problem.turns), *QUESTION), bool(problem.thinks)
        is_default = thinks == bool(self.thinks_by_itself) and problem.thinks is not False
        switch = None if is_default else thinks
        instructions = self._instructions if problem.system is None else problem.system.strip()
        layout = self._layouts.layout(roles, instructions != "", variables_for(switch, problem.effort))
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

    def _phase_start(self, layout: Layout, thinks: bool | None) -> str:
        form, state = self.think_format, self.think_format.state_after(layout.end)
        if thinks:
            return "" if state == "thoughts" else form.opens
        if state == "thoughts":
            return f"\n{form.closes}"
        by_itself = thinks is False if self.thinks_by_itself is None else self.thinks_by_itself
        return form.empty if state == "open" and by_itself else ""

    def step_text(self, trace: Trace, prefix: str = "") -> StepText:
        """Return the text of the next step, which will not contain the model's markers."""
        form, thinks = self.think_format, trace.phase == "think"
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
    pattern = "(" + "|".join(map(re.escape, found)) + ")"
    return re.compile((f"(?={pattern})" if overlapping else pattern) if found else "(?!)")


def _append_plain(segments: list[Segment], text: str) -> None:
    if not text:
        return
    if segments and isinstance(segments[-1], Plain):
        text = segments.pop().text + text
    segments.append(Plain(text))

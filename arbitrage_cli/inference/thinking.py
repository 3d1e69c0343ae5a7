"""Defines how models mark their thinking, and detects a model's thinking format.

Each model marks phases in its own format, and markers are never passed between models. To add a format, add an entry to
`FORMATS` before `THINK`, and to the table in the guide `models`.
"""

from collections.abc import Collection, Mapping
from typing import Literal

from arbitrage_cli.types import frozen

CLOSING = "I have thought long enough. I answer now."  # inserted when the thinking budget is used up

THINKING_VARIABLES = ("enable_thinking", "thinking")  # of chat templates
PhaseState = Literal["thoughts", "answer", "open"]  # what the model writes next after a prompt


@frozen
class ThinkFormat:
    """A chat template's markers for a thinking phase.

    `opens` begins the phase. The model writes `end` to end the phase. `closes` is the text from `end` to the answer. `skips`
    is the text before an answer without thinking (default: an empty phase). Some templates turn on thinking with the text
    `asks`. `shown_by` identifies the format (default: `end`). If `ends_turns` is true, the model also ends answers with
    `end`.
    """

    name: str
    opens: str
    end: str
    closes: str
    skips: str = ""
    asks: str = ""
    shown_by: str = ""
    ends_turns: bool = False

    @property
    def start(self) -> str:
        return self.opens.strip()

    def state_after(self, prompt_end: str) -> PhaseState:
        """Return the phase that follows a prompt, given the text after the prompt's last message."""
        opened, closed = prompt_end.rfind(self.start), prompt_end.rfind(self.end)
        if self.ends_turns:
            if opened >= 0:
                return "thoughts"
            return "answer" if self.skips in prompt_end else "open"
        if opened == closed:
            return "open"
        return "thoughts" if opened > closed else "answer"

    @property
    def empty(self) -> str:
        """The text that begins an answer without thinking."""
        return self.skips or f"{self.opens.rstrip()}\n\n{self.closes}"


THINK = ThinkFormat("think", "<think>\n", "</think>", "</think>\n\n")  # also for models without a thinking format

FORMATS: Mapping[str, ThinkFormat] = {
    form.name: form
    for form in (
        ThinkFormat(
            "harmony",
            "<|channel|>analysis<|message|>",
            "<|end|>",
            "<|end|><|start|>assistant<|channel|>final<|message|>",
            skips="<|channel|>final<|message|>",
            shown_by="<|channel|>",
            ends_turns=True,
        ),
        ThinkFormat(
            "channel",
            "<|channel>thought\n",
            "<channel|>",
            "<channel|>",
            "<|channel>thought\n<channel|>",
            asks="<|think|>",
        ),
        ThinkFormat("seed", "<seed:think>", "</seed:think>", "</seed:think>\n"),
        ThinkFormat("mistral", "[THINK]", "[/THINK]", "[/THINK]"),
        THINK,
    )
}


def find_format(template: str, special: Collection[str]) -> ThinkFormat:
    """Return the format found in the template or among the vocabulary's special tokens. The default is `THINK`."""
    for contains in (template.__contains__, special.__contains__):
        for form in FORMATS.values():
            if contains(form.shown_by or form.end):
                return form
    return THINK


def without_thoughts(text: str) -> str:
    """Remove thinking in any format from the beginning of an answer."""
    for form in FORMATS.values():
        thoughts, end, answer = text.lstrip().partition(form.closes.strip())
        if thoughts.startswith(form.start) and end:
            return answer.lstrip()
    return text

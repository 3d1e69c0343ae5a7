"""Decides where a step ends: at a blank line or the end of the sequence (arXiv 2512.05033, section 3), or at a limit.

Tokens cannot mark the end, because many vocabularies merge separators with preceding characters (".\\n\\n" is one token).
"""

import codecs
import copy
from collections.abc import Collection, Iterable, Sequence

from arbitrage_cli.types import Phase, StepStop, frozen

MAX_CHARACTER_BYTES = 4  # in UTF-8
LOOP_TOKENS, LOOP_ROUNDS = 60, 3  # a step ends if its last LOOP_TOKENS or more are at least LOOP_ROUNDS repetitions


@frozen
class StepEnd:
    """The rule that a step ends at the first `separator` after at least `min_chars` characters.

    Characters are counted from the first visible character.
    """

    separator: str
    min_chars: int = 1

    def __str__(self) -> str:
        name = {"\n": "a line feed", "\n\n": "a blank line"}.get(self.separator, repr(self.separator))
        return name if self.min_chars == 1 else f"{name} after {self.min_chars} characters"


BLANK_LINE = StepEnd("\n\n")  # from the paper
THOUGHT_END = StepEnd("\n\n", 100)  # measured: "Step length while thinking" in tests/benchmarks/README.md


class StepText:
    """The text of a step that is being written. A character is included once all its bytes have been added.

    Separators before the first visible character do not end the step.
    """

    def __init__(self, prefix: str = "", end: StepEnd = BLANK_LINE, marker: str = "", removed: Collection[str] = ()) -> None:
        """`prefix` is the text so far.

        The `marker` ends the step's phase. Neither the marker nor the `removed` markers are part of the text.
        """
        self._end = end
        self._marker = marker
        self._markers = sorted({marker, *removed} - {""})
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._withheld = ""  # the last characters, if they may begin a marker
        self.so_far = ""  # without an incomplete character
        self.has_marker = self._has_separator = False
        self.lacks_tokens = False  # whether the text omits a part of its tokens, except for the marker
        self._append(prefix)

    def add(self, piece: bytes) -> str:
        """Append one token's bytes. Return the completed characters, except any that may belong to a marker."""
        if self.has_marker:
            return ""
        text = self._without_markers(self._withheld + self._decoder.decode(piece))
        end = len(text) - (0 if self.has_marker else num_begun(text, self._markers))
        text, self._withheld = text[:end], text[end:]
        self._append(text)
        return text

    def _without_markers(self, text: str) -> str:
        """Return the text up to the marker, without removed markers."""
        while found := [(text.index(marker), marker) for marker in self._markers if marker in text]:
            start, marker = min(found)
            if marker == self._marker:
                self.has_marker = True
                return text[:start]
            self.lacks_tokens = True
            text = text[:start] + text[start + len(marker) :]
        return text

    @property
    def ended(self) -> bool:
        return self.has_marker or (self._has_separator and not self._withheld)

    def num_before_end(self, pieces: Iterable[bytes]) -> int:
        trial = self.copy()
        number = 0
        for piece in pieces:
            trial.add(piece)
            if trial.ended:
                break
            number += 1
        return number

    def copy(self) -> "StepText":
        copied = copy.copy(self)
        copied._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # noqa: SLF001 - of the same class
        copied._decoder.setstate(self._decoder.getstate())  # noqa: SLF001
        return copied

    @property
    def is_inside_character(self) -> bool:
        """Whether the last character is incomplete. A step must not end in the middle of a character."""
        return 0 < len(self._decoder.getstate()[0]) < MAX_CHARACTER_BYTES

    def finish(self, *, is_cut: bool = False) -> str:
        """Return the whole text, with U+FFFD for an incomplete last character.

        If the step `is_cut`, its text does not end inside a marker, because the next step would complete the marker.
        """
        if is_cut and self._withheld:
            self._withheld = ""
            self.lacks_tokens = True
        self.so_far += self._withheld + self._decoder.decode(b"", final=True)
        return self.so_far

    def _append(self, text: str) -> None:
        separator = self._end.separator
        num_old = len(self.so_far)
        self.so_far += text
        if text and not self._has_separator:
            first_visible = len(self.so_far) - len(self.so_far.lstrip())
            start = max(first_visible + self._end.min_chars, num_old - len(separator) + 1)
            self._has_separator = separator in self.so_far[start:]


def num_begun(text: str, markers: Collection[str]) -> int:
    """Return the number of trailing characters that may begin one of the markers."""
    longest = min(len(text), max(map(len, markers), default=1) - 1)
    return next((n for n in range(longest, 0, -1) if any(text.endswith(marker[:n]) for marker in markers)), 0)


def _is_loop(tokens: Sequence[object]) -> bool:
    if len(tokens) < LOOP_TOKENS:
        return False
    for period in range(1, len(tokens) // LOOP_ROUNDS + 1):
        if tokens[-1] == tokens[-1 - period]:
            last = tokens[-max(LOOP_TOKENS, LOOP_ROUNDS * period) :]
            if last[period:] == last[:-period]:
                return True
    return False


def end_of(phase: Phase) -> StepStop:
    """Return the reason why a phase's last step ends, if no limit ends it."""
    return "thought" if phase == "think" else "end"


def text_end(text: StepText, tokens: Sequence[object], phase: Phase) -> StepStop | None:
    """Return the reason in the text why the step ends, or None if the step continues. `tokens` may be ids or texts."""
    if text.has_marker:
        return end_of(phase)
    if text.ended:
        return "separator"
    return "loop" if _is_loop(tokens) and not text.is_inside_character else None


def step_end(stop: StepStop | None, *, is_spent: bool, is_last_thought: bool, is_full: bool) -> StepStop | None:
    """Return the reason why the step ends: `stop` (the result of `text_end`), the token budget or the context size."""
    if stop in ("thought", "end"):
        return stop
    if is_spent and is_last_thought:
        return "think_budget"
    if stop is None and is_full:
        return "context"
    return stop or ("budget" if is_spent else None)

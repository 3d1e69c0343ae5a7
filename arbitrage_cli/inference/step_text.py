"""Where a step ends.

A reasoning step is what a model writes until a blank line (`\\n\\n`) or the end of its sequence (arXiv 2512.05033, section 3). The
separator is found in the text, because many vocabularies merge it with the characters before it (".\\n\\n" is one token).
"""

import codecs
import copy
from collections.abc import Iterable
from dataclasses import dataclass

MAX_CHARACTER_BYTES = 4  # in UTF-8


@dataclass(frozen=True, slots=True)
class StepEnd:
    """A step ends at the first `separator` that begins after `least` characters, counted from the first visible one."""

    separator: str
    least: int = 1

    def __str__(self) -> str:
        """As messages have it."""
        name = {"\n": "a line feed", "\n\n": "a blank line"}.get(self.separator, repr(self.separator))
        return name if self.least == 1 else f"{name} after {self.least} characters"


BLANK_LINE = StepEnd("\n\n")
"""The paper's."""

THOUGHT_END = StepEnd("\n\n", 100)
"""Thoughts are full of short paragraphs such as "Wait.". The length was measured: tests/benchmarks/README.md, "Steps of thoughts"."""


class StepText:
    """The text of one step while it is being written.

    Bytes arrive token by token; a character whose bytes are split over tokens appears when it is complete. Blank lines before
    the first visible character belong to the step that follows, so that leading newlines give no empty step. The token that
    completes the separator ends the step; its characters after the separator stay in the step.
    """

    def __init__(self, beginning: str = "", end: StepEnd = BLANK_LINE, marker: str = "") -> None:
        """`beginning`: what is already written of the step. A `marker` ends its phase, and is no part of the text."""
        self._end = end
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._parts = [beginning]
        self._marker = marker
        self._withheld = ""  # the last characters, which may begin the marker
        self.has_marker = False
        self._tail = ""  # the last characters in which a separator may have begun
        self._length = 0  # characters from the first visible one on
        self._has_separator = False
        self._look_for_separator(beginning)

    def add(self, piece: bytes) -> str:
        """Append one token's bytes. Returns the characters that they completed. Sets `ended` at the separator."""
        return self._take(self._decoder.decode(piece))

    def _take(self, text: str) -> str:
        """Take characters, but for those of the marker and what may begin one."""
        if self.has_marker:
            return ""
        if self._marker:
            text, self.has_marker, self._withheld = _before_marker(self._withheld + text, self._marker)
        if text:
            self._parts.append(text)
            self._look_for_separator(text)
        return text

    @property
    def ended(self) -> bool:
        """Whether the step is complete: its separator or the marker is there."""
        return self.has_marker or (self._has_separator and not self._withheld)

    def num_before_end(self, pieces: Iterable[bytes]) -> int:
        """How many of these pieces may follow before one ends the step."""
        trial, number = copy.deepcopy(self), 0
        for piece in pieces:
            trial.add(piece)
            if trial.ended:
                break
            number += 1
        return number

    @property
    def is_inside_character(self) -> bool:
        """Whether bytes of the last character are still missing. A step does not stop there."""
        return 0 < len(self._decoder.getstate()[0]) < MAX_CHARACTER_BYTES

    @property
    def so_far(self) -> str:
        """The text so far, without an incomplete character."""
        return "".join(self._parts)

    def finish(self) -> str:
        """The whole text. An incomplete character becomes U+FFFD."""
        rest = self._withheld + self._decoder.decode(b"", final=True)
        if rest:
            self._parts.append(rest)
        return self.so_far

    def _look_for_separator(self, text: str) -> None:
        seen = self._tail + (text if self._length else text.lstrip())
        before = self._length - len(self._tail)
        separator, self._length = self._end.separator, before + len(seen)
        self._has_separator = self._has_separator or seen.find(separator, max(0, self._end.least - before)) >= 0
        self._tail = seen[max(0, len(seen) - len(separator) + 1) :]


def _before_marker(text: str, marker: str) -> tuple[str, bool, str]:
    """The text before the marker, whether it is there, and the end of the text that may begin it."""
    before, found, _ = text.partition(marker)
    if found:
        return before, True, ""
    end = len(text) - num_begun(text, marker)
    return text[:end], False, text[end:]


def num_begun(text: str, marker: str) -> int:
    """How many characters at the end of the text may be the beginning of the marker."""
    return next((n for n in range(min(len(marker) - 1, len(text)), 0, -1) if text.endswith(marker[:n])), 0)

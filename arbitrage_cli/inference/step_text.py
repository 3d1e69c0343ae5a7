"""Where a step ends.

A reasoning step is what a model writes until a blank line (`\\n\\n`) or the end of its sequence (arXiv 2512.05033, section 3). The
separator is found in the text, because many vocabularies merge it with the characters before it (".\\n\\n" is one token). Knows no
vocabulary, no model and no task: bytes in, characters out.
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


class StepText:
    """The text of one step while it is being written.

    Bytes arrive token by token; a character whose bytes are split over tokens appears when it is complete. Blank lines before
    the first visible character belong to the step that follows, so that leading newlines give no empty step. The token that
    completes the separator ends the step; its characters after the separator stay in the step.
    """

    def __init__(self, beginning: str = "", end: StepEnd = BLANK_LINE) -> None:
        """`beginning`: what is already written of the step."""
        self._end = end
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._parts = [beginning]
        self._tail = ""  # the last characters in which a separator may have begun
        self._length = 0  # characters from the first visible one on
        self.ended = False
        self._look_for_separator(beginning)

    def add(self, piece: bytes) -> str:
        """Append one token's bytes. Returns the characters that they completed. Sets `ended` at the separator."""
        text = self._decoder.decode(piece)
        if text:
            self._parts.append(text)
            self._look_for_separator(text)
        return text

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
        rest = self._decoder.decode(b"", final=True)
        if rest:
            self._parts.append(rest)
        return self.so_far

    def _look_for_separator(self, text: str) -> None:
        seen = self._tail + (text if self._length else text.lstrip())
        before = self._length - len(self._tail)
        separator, self._length = self._end.separator, before + len(seen)
        self.ended = self.ended or seen.find(separator, max(0, self._end.least - before)) >= 0
        self._tail = seen[max(0, len(seen) - len(separator) + 1) :]

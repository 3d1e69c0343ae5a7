"""Where a reasoning step ends.

A step is what a model writes until a blank line (`\\n\\n`) or the end of its sequence (arXiv 2512.05033, section 3). The blank
line is found in the text, because many vocabularies merge it with the characters before it (".\\n\\n" is one token). Knows no
vocabulary and no model: bytes in, characters out.
"""

import codecs

SEPARATOR = "\n\n"
MAX_CHARACTER_BYTES = 4  # in UTF-8


class StepText:
    """The text of one step while it is being written.

    Bytes arrive token by token; a character whose bytes are split over tokens appears when it is complete. Blank lines before
    the first visible character belong to the step that follows, so that leading newlines give no empty step. The token that
    completes the separator ends the step; its characters after the separator stay in the step.
    """

    def __init__(self, beginning: str = "") -> None:
        """`beginning`: what is already written of the step."""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._parts = [beginning]
        self._tail = ""  # the last len(SEPARATOR) - 1 characters, once something visible was written
        self._visible = False
        self.ended = False
        self._look_for_separator(beginning)

    def add(self, piece: bytes) -> str:
        """Append one token's bytes. Returns the characters that they completed. Sets `ended` at the separator."""
        text = self._decoder.decode(piece)
        if text:
            self._parts.append(text)
            self._look_for_separator(text)
        return text

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
        if not self._visible:
            text = text.lstrip()
            self._visible = bool(text)
        seen = self._tail + text
        self.ended = self.ended or SEPARATOR in seen
        self._tail = seen[-(len(SEPARATOR) - 1) :] if self._visible else ""

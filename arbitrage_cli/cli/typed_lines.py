"""Lines that somebody types, with editing, completion and a history; or the lines of a pipe. Knows no command."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

HISTORY = 1000  # lines


class TypedLines:
    """Reads lines from standard input."""

    def __init__(self) -> None:
        self._is_typed = sys.stdin.isatty()
        self._is_edited = self._is_typed and sys.stdout.isatty()

    def read(self, prompt: str) -> str | None:
        """The next line without white space around it; None at the end. The prompt is for who types."""
        if self._is_edited:
            with contextlib.suppress(EOFError):
                return input(prompt).strip()
            sys.stdout.write("\n")
            return None
        if self._is_typed:
            sys.stderr.write(prompt)
            sys.stderr.flush()
        return sys.stdin.readline().strip() or self._after_blank()

    def _after_blank(self) -> str | None:
        """A blank line is no end."""
        for line in sys.stdin:
            if line.strip():
                return line.strip()
        return None


@contextlib.contextmanager
def edited_lines(words: Sequence[str], history: Path) -> Iterator[TypedLines]:
    """Lines with the editing of readline where it is installed: Tab completes these words, and a file keeps what was typed."""
    lines = TypedLines()
    try:
        import readline
    except ImportError:  # a Python that was built without it
        yield lines
        return
    readline.set_completer(lambda text, state: [*(word for word in words if word.startswith(text)), None][state])
    readline.set_completer_delims(" ")
    readline.parse_and_bind("tab: complete")
    readline.set_history_length(HISTORY)
    with contextlib.suppress(OSError):
        readline.read_history_file(history)
    try:
        yield lines
    finally:
        with contextlib.suppress(OSError):
            if sys.stdin.isatty():
                history.parent.mkdir(parents=True, exist_ok=True)
                history.touch(mode=0o600)
                readline.write_history_file(history)

"""How a run is shown while it goes on. A `Display` is chosen once, by flag and terminal; all of it goes to stderr.

Displays see records and events, never a model or a file. Text that came from a model, a problem or a model file is
data: `safe` takes everything out of it that a terminal could obey.
"""

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from arbitrage_cli.errors import OutputError, ReaderGoneError
from arbitrage_cli.runs.records import RunInfo
from arbitrage_cli.runs.summary import Tally
from arbitrage_cli.types import Event, ModelRole

_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def safe(text: str) -> str:
    """The text without control characters (line feed and tab stay), lone surrogates and writing-direction overrides."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(character for character in text if character in "\n\t" or _is_visible(character))


def one_line(text: str) -> str:
    """`safe` text with all white space runs, line feeds included, as single spaces."""
    return " ".join(safe(text).split())


def write(stream: TextIO, text: str) -> None:
    """Write and flush. ReaderGoneError if a pipe was closed at its other end, OutputError if it fails otherwise."""
    with writing():
        stream.write(text)
        stream.flush()


@contextmanager
def writing() -> Iterator[None]:
    """What the system says of a stream that cannot be written to, as an error of this program: see `write`."""
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderGoneError from error
    except OSError as error:
        raise OutputError(f"results cannot be written ({error.strerror})", "free some space, or write elsewhere") from error


def _is_visible(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cs") and character not in _BIDI


class Loading(Protocol):
    """What every display can show before anything is solved."""

    def loading(self, role: ModelRole, source: str, fraction: float) -> None:
        """A model is being loaded; `fraction` from 0 to 1."""
        ...

    def note(self, text: str) -> None:
        """A line to the user: a warning, an error about one problem."""
        ...


class Display(Loading, Protocol):
    """Shows one run. `close` leaves the terminal as it was, and may be called twice."""

    def begin(self, run: RunInfo) -> None:
        """Models are loaded, problems follow."""
        ...

    def handle(self, event: Event) -> None: ...

    def end(self, figures: Tally, num_solved: int, num_failed: int) -> None:
        """All problems are done; the figures are those of all of them."""
        ...

    def result(self, text: str) -> None:
        """A line for stdout, written so that it does not disturb what is shown."""
        ...

    def close(self) -> None: ...

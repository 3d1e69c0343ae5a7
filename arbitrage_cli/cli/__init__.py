"""The command line: `main(argv)` runs a command and returns its exit code.

The one place where errors are shown and signals become an end. The commands themselves are imported when the signals are
in hand, so that Ctrl-C ends even a start-up in one line.
"""

import contextlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from arbitrage_cli.cli.output import Output, is_drawable, refuse_closed_output
from arbitrage_cli.display.text import one_line, safe
from arbitrage_cli.errors import ArbitrageError, DefectError, InterruptedRunError, OutputError
from arbitrage_cli.system.signals import stop


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (default: the process's own arguments) and return its exit code; never raises."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with _streams():
        try:
            with _signals():
                refuse_closed_output()
                from arbitrage_cli.cli.app import run

                code = run(arguments)
                sys.stdout.flush()
                return code
        except _Interruption as interruption:
            return _show(InterruptedRunError("interrupted", exit_code=128 + interruption.number), debug=False)
        except ArbitrageError as error:
            return _show(error, debug=_is_debugging(arguments))
        except Exception as error:  # noqa: BLE001 - a defect of this program: still one line, and how to see more
            wrapped = DefectError(
                f"unexpected {type(error).__name__}: {error}",
                "a defect: please report it, with what ARBITRAGE_DEBUG=1 shows",
            )
            wrapped.__cause__ = error
            return _show(wrapped, debug=_is_debugging(arguments))


_HANDLED = [signal.SIGINT, signal.SIGTERM, *([signal.SIGTSTP] if hasattr(signal, "SIGTSTP") else [])]


class _Interruption(BaseException):
    """A signal asks the run to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _show_cursor() -> None:
    """The live view hides it; whatever happens next, the user shall have it back."""
    with contextlib.suppress(OSError, ValueError):
        if is_drawable(sys.stderr):
            os.write(sys.stderr.fileno(), b"\x1b[?25h")


@contextlib.contextmanager
def _streams() -> Iterator[None]:
    """Standard streams that cost no result: a closed standard error, an `Output` as standard output.

    What is left in them is flushed in the end. Of a stream that cannot be written to the rest is dropped: Python would
    complain about it when it ends.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(sys.stdout, io.TextIOWrapper):
            stack.callback(setattr, sys, "stdout", sys.stdout)
            sys.stdout = Output(sys.stdout)
            stack.callback(sys.stdout.give_back)
        if sys.stderr is None:
            stack.callback(setattr, sys, "stderr", None)
            sys.stderr = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
        yield
        for stream in filter(None, (sys.stdout, sys.stderr)):
            try:
                stream.flush()
            except (OSError, ValueError, OutputError):
                with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
                    os.dup2(nowhere.fileno(), stream.fileno())


def _is_debugging(arguments: Sequence[str]) -> bool:
    return "--debug" in arguments or os.environ.get("ARBITRAGE_DEBUG", "").lower() in ("1", "true", "yes", "on")


def _show(error: ArbitrageError, *, debug: bool) -> int:
    lines = safe("".join(traceback.format_exception(error))).splitlines() if debug else []
    if error.message:
        lines.append(f"arbitrage: {one_line(error.message)}")
    if error.hint:
        lines.append(f"  {one_line(error.hint)}")
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        sys.stderr.flush()
    return error.exit_code


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does, so that the terminal is restored. The second signal of a kind ends it at once."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        _show_cursor()
        raise _Interruption(number)

    def suspend(number: int, frame: FrameType | None) -> None:
        _show_cursor()
        signal.signal(number, signal.SIG_DFL)
        stop(number)
        signal.signal(number, suspend)

    previous = {number: signal.getsignal(number) for number in _HANDLED}
    # What was ignored from the start stays so, as Ctrl-C is for the background jobs of a script.
    wanted = [number for number, handler in previous.items() if handler != signal.SIG_IGN]
    try:
        for number in wanted:
            signal.signal(number, suspend if number == getattr(signal, "SIGTSTP", None) else interrupt)
    except ValueError:  # not the main thread: the host program has the signals
        wanted = []
    try:
        yield
    finally:
        for number in wanted:
            signal.signal(number, previous[number])

"""The entry point: shows errors and returns exit codes."""

import contextlib
import errno
import io
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from arbitrage_cli.cli.output import ClosedOutput, Output, show_cursor, without_blocking
from arbitrage_cli.display.text import one_line, safe
from arbitrage_cli.errors import (
    ArbitrageError,
    DefectError,
    InterruptedRunError,
    ModelMemoryError,
    OutputError,
)
from arbitrage_cli.system.signals import Interruption, interruptible

HUB_SETTINGS = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_VERBOSITY": "error"}
"""The command line's defaults for huggingface_hub, whose warnings would break into a live display."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. `argv` defaults to the arguments of the process. Never raises."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    os.environ.update(HUB_SETTINGS | os.environ)
    debug = "--debug" in arguments or os.environ.get("ARBITRAGE_DEBUG", "").lower() in ("1", "true", "yes", "on")
    with _streams():
        try:
            with interruptible(show_cursor):
                from arbitrage_cli.cli.app import run

                code = run(arguments)
                sys.stdout.flush()
                return code
        except Interruption as interruption:
            return _show(InterruptedRunError("interrupted", exit_code=128 + interruption.number), debug=False)
        except ArbitrageError as error:
            return _show(error, debug=debug)
        except MemoryError:
            hint = "close other programs, use a smaller --ctx or --concurrency, or raise the limit (ulimit -v)"
            return _show(ModelMemoryError("out of memory", hint), debug=debug)
        except Exception as error:  # noqa: BLE001 - a defect of this program also gets one line and a hint
            hint = "this is a bug: please set ARBITRAGE_DEBUG=1, run the command again, and report the output"
            wrapped: ArbitrageError = DefectError(f"unexpected {type(error).__name__}: {error}", hint)
            if _is_out_of_files(error):
                wrapped = ArbitrageError("too many open files")
            elif isinstance(error, OSError) and error.filename:
                wrapped = ArbitrageError(f"{error.filename}: {error.strerror}", "check the path and its permissions")
            wrapped.__cause__ = error
            return _show(wrapped, debug=debug)


@contextlib.contextmanager
def _streams() -> Iterator[None]:
    """Replace standard output with an `Output`, and standard error with a stream that never blocks.

    A closed stream becomes the null device, so that no other file gets its descriptor. Results that are written to a closed
    standard output are an error. Both streams are flushed at the end. Data that cannot be written is dropped, because Python
    would report an error at exit.
    """
    with contextlib.ExitStack() as stack:
        if None in (sys.stdin, sys.stdout, sys.stderr):
            while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # up to standard error
                pass
            os.close(descriptor)
        if sys.stdout is None:
            stack.callback(setattr, sys, "stdout", None)
            sys.stdout = ClosedOutput()
        elif isinstance(sys.stdout, io.TextIOWrapper):
            stack.callback(setattr, sys, "stdout", sys.stdout)
            sys.stdout = Output(sys.stdout)
            stack.callback(sys.stdout.give_back)
        stack.callback(setattr, sys, "stderr", sys.stderr)
        if sys.stderr is not None:
            sys.stderr = without_blocking(sys.stderr)
        else:
            sys.stderr = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
        yield
        for stream in filter(None, (sys.stdout, sys.stderr)):
            try:
                stream.flush()
            except (OSError, ValueError, OutputError):
                with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
                    os.dup2(nowhere.fileno(), stream.fileno())


def _is_out_of_files(error: BaseException | None) -> bool:
    return error is not None and (
        getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE)
        or _is_out_of_files(error.__cause__ or error.__context__)
    )


def _show(error: ArbitrageError, *, debug: bool) -> int:
    lines = safe("".join(traceback.format_exception(error))).splitlines() if debug else []
    if error.message:
        lines.append(f"arbitrage: {one_line(error.message)}")
    if hint := "raise the limit: ulimit -n 256" if _is_out_of_files(error) else error.hint:
        lines.append(f"  {one_line(hint)}")
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        sys.stderr.flush()
    return error.exit_code

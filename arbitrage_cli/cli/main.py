"""The entry point: shows errors and returns exit codes."""

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Sequence

from arbitrage_cli.cli.streams import command_streams, show_cursor
from arbitrage_cli.display.text import one_line, safe
from arbitrage_cli.errors import (
    ArbitrageError,
    DefectError,
    InterruptedRunError,
    ModelMemoryError,
)
from arbitrage_cli.system.signals import Interruption, interruptible

HUB_SETTINGS = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_VERBOSITY": "error"}
"""The command line's defaults for huggingface_hub, whose warnings would break into a live display."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. `argv` defaults to the arguments of the process. Never raises."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    os.environ.update(HUB_SETTINGS | os.environ)
    debug = "--debug" in arguments or os.environ.get("ARBITRAGE_DEBUG", "").lower() in ("1", "true", "yes", "on")
    with command_streams():
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
        except Exception as error:  # noqa: BLE001 - a defect of this program also gets one line and a hint
            shown = _as_arbitrage_error(error)
            shown.__cause__ = error
            return _show(shown, debug=debug)


def _as_arbitrage_error(error: Exception) -> ArbitrageError:
    """Return the error to show for an unexpected exception."""
    if isinstance(error, MemoryError):
        hint = "close other programs, use a smaller --ctx or --concurrency, or raise the limit (ulimit -v)"
        return ModelMemoryError("out of memory", hint)
    if _is_out_of_files(error):
        return ArbitrageError("too many open files")
    if isinstance(error, OSError) and error.filename:
        return ArbitrageError(f"{error.filename}: {error.strerror}", "check the path and its permissions")
    hint = "this is a bug: please set ARBITRAGE_DEBUG=1, run the command again, and report the output"
    return DefectError(f"unexpected {type(error).__name__}: {error}", hint)


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

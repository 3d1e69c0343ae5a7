"""The entry point of `arbitrage` and `python -m arbitrage_cli`. Signal handlers are installed before the slow imports."""

import signal
import sys
from types import FrameType
from typing import NoReturn


def main() -> int:
    """Run the command line and return the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _interrupt)
    try:
        from arbitrage_cli.cli.main import main as run

        return run()
    except KeyboardInterrupt as interruption:
        if sys.stderr is not None:
            sys.stderr.write("arbitrage: interrupted\n")
        return 128 + (interruption.args[0] if interruption.args else signal.SIGINT)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) in (_interrupt, signal.default_int_handler):
                signal.signal(number, signal.SIG_DFL)  # Python would show a traceback while it waits for threads


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    sys.exit(main())

"""Where the program begins: `python -m arbitrage_cli` is the same as `arbitrage`. Handles Ctrl-C before the slow imports."""

import sys


def main() -> int:
    """Run the command line of this process; returns its exit code. Ctrl-C ends it at any time."""
    try:
        from arbitrage_cli.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        if sys.stderr is not None:
            sys.stderr.write("arbitrage: interrupted\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())

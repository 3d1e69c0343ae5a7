"""`python -m arbitrage_cli` is the same as `arbitrage`."""

import sys

from arbitrage_cli.commands import main

if __name__ == "__main__":
    sys.exit(main())

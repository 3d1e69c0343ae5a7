"""Runs `arbitrage` and writes the modules that it enters, in order of first entry: `python traced.py FILE ARGUMENTS`.

Imports do not count. Of `serve`, only the threads that answer requests count.
"""

import importlib
import json
import pkgutil
import sys
import threading
from pathlib import Path
from types import FrameType

import arbitrage_cli

ROOT = Path(arbitrage_cli.__file__).parent
PROGRAMS = ("arbitrage_cli.__main__", "arbitrage_cli.problems.program_driver")  # they run when they are imported


def main() -> None:
    output, *arguments = sys.argv[1:]
    for module in pkgutil.walk_packages(arbitrage_cli.__path__, "arbitrage_cli."):
        if module.name not in PROGRAMS:
            importlib.import_module(module.name)
    entered: dict[str, None] = {}

    def note(frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT):
            entered.setdefault(path.relative_to(ROOT).with_suffix("").as_posix())

    from arbitrage_cli.cli.main import main as arbitrage

    sys.argv[1:] = arguments
    threading.setprofile(note)
    if arguments[0] != "serve":
        sys.setprofile(note)
    try:
        arbitrage()
    finally:
        sys.setprofile(None)
        Path(output).write_text(json.dumps(list(entered)))


if __name__ == "__main__":
    main()

"""The program with other time limits for models' servers: `hurry.py CONSTANTS COMMAND...`, where CONSTANTS is a JSON object."""

import json
import sys
from collections.abc import Mapping
from types import ModuleType

from arbitrage_cli.__main__ import main
from arbitrage_cli.inference.servers import connection, patience


def module_of(name: str) -> ModuleType:
    (module,) = (module for module in (connection, patience) if hasattr(module, name))
    return module


def hurry(constants: Mapping[str, float]) -> None:
    for name, value in constants.items():
        setattr(module_of(name), name, value)


if __name__ == "__main__":
    hurry(json.loads(sys.argv.pop(1)))
    sys.exit(main())

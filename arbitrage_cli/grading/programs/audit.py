"""A hook of Python's, for systems that keep a program from neither files nor network.

It stops accidents and simple attacks. It is no security boundary: a skilled attacker gets around it.
"""

import os
import sys
from collections.abc import Iterable
from typing import Any

_REFUSED = ("os.", "socket.", "subprocess.", "shutil.", "ctypes.", "pty.", "resource.", "signal.pthread_kill", "webbrowser.")
_READS = ("open", "os.listdir", "os.scandir")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def refuse_by_hook(readable: Iterable[str], folder: str) -> None:
    """From now on, raise PermissionError for files outside of these folders, network, processes and C functions."""
    resolve, below = os.path.realpath, tuple(f"{os.path.realpath(one)}/" for one in readable)
    own = f"{os.path.realpath(folder)}/"

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _READS:
            path = arguments[0] if arguments[0] is not None else "."
            is_writing = event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & _WRITING)
            place = own if isinstance(path, int) else f"{resolve(os.fsdecode(path))}/"
            is_refused = not place.startswith(own if is_writing else (own, *below))
        else:
            is_refused = event.startswith(_REFUSED)
        if is_refused:
            raise PermissionError(f"{event} is not allowed here")

    sys.addaudithook(refuse)

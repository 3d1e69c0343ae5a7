"""What a file without permission is to whoever is not root: the tests may run as root, who may read everything."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def unprivileged(path: Path) -> Iterator[None]:
    """Be nobody, if this is root, with the way to this file open; whatever is imported must have been imported before."""
    if os.geteuid():
        yield
        return
    folders = [folder for folder in path.parents if folder.owner() == "root" and len(folder.parts) > 2]
    modes = {folder: folder.stat().st_mode for folder in folders}
    try:
        for folder, mode in modes.items():
            folder.chmod(mode | 0o111)
        os.seteuid(NOBODY)
        yield
    finally:
        os.seteuid(0)
        for folder, mode in modes.items():
            folder.chmod(mode)

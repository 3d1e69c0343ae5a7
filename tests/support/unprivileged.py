"""Tests of files without permission, for a test process that runs as root and may read everything."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def unprivileged(path: Path) -> Iterator[None]:
    """Be nobody if this is root, with the folders above this file open. Import what you need before."""
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

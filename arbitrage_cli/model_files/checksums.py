"""Compares files with their published checksums, and remembers which files were right.

A published checksum is a sha256, or the git id of a small file. Knows no network.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arbitrage_cli.system.files import read_chunks, write_atomically

SHA256 = re.compile(r"[0-9a-f]{64}")
GIT_ID = re.compile(r"[0-9a-f]{40}")


def is_right(path: Path, checksum: str, on_bytes: Callable[[int], None]) -> bool:
    """Whether the file has the checksum; `on_bytes` receives how many bytes were read so far. OSError.

    A file that was right is not read again while its size, mtime and inode stay the same: hashing gigabytes takes longer
    than loading them.
    """
    status = path.stat()
    record = {"checksum": checksum, "size": status.st_size, "mtime": status.st_mtime_ns, "inode": status.st_ino}
    if read_record(path) == record:
        return True
    digest = hashlib.sha256() if SHA256.fullmatch(checksum) else _git_digest(status.st_size)
    done = 0
    for chunk in read_chunks(path):
        digest.update(chunk)
        done += len(chunk)
        on_bytes(done)
    if digest.hexdigest() != checksum:
        return False
    with contextlib.suppress(OSError):  # a folder that cannot be written costs time, not safety
        write_atomically(_record_file(path), json.dumps(record).encode(), make_folder=True)
    return True


def _git_digest(size: int) -> "hashlib._Hash":
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def _record_file(path: Path) -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "arbitrage" / "verified" / f"{hashlib.sha256(str(path).encode()).hexdigest()}.json"


def read_record(path: Path) -> dict[str, Any]:
    """The checksum, size, mtime and inode that the file had when it was last found right; empty if it never was."""
    try:
        record = json.loads(_record_file(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}

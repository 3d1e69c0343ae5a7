"""Checksums of files: compares them with published ones, and remembers them while a file stays the same.

A published checksum is a sha256, or the git id of a small file.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from arbitrage_cli.system.files import read_chunks, sha256_of, state_of, write_atomically

SHA256 = re.compile(r"[0-9a-f]{64}")
GIT_ID = re.compile(r"[0-9a-f]{40}")
VERIFIED, SEEN = "verified", "seen"
"""What is remembered of a file: its published checksum, which it had; its sha256, whatever that should be."""


def is_right(path: Path, checksum: str, on_bytes: Callable[[int], None]) -> bool:
    """Whether the file has the checksum; `on_bytes` receives how many bytes were read so far. OSError.

    A file that was right is not read again while its size, mtime and inode stay the same: hashing gigabytes takes longer
    than loading them.
    """
    record = {"checksum": checksum, **state_of(path)}
    if read_record(path) == record:
        return True
    digest = hashlib.sha256() if SHA256.fullmatch(checksum) else _git_digest(path.stat().st_size)
    done = 0
    for chunk in read_chunks(path):
        digest.update(chunk)
        done += len(chunk)
        on_bytes(done)
    if digest.hexdigest() != checksum:
        return False
    write_note(VERIFIED, [str(path.absolute())], record)
    return True


def sha256_seen(path: Path) -> str:
    """The file's sha256. It is read only if its size, mtime or inode changed since the last time. ModelFileError, OSError."""
    known, state = unchanged_sha256(path), state_of(path)
    if known is not None:
        return known
    checksum = sha256_of([path])
    write_note(SEEN, [str(path.absolute())], {"checksum": checksum, **state})
    return checksum


def unchanged_sha256(path: Path) -> str | None:
    """The sha256 that the file had when it was seen, if its size, mtime and inode are still the same. OSError."""
    known = read_record(path, SEEN)
    return str(known["checksum"]) if known == {"checksum": known.get("checksum"), **state_of(path)} else None


def published_sha256(path: Path) -> str | None:
    """The sha256 that the Hub publishes for a file of its cache: the name of the blob, or what it was found right with."""
    known = (path.readlink().name if path.is_symlink() else None, read_record(path).get("checksum"))
    return next((text for text in known if isinstance(text, str) and SHA256.fullmatch(text)), None)


def read_record(path: Path, kind: str = VERIFIED) -> dict[str, Any]:
    """The checksum, size, mtime and inode that the file had when it was last found right, or seen; empty if it never was."""
    record = read_note(kind, [str(path.absolute())])
    return record if isinstance(record, dict) else {}


def read_note(kind: str, names: Iterable[str]) -> Any:
    """What was kept under these names; None if nothing was."""
    try:
        return json.loads(_note_file(kind, names).read_bytes())
    except (OSError, ValueError, RuntimeError):  # also of a user without a home folder
        return None


def write_note(kind: str, names: Iterable[str], value: Any) -> None:
    """Keep something in the user's cache. A folder that cannot be written costs time, not safety."""
    with contextlib.suppress(OSError, RuntimeError):
        write_atomically(_note_file(kind, names), json.dumps(value).encode(), new_folder=True)


def _note_file(kind: str, names: Iterable[str]) -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    name = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()
    return Path(root).expanduser() / "arbitrage" / kind / f"{name}.json"


def _git_digest(size: int) -> "hashlib._Hash":
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)

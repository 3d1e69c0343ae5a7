"""Verifies the checksums of files, and caches the checksum of a file until the file changes."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from arbitrage_cli.errors import ModelFileError, os_errors
from arbitrage_cli.system.files import models_folder, read_chunks, state_of
from arbitrage_cli.types import frozen

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SEEN = "seen"  # the kind of the notes with computed sha256s

Origin = Literal["shipped", "published", "recorded", "unknown"]


@frozen
class FileProgress:
    """The progress of downloading, checking or hashing a file, in bytes."""

    activity: Literal["downloading", "checking", "hashing"]
    file: str
    done: int
    total: int


OnProgress = Callable[[FileProgress], None]


def no_progress(progress: FileProgress) -> None:
    pass


@frozen
class Identity:
    """The sha256 of a file, the origin of the expected sha256, and whether the two checksums differ."""

    path: Path
    sha256: str
    origin: Origin
    is_damaged: bool

    def check(self) -> None:
        if self.is_damaged:
            hint = "reinstall arbitrage" if self.origin == "shipped" else "download the file again; the disk may be failing"
            raise ModelFileError(f"{self.path}: the sha256 differs from the {self.origin} one", hint)


def identify(path: Path, on_progress: OnProgress = no_progress) -> Identity:
    known: dict[Origin, str | None] = {
        "shipped": _shipped_sha256(path),
        "published": published_sha256(path),
        "recorded": unchanged_sha256([path]),
    }
    sha256 = sha256_of([path], on_progress)
    origin = next((name for name, expected in known.items() if expected), None)
    return Identity(path, sha256, origin or "unknown", origin is not None and known[origin] != sha256)


def sha256_of(files: Sequence[Path], on_progress: OnProgress = no_progress) -> str:
    """Return the sha256 of the concatenated files. Raises ModelFileError if a file cannot be read."""
    with _read_errors(files):
        total = sum(path.stat().st_size for path in files)
        done = 0
        digest = hashlib.sha256()
        for chunk in chain.from_iterable(map(read_chunks, files)):
            digest.update(chunk)
            done += len(chunk)
            on_progress(FileProgress("checking", files[0].name, done, total))
    return digest.hexdigest()


def _read_errors(files: Sequence[Path]) -> AbstractContextManager[None]:
    return os_errors(ModelFileError, f"{files[0]}: cannot be read", "check the path and the file's permissions")


def sha256_seen(files: Sequence[Path]) -> str:
    """Return `known_sha256`. Raises ModelFileError if a file cannot be read, or differs from the published file."""
    known = known_sha256(files)
    if len(files) == 1 and published_sha256(files[0]) not in (None, known):
        raise ModelFileError(f"{files[0]}: the sha256 differs from the published one", "download the file again")
    return known


def known_sha256(files: Sequence[Path], on_progress: OnProgress = no_progress) -> str:
    """Return the sha256 of the concatenated files. The files are read again only if a size, mtime or inode has changed.

    Raises ModelFileError if a file cannot be read.
    """
    with _read_errors(files):
        known = unchanged_sha256(files)
        if known is None:
            known = sha256_of(files, on_progress)
            write_note(_SEEN, _names(files), {"checksum": known, "files": [state_of(path) for path in files]})
    return known


def unchanged_sha256(files: Sequence[Path]) -> str | None:
    """Return the recorded sha256 of the files, or None if a file has changed since then."""
    note = read_note(_SEEN, _names(files))
    is_same = isinstance(note, dict) and note.get("files") == [state_of(path) for path in files]
    return str(note["checksum"]) if is_same else None


def published_sha256(path: Path) -> str | None:
    """Return the sha256 in the name of a file in the cache of the Hub, to which `path` links, or of Ollama."""
    target = path.readlink().name if path.is_symlink() else path.name.removeprefix("sha256-")
    return target if _SHA256.fullmatch(target) else None


def _shipped_sha256(path: Path) -> str | None:
    """Return the sha256 of a shipped file, or None for other files."""
    if path.resolve().parent != models_folder().resolve():
        return None
    lines = map(str.split, (models_folder() / "SHA256SUMS").read_text(encoding="utf-8").splitlines())
    return next((sha256 for sha256, name in lines if name == path.name), None)


def read_note(kind: str, names: Iterable[str]) -> Any:
    try:
        return json.loads(_note_file(kind, names).read_bytes())
    except (OSError, ValueError, RuntimeError):  # RuntimeError: the user has no home folder
        return None


def write_note(kind: str, names: Iterable[str], value: Any) -> None:
    """Store a JSON value in the user's cache.

    The value may be lost, for example if the disk is full, because notes only save time. A half-written note counts as lost.
    """
    with suppress(OSError, RuntimeError):
        file = _note_file(kind, names)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))


def _names(files: Iterable[Path]) -> list[str]:
    return [str(path.absolute()) for path in files]


def _note_file(kind: str, names: Iterable[str]) -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    name = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()
    return Path(root).expanduser() / "arbitrage" / kind / f"{name}.json"

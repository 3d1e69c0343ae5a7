"""Reads untrusted files safely, writes files atomically, and validates JSON and TOML values as records."""

import errno
import functools
import glob
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import platformdirs

from arbitrage_cli.errors import UsageError, in_plain_words

if TYPE_CHECKING:  # slow to import
    from filelock import FileLock
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")

CHUNK = 1 << 22  # bytes
MAX_TEXT_BYTES = 1 << 26  # of a file that is read at once


def open_regular(path: Path, max_bytes: int | None = MAX_TEXT_BYTES) -> BinaryIO:
    """Open an untrusted file. Raises OSError if the file is not regular or has more than `max_bytes` (None for no limit)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # do not wait for the writer of a pipe
    stream = os.fdopen(descriptor, "rb") if stat.S_ISREG((found := os.fstat(descriptor)).st_mode) else None
    if stream is None:
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if max_bytes is not None and found.st_size > max_bytes:
        stream.close()
        raise OSError(errno.EFBIG, f"larger than {max_bytes >> 20} MiB", str(path))
    return stream


def read_regular(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """Read an untrusted file. Raises the same errors as `open_regular`."""
    with open_regular(path, max_bytes) as stream:
        return stream.read(max_bytes)


def read_text(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Read an untrusted text file. Raises the errors of `open_regular`, and ValueError if the text is not UTF-8."""
    return read_regular(path, max_bytes).decode("utf-8")


def read_chunks(path: Path) -> Iterator[bytes]:
    with open_regular(path, None) as stream:
        while chunk := stream.read(CHUNK):
            yield chunk


def state_of(path: Path) -> dict[str, int]:
    """Return the properties of a file that normally change with its content."""
    status = path.stat()
    return {"size": status.st_size, "mtime": status.st_mtime_ns, "inode": status.st_ino}


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file's content atomically and durably.

    The file keeps its mode. Symbolic links are followed. Pipes and devices are not replaced; the content is written to them.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            if path.exists():
                os.fchmod(descriptor, stat.S_IMODE(path.stat().st_mode))
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_unfinished(*paths: Path) -> None:
    """Remove the temporary files of processes that were killed in `write_atomically`. No other process may write the files."""
    for path in paths:
        for temporary in path.parent.glob(f".{glob.escape(path.name)}.????????.new"):
            temporary.unlink(missing_ok=True)


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def make_folder(folder: Path) -> None:
    """Create a folder and its parents durably."""
    missing = [new for new in (folder, *folder.parents) if not new.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for new in missing:
        sync_folder(new.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_lock(path: Path, seconds: float = 0) -> "FileLock":
    """Return a lock on a file, for this process. Its `acquire` raises TimeoutError if another process holds it for so long."""
    from filelock import FileLock

    return FileLock(path, seconds, thread_local=False, fallback_to_soft=False)


def user_folder() -> Path:
    """Return the folder of the user's settings and pairs. Raises UsageError if the user has no home folder."""
    try:
        return Path(platformdirs.user_config_dir("arbitrage", appauthor=False))
    except RuntimeError as error:
        raise UsageError("this user has no home folder", "set HOME or XDG_CONFIG_HOME") from error


def models_folder() -> Path:
    """Return the folder of the built-in models. In a checkout, the folder is next to the package."""
    package = Path(__file__).parents[1]
    inside = package / "models"
    return inside if inside.is_dir() else package.parent / "models"


def validated(kind: type[T], value: object) -> T:
    """Validate the value as a record, without type coercion. Raises ValueError, naming the field, if the value is invalid."""
    from pydantic import ValidationError  # slow to import

    record: Any = kind  # for mypy, a type of T is not hashable
    try:
        found: T = _adapter(record).validate_json(json.dumps(value, default=str), strict=True)
        return found
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValidationError as error:
        raise ValueError(reason_of(error)) from None


@functools.cache
def _adapter(kind: type[Any]) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def reason_of(error: "ValidationError") -> str:
    """Return the field and the message of the first error."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    message = "unknown key" if first["type"] == "unexpected_keyword_argument" else in_plain_words(first["msg"])
    return f"{place}: {message}" if place else message

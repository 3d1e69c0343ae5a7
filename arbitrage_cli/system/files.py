"""Files as bytes: their digest. Knows no format."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from arbitrage_cli.errors import ModelFileError

CHUNK = 1 << 22  # bytes


def digest(files: Sequence[Path], tell: Callable[[float], None]) -> tuple[int, str]:
    """Bytes and sha256 of a model's files; of a model in several parts, the sha256 of theirs one after the other.

    `tell` is told the fraction that was read. ModelFileError if they cannot be.
    """
    digest = hashlib.sha256()
    done = 0
    try:
        total = sum(path.stat().st_size for path in files)
        for path in files:
            with path.open("rb") as stream:
                for chunk in iter(lambda: stream.read(CHUNK), b""):
                    digest.update(chunk)
                    done += len(chunk)
                    tell(done / total)
    except OSError as error:
        raise ModelFileError(f"{files[0]}: cannot be read ({error.strerror})", "check the path") from error
    return done, digest.hexdigest()


def sha256_of(files: Sequence[Path]) -> str:
    """The sha256 of a model's files, as `digest` takes it. ModelFileError."""
    return digest(files, lambda fraction: None)[1]

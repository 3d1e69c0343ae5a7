"""The names of run folders."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path, PurePath

MAX_NAME = 60  # characters in each half of a folder name
DIGEST = 8  # characters of the checksum in a shortened name


def default_folder(dataset: str, models: Sequence[str], *, prefix: str = "", concurrency: int = 1) -> Path:
    """Return the default run folder, such as `runs/math500--mine`, or `runs/math500--mine--concurrency-8`."""
    names = [PurePath(name).name.removesuffix(".gguf") for name in models]
    suffix = "" if concurrency == 1 else f"--concurrency-{concurrency}"
    return Path("runs") / f"{prefix}{_file_name(PurePath(dataset).stem)}--{_file_name(*names)}{suffix}"


def _file_name(*names: str) -> str:
    """Join names into a valid file name. A long name is truncated and made unique by a checksum."""
    plain = (re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") for name in names)
    whole = "-".join(filter(None, plain)) or "run"
    digest = hashlib.sha256(whole.encode()).hexdigest()[:DIGEST]
    return whole if len(whole) <= MAX_NAME else f"{whole[: MAX_NAME - DIGEST]}-{digest}"

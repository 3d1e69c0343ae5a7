"""Adds pairs to the user's pairs.toml. Its comments and other tables stay as they are, byte for byte."""

import os
import re
import tomllib
from pathlib import Path

from arbitrage_cli.errors import PairNotSavedError, UsageError
from arbitrage_cli.model_files.pairs import KEYS, PAIRS_FILE, PairEntry, toml_lines
from arbitrage_cli.system.files import file_lock, make_folder, read_regular, user_folder, write_atomically

NAME = re.compile(r"[^\W_][\w.-]{0,63}")
LOCK_SECONDS = 5.0
"""The maximum wait for another process that is writing the file."""


def own_file() -> Path:
    return user_folder() / PAIRS_FILE


def check_name(name: str) -> None:
    """Raise UsageError if this cannot be the name of a pair."""
    if not NAME.fullmatch(name):
        hint = "use up to 64 letters, digits, '.', '-' and '_', beginning with a letter or digit"
        raise UsageError(f"invalid name '{name:.80}'", hint, option="save")


def check_can_add(path: Path, pair: PairEntry) -> None:
    """Raise PairNotSavedError if the file has a pair with this name, is invalid, or cannot be written.

    An included pair may have the same name. The new pair then replaces it.
    """
    _with_pair(path, pair)
    folder = next(parent for parent in path.parents if parent.exists())
    places = [folder, path] if path.exists() else [folder]
    if not folder.is_dir() or not all(os.access(place, os.W_OK) for place in places):
        raise _not_saved(f"{path}: cannot be written", "make the file and its folder writable", pair)


def add_pair(path: Path, pair: PairEntry) -> None:
    """Append a pair to the file, which is created if it does not exist. Raises the same errors as `check_can_add`."""
    try:
        make_folder(path.parent)
        with file_lock(path.with_name("lock"), LOCK_SECONDS):
            write_atomically(path, _with_pair(path, pair))
    except OSError as error:
        reason = error.strerror or str(error)
        raise _not_saved(f"{path}: cannot be written ({reason})", "make the file and its folder writable", pair) from error


def _with_pair(path: Path, pair: PairEntry) -> bytes:
    """Return the content of the file with a further table at its end."""
    try:
        before = read_regular(path) if path.exists() else b""
        tables = tomllib.loads(before.decode())
    except (OSError, ValueError, RecursionError) as error:
        raise _not_saved(f"{path}: not valid TOML ({error})", "correct the file", pair) from error
    if pair.name in tables:
        hint = "use another name, or edit the pair in this file"
        raise _not_saved(f"{path} already has a pair named '{pair.name}'", hint, pair)
    gap = b"\n" if before.endswith(b"\n") else b"\n\n"
    table = "\n".join([*toml_lines(pair, KEYS), ""]).encode()
    return (before + gap if before else b"") + table


def _not_saved(reason: str, hint: str, pair: PairEntry) -> PairNotSavedError:
    return PairNotSavedError(reason, f"{hint}; or add these lines yourself", lines=toml_lines(pair, KEYS))

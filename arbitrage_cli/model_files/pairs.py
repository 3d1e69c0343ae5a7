"""From a name to a model: pairs by name, and models by path, by name on the Hub, built in, or as a scripted demo.

Knows no policy and no terminal. Pairs come from `models/pairs.toml`, which ships with the program, and from a file of the
user's that adds to it.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from arbitrage_cli.errors import UsageError
from arbitrage_cli.model_files import hub
from arbitrage_cli.model_files.names import HubName, parse_name, parts

SCRIPTED = "scripted:"
BUILT_IN = "builtin:"
"""`builtin:draft` is draft.gguf of the program's own folder of models."""

DEFAULT_PAIR = "builtin"
UNIVERSAL_HEAD = "builtin:universal"
"""A head that reads nothing that only one draft has: for models that none was trained for."""

MIN_CTX = 64
KINDS: Mapping[str, type] = MappingProxyType({"ctx": int, "chat_template_kwargs": dict})
"""Of what a pair has, where it is no text."""

OWN_VARIABLES = frozenset({"messages", "add_generation_prompt", "bos_token", "eos_token"})
"""What chat templates are told of this program and of the model's file."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two models that go together, and what belongs to them.

    `prm` is a process reward model, `prm_style` how that is asked (`rewards.ProcessReward`), `head` a trained router's file,
    `system` the system prompt that suits both, `chat_template_kwargs` what their chat templates are told; `ctx` is in tokens.
    None where there is none, or the default does.
    """

    name: str
    draft: str
    target: str
    notes: str = ""
    ctx: int | None = None
    prm: str | None = None
    prm_style: str | None = None
    head: str | None = None
    system: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None


def read_pairs(user_file: Path | None = None) -> dict[str, Pair]:
    """All pairs by name; those in the user's file, if there is one, win. UsageError for a file that makes no sense."""
    pairs = _read(models_folder() / "pairs.toml")
    if user_file is not None and user_file.is_file():
        pairs |= _read(user_file)
    return pairs


def find_pair(name: str, pairs: Mapping[str, Pair]) -> Pair:
    """The pair of that name. UsageError, with all names, if there is none."""
    if name not in pairs:
        raise UsageError(f"no pair is called '{name}'", "pairs: " + ", ".join(pairs))
    return pairs[name]


def check_template_variables(variables: Mapping[str, Any], where: str) -> None:
    """UsageError if a chat template is to be told, by what stands `where`, what it is told anyway, or what is no JSON."""
    for name in OWN_VARIABLES.intersection(variables):
        raise UsageError(f"{where}: a chat template gets its '{name}' from the program", "leave it out")
    try:
        json.dumps(variables, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{where}: a chat template is to be told what JSON has no words for ({error})",
            "texts, finite numbers, true and false, and lists and tables of them",
        ) from error


def is_toy(source: str) -> bool:
    """Whether the name is that of a scripted demo model."""
    return source.startswith(SCRIPTED)


def is_built_in(source: str) -> bool:
    """Whether the name is that of a model that ships with the program."""
    return source.startswith(BUILT_IN)


def head_file(source: str) -> Path:
    """The file of a trained head: a path, or `builtin:NAME` for one that ships with the program."""
    if is_built_in(source):
        return models_folder() / f"{source.removeprefix(BUILT_IN)}.safetensors"
    return _path(source)


def local_files(source: str) -> tuple[Path, ...]:
    """The model's files that are on this machine, the one to open first; empty if they are not. Nothing is fetched."""
    name = hub_name(source)
    if name:
        return hub.locate(name)
    if is_toy(source) or not _exists(source):
        return ()
    path = _path(source)
    whole = tuple(path.with_name(part) for part in parts(path.name)) if path.name else ()
    return whole if whole and all(part.exists() for part in whole) else (path,)


def find_files(source: str, *, offline: bool = False, watch: hub.Watch | None = None) -> tuple[Path, ...]:
    """The model's files, fetched from the Hub if need be and checked; `watch` is told how far that is.

    Empty for a demo model; a path is given back as it is, whatever is there. Errors: HubError, ModelFileError, UsageError.
    """
    name = hub_name(source)
    if name:
        return hub.find(name, offline=offline, watch=watch)
    return () if is_toy(source) else (_path(source),)


def hub_name(source: str) -> HubName | None:
    """The model's name on the Hub; None for a demo or built-in model and for a path. What exists as a path is one."""
    return None if is_toy(source) or is_built_in(source) or _exists(source) else parse_name(source)


def _path(source: str) -> Path:
    if is_built_in(source):
        return models_folder() / f"{source.removeprefix(BUILT_IN)}.gguf"
    try:
        return Path(source).expanduser()
    except RuntimeError:  # ~nobody
        return Path(source)


def _exists(source: str) -> bool:
    try:
        return _path(source).exists()
    except OSError:  # such as a name that is too long for the file system
        return False


def models_folder() -> Path:
    """`models/`: inside the package where it is installed, beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "models"
    return inside if inside.is_dir() else package.parent / "models"


def _read(path: Path) -> dict[str, Pair]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as TOML ({error})", "correct the file, or move it away") from error
    return {name: _pair(path, name, table) for name, table in tables.items()}


def _pair(path: Path, name: str, table: Any) -> Pair:
    """One table of a file. UsageError if a key is missing, unknown or of the wrong kind."""
    hint = 'a pair looks like this: [name] draft = "small.gguf" target = "user/repo:Q4_K_M"; notes and ctx may follow'
    if not isinstance(table, dict):
        raise UsageError(f"{path}: '{name}' stands outside of any pair", hint)
    kinds = {field.name: KINDS.get(field.name, str) for field in fields(Pair) if field.name != "name"}
    for key, value in table.items():
        if key not in kinds:
            raise UsageError(f"{path}: pair '{name}' has an unknown key '{key}'", "keys: " + ", ".join(kinds))
        if type(value) is not kinds[key] or (isinstance(value, int) and value < MIN_CTX):
            wanted = {int: f"a whole number from {MIN_CTX}", dict: "a table"}.get(kinds[key], "a text")
            raise UsageError(f"{path}: pair '{name}': {key} is not {wanted}", hint)
    check_template_variables(table.get("chat_template_kwargs", {}), f"{path}: pair '{name}'")
    if not table.get("draft") or not table.get("target"):
        raise UsageError(f"{path}: pair '{name}' lacks its {'target' if table.get('draft') else 'draft'}", hint)
    return Pair(name, **table)

"""Finds pairs by name, and model files by path, Hub name, built-in name or the name in another program.

Pairs are defined in two files: `models/pairs.toml`, which ships with the program, and the user's own file.
"""

import functools
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, MinLen

from arbitrage_cli.errors import ModelFileError, UsageError, unknown
from arbitrage_cli.model_files import hub
from arbitrage_cli.model_files.checksums import OnProgress, no_progress, sha256_seen
from arbitrage_cli.model_files.hub import HubName, parse_name, parts
from arbitrage_cli.model_files.stores import find_model_file, model_names, program_of
from arbitrage_cli.system.files import models_folder, read_text, user_folder, validated
from arbitrage_cli.types import ByRole, Fields, ModelRole, ServerKind, frozen

BUILT_IN = "builtin:"  # builtin:draft is draft.gguf in the models folder

BACKENDS = "arbitrage.backends"
"""The entry-point group in which other packages register backends."""

PAIRS_FILE = "pairs.toml"
DEFAULT_PAIR = "builtin"
UNIVERSAL_ROUTER = "builtin:universal"
"""The router for pairs that have no router of their own. None of its features depend on the draft."""

_EXAMPLE = 'write a pair in this form: [name] draft.source = "small.gguf" target.source = "user/repo:Q4_K_M"'
_RESERVED_VARIABLES = frozenset({"messages", "add_generation_prompt", "bos_token", "eos_token"})


@frozen
class ModelEntry:
    """A model of a pair. `api_key_env`, `server` and `template` are for a model on a server.

    `api_key_env` names the environment variable that contains the API key, `server` what is behind a proxy that does not say
    so, and `template` the file that contains the chat template. `price` contains the prices of prompt tokens, cached prompt tokens and completion tokens, in dollars per million
    tokens.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    source: Annotated[str, MinLen(1)]
    api_key_env: str | None = None
    server: ServerKind | None = None
    template: str | None = None
    price: str | None = None


@frozen
class PairEntry:
    """A draft and a target, with default options that a command can override.

    `thinking_pair` names the pair that replaces this pair if thinking is turned on. `ctx` is the context size in tokens.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    name: str
    draft: ModelEntry
    target: ModelEntry
    notes: str = ""
    thinking_pair: str | None = None
    policy: str | None = None
    tau: str | None = None
    ctx: Annotated[int, Ge(64)] | None = None
    prm: str | None = None
    router: str | None = None
    system: str | None = None
    chat_template_kwargs: Fields | None = None
    check: ModelEntry | None = None

    @property
    def sources(self) -> dict[ModelRole, str]:
        return {**{role: entry.source for role, entry in self.entries.items()}, **({"prm": self.prm} if self.prm else {})}

    @property
    def entries(self) -> dict[ModelRole, ModelEntry]:
        return {"draft": self.draft, "target": self.target, **({"check": self.check} if self.check else {})}


KEYS = tuple(field.name for field in fields(PairEntry) if field.name != "name")


class Pairs(dict[str, PairEntry]):
    """Pairs by name. `broken` maps the name of each invalid entry to its error."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: dict[str, UsageError] = {}

    def named(self, name: str) -> PairEntry | None:
        if name in self.broken:
            raise self.broken[name]
        return self.get(name)


def read_pairs(user_file: Path | None = None) -> Pairs:
    pairs = Pairs()
    _read(models_folder() / "pairs.toml", pairs)
    if user_file is not None and user_file.is_file():
        _read(user_file, pairs)
    return pairs


def user_pairs() -> Pairs:
    return read_pairs(user_folder() / PAIRS_FILE)


def toml_lines(pair: PairEntry, keys: Sequence[str]) -> list[str]:
    """Return a table with these fields of the pair, in lines."""
    values = asdict(pair)
    is_bare = pair.name.isascii() and pair.name.replace("-", "_").isidentifier()
    return [
        f"[{pair.name if is_bare else _toml(pair.name)}]",
        *(f"{key} = {_toml(values[key])}" for key in keys if values[key] is not None),
    ]


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        known = {name: inner for name, inner in value.items() if inner is not None}
        return "{ " + ", ".join(f"{_toml(name)} = {_toml(inner)}" for name, inner in known.items()) + " }"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def find_pair(name: str, pairs: Pairs) -> PairEntry:
    pair = pairs.named(name)
    if pair is None:
        raise unknown("pair", name, pairs, option="pair", more="; to define a pair, see: arbitrage guide settings")
    return pair


@functools.cache
def backend_of(source: str) -> EntryPoint | None:
    """Return the registered backend that opens the model, or None if no backend does."""
    name, colon, _ = source.partition(":")
    return next(iter(entry_points(group=BACKENDS, name=name)), None) if colon and name.isidentifier() else None


def is_served(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def is_gguf(source: str) -> bool:
    """Return whether a source names a GGUF model, and not a model on a server or of a registered backend."""
    return not is_served(source) and backend_of(source) is None


def is_built_in(source: str) -> bool:
    return source.startswith(BUILT_IN)


def router_file(source: str) -> Path:
    return _path(source, ".safetensors")


def shipped_routers() -> list[str]:
    return [f"{BUILT_IN}{file.stem}" for file in sorted(models_folder().glob("*.safetensors"))]


def found_names() -> Iterator[str]:
    """Yield the names of the models of Ollama, LM Studio, llama.cpp and the Hub's cache."""
    yield from model_names()
    yield from map(str, hub.cached_models())


def no_such_file(source: str) -> ModelFileError:
    """Return the error for a model file that does not exist. The hint names a similar pair or model on this machine."""
    names = [*user_pairs(), *found_names()]
    similar = [name for name in names if source.lower() in name.lower()] or get_close_matches(source, names, n=1)
    hint = f"did you mean {similar[0]}?" if similar else "check the path; for names of models, see arbitrage models list"
    return ModelFileError(f"{source}: no such file", hint)


def local_files(source: str) -> tuple[Path, ...]:
    """Return the paths of the model's local files, in order, or () if there are no local files. Downloads nothing."""
    name = hub_name(source)
    if name:
        return hub.locate(name)
    if not is_gguf(source) or not _exists(source):
        return ()
    path = _path(source)
    complete = tuple(path.with_name(part) for part in parts(path.name)) if path.name else ()
    return complete if complete and all(part.exists() for part in complete) else (path,)


def find_files(source: str, *, offline: bool = False, on_progress: OnProgress = no_progress) -> tuple[Path, ...]:
    """Return the model's files, downloading them if necessary. If the source is a path, the files may not exist.

    Raises HubError if a download fails; ModelFileError if another program does not have the model.
    """
    name = hub_name(source)
    if name:
        return hub.find(name, offline=offline, on_progress=on_progress)
    return (_path(source),) if is_gguf(source) else ()


def checksum(source: str) -> str | None:
    """Return the sha256 of the model's local files, or None if it has none. Raises ModelFileError if one cannot be read."""
    files = local_files(source)
    return sha256_seen(files) if files and is_gguf(source) else None


def first_with_same_file(sources: ByRole[str]) -> dict[ModelRole, ModelRole]:
    """Return, for each role, the first role whose model has the same files. They are loaded and measured only once."""
    first: dict[str, ModelRole] = {}
    return {role: first.setdefault(checksum(source) or role, role) for role, source in sources.items()}


def hub_name(source: str) -> HubName | None:
    """Return the model's name on the Hub, or None if it is not on the Hub. A path that exists is not a Hub name."""
    return None if not is_gguf(source) or is_built_in(source) or _exists(source) else parse_name(source)


def _path(source: str, built_in_suffix: str = ".gguf") -> Path:
    if is_built_in(source):
        return models_folder() / f"{source.removeprefix(BUILT_IN)}{built_in_suffix}"
    if program_of(source):
        return find_model_file(source)
    try:
        return Path(source).expanduser()
    except RuntimeError:  # ~nobody
        return Path(source)


def _exists(source: str) -> bool:
    try:
        return _path(source).exists()
    except (OSError, ModelFileError):  # for example, a name that is too long for the file system
        return False


def _read(path: Path, pairs: Pairs) -> None:
    try:
        tables = tomllib.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not TOML, not UTF-8, a number too long
        raise UsageError(f"{path}: not valid TOML ({error})", "correct or remove the file") from error
    for name, table in tables.items():
        pairs.pop(name, None)
        pairs.broken.pop(name, None)
        try:
            pairs[name] = _pair(name, table)
        except ValueError as error:
            pairs.broken[name] = UsageError(f"{path}: pair '{name}': {error}", _EXAMPLE)


def _pair(name: str, table: Any) -> PairEntry:
    if not isinstance(table, dict):
        raise ValueError("this key is not allowed in a pair")
    pair = validated(PairEntry, {"name": name, **table})
    variables = table.get("chat_template_kwargs", {})
    if reserved := _RESERVED_VARIABLES.intersection(variables):
        raise ValueError(f"chat_template_kwargs: '{min(reserved)}' is reserved for the program")
    try:
        json.dumps(variables, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"chat_template_kwargs: not JSON ({error})") from error
    return pair

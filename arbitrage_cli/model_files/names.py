"""Parses the names of models and data sets on the Hugging Face Hub, and selects their files in a repository.

File names from the Hub are not trusted. A name that leads out of its folder is rejected.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Literal

from arbitrage_cli.errors import ArbitrageError, HubError, UsageError

DEFAULT_QUANT = "Q4_K_M"

_REPO = r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}"
_NAME = re.compile(rf"(?P<repo>{_REPO})(?::(?P<selector>[^:@]+))?(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_QUANT = re.compile(r"(?:UD-)?[A-Z]{1,5}\d\w*", re.ASCII | re.IGNORECASE)
_PART = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<total>\d{5})\.gguf", re.ASCII)


@dataclass(frozen=True, slots=True)
class HubName:
    """The name of a model or of a data set file on the Hub. `selector` is a quantization or a file name."""

    repo: str
    selector: str = DEFAULT_QUANT
    revision: str = "main"
    kind: Literal["model", "dataset"] = "model"

    def __str__(self) -> str:
        return f"{self.repo}:{self.selector}" + ("" if self.revision == "main" else f"@{self.revision}")

    @property
    def is_file(self) -> bool:
        return self.kind == "dataset" or self.selector.lower().endswith(".gguf")

    def admits(self, file: str) -> bool:
        return file.lower().endswith(".gguf" if self.kind == "model" else (".jsonl", ".parquet"))


def parse_name(source: str) -> HubName | None:
    """Parse `user/repo[:quant][@revision]` or `user/repo:file.gguf[@revision]`. Return None for a path."""
    match = _NAME.fullmatch(source)
    if not match or ".." in match["repo"] or "--" in match["repo"] or match["repo"].lower().endswith(".gguf"):
        return None
    name = HubName(match["repo"], match["selector"] or DEFAULT_QUANT, match["revision"] or "main")
    if name.is_file:
        refuse_unsafe(name.selector, UsageError)
    elif not _QUANT.fullmatch(name.selector):
        hint = "use a quantization such as :Q4_K_M, or a file name"
        raise UsageError(f"{source}: invalid quantization '{name.selector}'", hint)
    if ".." in name.revision or name.revision.startswith(("/", "-")) or name.revision.endswith("/"):
        raise UsageError(f"{source}: invalid revision '{name.revision}'", "use a branch, tag or commit after the @")
    return name


def find_model(name: HubName, files: Iterable[str]) -> tuple[str, ...]:
    """Return the named model's files, in order, or () if no model matches. Raises HubError if several models match."""
    groups: dict[tuple[str, str], list[str]] = {}
    for file in sorted(filter(name.admits, files)):
        part = _PART.fullmatch(file)
        groups.setdefault((part["stem"], part["total"]) if part else (file, ""), []).append(file)
    models = [model for model in groups.values() if (name.selector in model if name.is_file else _has_quant(model[0], name))]
    if len(models) > 1:
        alternatives = ", ".join(model[0] for model in models)
        raise HubError(f"{name} matches several files: {alternatives}", f"name the file: {name.repo}:{models[0][0]}")
    return tuple(models[0]) if models else ()


def parts(file: str) -> tuple[str, ...]:
    """Return the names of all parts of a split model, in order. If the model is not split, return only the file's name."""
    part = _PART.fullmatch(file)
    if not part:
        return (file,)
    return tuple(f"{part['stem']}-{number:05}-of-{part['total']}.gguf" for number in range(1, int(part["total"]) + 1))


def first_files(files: Iterable[str]) -> list[str]:
    """Return the first file of each model, without projectors."""
    models = (file for file in files if file.lower().endswith(".gguf") and parts(file)[0] == file)
    return sorted(file for file in models if not PurePosixPath(file).name.startswith("mmproj"))


def is_complete(model: Sequence[str]) -> bool:
    return tuple(model) == parts(model[0])


def choose(name: HubName, files: Sequence[str]) -> tuple[str, ...]:
    model = find_model(name, files)
    if not model:
        available = ", ".join(sorted(filter(name.admits, files)))
        hint = "the repository has no suitable files; most GGUF repositories have a name that ends in -GGUF"
        raise HubError(f"{name.repo} has no {name.selector}", f"available: {available}" if available else hint)
    if not is_complete(model):
        raise HubError(f"{name.repo} lacks parts of {model[0]}", "use another quantization")
    for file in model:
        refuse_unsafe(file, HubError)
    return model


def refuse_unsafe(file: str, error: type[ArbitrageError]) -> None:
    folders = file.split("/")
    is_anchored = any(pure(name).anchor for pure in (PurePosixPath, PureWindowsPath) for name in (file, *folders))
    if is_anchored or "\\" in file or not file.isprintable() or any(name in ("", ".", "..") for name in folders):
        raise error(f"unsafe file name '{file}'", "use a path inside the repository")


def _has_quant(file: str, name: HubName) -> bool:
    path = PurePosixPath(file)
    part = _PART.fullmatch(path.name)
    stem = (part["stem"] if part else path.stem).lower()
    is_vision_part = stem.startswith("mmproj")
    return not is_vision_part and re.search(rf"(?:^|[-._]){re.escape(name.selector.lower())}$", stem) is not None

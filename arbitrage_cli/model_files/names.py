"""Names of models and data sets on the Hugging Face Hub, and the files of a repository that they stand for.

File names from the Hub are not trusted: they must stay inside the folder that they are joined to. No request, no file.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Literal

from arbitrage_cli.errors import HubError, UsageError

DEFAULT_QUANT = "Q4_K_M"

_REPO = r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}"
_NAME = re.compile(rf"(?P<repo>{_REPO})(?::(?P<wanted>[^:@]+))?(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_QUANT = re.compile(r"(?:UD-)?[A-Z]{1,5}\d\w*", re.ASCII | re.IGNORECASE)
_QUANT_AT_END = re.compile(rf"(?:^|[-._])({_QUANT.pattern})$", re.ASCII | re.IGNORECASE)
_PART = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<total>\d{5})\.gguf", re.ASCII)


@dataclass(frozen=True, slots=True)
class HubName:
    """A model or a data set's file on the Hub. `wanted` is a quantization, or a file's name in the repository."""

    repo: str
    wanted: str = DEFAULT_QUANT
    revision: str = "main"
    kind: Literal["model", "dataset"] = "model"

    def __str__(self) -> str:
        return f"{self.repo}:{self.wanted}" + ("" if self.revision == "main" else f"@{self.revision}")

    @property
    def is_file(self) -> bool:
        return self.kind == "dataset" or self.wanted.lower().endswith(".gguf")

    def admits(self, file: str) -> bool:
        """Whether a file of the repository may be a model, or rows of a data set."""
        return file.lower().endswith(".gguf" if self.kind == "model" else (".jsonl", ".parquet"))


def parse_name(source: str) -> HubName | None:
    """`user/repo[:quant][@revision]` or `user/repo:file.gguf[@revision]`; None for a path.

    UsageError for a repository's name with an invalid quantization, file or revision.
    """
    match = _NAME.fullmatch(source)
    if not match or ".." in match["repo"] or "--" in match["repo"] or match["repo"].lower().endswith(".gguf"):
        return None
    name = HubName(match["repo"], match["wanted"] or DEFAULT_QUANT, match["revision"] or "main")
    if name.is_file:
        _refuse_unsafe(name.wanted, UsageError)
    elif not _QUANT.fullmatch(name.wanted):
        raise UsageError(f"{source}: invalid quantization '{name.wanted}'", "for example :Q4_K_M, or a file's name")
    if ".." in name.revision or name.revision.startswith(("/", "-")) or name.revision.endswith("/"):
        raise UsageError(f"{source}: invalid revision '{name.revision}'", "give a branch, a tag or a commit after the @")
    return name


def find_model(name: HubName, files: Iterable[str]) -> tuple[str, ...]:
    """The parts, in order, of the model among a repository's files that fits a name; empty if none. HubError if several do."""
    models = _matching(name, filter(name.admits, files))
    if len(models) > 1:
        alternatives = ", ".join(model[0] for model in models)
        raise HubError(f"{name} could be any of {alternatives}", f"name the file: {name.repo}:{models[0][0]}")
    return models[0] if models else ()


def _matching(name: HubName, files: Iterable[str]) -> list[tuple[str, ...]]:
    models: dict[tuple[str, str], list[str]] = {}
    for file in sorted(files):
        part = _PART.fullmatch(file)
        models.setdefault((part["stem"], part["total"]) if part else (file, ""), []).append(file)
    if name.is_file:
        return [tuple(model) for model in models.values() if name.wanted in model]
    wanted = name.wanted.lower()
    return [tuple(model) for model in models.values() if _has_quant(model[0], wanted)]


def parts(file: str) -> tuple[str, ...]:
    """Names of all parts of a file's model, in order: the file alone unless the model is split."""
    part = _PART.fullmatch(file)
    if not part:
        return (file,)
    return tuple(f"{part['stem']}-{number:05}-of-{part['total']}.gguf" for number in range(1, int(part["total"]) + 1))


def is_whole(model: Sequence[str]) -> bool:
    """Whether no part is missing."""
    return tuple(model) == parts(model[0])


def choose(name: HubName, files: Sequence[str]) -> tuple[str, ...]:
    """The parts of the one model that fits. HubError, with the alternatives, if none or several do."""
    model = find_model(name, files)
    if not model:
        raise HubError(f"{name.repo} has no {name.wanted}", _alternatives(name, list(filter(name.admits, files))))
    if not is_whole(model):
        raise HubError(f"{name.repo} lacks parts of {model[0]}", "use another quantization of the model")
    for file in model:
        _refuse_unsafe(file, HubError)
    return model


def _alternatives(name: HubName, files: Sequence[str]) -> str:
    if not files and name.kind == "dataset":
        return "it has no JSONL and no parquet file at all"
    if not files:
        return "it has no GGUF file at all: look for a repository whose name ends in -GGUF"
    quants = {found[1] for found in map(_QUANT_AT_END.search, map(_stem, files)) if found}
    return "it has " + ", ".join(sorted(files if name.is_file or not quants else quants))


def _refuse_unsafe(file: str, error: type[UsageError | HubError]) -> None:
    """Raise the error for a file's name that leads out of the folder it is joined to, on any system."""
    folders = file.split("/")
    is_anchored = any(pure(name).anchor for pure in (PurePosixPath, PureWindowsPath) for name in (file, *folders))
    if is_anchored or "\\" in file or not file.isprintable() or any(name in ("", ".", "..") for name in folders):
        raise error(f"refused file name '{file}'", "it could lead out of the cache folder")


def _stem(file: str) -> str:
    """A file's name without its folder, its number among several parts, and its ending."""
    name = PurePosixPath(file).name
    part = _PART.fullmatch(name)
    return part["stem"] if part else PurePosixPath(name).stem


def _has_quant(file: str, wanted: str) -> bool:
    """Whether the file has the quantization, in lower case. The vision part of a model (mmproj) is not a model."""
    stem = _stem(file).lower()
    return not stem.startswith("mmproj") and re.search(rf"(?:^|[-._]){re.escape(wanted)}$", stem) is not None

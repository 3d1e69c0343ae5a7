"""Finds the models that Ollama and LM Studio have downloaded, and names them.

| name | file |
|---|---|
| `ollama:qwen2.5:7b` | the blob that the manifest of `qwen2.5:7b` names |
| `lmstudio:publisher/repo[/file.gguf]` | a file in the models folder |

The folders belong to the other programs. Their content is only read, and is not trusted.
"""

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from arbitrage_cli.errors import ModelFileError, os_errors
from arbitrage_cli.model_files.hub import first_files
from arbitrage_cli.system.files import read_regular, read_text

OLLAMA, LM_STUDIO = "ollama:", "lmstudio:"
PROGRAMS = {OLLAMA: "Ollama", LM_STUDIO: "LM Studio"}
"""The prefix of a name, and the program whose models it names."""

MANIFESTS = {"manifests-v2": "ollama.com", "manifests": "registry.ollama.ai"}
"""Ollama's folders of manifests, and the name of its own registry in each of them."""

MODEL_LAYER, ADAPTER_LAYER = "application/vnd.ollama.image.model", "application/vnd.ollama.image.adapter"
SERVICE = Path("/usr/share/ollama/.ollama/models")  # of Ollama as a Linux service
MAX_SETTINGS_BYTES = 1 << 20  # of a manifest or a settings file
MAX_CHILDREN = 16  # of a list of manifests

log = logging.getLogger("arbitrage.models")
_PART = r"\w(?:\.?[\w-])*"
_OLLAMA_NAME = re.compile(
    rf"(?:(?:(?P<host>{_PART})/)?(?P<owner>{_PART})/)?(?P<model>{_PART})(?::(?P<tag>{_PART}))?", re.ASCII
)
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_DAMAGES = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)  # in JSON of an unexpected form


def program_of(source: str) -> str | None:
    """Return the prefix of a name that belongs to another program, or None for other names."""
    return next((prefix for prefix in PROGRAMS if source.startswith(prefix)), None)


def find_model_file(source: str) -> Path:
    """Return the first file of another program's model. Raises ModelFileError if the program has no such model."""
    prefix = program_of(source) or ""
    name = source.removeprefix(prefix)
    hint = "to list the models, use arbitrage models list"
    with os_errors(ModelFileError, f"{source}: cannot be read", hint):
        folder = _ollama_folder() if prefix == OLLAMA else _lm_studio_folder()
        path = _ollama_file(folder, name) if prefix == OLLAMA else _file_in(folder, name)
        if path and path.is_file():
            return path
    raise ModelFileError(f"{source}: not in {PROGRAMS[prefix]} ({folder})", hint)


def model_names() -> Iterator[str]:
    """Yield the names of other programs' models. A program whose folder cannot be read is noted in the log."""
    for prefix, program in PROGRAMS.items():
        try:
            yield from sorted(f"{prefix}{name}" for name in _names(prefix) if name.isprintable())
        except OSError as error:
            log.warning("the models of %s cannot be listed (%s)", program, error.strerror)


def _names(prefix: str) -> Iterable[str]:
    if prefix == OLLAMA:
        root = _ollama_folder()
        return {name for folder, host in MANIFESTS.items() for name in _manifests(root / folder, host)}
    root = _lm_studio_folder()
    return first_files(path.relative_to(root).as_posix() for path in root.glob("*/*/*"))


# --- LM Studio


def _file_in(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_dir():
        return path
    files = first_files(file.name for file in path.iterdir())
    if len(files) != 1:
        raise ModelFileError(f"{path}: the folder contains {', '.join(files) or 'no model'}", "append the name of one file")
    return path / files[0]


def _lm_studio_folder() -> Path:
    home = _home()
    places = [home / ".lmstudio", home / ".cache" / "lm-studio"]
    with suppress(OSError, ValueError):
        if pointer := read_text(home / ".lmstudio-home-pointer", MAX_SETTINGS_BYTES).strip():
            places.insert(0, Path(pointer))
    place = next(filter(Path.is_dir, places), places[0])
    with suppress(*_DAMAGES):
        if folder := json.loads(read_text(place / "settings.json", MAX_SETTINGS_BYTES))["downloadsFolder"]:
            return Path(place, folder)
    return place / "models"


def _home() -> Path:
    return Path(os.path.expanduser("~"))  # noqa: PTH111 - does not fail without a home folder


# --- Ollama


def _ollama_folder() -> Path:
    own = _home() / ".ollama" / "models"
    return Path(os.environ.get("OLLAMA_MODELS") or (own if own.is_dir() or not SERVICE.is_dir() else SERVICE))


def _manifests(folder: Path, own_host: str) -> Iterator[str]:
    """Yield the shortest name of each manifest: `qwen2.5:7b`, `user/model:tag` or `hf.co/user/repo:quant`."""
    for path in folder.glob("*/*/*/*"):
        *places, model, tag = path.relative_to(folder).parts
        shown = places
        if places == [own_host, "library"]:
            shown = []
        elif places[0] == own_host:
            shown = places[1:]
        if _OLLAMA_NAME.fullmatch(name := "/".join([*shown, f"{model}:{tag}"])):
            yield name


def _ollama_file(root: Path, name: str) -> Path | None:
    """Return the file of a model, or None if there is no manifest or no file."""
    match = _OLLAMA_NAME.fullmatch(name)
    if not match:
        return None
    place = Path(match["owner"] or "library", match["model"], match["tag"] or "latest")
    manifests = (root / folder / (match["host"] or host) / place for folder, host in MANIFESTS.items())
    manifest = next(filter(Path.is_file, manifests), None)
    if manifest is None:
        return None
    try:
        layers = _layers(root, json.loads(read_regular(manifest, MAX_SETTINGS_BYTES)))
        models = [_blob(root, digest) for kind, digest in layers if kind == MODEL_LAYER]
    except _DAMAGES as error:
        raise ModelFileError(f"{OLLAMA}{name}: damaged manifest ({manifest})", f"ollama pull {name}") from error
    if any(kind == ADAPTER_LAYER for kind, _ in layers):
        raise ModelFileError(f"{OLLAMA}{name}: a model with an adapter is not supported", "use the model without it")
    if len(models) != 1:
        hint = "use a model that Ollama stores as one GGUF file"
        raise ModelFileError(f"{OLLAMA}{name}: {len(models)} GGUF files; expected 1", hint)
    if not models[0].is_file():
        raise ModelFileError(f"{OLLAMA}{name}: the file is missing ({models[0]})", f"ollama pull {name}")
    return models[0]


def _layers(root: Path, manifest: Any) -> list[tuple[str, str]]:
    """Return the kinds and digests of a model's layers.

    A list of manifests contains one manifest, or its digest, for each program that can run the model.
    """
    for child in manifest.get("manifests", ())[:MAX_CHILDREN]:
        layers = _own_layers(
            child if "layers" in child else json.loads(read_regular(_blob(root, child["digest"]), MAX_SETTINGS_BYTES))
        )
        if any(kind == MODEL_LAYER for kind, _ in layers):
            return layers
    return _own_layers(manifest)


def _own_layers(manifest: Any) -> list[tuple[str, str]]:
    return [(layer["mediaType"], layer["digest"]) for layer in manifest.get("layers", ())]


def _blob(root: Path, digest: str) -> Path:
    match = _DIGEST.fullmatch(digest)
    if not match:
        raise ValueError(f"invalid digest {digest}")
    return root / "blobs" / f"sha256-{match[1]}"

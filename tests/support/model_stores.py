"""Trees of model files as Ollama, LM Studio and llama.cpp keep them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KIND = "application/vnd.ollama.image."


def environment(folder: Path) -> dict[str, str]:
    return {
        "HOME": str(folder),
        "OLLAMA_MODELS": str(folder / "ollama"),
        "LLAMA_CACHE": str(folder / "llama.cpp"),
        "HF_HUB_CACHE": str(folder / "hub"),
    }


def blob(folder: Path, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    path = folder / "ollama" / "blobs" / f"sha256-{digest}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return f"sha256:{digest}"


def manifest(folder: Path, **layers: bytes) -> dict[str, Any]:
    """A manifest with a layer for each kind."""
    texts = {"license": b"MIT", **layers, "params": b"{}"}
    return {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": blob(folder, b"{}"), "size": 2},
        "layers": [
            {"mediaType": KIND + kind, "digest": blob(folder, data), "size": len(data)} for kind, data in texts.items()
        ],
    }


def ollama_has(folder: Path, name: str, content: Mapping[str, Any] | bytes, *, linked: bool = False) -> None:
    """Write the manifest `HOST/OWNER/MODEL/TAG`, or link it to a blob, as in `manifests-v2`."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    path = folder / "ollama" / ("manifests-v2" if linked else "manifests") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if linked:
        path.symlink_to(folder / "ollama" / "blobs" / blob(folder, data).replace(":", "-"))
    else:
        path.write_bytes(data)


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path

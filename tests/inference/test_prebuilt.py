"""The library of llama-cpp-py-sync, for a llama-cpp-python without one. Both packages are made up; .ci/run installs the real ones."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli import PROGRAM, TIMEOUT, environment

from arbitrage_cli.inference.backend import LoadOptions
from arbitrage_cli.inference.llama import LIBRARY_PATH, PREBUILT, backend

SHOW = f"""
import os
from arbitrage_cli.errors import ModelUnsupportedError
from arbitrage_cli.inference import llama as prebuilt
prebuilt.processor_features = lambda: frozenset(os.environ["FEATURES"].split())
try:
    with prebuilt.library_selected():
        print(os.environ.get("{LIBRARY_PATH}"))
    print(os.environ.get("{LIBRARY_PATH}") == os.environ.get("CHOSEN"), prebuilt.PACKAGE in prebuilt.binding_version())
except ModelUnsupportedError as error:
    print(error.hint)
"""


def selected(folder: Path, version: str = PREBUILT, features: str = "avx2 fma", **variables: str) -> list[str]:
    """The lines that SHOW prints. `folder` may contain more files of the packages."""
    for package in ("llama_cpp", "llama_cpp_py_sync"):
        (folder / package).mkdir(exist_ok=True)
        (folder / package / "__init__.py").touch()
    info = folder / f"llama_cpp_py_sync-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: llama-cpp-py-sync\nVersion: {version}\n")
    env = environment({"PYTHONPATH": f"{folder}:{Path(__file__).parents[2]}", "FEATURES": features, **variables})
    return subprocess.run(
        [sys.executable, "-c", SHOW], env=env, capture_output=True, text=True, check=True
    ).stdout.splitlines()


@pytest.mark.parametrize("features", ["avx2 fma", ""], ids=["Linux", "unknown"])
def test_it_is_used_if_llama_cpp_python_has_none(tmp_path: Path, features: str) -> None:
    assert selected(tmp_path, features=features) == [str(tmp_path / "llama_cpp_py_sync"), "True True"]


def test_another_library_comes_first(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "libllama.so").touch()
    assert selected(tmp_path, "1.0", **{LIBRARY_PATH: str(own), "CHOSEN": str(own)}) == [str(own), "True False"]
    (tmp_path / "llama_cpp" / "lib").mkdir()
    (tmp_path / "llama_cpp" / "lib" / "libllama.so").touch()
    (tmp_path / "llama_cpp_py_sync-1.0.dist-info" / "METADATA").unlink()
    assert selected(tmp_path) == ["None", "True False"]


@pytest.mark.parametrize("place", ["empty", "missing", "pipe", "text"])
def test_chosen_library_that_cannot_be_used_is_named(tmp_path: Path, place: str) -> None:
    library = tmp_path / "libllama.so"
    if place == "pipe":
        os.mkfifo(library)
    elif place == "text":
        library.write_text("no library")
    folder = "" if place == "empty" else str(tmp_path)
    command = [*PROGRAM, "solve", "--policy", "draft", "1 + 1"]
    env = environment({LIBRARY_PATH: folder})
    result = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT)
    assert (result.returncode, result.stdout) == (3, "")
    assert f"unset {LIBRARY_PATH}" in result.stderr


def test_a_library_that_computes_over_rpc_has_no_gpu_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prebuilt library has the RPC backend, for which `llama_supports_gpu_offload` is always true."""
    cpu, gpu, accelerator = 0, 1, 3  # ggml_backend_dev_type
    devices = [cpu, accelerator]
    monkeypatch.setattr(f"{backend.__name__}.c.llama_supports_gpu_offload", lambda: True)
    monkeypatch.setattr(
        backend,
        "ggml",
        SimpleNamespace(
            ggml_backend_dev_count=lambda: len(devices),
            ggml_backend_dev_get=lambda index: index,
            ggml_backend_dev_type=lambda index: devices[index],
            ggml_backend_dev_description=lambda index: b"RPC[10.0.0.2:50052]",
            ggml_backend_dev_memory=lambda index, free, total: None,
        ),
    )

    def layers(wanted: int | None) -> int:
        return backend.gpu_layers(LoadOptions(gpu_layers=wanted), 4)

    assert (backend.gpu_names(), backend.own_gpu_memory(), layers(None), layers(2)) == ("", None, 0, 0)
    devices.append(gpu)  # of a machine that was named with --rpc
    assert (backend.gpu_names(), layers(None), layers(2)) == ("RPC[10.0.0.2:50052]", -1, 2)


def test_what_is_refused_names_the_repair(tmp_path: Path) -> None:
    (hint,) = selected(tmp_path, "0.11739")
    assert f"llama-cpp-py-sync=={PREBUILT}" in hint
    other = tmp_path / "other"
    other.mkdir()
    (hint,) = selected(other, features="sse4_2")
    assert "llama-cpp-python==" in hint

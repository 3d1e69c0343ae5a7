"""Runs GGUF models with llama.cpp, through llama-cpp-python.

This file finds the library: llama-cpp-python's own, or that of llama-cpp-py-sync (the extra `prebuilt`) if llama-cpp-python
was installed without one.
"""

import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arbitrage_cli.errors import ModelUnsupportedError
from arbitrage_cli.system.machine import processor_features

BINDING = "0.3.36"  # the version of llama-cpp-python that pyproject.toml pins
PREBUILT = "0.11413"  # the version of llama-cpp-py-sync that the extra pins; both contain llama.cpp of the same month
PACKAGE = "llama-cpp-py-sync"
LIBRARY_PATH = "LLAMA_CPP_LIB_PATH"  # llama-cpp-python reads the folder of its library from this variable


def prebuilt_library() -> Path | None:
    """Return the folder of the prebuilt library, or None if llama-cpp-python has a library or the user has chosen one."""
    own, prebuilt = _folder("llama_cpp"), _folder("llama_cpp_py_sync")
    if own is None or LIBRARY_PATH in os.environ or any((own / "lib").glob("libllama.*")):
        return None
    return prebuilt


def binding_version() -> str:
    """Return the version of llama-cpp-python, and that of the prebuilt library if it is used."""
    version = importlib.metadata.version("llama-cpp-python")
    return f"{version} with {PACKAGE} {importlib.metadata.version(PACKAGE)}" if prebuilt_library() else version


@contextmanager
def library_selected() -> Iterator[None]:
    """Let llama-cpp-python load the prebuilt library in the `with` block, if there is no other library.

    Raises ModelUnsupportedError if the prebuilt library has another version, or does not run on this processor.
    """
    folder = prebuilt_library()
    if folder is None:
        yield
        return
    version, features = importlib.metadata.version(PACKAGE), processor_features()
    if version != PREBUILT:
        raise ModelUnsupportedError(f"{PACKAGE} {version} is not supported", f'pip install "{PACKAGE}=={PREBUILT}"')
    if features and "avx2" not in features:
        raise ModelUnsupportedError(
            f"{PACKAGE} needs a processor with AVX2",
            f"install a compiler, then: {how_to_install(f'llama-cpp-python=={BINDING}')}",
        )
    os.environ[LIBRARY_PATH] = str(folder)
    try:
        yield
    finally:
        del os.environ[LIBRARY_PATH]


def how_to_install(package: str) -> str:
    """Return the command that replaces an installed package. A cached wheel may lack the library."""
    return f'pip install --force-reinstall --no-cache-dir "{package}"'


def _folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None

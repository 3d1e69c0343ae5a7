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

LIBRARIES = ("libllama.so", "libllama.dylib")


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

    Raises ModelUnsupportedError if the prebuilt library has another version or does not run on this processor, or if the
    folder that the user has chosen has no library.
    """
    if LIBRARY_PATH in os.environ:
        _check_chosen(os.environ[LIBRARY_PATH])
    folder = prebuilt_library()
    if folder is None:
        yield
        return
    version = importlib.metadata.version(PACKAGE)
    features = processor_features()
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


def _check_chosen(folder: str) -> None:
    """Raise ModelUnsupportedError if the folder has no library, or a pipe in its place, which would be read for ever."""
    found = [path for name in LIBRARIES if (path := Path(folder) / name).exists()]
    if not folder:  # llama-cpp-python would load a library from the current folder
        raise ModelUnsupportedError(f"{LIBRARY_PATH} is empty", f"unset {LIBRARY_PATH}, or set it to the library's folder")
    if not found or not all(path.is_file() for path in found):
        message = f"{LIBRARY_PATH} is {folder}, where no regular file is named {' or '.join(LIBRARIES)}"
        raise ModelUnsupportedError(message, f"unset {LIBRARY_PATH}, or set it to the library's folder")


def other_library(package: str) -> str:
    """Return a hint for a library that cannot be used: unset the variable that selects it, or install a package."""
    if folder := os.environ.get(LIBRARY_PATH):
        return f"unset {LIBRARY_PATH}, which selects the library in {folder}"
    return how_to_install(package)


def how_to_install(package: str) -> str:
    """Return the command that replaces an installed package. A cached wheel may lack the library."""
    return f'pip install --force-reinstall --no-cache-dir "{package}"'


def _folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None

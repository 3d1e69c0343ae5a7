"""Imports llama-cpp-python as `c`, and checks its version and that of its library.

Both are pinned, because llama.cpp's C structures change almost monthly.
"""

import ctypes
import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from arbitrage_cli.errors import ModelUnsupportedError
from arbitrage_cli.inference.llama import BINDING, PREBUILT
from arbitrage_cli.inference.llama.prebuilt import LIBRARY_PATH, PACKAGE, how_to_install, library_selected, prebuilt_library

SPIN_COUNT = "GOMP_SPINCOUNT"  # GNU OpenMP reads these variables while it is loaded
WAIT_POLICY = "OMP_WAIT_POLICY"


@contextmanager
def _short_spinning() -> Iterator[None]:
    """Let llama.cpp's threads spin for microseconds while they wait for each other, unless the user has chosen otherwise.

    By default, they spin for a millisecond. If another program uses the core of one thread, the others then keep that thread
    waiting, and decoding takes up to 15 times as long. Measured: tests/benchmarks/README.md.
    """
    if SPIN_COUNT in os.environ or WAIT_POLICY in os.environ:
        yield
        return
    os.environ[SPIN_COUNT] = "1000"
    try:
        yield
    finally:
        del os.environ[SPIN_COUNT]


with library_selected(), _short_spinning():
    import llama_cpp.llama_cpp

c: Any = llama_cpp.llama_cpp
ggml: Any = c._lib  # noqa: SLF001 - the functions of ggml, on which llama.cpp's library depends

# Default field values of each structure. In a library of another version, a missing or extra field would shift later values.
CONTEXT_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_rs_seq": 0,
    "n_threads": 4,
    "n_threads_batch": 4,
    "pooling_type": -1,
    "attention_type": -1,
    "flash_attn_type": -1,
    "type_k": 1,
    "type_v": 1,
    "embeddings": False,
    "offload_kqv": True,
    "no_perf": True,
    "op_offload": True,
    "swa_full": True,
    "kv_unified": False,
}
MODEL_DEFAULTS = {
    "n_gpu_layers": -1,
    "split_mode": 1,
    "vocab_only": False,
    "check_tensors": False,
    "use_extra_bufts": True,
    "no_host": False,
}


def check_binding() -> None:
    """Raise ModelUnsupportedError if llama-cpp-python has another version, or loaded a library of another version."""
    version = importlib.metadata.version("llama-cpp-python")
    if version.partition("+")[0] != BINDING:  # a build may have a suffix, such as +cu125
        raise ModelUnsupportedError(
            f"llama-cpp-python {version} is not supported", f'pip install "llama-cpp-python=={BINDING}"'
        )
    _check_defaults(c.llama_context_default_params(), CONTEXT_DEFAULTS)
    _check_defaults(c.llama_model_default_params(), MODEL_DEFAULTS)


def _check_defaults(structure: ctypes.Structure, defaults: Mapping[str, int]) -> None:
    wrong = [name for name, value in defaults.items() if getattr(structure, name) != value]
    if wrong:
        hint = f"unset {LIBRARY_PATH}, which selects this library"
        if LIBRARY_PATH not in os.environ:
            hint = how_to_install(f"{PACKAGE}=={PREBUILT}" if prebuilt_library() else f"llama-cpp-python=={BINDING}")
        raise ModelUnsupportedError(
            f"the llama.cpp library has unexpected defaults in {type(structure).__name__} ({', '.join(wrong)})", hint
        )

"""Imports llama-cpp-python as `c`, checks its version and that of its library, loads models and allocates contexts.

Both versions are pinned, because llama.cpp's C structures change almost monthly.
"""

import ctypes
import functools
import importlib.metadata
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from arbitrage_cli.errors import ArbitrageError, ModelFileError, ModelMemoryError, ModelUnsupportedError
from arbitrage_cli.inference.backend import MAX_DECODE, LoadOptions, ModelCard
from arbitrage_cli.inference.llama import (
    BINDING,
    PACKAGE,
    PREBUILT,
    library_selected,
    other_library,
    prebuilt_library,
)
from arbitrage_cli.system.signals import noted_signals
from arbitrage_cli.types import frozen

SPIN_COUNT = "GOMP_SPINCOUNT"  # GNU OpenMP reads these variables while it is loaded
WAIT_POLICY = "OMP_WAIT_POLICY"


@contextmanager
def _short_spinning() -> Iterator[None]:
    """Let llama.cpp's threads spin for microseconds while they wait for each other, unless the user has chosen otherwise.

    By default, they spin for a millisecond. If another program uses the core of one thread, the others then keep that thread
    waiting, and a token takes up to three times longer. Measured: tests/benchmarks/README.md.
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

KV_TYPES = {"f32": c.GGML_TYPE_F32, "f16": c.GGML_TYPE_F16, "q8_0": c.GGML_TYPE_Q8_0, "q4_0": c.GGML_TYPE_Q4_0}

log = logging.getLogger("arbitrage.llama")
_collected: ContextVar[list[str] | None] = ContextVar("collected", default=None)  # each thread has its own value

# Default values of some fields of each structure. In a library of another version, a missing or extra field would shift later values.
CONTEXT_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_threads_batch": 4,
    "flash_attn_type": -1,
    "type_v": 1,
    "embeddings": False,
    "swa_full": True,
    "kv_unified": False,
}
MODEL_DEFAULTS = {
    "n_gpu_layers": -1,
    "split_mode": 1,
    "use_extra_bufts": True,
    "no_host": False,
}


def check_binding() -> None:
    """Raise ModelUnsupportedError if the version of llama-cpp-python, or of the library that it loaded, is not supported."""
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
        package = f"{PACKAGE}=={PREBUILT}" if prebuilt_library() else f"llama-cpp-python=={BINDING}"
        message = f"the llama.cpp library has unexpected defaults in {type(structure).__name__} ({', '.join(wrong)})"
        raise ModelUnsupportedError(message, other_library(package))


@frozen
class Attention:
    """Attention settings: flash attention (None lets llama.cpp decide) and the KV cache's number formats."""

    flash: bool | None
    keys: str
    values: str

    @property
    def formats(self) -> str:
        return self.keys if self.keys == self.values else f"{self.keys}/{self.values}"


@functools.cache
def start_llama() -> object:
    """Once per process, check the binding, forward llama.cpp's messages to `logging` and start llama.cpp's backends.

    Returns the log callback, so that the function's cache keeps the callback alive.
    """
    check_binding()
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # otherwise an abort starts a debugger that writes to standard output
    levels = {3: logging.INFO, 4: logging.INFO}  # GGML_LOG_LEVEL_WARN and _ERROR; failures also return codes

    def forward(level: int, text: bytes, data: object) -> None:  # a signal handler's exception would be lost here
        message = text.decode("utf-8", errors="replace").rstrip()
        if message.strip("."):
            if level in levels and (messages := _collected.get()) is not None:
                messages.append(message)
            with suppress(ArbitrageError):  # the display may raise, but no exception may leave a callback
                log.log(levels.get(level, logging.DEBUG), "%s", message)

    callback = c.llama_log_callback(forward)
    c.llama_log_set(callback, None)
    with noted_signals():
        c.llama_backend_init()
    return callback


def load_model(path: Path, gpu_layers: int, progress: Callable[[float], None] | None) -> Any:
    """Load a llama.cpp model, which the caller must free.

    Raises ModelMemoryError if there is too little memory; ModelFileError on other failures; and the errors of `progress`.
    """
    failures: list[ArbitrageError] = []  # the display may raise, but no exception may leave a callback

    def report(fraction: float, data: object) -> bool:
        try:
            if progress and not failures:
                progress(fraction)
        except ArbitrageError as error:
            failures.append(error)
        return not (noted or failures)

    callback = c.llama_progress_callback(report)
    no_devices = ctypes.c_void_p()  # a list that ends at its first item
    parameters = c.llama_model_default_params()
    parameters.n_gpu_layers = gpu_layers
    parameters.progress_callback = callback
    if gpu_layers == 0:  # otherwise llama.cpp would still compute large batches on the GPU
        parameters.devices = ctypes.addressof(no_devices)
    with _messages() as messages, noted_signals() as noted:
        model = c.llama_model_load_from_file(os.fsencode(path), parameters)
    if model:
        return model
    if failures:
        raise failures[0]
    reason = next((m for m in reversed(messages) if "error" in m or "unknown" in m), "no reason reported")
    if "unable to allocate" in reason:
        raise ModelMemoryError(
            f"{path}: llama.cpp cannot allocate memory for the weights ({reason[:200]})",
            "lower --gpu-layers, close other programs that use the GPU, or use a smaller model",
        )
    raise ModelFileError(
        f"{path}: llama.cpp cannot load the file ({reason[:200]})",
        f"the file may be damaged, or llama-cpp-python {BINDING} may not support the architecture; use --debug for details",
    )


def new_context(
    path: Path, model: Any, card: ModelCard, options: LoadOptions, attention: Attention, *, share_cache: bool
) -> Any:
    """Allocate a context, which the caller must free. Raises ModelMemoryError on failure."""
    parameters = c.llama_context_default_params()
    parameters.n_ctx = card.context_size * options.num_sequences
    parameters.n_batch = parameters.n_ubatch = MAX_DECODE
    parameters.n_seq_max = options.num_sequences
    parameters.n_rs_seq = options.rollback
    parameters.n_threads = parameters.n_threads_batch = card.threads
    parameters.flash_attn_type = -1 if attention.flash is None else int(attention.flash)
    parameters.pooling_type = c.LLAMA_POOLING_TYPE_NONE
    parameters.type_k = KV_TYPES[attention.keys]
    parameters.type_v = KV_TYPES[attention.values]
    parameters.kv_unified = share_cache
    parameters.swa_full = True
    with _messages() as messages, noted_signals():
        context = c.llama_init_from_model(model, parameters)
    if context:
        return context
    reason = next(reversed(messages), "no reason reported")
    raise ModelMemoryError(
        f"{path}: cannot allocate a context of {parameters.n_ctx} tokens ({reason[:200]})",
        "use a smaller --ctx, or lower --gpu-layers; KV types other than f16 may need --flash-attention",
    )


@contextmanager
def _messages() -> Iterator[list[str]]:
    """Collect the warnings and errors that llama.cpp logs in this thread in the `with` block."""
    messages: list[str] = []
    before = _collected.set(messages)
    try:
        yield messages
    finally:
        _collected.reset(before)

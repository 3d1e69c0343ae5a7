"""Tries a model file in a separate process, because a damaged file can crash the process that loads it.

`inference.open` starts the process.
"""

import logging
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from arbitrage_cli.errors import ArbitrageError, TemplateError
from arbitrage_cli.inference.backend import LoadOptions
from arbitrage_cli.inference.chat_template import PromptStyle
from arbitrage_cli.inference.kv_cache import chat_prompt, prompt_ids
from arbitrage_cli.inference.llama.backend import LlamaBackend, gpu_names
from arbitrage_cli.system.child import limit_memory
from arbitrage_cli.types import Problem

CONTEXT = 512
NUM_READ, NUM_TOKENS = 8, 4
MAX_NOISE = 1 << 20  # bytes
_SOME = (range(1, 0x800), range(0x800, 0xD800, 0x800), range(0xE000, 0x10000, 0x1000), range(0x10000, 0x110000, 0x10000))
_ALL_BYTES = [chr(code) for codes in _SOME for code in codes]
# Contains every byte that occurs in UTF-8. If the vocabulary lacks one of these bytes, llama.cpp ends the process.
ODD = "".join(_ALL_BYTES) + " ".join(_ALL_BYTES)


def load() -> Callable[[str, int, int | None], tuple[str, str, str, bool]]:
    return try_file


def try_file(path: str, memory: int, gpu_layers: int | None) -> tuple[str, str, str, bool]:
    """Load the file, tokenize and decode. `memory` is in bytes.

    Returns the class, message and hint of the error, or empty strings if the file can be used. Also returns whether
    rejected tokens can be dropped from a recurrent state.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if gpu_names():  # a GPU driver may reserve a large address range, write large files and compile for a minute
        signal.setitimer(signal.ITIMER_PROF, 0)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_NOISE, MAX_NOISE))
        limit_memory(memory)
    try:
        return "", "", "", use(Path(path), LoadOptions(CONTEXT, 1, gpu_layers, rollback=1))
    except ArbitrageError as error:
        return type(error).__name__, error.message, error.hint, False


def use(path: Path, options: LoadOptions) -> bool:
    with LlamaBackend(path, options) as backend:
        tokens = backend.tokenizer.tokenize(ODD, continues=False)
        tokens += backend.tokenizer.tokenize(ODD, continues=True)
        with suppress(TemplateError):  # reported when the template is used
            tokens = prompt_ids(backend, chat_prompt(backend, PromptStyle("")).segments(Problem("", ODD))) + tokens
        held = len(tokens[:NUM_READ])
        backend.read(0, 0, tokens[:held])
        token = backend.tokenizer.any_token
        for position in range(held, held + NUM_TOKENS):
            token = int(np.argmax(backend.decode([0], [position], [token])[0]))
            backend.tokenizer.piece(token)
        return backend.states is not None and backend.states.max_dropped > 0

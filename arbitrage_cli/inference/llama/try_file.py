"""Tries a model file in a separate process, because a damaged file can crash the process that loads it.

`inference.open` starts the process.
"""

import json
import logging
import os
import resource
import sys
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


def main() -> None:
    """Try the file of the request [path, bytes of memory, GPU layers], which is the process's argument.

    Prints the class, message and hint of the error, or empty strings if the file can be used, and whether rejected tokens can
    be dropped from a recurrent state.
    """
    path, memory, gpu_layers = json.loads(sys.argv[1])
    answers = os.dup(1)
    os.dup2(2, 1)  # what C libraries print, perhaps when the process ends, must not mix with the answer
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not gpu_names():  # a GPU driver may reserve a large address range, and write large files
        resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_NOISE, MAX_NOISE))
        limit_memory(memory)
    try:
        outcome = "", "", "", use(Path(path), LoadOptions(CONTEXT, 1, gpu_layers, rollback=1))
    except ArbitrageError as error:
        outcome = type(error).__name__, error.message, error.hint, False
    os.write(answers, b"\n" + json.dumps(outcome).encode())


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

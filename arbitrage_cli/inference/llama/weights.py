"""Loads the weights of a GGUF model, which several contexts may share."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arbitrage_cli.errors import ModelUnsupportedError
from arbitrage_cli.inference.llama.binding import c, load_model
from arbitrage_cli.inference.llama.tokenizer import LlamaTokenizer
from arbitrage_cli.model_files.gguf import read_header
from arbitrage_cli.system.signals import noted_signals


def refuse_architecture(path: Path) -> None:
    """Raise ModelUnsupportedError if llama.cpp loads the architecture but computes wrong numbers."""
    if read_header(path).architecture in ("rwkv7", "arwkv7"):
        raise ModelUnsupportedError(
            f"{path.name}: RWKV 7 is not supported, because llama.cpp computes different logits each time for the same tokens",
            "use another model, such as Llama, Qwen3, Qwen3.5, Gemma, gpt-oss, LFM2, Granite or Mamba",
        )


class LlamaWeights:
    """The parts of a model that do not depend on a context: llama.cpp's model, its header, tokenizer and chat template.

    Each context calls `acquire`, and `release` when it is closed. The last release frees the model.
    """

    def __init__(self, path: Path, gpu_layers: int, progress: Callable[[float], None] | None = None) -> None:
        """Load the model, with this number of layers on a GPU. `progress` is called with fractions from 0 to 1.

        Raises the errors of `load_model`, and ModelUnsupportedError if the file contains no language model with a decoder.
        """
        self.path, self.gpu_layers, self.header = path, gpu_layers, read_header(path)
        self.model: Any = load_model(path, gpu_layers, progress)
        self._num_users = 0
        try:
            self.tokenizer = LlamaTokenizer(self.model, path.name)
            self._refuse_unsupported()
        except BaseException:
            self._free()
            raise
        template: bytes | None = c.llama_model_chat_template(self.model, None)
        self.chat_template = template.decode("utf-8", errors="replace") if template else None

    @property
    def name(self) -> str:
        return str(self.header.metadata.get("general.name") or self.path.stem)

    @property
    def description(self) -> str:
        """The model's architecture, size and quantization.

        If the file does not state the size, llama.cpp estimates the size.
        """
        buffer = ctypes.create_string_buffer(256)
        c.llama_model_desc(self.model, buffer, len(buffer))
        architecture, size, quantization = buffer.value.decode("utf-8", errors="replace").split(" ", 2)
        return f"{architecture} {self.header.metadata.get('general.size_label') or size} {quantization}"

    def acquire(self) -> None:
        self._num_users += 1

    def release(self) -> None:
        self._num_users -= 1
        if not self._num_users:
            self._free()

    def _free(self) -> None:
        with noted_signals():
            c.llama_model_free(self.model)

    def _refuse_unsupported(self) -> None:
        name = self.path.name
        is_causal = self.header.metadata.get(f"{self.header.architecture}.attention.causal", True)
        if c.llama_model_has_encoder(self.model) or c.llama_model_is_diffusion(self.model) or not is_causal:
            raise ModelUnsupportedError(f"{name}: not a decoder-only language model", "use a chat or instruct model")
        if self.tokenizer.is_empty:
            raise ModelUnsupportedError(f"{name}: the file has no vocabulary", "use a complete GGUF file of the model")

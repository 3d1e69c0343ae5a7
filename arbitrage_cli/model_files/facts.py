"""Reads facts about a model from the headers of its GGUF files, even if the model does not fit in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from arbitrage_cli.errors import ModelFileError
from arbitrage_cli.model_files.gguf import Header, read_header

_SAMPLING = "general.sampling."
DEFAULT_CONTEXT_SIZE = 4096

# Bytes per number in the KV cache by format, including block scales
KV_BYTES: Mapping[str, float] = MappingProxyType({"auto": 2.0, "f32": 4.0, "f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32})

CHECKPOINT_BYTES = 512 << 20  # per sequence, for models that cannot remove the latest tokens from their state
MAX_CHECKPOINTS = 8

_F16_BYTES = 2  # per number in the KV cache
_F32_BYTES = 4  # per number in the state of a recurrent layer
_RECURRENT_ALONE = frozenset(("mamba", "mamba2"))
_ATTENTION_INTERVALS = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4}  # defaults, if the header has none

# LlamaFileType in https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about a model. A fact is None if the files do not contain it.

    `context_size` is the number of tokens for which a context would be allocated. `kv_bytes` is the size of this context's
    KV cache in f16. `state_bytes` is the size of the recurrent layers' state per sequence. `prediction_layers` is the number
    of layers for multi-token prediction.
    """

    files: tuple[Path, ...]
    file_bytes: int
    name: str
    architecture: str | None
    num_parameters: int
    quantization: str | None
    trained_context_size: int | None
    context_size: int
    kv_bytes: int | None
    state_bytes: int
    num_layers: int | None
    prediction_layers: int
    has_template: bool
    vocabulary_size: int | None
    sampling: Mapping[str, int | float]

    @property
    def checkpoint_bytes(self) -> int:
        return num_checkpoints(self.state_bytes) * self.state_bytes

    @property
    def memory_bytes(self) -> int | None:
        """The memory for weights, KV cache, state and checkpoints. Compute buffers need a few hundred megabytes more."""
        held = self.state_bytes + self.checkpoint_bytes
        return None if self.kv_bytes is None else self.file_bytes + self.kv_bytes + held


def num_checkpoints(state_bytes: int) -> int:
    """Return how many checkpoints of this size a sequence keeps.

    A sequence keeps at least two: the checkpoint of the latest step and an earlier one.
    """
    return max(2, min(MAX_CHECKPOINTS, CHECKPOINT_BYTES // max(1, state_bytes)))


def num_snapshots(state_bytes: int, useful: int) -> int:
    """Return how many states of this size, at most `useful`, a sequence keeps to remove rejected draft tokens."""
    return min(useful, CHECKPOINT_BYTES // state_bytes) if state_bytes else 0


def read_facts(files: Sequence[Path], context_size: int | None = None) -> Facts:
    """Read the headers of a model's files, in order. Raises ModelFileError if a file is missing or damaged."""
    if not files:
        raise ModelFileError("the model is not on this machine", "check the path or the name")
    headers = [read_header(path) for path in files]
    first = headers[0]
    trained = first.number("context_length")
    context = context_size or min(DEFAULT_CONTEXT_SIZE, trained or DEFAULT_CONTEXT_SIZE)
    file_type, kv_per_token = first.metadata.get("general.file_type"), _kv_numbers(first)
    return Facts(
        files=tuple(files),
        file_bytes=sum(header.file_size for header in headers),
        name=str(first.metadata.get("general.name") or files[0].stem),
        architecture=first.architecture if "general.architecture" in first.metadata else None,
        num_parameters=sum(header.num_parameters for header in headers),
        quantization=_FILE_TYPES.get(file_type, f"type {file_type}") if isinstance(file_type, int) else None,
        trained_context_size=trained,
        context_size=context,
        kv_bytes=None if kv_per_token is None else kv_per_token * context * _F16_BYTES,
        state_bytes=_state_numbers(first) * _F32_BYTES,
        num_layers=first.number("block_count"),
        prediction_layers=first.number("nextn_predict_layers") or 0,
        has_template="tokenizer.chat_template" in first.metadata,
        vocabulary_size=first.array_lengths.get("tokenizer.ggml.tokens"),
        sampling=_sampling(first),
    )


def _sampling(header: Header) -> dict[str, int | float]:
    return {
        name.removeprefix(_SAMPLING): value if isinstance(value, int) else float(f"{value:.7g}")
        for name, value in header.metadata.items()
        if name.startswith(_SAMPLING) and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _kv_numbers(header: Header) -> int | None:
    if header.architecture in _RECURRENT_ALONE:
        return 0
    width, heads = header.number("embedding_length"), _per_layer(header, "attention.head_count")
    if width is None or heads is None:
        return None
    kv_heads = _per_layer(header, "attention.head_count_kv") or heads
    key, value = header.number("attention.key_length"), header.number("attention.value_length")
    interval, numbers = _interval(header) or 1, 0
    for count, kv_count in [*zip(heads, kv_heads, strict=True)][interval - 1 :: interval]:
        each = width // count if count else 0  # a layer without attention has no heads
        numbers += kv_count * ((key or each) + (value or each))
    return numbers


def _interval(header: Header) -> int | None:
    """Return n if every n-th layer has attention and all other layers are recurrent, or None if n is unknown."""
    return header.number("full_attention_interval") or _ATTENTION_INTERVALS.get(header.architecture)


def _state_numbers(header: Header) -> int:
    kernel, window = header.number("ssm.conv_kernel") or 1, header.number("shortconv.l_cache") or 1
    names = ("block_count", "embedding_length", "ssm.inner_size", "ssm.state_size", "ssm.group_count")
    layers, width, inner, size, groups = (header.number(name) or 0 for name in names)
    each = (window - 1) * width + (kernel - 1) * (inner + 2 * groups * size) + size * inner
    return each * sum(_is_recurrent(header, layer) for layer in range(layers))


def _is_recurrent(header: Header, layer: int) -> bool:
    kv_heads, forward = header.numbers("attention.head_count_kv"), header.numbers("feed_forward_length")
    if layer < len(kv_heads):
        only_forward = layer < len(forward) and forward[layer] > 0 and min(forward) == 0  # Nemotron-H
        return kv_heads[layer] == 0 and not only_forward
    interval = _interval(header)
    return interval is None or (layer + 1) % interval > 0


def _per_layer(header: Header, name: str) -> tuple[int, ...] | None:
    layers, number, numbers = header.number("block_count"), header.number(name), header.numbers(name)
    if layers and number:
        return (number,) * layers
    return numbers if layers and len(numbers) == layers and min(numbers) >= 0 else None

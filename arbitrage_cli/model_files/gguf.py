"""Checks the header of a GGUF file, and reads facts about the model, even if it does not fit in memory.

Every length is limited, because the file may be damaged, and all tensors must end within the file. Weights are neither read
nor checked; llama.cpp checks them when a new file is tried in a separate process (`inference.open`). Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import functools
import math
import mmap
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from arbitrage_cli.errors import ModelFileError
from arbitrage_cli.system.files import open_regular, state_of
from arbitrage_cli.types import frozen

Scalar = int | float | bool | str

MAX_ENTRIES = 10_000  # metadata entries or tensors: llama.cpp needs quadratic time, and real files have hundreds
MAX_LAYERS = 512  # llama.cpp aborts on more
MAX_DIMENSIONS = 4  # of a tensor
MAX_LIST = 1 << 10  # elements of a stored array; models have fewer layers
MAX_HEADER_TEXT = 1 << 25  # bytes of all strings outside arrays
MAX_STRINGS = 1 << 21  # in all arrays; a vocabulary and its merges have less than a million

OTHER_KINDS = {"adapter": "an adapter", "mmproj": "a projector for images or audio", "imatrix": "an importance matrix"}
"""Kinds of GGUF files (`general.type`) that are not models."""

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_INTEGERS = frozenset(_SCALARS) - {6, 7, 12}
_STRING, _ARRAY = 8, 9

_BLOCK_SIZES = {  # block elements: {number of the tensor type: block bytes}
    1: {0: 4, 1: 2, 24: 1, 25: 2, 26: 4, 27: 8, 28: 8, 30: 2},  # F32, F16, integers, F64, BF16
    32: {2: 18, 3: 20, 6: 22, 7: 24, 8: 34, 9: 40, 20: 18, 39: 17},  # Q4_0 to Q8_1, IQ4_NL, MXFP4
    64: {40: 36},  # NVFP4
    128: {41: 18},  # Q1_0
    256: {10: 84, 11: 110, 12: 144, 13: 176, 14: 210, 15: 292, 16: 66, 17: 74, 18: 98, 19: 50, 21: 110}  # Q2_K to IQ3_S
    | {22: 82, 23: 136, 29: 56, 34: 54, 35: 66},  # IQ2_S, IQ4_XS, IQ1_M, TQ1_0, TQ2_0
}
_BLOCKS = {kind: (elements, size) for elements, sizes in _BLOCK_SIZES.items() for kind, size in sizes.items()}
"""The elements and the bytes of a block, by ggml's number of the tensor type."""
MAX_ALIGNMENT = 1 << 20


@frozen
class Header:
    """The metadata of a GGUF file: scalars, strings, array lengths, and short integer arrays (`lists`).

    `num_parameters` is the number of tensor elements in this file. The file may be one part of a split model.
    """

    num_parameters: int
    metadata: Mapping[str, Scalar]
    array_lengths: Mapping[str, int]
    lists: Mapping[str, tuple[int, ...]]
    file_size: int

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture"))

    def number(self, name: str) -> int | None:
        value = self.metadata.get(f"{self.architecture}.{name}")
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

    def numbers(self, name: str) -> tuple[int, ...]:
        return self.lists.get(f"{self.architecture}.{name}", ())


def read_header(path: Path) -> Header:
    """Read and check the header. Raises ModelFileError if the file is missing, incomplete or not a GGUF file."""
    try:
        return _header(path, *state_of(path).values())
    except _DamageError as damage:
        raise ModelFileError(f"{path}: damaged GGUF file ({damage})", "download the file again") from damage
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = error.strerror if isinstance(error, OSError) else error
        hint = "check the path and the permissions of the file"
        raise ModelFileError(f"{path}: cannot be read ({reason})", hint) from error


@functools.lru_cache(maxsize=16)  # a command reads each header many times, and a vocabulary takes a tenth of a second
def _header(path: Path, size: int, *state: int) -> Header:
    with open_regular(path, None) as file:
        _check_magic(path, file.read(64))
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _refuse_other_kinds(path, _Reader(data, size).header())


def _check_magic(path: Path, start: bytes) -> None:
    if start[:4] == b"GGUF":
        return
    if start.startswith(b"version https://git-lfs"):
        raise ModelFileError(f"{path}: a git-lfs pointer, not a GGUF model", "run `git lfs pull`")
    if start.lstrip()[:1] == b"<":
        raise ModelFileError(f"{path}: a web page, not a GGUF model", "use the link that downloads the file")
    raise ModelFileError(f"{path}: not a GGUF model", "convert the model to GGUF, or use another file")


def _refuse_other_kinds(path: Path, header: Header) -> Header:
    kind = "mmproj" if header.architecture == "clip" else header.metadata.get("general.type")
    if kind in OTHER_KINDS:
        raise ModelFileError(f"{path}: {OTHER_KINDS[str(kind)]}, not a model", "use the model's own GGUF file")
    return header


class _DamageError(Exception):
    """Raised if a header is damaged."""


@frozen
class _Tensor:
    """A tensor's number of elements, and its end in bytes after the beginning of all tensors."""

    num_elements: int
    end: int


class _Reader:
    """Parses the header. Every length is checked against the rest of the file before it is used."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self._data = data
        self._size = size
        self._at = 4
        self._text_left = MAX_HEADER_TEXT
        self._strings_left = MAX_STRINGS
        self._metadata: dict[str, Scalar] = {}
        self._array_lengths: dict[str, int] = {}
        self._lists: dict[str, tuple[int, ...]] = {}

    def header(self) -> Header:
        version = self._integer("<I")
        if version not in (2, 3):
            raise _DamageError(f"unsupported version {version}; expected 2 or 3")
        num_tensors = self._count("tensors")
        num_entries = self._count("metadata entries")
        for _ in range(num_entries):
            self._read_entry()
        layers = self._metadata.get(f"{self._metadata.get('general.architecture')}.block_count")
        if isinstance(layers, int) and not 1 <= layers <= MAX_LAYERS:
            raise _DamageError(f"the model has {layers} layers; expected 1 to {MAX_LAYERS}")
        tensors = [self._read_tensor() for _ in range(num_tensors)]
        self._check_end(max((tensor.end for tensor in tensors), default=0))
        num_parameters = sum(tensor.num_elements for tensor in tensors)
        return Header(num_parameters, self._metadata, self._array_lengths, self._lists, self._size)

    def _check_end(self, length: int) -> None:
        """Raise an error if the file ends before the last of `length` bytes of tensors, which follow the header and its padding."""
        alignment = self._metadata.get("general.alignment", 32)
        is_valid = isinstance(alignment, int) and 0 < alignment <= MAX_ALIGNMENT
        if not is_valid:
            raise _DamageError(f"the alignment is {alignment!r}; expected 1 to {MAX_ALIGNMENT}")
        padding = -self._at % int(alignment)
        needed = self._at + padding + length
        if length and needed > self._size:
            raise _DamageError(f"the file has {self._size:,} bytes, but its tensors end at byte {needed:,}")

    def _read_entry(self) -> None:
        key = self._string()
        kind = self._integer("<I")
        if kind == _STRING:
            self._metadata[key] = self._string()
        elif kind == _ARRAY:
            self._read_array(key)
        elif kind in _SCALARS:
            self._metadata[key] = self._scalar(_SCALARS[kind])
        else:
            raise _DamageError(f"unknown value type {kind}")

    def _read_array(self, key: str) -> None:
        """Read an array. Only short integer arrays are stored. Nested arrays are rejected, as in llama.cpp."""
        kind, length = self._integer("<I"), self._integer("<Q")
        self._array_lengths[key] = length
        if kind == _STRING:
            self._strings_left -= length
            if self._strings_left < 0:
                raise _DamageError(f"the arrays contain more than {MAX_STRINGS} strings")
            self._skip_strings(length)
        elif kind in _SCALARS:
            start = self._take(length * struct.calcsize(_SCALARS[kind]))
            if kind in _INTEGERS and length <= MAX_LIST:
                self._lists[key] = struct.unpack_from(f"<{length}{_SCALARS[kind][1]}", self._data, start)
        else:
            raise _DamageError(f"unknown value type {kind} in an array")

    def _skip_strings(self, count: int) -> None:
        """Skip strings.

        This loop takes most of the time: a vocabulary and its merges have hundreds of thousands of strings.
        """
        at = self._at
        data = self._data
        length_at = struct.Struct("<Q").unpack_from
        try:
            for _ in range(count):
                at += 8 + length_at(data, at)[0]
        except (struct.error, OverflowError):  # the next length is behind the end
            at = self._size + 1
        self._take(at - self._at)

    def _read_tensor(self) -> "_Tensor":
        self._string()
        dimensions = self._integer("<I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise _DamageError(f"a tensor has {dimensions} dimensions; expected 1 to {MAX_DIMENSIONS}")
        num_elements = math.prod(self._integer("<Q") for _ in range(dimensions))
        kind, offset = self._integer("<I"), self._integer("<Q")
        elements_per_block, bytes_per_block = _BLOCKS.get(kind, (num_elements or 1, 1))  # an unknown type has some bytes
        return _Tensor(num_elements, offset + num_elements // elements_per_block * bytes_per_block)

    def _take(self, length: int) -> int:
        """Skip `length` bytes and return the position of the first skipped byte."""
        start = self._at
        if length > self._size - start:
            raise _DamageError("the file ends inside the header")
        self._at += length
        return start

    def _scalar(self, form: str) -> int | float | bool:
        value: int | float | bool = struct.unpack_from(form, self._data, self._take(struct.calcsize(form)))[0]
        return value

    def _integer(self, form: str) -> int:
        return int(self._scalar(form))

    def _count(self, what: str) -> int:
        count = self._integer("<Q")
        if count > MAX_ENTRIES:
            raise _DamageError(f"the file has {count} {what}; the limit is {MAX_ENTRIES}")
        return count

    def _string(self) -> str:
        length = self._integer("<Q")
        self._text_left -= length
        if self._text_left < 0:
            raise _DamageError(f"the header has more than {MAX_HEADER_TEXT} bytes of text")
        start = self._take(length)
        return self._data[start : start + length].decode("utf-8", errors="replace")


# --- facts about a model

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


@frozen
class FileFacts:
    """The facts in the files of a model. A field is None if the files do not contain the fact.

    `file_type` is llama.cpp's number for the quantization. `context_size` is the number of tokens for which a context would
    be allocated. `kv_bytes` is the size of this context's KV cache in f16. `state_bytes` is the size of the recurrent
    layers' state per sequence.
    """

    files: tuple[Path, ...]
    file_bytes: int
    name: str
    architecture: str | None
    num_parameters: int
    file_type: int | None
    trained_context_size: int | None
    context_size: int
    kv_bytes: int | None
    state_bytes: int
    num_layers: int | None
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


def read_facts(files: Sequence[Path], context_size: int | None = None) -> FileFacts:
    """Read the headers of a model's files, in order. Raises ModelFileError if a file is missing or damaged."""
    headers = [read_header(path) for path in files]
    first = headers[0]
    trained = first.number("context_length")
    context = context_size or min(DEFAULT_CONTEXT_SIZE, trained or DEFAULT_CONTEXT_SIZE)
    file_type = first.metadata.get("general.file_type")
    kv_per_token = _kv_numbers(first)
    return FileFacts(
        files=tuple(files),
        file_bytes=sum(header.file_size for header in headers),
        name=str(first.metadata.get("general.name") or files[0].stem),
        architecture=first.architecture if "general.architecture" in first.metadata else None,
        num_parameters=sum(header.num_parameters for header in headers),
        file_type=file_type if isinstance(file_type, int) else None,
        trained_context_size=trained,
        context_size=context,
        kv_bytes=None if kv_per_token is None else kv_per_token * context * _F16_BYTES,
        state_bytes=_state_numbers(first) * _F32_BYTES,
        num_layers=first.number("block_count"),
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
    width = header.number("embedding_length")
    heads = _per_layer(header, "attention.head_count")
    if width is None or heads is None:
        return None
    kv_heads = _per_layer(header, "attention.head_count_kv") or heads
    key = header.number("attention.key_length")
    value = header.number("attention.value_length")
    interval = _interval(header) or 1
    numbers = 0
    for count, kv_count in [*zip(heads, kv_heads, strict=True)][interval - 1 :: interval]:
        each = width // count if count else 0  # a layer without attention has no heads
        numbers += kv_count * ((key or each) + (value or each))
    return numbers


def _interval(header: Header) -> int | None:
    """Return n if every n-th layer has attention and all other layers are recurrent, or None if n is unknown."""
    return header.number("full_attention_interval") or _ATTENTION_INTERVALS.get(header.architecture)


def _state_numbers(header: Header) -> int:
    kernel = header.number("ssm.conv_kernel") or 1
    window = header.number("shortconv.l_cache") or 1
    names = ("block_count", "embedding_length", "ssm.inner_size", "ssm.state_size", "ssm.group_count")
    layers, width, inner, size, groups = (header.number(name) or 0 for name in names)
    each = (window - 1) * width + (kernel - 1) * (inner + 2 * groups * size) + size * inner
    return each * sum(_is_recurrent(header, layer) for layer in range(layers))


def _is_recurrent(header: Header, layer: int) -> bool:
    kv_heads = header.numbers("attention.head_count_kv")
    forward = header.numbers("feed_forward_length")
    if layer < len(kv_heads):
        only_forward = layer < len(forward) and forward[layer] > 0 and min(forward) == 0  # Nemotron-H
        return kv_heads[layer] == 0 and not only_forward
    interval = _interval(header)
    return interval is None or (layer + 1) % interval > 0


def _per_layer(header: Header, name: str) -> tuple[int, ...] | None:
    layers = header.number("block_count")
    number = header.number(name)
    numbers = header.numbers(name)
    if layers and number:
        return (number,) * layers
    return numbers if layers and len(numbers) == layers and min(numbers) >= 0 else None

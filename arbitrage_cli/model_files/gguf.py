"""Checks the header of a GGUF file. Some damaged files would make llama.cpp abort the process.

Every length is limited, and the file is checked for completeness. Weights are not read. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from arbitrage_cli.errors import ModelFileError
from arbitrage_cli.system.files import open_regular

Scalar = int | float | bool | str

MAX_ENTRIES = 10_000  # metadata entries or tensors: llama.cpp needs quadratic time, and real files have hundreds
MAX_LAYERS = 512  # llama.cpp aborts on more
MAX_STRING = 1 << 24  # bytes; the longest real strings are chat templates
MAX_LIST = 1 << 10  # elements of a stored array; models have fewer layers
MAX_ARRAY = 1 << 24  # elements; the longest real arrays are vocabularies
MAX_TEXT = 1 << 25  # bytes of all strings outside arrays
MAX_STRINGS = 1 << 21  # in all arrays; a vocabulary and its merges have less than a million

OTHER_KINDS = {"adapter": "an adapter", "mmproj": "a projector for images or audio", "imatrix": "an importance matrix"}
"""Kinds of GGUF files (`general.type`) that are not models."""

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_INTEGERS = frozenset(_SCALARS) - {6, 7, 12}
_STRING, _ARRAY = 8, 9
_BYTES_OF_BLOCK = {
    1: {0: 4, 1: 2, 24: 1, 25: 2, 26: 4, 27: 8, 28: 8, 30: 2},
    32: {2: 18, 3: 20, 6: 22, 7: 24, 8: 34, 20: 18, 39: 17},
    256: {10: 84, 11: 110, 12: 144, 13: 176, 14: 210, 15: 292, 16: 66, 17: 74, 18: 98, 19: 50, 21: 110, 22: 82, 23: 136}
    | {29: 56, 34: 54, 35: 66},
}
_BLOCKS = {kind: (block, size) for block, sizes in _BYTES_OF_BLOCK.items() for kind, size in sizes.items()}
"""Elements and bytes per block, by ggml type number."""


@dataclass(frozen=True, slots=True)
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
        with open_regular(path, None) as file:
            size = os.fstat(file.fileno()).st_size
            _check_magic(path, file.read(64))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _refuse_other_kinds(path, _Reader(data, size).header())
    except _DamageError as damage:
        raise ModelFileError(f"{path}: damaged GGUF file ({damage})", "download the file again") from damage
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = error.strerror if isinstance(error, OSError) else error
        hint = "check the path and the permissions of the file"
        raise ModelFileError(f"{path}: cannot be read ({reason})", hint) from error


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


class _Reader:
    """Parses the header. Every length is checked against the rest of the file before it is used."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self._data, self._size, self._at = data, size, 4
        self._text_left, self._strings_left = MAX_TEXT, MAX_STRINGS
        self._metadata: dict[str, Scalar] = {}
        self._array_lengths: dict[str, int] = {}
        self._lists: dict[str, tuple[int, ...]] = {}

    def header(self) -> Header:
        version = self._integer("<I")
        if version not in (2, 3):
            raise _DamageError(f"unsupported version {version}; expected 2 or 3")
        num_tensors, num_entries = self._count("tensors"), self._count("metadata entries")
        for _ in range(num_entries):
            self._read_entry()
        layers = self._metadata.get(f"{self._metadata.get('general.architecture')}.block_count")
        if isinstance(layers, int) and not 1 <= layers <= MAX_LAYERS:
            raise _DamageError(f"the model has {layers} layers; expected 1 to {MAX_LAYERS}")
        num_parameters = self._read_tensors(num_tensors)
        return Header(num_parameters, self._metadata, self._array_lengths, self._lists, self._size)

    def _read_entry(self) -> None:
        key, kind = self._string(), self._integer("<I")
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
        if length > MAX_ARRAY:
            raise _DamageError(f"an array has {length} elements; the limit is {MAX_ARRAY}")
        if kind == _STRING:
            self._strings_left -= length
            if self._strings_left < 0:
                raise _DamageError(f"the arrays contain more than {MAX_STRINGS} strings")
            self._skip_strings(length)
        elif kind in _SCALARS:
            form = f"<{length}{_SCALARS[kind][1]}"
            start = self._take(struct.calcsize(form))
            if kind in _INTEGERS and length <= MAX_LIST:
                self._lists[key] = struct.unpack_from(form, self._data, start)
        else:
            raise _DamageError(f"unknown value type {kind} in an array")

    def _skip_strings(self, count: int) -> None:
        """Skip strings. This loop takes most of the time: a vocabulary and its merges have hundreds of thousands of strings."""
        at, data, length_at = self._at, self._data, struct.Struct("<Q").unpack_from
        try:
            for _ in range(count):
                at += 8 + length_at(data, at)[0]
        except (struct.error, OverflowError):  # the next length is behind the end
            at = self._size + 1
        self._take(at - self._at)

    def _read_tensors(self, count: int) -> int:
        alignment = self._metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1) or alignment > 1 << 20:
            raise _DamageError(f"invalid alignment {alignment}")
        tensors = [self._tensor(alignment) for _ in range(count)]
        data_start = -(-self._at // alignment) * alignment
        if tensors and data_start + max(end for end, _ in tensors) > self._size:
            raise _DamageError("the file ends before the last tensor")
        return sum(elements for _, elements in tensors)

    def _tensor(self, alignment: int) -> tuple[int, int]:
        self._string()
        dimensions = self._integer("<I")
        if not 1 <= dimensions <= 4:
            raise _DamageError(f"a tensor has {dimensions} dimensions; expected 1 to 4")
        shape = [self._integer("<Q") for _ in range(dimensions)]
        if any(length >= 1 << 40 for length in shape):
            raise _DamageError("a tensor dimension is 2^40 or more")
        kind, offset, elements = self._integer("<I"), self._integer("<Q"), math.prod(shape)
        if offset % alignment:
            raise _DamageError(f"tensor offset {offset} is not aligned")
        block, size = _BLOCKS.get(kind, (elements, 1))  # an unknown type needs at least one byte
        return offset + elements // max(block, 1) * size, elements

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
        if length > MAX_STRING:
            raise _DamageError(f"a string has {length} bytes; the limit is {MAX_STRING}")
        self._text_left -= length
        if self._text_left < 0:
            raise _DamageError(f"the header has more than {MAX_TEXT} bytes of text")
        start = self._take(length)
        return self._data[start : start + length].decode("utf-8", errors="replace")

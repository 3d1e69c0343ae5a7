"""A bounded look at a GGUF file's header, before any C code sees the file.

llama.cpp ends the process on some damaged files. This reader walks the header with a bound on every length it meets
and says what is wrong in one line. Knows nothing of weights or architectures: it checks that the file is whole, not
that the model is good. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import hashlib
import math
import mmap
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from arbitrage_cli.errors import ModelFileError

Scalar = int | float | bool | str

MAX_ENTRIES = 1 << 20  # of metadata or tensors; real files have hundreds
MAX_STRING = 1 << 24  # bytes; the longest real strings are chat templates
MAX_LIST = 1 << 10  # elements that are kept; more than any model has layers
MAX_ARRAY = 1 << 24  # elements; the longest real arrays are vocabularies
MAX_ARRAY_DEPTH = 4
MAX_TEXT = 1 << 25  # bytes of all strings that are kept, together
MAX_STRINGS = 1 << 21  # in all arrays together: each is walked; a vocabulary and its merges have less than a million

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
"""Elements and bytes of a block, by the number of ggml's type."""
_TOKENS = "tokenizer.ggml.tokens"


@dataclass(frozen=True, slots=True)
class Header:
    """Scalar and string metadata of a GGUF file, the length of each array, and `lists`, the short ones of whole numbers.

    Sizes in bytes.

    `num_parameters` counts the elements of all tensors in this file: of a split model, those of this part.
    """

    version: int
    num_tensors: int
    num_parameters: int
    metadata: Mapping[str, Scalar]
    array_lengths: Mapping[str, int]
    lists: Mapping[str, tuple[int, ...]]
    file_size: int


def read_header(path: Path) -> Header:
    """Read and check the header. ModelFileError, with the reason, for anything that is not a whole GGUF file."""
    with _reader(path) as reader:
        return reader.header()


def vocabulary_digest(path: Path) -> str | None:
    """Tells vocabularies apart: sha256 of all tokens in order; None without any. Errors as for `read_header`.

    Tokens that only pad the vocabulary to a rounder size, `[PAD151935]`, do not count: sizes of one family differ in them.
    """
    with _reader(path) as reader:
        reader.header()
        digest = hashlib.sha256()
        num_tokens = 0
        for index, token in enumerate(reader.tokens()):
            if token != b"[PAD%d]" % index:
                digest.update(b"%d:" % len(token) + token)
                num_tokens += 1
    return digest.hexdigest() if num_tokens else None


@contextmanager
def _reader(path: Path) -> Iterator["_Reader"]:
    """A reader of the open file; what it finds damaged becomes a ModelFileError."""
    size = _regular_file_size(path)
    if size < 24:
        raise ModelFileError(f"{path}: not a GGUF model (only {size} bytes)", "download the file again")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _check_magic(path, data[:64])
            yield _Reader(data, size)
    except _DamageError as damage:
        raise ModelFileError(f"{path}: damaged GGUF file ({damage})", "download the file again") from damage
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror})", "check the file's permissions") from error


def _regular_file_size(path: Path) -> int:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: no such file", "check the path of the GGUF model") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        raise ModelFileError(f"{path}: cannot be opened ({error})", "check the path of the GGUF model") from error
    if stat.S_ISDIR(status.st_mode):
        raise ModelFileError(f"{path}: a folder, not a GGUF file", "name the .gguf file inside it")
    if not stat.S_ISREG(status.st_mode):
        raise ModelFileError(f"{path}: not a regular file", "name a .gguf file")
    return status.st_size


def _check_magic(path: Path, start: bytes) -> None:
    if start[:4] == b"GGUF":
        return
    if start.startswith(b"version https://git-lfs"):
        raise ModelFileError(f"{path}: a git-lfs pointer, not the model itself", "fetch it with `git lfs pull`")
    if start.lstrip()[:1] == b"<":
        raise ModelFileError(f"{path}: a web page, not a GGUF model", "download the file itself, not its page")
    raise ModelFileError(f"{path}: not a GGUF model", "convert the model to GGUF, or name another file")


class _DamageError(Exception):
    """What is wrong with the header."""


class _Reader:
    """Walks the header. Every length is compared with what is left of the file before it is used."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self._data, self._size, self._at = data, size, 4
        self._tokens_at: int | None = None
        self._text_left, self._strings_left = MAX_TEXT, MAX_STRINGS

    def header(self) -> Header:
        version = self._number("<I")
        if version not in (2, 3):
            raise _DamageError(f"version {version}; versions 2 and 3 are known")
        num_tensors, num_entries = self._count("tensors"), self._count("metadata entries")
        metadata: dict[str, Scalar] = {}
        array_lengths: dict[str, int] = {}
        lists: dict[str, tuple[int, ...]] = {}
        for _ in range(num_entries):
            key, kind = self._string(), self._number("<I")
            if kind == _ARRAY:
                if key == _TOKENS:
                    self._tokens_at = self._at
                begin = self._at
                array_lengths[key] = self._skip_array()
                if numbers := self._short_list(begin):
                    lists[key] = numbers
            else:
                metadata[key] = self._string() if kind == _STRING else self._scalar(kind)
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1) or alignment > 1 << 20:
            raise _DamageError(f"alignment {alignment}")
        tensors = [self._tensor(alignment) for _ in range(num_tensors)]
        data_start = -(-self._at // alignment) * alignment
        if num_tensors and data_start + max(end for end, _ in tensors) > self._size:
            raise _DamageError("the file ends before its last tensor does")
        num_parameters = sum(elements for _, elements in tensors)
        return Header(version, num_tensors, num_parameters, metadata, array_lengths, lists, self._size)

    def tokens(self) -> Iterator[bytes]:
        """The vocabulary as it stands in a header that was walked before."""
        if self._tokens_at is None:
            return
        self._at = self._tokens_at
        kind, length = self._number("<I"), self._number("<Q")
        for _ in range(length if kind == _STRING else 0):
            size = self._number("<Q")
            start = self._take(size)
            yield self._data[start : start + size]

    def _take(self, length: int) -> int:
        """The position of the next `length` bytes, which are then behind."""
        start = self._at
        if length > self._size - start:
            raise _DamageError("the file ends inside its header")
        self._at += length
        return start

    def _number(self, form: str) -> int:
        return int(self._scalar_of(form))

    def _scalar(self, kind: int) -> Scalar:
        if kind not in _SCALARS:
            raise _DamageError(f"unknown value type {kind}")
        return self._scalar_of(_SCALARS[kind])

    def _scalar_of(self, form: str) -> int | float | bool:
        value: int | float | bool = struct.unpack_from(form, self._data, self._take(struct.calcsize(form)))[0]
        return value

    def _count(self, what: str) -> int:
        count = self._number("<Q")
        if count > MAX_ENTRIES:
            raise _DamageError(f"{count} {what}")
        return count

    def _string(self) -> str:
        length = self._number("<Q")
        if length > MAX_STRING:
            raise _DamageError(f"a string of {length} bytes")
        self._text_left -= length
        if self._text_left < 0:
            raise _DamageError(f"more than {MAX_TEXT} bytes of text")
        start = self._take(length)
        return self._data[start : start + length].decode("utf-8", errors="replace")

    def _skip_array(self, depth: int = 1) -> int:
        """Step over an array; returns its number of elements."""
        kind, length = self._number("<I"), self._number("<Q")
        if length > MAX_ARRAY or depth > MAX_ARRAY_DEPTH:
            raise _DamageError(f"an array of {length} elements" if length > MAX_ARRAY else "nested arrays")
        if kind == _STRING:
            self._strings_left -= length
            if self._strings_left < 0:
                raise _DamageError(f"more than {MAX_STRINGS} strings in arrays")
            for _ in range(length):
                self._take(self._number("<Q"))
        elif kind == _ARRAY:
            for _ in range(length):
                self._skip_array(depth + 1)
        elif kind in _SCALARS:
            self._take(length * struct.calcsize(_SCALARS[kind]))
        else:
            raise _DamageError(f"unknown value type {kind}")
        return length

    def _short_list(self, begin: int) -> tuple[int, ...]:
        """The numbers of the array that begins there and was walked before; none if it is long, or not of whole numbers."""
        kind, length = struct.unpack_from("<IQ", self._data, begin)
        if kind not in _INTEGERS or length > MAX_LIST:
            return ()
        return struct.unpack_from(f"<{length}{_SCALARS[kind][1]}", self._data, begin + struct.calcsize("<IQ"))

    def _tensor(self, alignment: int) -> tuple[int, int]:
        """Where a tensor's data end, and how many elements it has."""
        self._string()
        dimensions = self._number("<I")
        if not 1 <= dimensions <= 4:
            raise _DamageError(f"a tensor of {dimensions} dimensions")
        shape = [self._number("<Q") for _ in range(dimensions)]
        if any(length >= 1 << 40 for length in shape):
            raise _DamageError("a tensor of impossible size")
        kind, offset, elements = self._number("<I"), self._number("<Q"), math.prod(shape)
        if offset % alignment:
            raise _DamageError(f"tensor offset {offset} is not aligned")
        block, size = _BLOCKS.get(kind, (elements, 1))  # of a type that is newer than this list one byte is there at least
        return offset + elements // max(block, 1) * size, elements

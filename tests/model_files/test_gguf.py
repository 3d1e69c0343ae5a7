"""Checks of GGUF headers: clear errors for other files, in bounded time and memory."""

import os
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

from arbitrage_cli.errors import ModelFileError
from arbitrage_cli.model_files.gguf import read_facts, read_header

UINT32, STRING, ARRAY, UINT64 = 4, 8, 9, 10
HUGE = 2**64 - 1


def string(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def uint32(value: int) -> bytes:
    return struct.pack("<I", value)


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def array(kind: int, length: int, elements: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, length) + elements


def tensor(name: bytes, shape: tuple[int, ...], offset: int, kind: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(*parts: bytes, version: int = 3, num_tensors: int = 0, num_entries: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_entries) + b"".join(parts)


def layers(count: int) -> bytes:
    architecture = entry(b"general.architecture", STRING, string(b"llama"))
    numbers = {b"embedding_length": 64, b"attention.head_count": 64, b"block_count": count}
    return gguf(architecture, *(entry(b"llama." + key, UINT32, uint32(n)) for key, n in numbers.items()), num_entries=4)


def refusal(path: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        read_header(path)
    assert "\n" not in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint
    return caught.value.message


def refusal_of(data: bytes, folder: Path) -> str:
    path = folder / "damaged.gguf"
    path.write_bytes(data)
    return refusal(path)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A GGUF file of less than a thousand bytes, with metadata of every type and two tensors."""
    path = tmp_path / "small.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_uint8("a.uint8", 1)
    writer.add_int64("a.int64", -5)
    writer.add_float32("a.float32", 0.5)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "käse")
    writer.add_array("a.strings", ["one", "two", "three"])
    writer.add_array("a.numbers", [1, 2, 3, 4])
    writer.add_tensor("first", np.ones((2, 3), np.float32))
    writer.add_tensor("second", np.ones(5, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_good_file(small: Path) -> None:
    header = read_header(small)
    assert (header.num_parameters, header.file_size) == (2 * 3 + 5, small.stat().st_size)
    assert header.array_lengths == {"a.strings": 3, "a.numbers": 4}
    assert header.lists == {"a.numbers": (1, 2, 3, 4)}
    assert header.metadata == {
        "general.architecture": "llama",
        "a.uint8": 1,
        "a.int64": -5,
        "a.float32": 0.5,
        "a.bool": True,
        "a.string": "käse",
    }


def test_a_file_cut_anywhere(small: Path, tmp_path: Path) -> None:
    """Cut at every byte up to the end of the last tensor. The padding after it is optional."""
    whole = small.read_bytes()
    end = len(whole) - 32 + 5 * 4  # five floats, padded to the alignment
    for length in range(end):
        refusal_of(whole[:length], tmp_path)
    (tmp_path / "cut.gguf").write_bytes(whole[:end])
    assert read_header(tmp_path / "cut.gguf").num_parameters == 2 * 3 + 5


@pytest.mark.parametrize("kind", GGML_QUANT_SIZES, ids=lambda kind: kind.name)
def test_sizes_of_tensors_are_those_of_ggml(kind: GGMLQuantizationType, tmp_path: Path) -> None:
    """A file without the last byte of a tensor is refused, for each type of tensor."""
    block, size = GGML_QUANT_SIZES[kind]
    header = gguf(tensor(b"t", (block, 3), 0, kind.value), num_tensors=1)
    whole = header + b"\0" * (-len(header) % 32 + 3 * size)
    (tmp_path / "whole.gguf").write_bytes(whole)
    assert read_header(tmp_path / "whole.gguf").num_parameters == 3 * block
    assert f"{len(whole):,}" in refusal_of(whole[:-1], tmp_path)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a GGUF model"),
        (b"GGUF", "ends inside the header"),
        (b"<!DOCTYPE html><html><head></head></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git-lfs pointer"),
        (b"PK\x03\x04" + b"\0" * 100, "not a GGUF"),
        (gguf(version=1), "version 1"),
        (gguf(num_entries=HUGE), "metadata entries"),
        (gguf(num_tensors=HUGE), "tensors"),
        (gguf(num_entries=1000), "ends inside the header"),
        (gguf(num_entries=10_001), "10001 metadata entries"),
        (gguf(*(tensor(b"", (1,), 0) for _ in range(20_000)), b"\0" * 64, num_tensors=20_000), "20000 tensors"),
        *((layers(value), f"{value} layers") for value in (0, 513)),
        (gguf(string(b"key", 2**63), b"\0" * 64, num_entries=1), "bytes of text"),
        (gguf(entry(b"k", STRING, string(b"text", 1 << 20)), num_entries=1), "ends inside the header"),
        (gguf(entry(b"k", 13, b"\0" * 8), num_entries=1), "unknown value type 13"),
        (gguf(entry(b"k", ARRAY, array(77, 3)), num_entries=1), "unknown value type 77"),
        (gguf(entry(b"k", ARRAY, array(UINT64, 2**61)), num_entries=1), "ends inside the header"),
        (gguf(entry(b"k", ARRAY, array(UINT64, 1 << 20)), num_entries=1), "ends inside the header"),
        (gguf(entry(b"k", ARRAY, array(ARRAY, 1) * 2), num_entries=1), "unknown value type 9 in an array"),
        (gguf(entry(b"general.alignment", UINT32, uint32(0)), num_entries=1), "alignment is 0"),
        (gguf(entry(b"general.alignment", STRING, string(b"32")), num_entries=1), "alignment is '32'"),
        (gguf(tensor(b"t", (4,), 2**60), b"\0" * 64, num_tensors=1), "tensors end at"),
        (gguf(tensor(b"t", (HUGE, HUGE), 0), b"\0" * 64, num_tensors=1), "tensors end at"),
        (gguf(tensor(b"t", (4,), 2**60, 999), b"\0" * 64, num_tensors=1), "tensors end at"),
        (gguf(tensor(b"t", (), 0), b"\0" * 64, num_tensors=1), "0 dimensions"),
        (gguf(tensor(b"t", (1,) * 5, 0), b"\0" * 64, num_tensors=1), "5 dimensions"),
    ],
)
def test_damaged_files_say_what_is_wrong(data: bytes, says: str, tmp_path: Path) -> None:
    assert says in refusal_of(data, tmp_path)


def test_a_file_that_changed_is_read_again(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "changed.gguf"
    path.write_bytes(small.read_bytes())
    read_header(path)
    path.write_bytes(b"GGUF")
    with pytest.raises(ModelFileError):
        read_header(path)


def test_as_many_layers_as_llama_cpp_takes(tmp_path: Path) -> None:
    (tmp_path / "many.gguf").write_bytes(layers(512))
    assert read_facts([tmp_path / "many.gguf"]).num_layers == 512


def test_odd_paths(small: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.gguf").symlink_to("b.gguf")
    (tmp_path / "b.gguf").symlink_to("a.gguf")
    reasons = {
        "No such file": [tmp_path / "missing.gguf"],
        "not a regular file": [tmp_path, tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")],
        "cannot be read": [tmp_path / "a.gguf", tmp_path / "a\0b", tmp_path / ("x" * 5000)],
    }
    for reason, paths in reasons.items():
        for path in paths:
            assert reason in refusal(path)
    (tmp_path / "link.gguf").symlink_to(small)
    assert read_header(tmp_path / "link.gguf") == read_header(small)


def test_a_vocabulary_of_millions_is_refused_early(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    with path.open("wb") as file:
        file.write(gguf(entry(b"k", ARRAY, array(STRING, 1 << 23)), num_entries=1))
        file.truncate(file.tell() + (8 << 23) + 64)
    assert "strings" in refusal(path)


def test_long_strings_do_not_pile_up_in_memory(tmp_path: Path) -> None:
    """A header of a few hundred MB of text must take less than 100 MB of memory."""
    path, count = tmp_path / "sparse.gguf", 12
    with path.open("wb") as file:
        file.write(gguf(num_entries=count))
        for number in range(count):
            file.write(entry(b"k%d" % number, STRING, string(b"", 1 << 24)))
            file.seek(1 << 24, os.SEEK_CUR)
        file.truncate(file.tell() + 64)
    tracemalloc.start()
    with suppress(ModelFileError):
        read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 << 20

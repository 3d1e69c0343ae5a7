"""Damaged copies of a valid GGUF file."""

import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path

from altered_gguf import ALIGNMENT, FORMS, Entry, alter, entries
from gguf import GGUFReader
from gguf import GGUFValueType as Kind

EXTREMES = (0, 1, 2, 3, 7, 255, 256, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, -1, -(2**31))
FLOATS = (0.0, -1.0, 1e-45, 1e30, math.inf, -math.inf, math.nan)
TEXTS = ("", "llama", "gemma3", "qwen2", "mamba", "rwkv6", "bert", "t5", "gpt2", "\0", "\u20ac" * 9, "A" * 100_000)
TEMPLATES = (
    "{{ ([[1]] * 3000000) | sum(start=[]) }}",
    "{{ 'A' * 10**10 }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{{ 7 ** (10 ** 10) }}",
    "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "{{ messages[-1].content }}" * 2,
    '{{ lipsum.__globals__["os"].popen("touch CANARY").read() }}',
    "{{ '%1000000000d' % 1 }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ range(10 ** 10) | list }}",
    "{{ messages | map('string') | join | wordwrap(1) | length }}{{ 'a' | center(40000) | replace(' ', 'a ')"
    + " | title" * 25
    + " }}",
)


def header_bytes(draw: random.Random, source: Path, target: Path) -> None:
    data = bytearray(source.read_bytes())
    end = GGUFReader(source).data_offset
    for _ in range(draw.randint(1, 4)):
        data[draw.randrange(4, end)] = draw.choice([0, 1, 9, 127, 128, 255, draw.randrange(256)])
    target.write_bytes(data)


def metadata(draw: random.Random, source: Path, target: Path) -> None:
    changes: dict[str, Entry | None] = {}
    known = entries(source)
    for name in draw.sample(sorted(known), draw.randint(1, 2)):
        changes[name] = draw.choice([None, *[_other(draw, known[name])] * 9])
    alter(source, target, changes)


def _other(draw: random.Random, entry: Entry) -> Entry:
    kind, value = entry
    if draw.random() < 0.15:
        kind = draw.choice([*FORMS, Kind.STRING])
    if kind == Kind.ARRAY:
        inner, elements = value
        return kind, (inner, _other_elements(draw, inner, list(elements)))
    if kind == Kind.STRING:
        return kind, draw.choice(TEXTS)
    if kind in (Kind.FLOAT32, Kind.FLOAT64):
        return kind, draw.choice(FLOATS)
    return kind, _fitting(kind, draw.choice(EXTREMES))


def _other_elements(draw: random.Random, inner: Kind, elements: list[object]) -> list[object]:
    if draw.random() < 0.3:
        return elements[: draw.randrange(len(elements) + 1)]
    if draw.random() < 0.1:
        return [elements[0]] * len(elements)
    for _ in range(draw.choice([1, 3, 20])):
        _, value = _other(draw, (inner, elements[0]))
        elements[draw.randrange(len(elements))] = (
            value if inner != Kind.INT32 else draw.choice([-1, 0, 1, 5, 6, 99, 2**31 - 1])
        )
    return elements if all(isinstance(one, type(elements[0])) for one in elements) else [elements[0]]


def _fitting(kind: Kind, number: int) -> int | bool:
    if kind == Kind.BOOL:
        return bool(number % 2)
    bits = int("".join(filter(str.isdigit, kind.name)))
    number %= 2**bits
    return number - 2**bits if kind.name.startswith("INT") and number >= 2 ** (bits - 1) else number


def truncation(draw: random.Random, source: Path, target: Path) -> None:
    data = source.read_bytes()
    end = draw.randrange(len(data))
    target.write_bytes(data[:end] + bytes(draw.choice([0, 0, len(data) - end, ALIGNMENT])))


def tensor_data(draw: random.Random, source: Path, target: Path) -> None:
    data = bytearray(source.read_bytes())
    start = GGUFReader(source).data_offset
    for _ in range(draw.choice([1, 10, 1000])):
        place, length = draw.randrange(start, len(data)), draw.choice([1, 2, 32, 4096])
        noise = draw.choice([b"\xff", b"\0", b"\x7f", draw.randbytes(1)]) * length
        data[place : place + length] = noise[: len(data) - place]
    target.write_bytes(data)


def template(draw: random.Random, source: Path, target: Path) -> None:
    right = entries(source)["tokenizer.chat_template"][1]
    text = draw.choice(TEMPLATES) + draw.choice(["", right]) + draw.choice(["", "{% endfor %}", "{{", "{% if x %}"])
    alter(source, target, {"tokenizer.chat_template": (Kind.STRING, text)})


Damage = Callable[[random.Random, Path, Path], None]
DAMAGES: Mapping[str, Damage] = {one.__name__: one for one in (header_bytes, metadata, truncation, tensor_data, template)}

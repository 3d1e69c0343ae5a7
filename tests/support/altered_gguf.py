"""A GGUF file with other metadata: the tensors of a good one, and entries that no writer would write."""

import struct
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from gguf import GGUFValueType as Kind

Entry = tuple[Kind, Any]
"""Type and value; of an array the value is (type of its elements, elements)."""

FORMS = {
    Kind.UINT8: "<B",
    Kind.INT8: "<b",
    Kind.UINT16: "<H",
    Kind.INT16: "<h",
    Kind.UINT32: "<I",
    Kind.INT32: "<i",
    Kind.FLOAT32: "<f",
    Kind.BOOL: "<?",
    Kind.UINT64: "<Q",
    Kind.INT64: "<q",
    Kind.FLOAT64: "<d",
}
ALIGNMENT = 32


@cache
def entries(path: Path) -> Mapping[str, Entry]:
    """The metadata of a good file, in order."""
    found: dict[str, Entry] = {}
    for name, field in GGUFReader(path).fields.items():
        if not name.startswith("GGUF."):
            value = field.contents()
            found[name] = (field.types[0], (field.types[1], value) if field.types[0] == Kind.ARRAY else value)
    return found


def alter(source: Path, target: Path, changes: Mapping[str, Entry | None]) -> Path:
    """Write the source with entries replaced, added, or left out (None)."""
    kept = {name: entry for name, entry in {**entries(source), **changes}.items() if entry is not None}
    tensors = GGUFReader(source).tensors
    infos = data = b""
    for tensor in tensors:
        shape = [int(length) for length in tensor.shape]
        infos += encode(Kind.STRING, tensor.name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        infos += struct.pack("<IQ", int(tensor.tensor_type), len(data))
        data += tensor.data.tobytes()
        data += bytes(-len(data) % ALIGNMENT)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(kept))
    for name, (kind, value) in kept.items():
        head += encode(Kind.STRING, name) + struct.pack("<I", int(kind)) + encode(kind, value)
    head += infos
    target.write_bytes(head + bytes(-len(head) % ALIGNMENT) + data)
    return target


def encode(kind: Kind, value: Any) -> bytes:
    if kind == Kind.STRING:
        text = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(text)) + text
    if kind == Kind.ARRAY:
        inner, elements = value
        return struct.pack("<IQ", int(inner), len(elements)) + b"".join(encode(inner, one) for one in elements)
    return struct.pack(FORMS[kind], value)

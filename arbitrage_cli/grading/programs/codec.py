"""Messages between the judge and the program: values as plain data, in frames of bounded length.

Reading is strict. It makes values of built-in types alone, so no method of the program's ever runs in the judge; what has no such
form crosses as a number for which the reader has a handle. Knows neither side.
"""

import json
import operator
import socket
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from itertools import islice
from typing import Any

MAX_FRAME = 4 << 20  # bytes of an answer
MAX_DEPTH = 100  # of lists in lists
MAX_ITEMS = 100_000  # that an iterator is asked for
_HEADER = 4  # bytes
_PLAIN = 1 << 53  # from here on integers are written in hexadecimal: decimal digits take long, and Python bounds them
_REFUSALS = (TypeError, ValueError, ArithmeticError, InvalidOperation, RecursionError)


class BadMessageError(Exception):
    """Bytes that are no message, or a value that cannot be sent as one."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """A type that crosses as a list: its name, then its items."""

    of: type
    name: str
    items: Callable[[Any], Iterable[object]]
    made_of: Callable[[list[Any]], object]


def _first_items(values: Iterator[object]) -> list[object]:
    items = list(islice(values, MAX_ITEMS + 1))
    if len(items) > MAX_ITEMS:
        raise BadMessageError(f"an iterator with more than {MAX_ITEMS} items")
    return items


_KINDS = (
    _Kind(int, "int", lambda value: [hex(value)], lambda items: int(str(*items), 16)),
    _Kind(list, "list", iter, list),
    _Kind(tuple, "tuple", iter, tuple),
    _Kind(Counter, "Counter", dict.items, lambda items: Counter(dict(items))),
    _Kind(OrderedDict, "OrderedDict", dict.items, OrderedDict),
    _Kind(dict, "dict", dict.items, dict),
    _Kind(set, "set", iter, set),
    _Kind(frozenset, "frozenset", iter, frozenset),
    _Kind(deque, "deque", iter, deque),
    _Kind(bytes, "bytes", lambda value: [value.hex()], lambda items: bytes.fromhex(*items)),
    _Kind(bytearray, "bytearray", lambda value: [value.hex()], lambda items: bytearray.fromhex(*items)),
    _Kind(range, "range", lambda value: [value.start, value.stop, value.step], lambda items: range(*items)),
    _Kind(complex, "complex", lambda value: [value.real, value.imag], lambda items: complex(*items)),
    _Kind(Decimal, "Decimal", lambda value: [str(value)], lambda items: Decimal(*items)),
    _Kind(
        Fraction,
        "Fraction",
        lambda value: [value.numerator, value.denominator],
        lambda items: Fraction(*map(operator.index, items)),
    ),
    _Kind(KeysView, "keys", iter, lambda items: dict.fromkeys(items).keys()),
    _Kind(ItemsView, "items", iter, lambda items: dict(items).items()),
    _Kind(ValuesView, "values", iter, lambda items: dict(enumerate(items)).values()),
    _Kind(Iterator, "iterator", _first_items, iter),
)
_TYPES: Mapping[str, type] = {
    kind.__name__: kind for kind in (int, float, complex, bool, str, bytes, list, tuple, dict, set, frozenset)
}
_BY_NAME = {kind.name: kind for kind in _KINDS}


def encode(value: object, number: Callable[[object], int], depth: int = 0) -> object:
    """A value as JSON. `number` gives the number of an object that has no such form. BadMessageError."""
    if depth > MAX_DEPTH:
        raise BadMessageError(f"a value that is nested more than {MAX_DEPTH} deep")
    if value is None or isinstance(value, str | float | bool) or (isinstance(value, int) and -_PLAIN < value < _PLAIN):
        return value
    if isinstance(value, type) and value is _TYPES.get(value.__name__):
        return ["type", value.__name__]
    for kind in _KINDS:
        if isinstance(value, kind.of):
            return [kind.name, *(encode(item, number, depth + 1) for item in kind.items(value))]
    return ["handle", number(value)]


def decode(data: object, handle: Callable[[int], object]) -> Any:
    """The value of what `encode` made. The sender is not trusted. `handle` gives the object with a number. BadMessageError."""
    try:
        return _decoded(data, handle)
    except _REFUSALS as error:
        raise BadMessageError(f"a value that cannot be read ({type(error).__name__})") from error


def _decoded(data: object, handle: Callable[[int], object]) -> object:
    match data:
        case None | bool() | str() | int() | float():
            return data
        case ["type", str(name)] if name in _TYPES:
            return _TYPES[name]
        case ["handle", int(number)]:
            return handle(number)
        case [str(name), *items] if name in _BY_NAME:
            return _BY_NAME[name].made_of([_decoded(item, handle) for item in items])
    raise BadMessageError("a value of no known kind")


def write_message(connection: socket.socket, message: object, limit: int = MAX_FRAME) -> None:
    """Write one frame. BadMessageError if it is too long, EOFError if the reader is gone, TimeoutError."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > limit:
        raise BadMessageError(f"a value of more than {limit >> 20} MB")
    try:
        connection.sendall(len(data).to_bytes(_HEADER) + data)
    except ConnectionError as error:
        raise EOFError from error


def read_message(connection: socket.socket, limit: int = MAX_FRAME) -> Any:
    """The JSON of one frame. BadMessageError if it is none, EOFError if the writer is gone, TimeoutError."""
    length = int.from_bytes(_read(connection, _HEADER))
    if length > limit:
        raise BadMessageError(f"a message of more than {limit >> 20} MB")
    try:
        return json.loads(_read(connection, length))
    except (ValueError, RecursionError) as error:
        raise BadMessageError("bytes that are no message") from error


def _read(connection: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        try:
            chunk = connection.recv(length - len(data))
        except ConnectionError as error:
            raise EOFError from error
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)

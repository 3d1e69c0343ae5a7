"""The process that runs a program: it loads the program, then answers calls. It never sees a test.

The program shares this process and may change anything in it. That does it no good: what leaves the process is read as plain
data, and graded elsewhere. Knows what it is asked, and nothing of the answer that is wanted.
"""

import socket
import sys
from types import ModuleType, TracebackType
from typing import Any, Self

from arbitrage_cli.grading.programs.codec import BadMessageError, decode, encode, read_message, write_message

MAX_MESSAGE = 500  # characters of an error's message
_MODULE = "program"


def serve(link: socket.socket) -> None:
    """Say that this process is ready, then answer the judge's requests until it is gone.

    A request is ["load", code, ...], ["names", name, ...], ["call", handle, arguments, named arguments], ["get", handle, name]
    or ["set", handle, name, value]. An answer is ["value", value], or ["error", names of the error's classes, message].
    """
    write_message(link, "ready")
    candidate = _Candidate()
    while True:
        try:
            request = read_message(link)
        except (EOFError, BadMessageError):
            return
        with _Caught() as caught:
            write_message(link, ["value", encode(candidate.answer(*request), candidate.number)])
        if caught.error is not None:
            write_message(link, ["error", *_described(caught.error)])


class _Candidate:
    """The program, and the objects of it that the judge knows by a number."""

    def __init__(self) -> None:
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._module = ModuleType(_MODULE)

    def number(self, thing: object) -> int:
        """The number of an object; a new one if it has none. The object lives as long as this process."""
        if id(thing) not in self._numbers:
            self._numbers[id(thing)] = len(self._objects)
            self._objects.append(thing)
        return self._numbers[id(thing)]

    def answer(self, kind: str, *details: Any) -> object:
        """What a request asks for. Every error that the program raises."""
        match kind, details:
            case "load", codes:
                self._load(codes)
                return None
            case "names", names:
                return {name: vars(self._module)[name] for name in names if name in vars(self._module)}
            case "call", (function, arguments, named):
                return self._value(function)(*self._value(arguments), **self._value(named))
            case "get", (owner, name):
                return getattr(self._value(owner), name)
            case "set", (owner, name, value):
                setattr(self._value(owner), name, self._value(value))
                return None
        raise BadMessageError(kind)

    def _load(self, codes: tuple[str, ...]) -> None:
        sys.modules[_MODULE] = self._module  # where dataclasses and the like look for it
        for code in codes:
            exec(compile(code, f"<{_MODULE}>", "exec", dont_inherit=True), vars(self._module))  # noqa: S102 - what we are here for

    def _value(self, data: object) -> Any:
        return decode(data, self._objects.__getitem__)


class _Caught:
    """Ends every error of a with statement, an exit too, and keeps it."""

    error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        self.error = error
        return True


def _described(error: BaseException) -> tuple[list[str], str]:
    """The names of an error's classes, its own first, and its message."""
    names = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ in ("builtins", _MODULE)]
    message = ""
    with _Caught():  # the program may define how its errors are shown
        message = str(error)[:MAX_MESSAGE]
    return names[:-1], message

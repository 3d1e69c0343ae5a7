"""The process that runs the tests, with stand-ins for the functions of the program, which runs elsewhere.

A call sends its arguments and waits for the answer. Answers are plain data or handles: no code of the program's runs here, so it
cannot change what an assertion means. The tests may do what any Python does; limits on this process bound it. Knows no clock.
"""

import builtins
import linecache
import socket
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from arbitrage_cli.grading.programs.codec import BadMessageError, decode, encode, read_message, write_message

MAX_TESTS = 64 << 20  # bytes of a request
_MAX_LINE = 200  # characters of a test that failed
_FILE = "<tests>"


def judge(control: socket.socket, link: socket.socket) -> None:
    """When both processes are ready: read one request on `control`, run its tests on the program behind `link`, write the verdict.

    The request is [program, names, script, preamble]; the verdict is [value, reason].
    """
    write_message(control, read_message(link))
    program, names, script, preamble = read_message(control, MAX_TESTS)
    with _Verdict() as verdict:
        candidate = _Program(link)
        verdict.program = candidate
        namespace: dict[str, Any] = {"__name__": "tests"}
        linecache.cache[_FILE] = len(script), None, script.splitlines(keepends=True), _FILE
        exec(compile(preamble, "<preamble>", "exec", dont_inherit=True), namespace)  # noqa: S102 - tests are code
        tests = compile(script, _FILE, "exec", dont_inherit=True)
        candidate.load(preamble, program)
        namespace |= candidate.names(names)
        exec(tests, namespace)  # noqa: S102
        candidate.check()
    write_message(control, [verdict.value, verdict.reason])


class _Verdict:
    """The verdict on the tests that run in a with statement, which ends every error."""

    value = "passed"
    reason = "all tests pass"
    program: "_Program | None" = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if error is not None:
            self.value, self.reason = self._judged(error)
        return True

    def _judged(self, error: BaseException) -> tuple[str, str]:
        shown = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        match error:
            case MemoryError():
                return "memory", "it needs too much memory"
            case _ProgramGoneError():
                return "ended", "it ended its process"
            case _BadAnswerError() | _MissingError():
                return "error", str(error)
        if self.program and error is self.program.last_error:
            return "error", str(error) if isinstance(error, ProgramError) else shown
        if isinstance(error, AssertionError):
            return "failed", f"false: {_failed_line(error)}"
        return "error", f"a test raised {shown}"


def _failed_line(error: BaseException) -> str:
    """The innermost line of the tests that the error passed through."""
    lines = [entry.line for entry in traceback.extract_tb(error.__traceback__) if entry.filename == _FILE]
    return (lines[-1] or "")[:_MAX_LINE] if lines else ""


class _ProgramGoneError(BaseException):
    """The program's process has ended. A test that catches errors does not catch it."""


class _BadAnswerError(BaseException):
    """The program's process sent what is no answer, or no acceptable one."""


class _MissingError(BaseException):
    """The program does not define what the tests call."""


class Handle:
    """An object of the program: it can be called and passed back, and its attributes can be used. It equals only itself."""

    def __init__(self, program: "_Program", number: int) -> None:
        vars(self).update(_program=program, _number=number)

    def __call__(self, *arguments: object, **named: object) -> object:
        return self._program.ask("call", ["handle", self._number], self._program.sent(arguments), self._program.sent(named))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._program.ask("get", ["handle", self._number], name)

    def __setattr__(self, name: str, value: object) -> None:
        self._program.ask("set", ["handle", self._number], name, self._program.sent(value))


class _Program:
    """The program behind a connection."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._handles: dict[int, Handle] = {}
        self._broken: BaseException | None = None
        self.last_error: Exception | None = None
        """What its last call raised."""

    def check(self) -> None:
        """Raise what made the program useless, if that has happened: a test may have caught it."""
        if self._broken:
            raise self._broken

    def load(self, *codes: str) -> None:
        self.ask("load", *codes)

    def names(self, wanted: list[str]) -> dict[str, Any]:
        """What it defines under these names."""
        found = self.ask("names", *wanted)
        missing = [name for name in wanted if not isinstance(found, dict) or name not in found]
        if missing:
            raise _MissingError(f"the program does not define {', '.join(missing)}")
        return {name: found[name] for name in wanted}

    def ask(self, *request: object) -> Any:
        """The answer to a request. The error that it raised, if there is a built-in class for it, else ProgramError."""
        value, error = self._exchange(request)
        if error is not None:
            self.last_error = error
            raise error
        return value

    def _exchange(self, request: Sequence[object]) -> tuple[Any, Exception | None]:
        """The value that answers a request, or the error."""
        try:
            write_message(self._link, request)
            match read_message(self._link):
                case ["value", value]:
                    return decode(value, self._handle), None
                case ["error", [*names], str(message)]:
                    return None, _error(names, message)
            raise BadMessageError("no answer")
        except EOFError:
            self._broken = _ProgramGoneError()
        except BadMessageError as error:
            self._broken = _BadAnswerError(f"the program's answer is {error}")
        raise self._broken

    def sent(self, value: object) -> object:
        return encode(value, self._number)

    def _number(self, value: object) -> int:
        if not isinstance(value, Handle):
            raise TypeError(f"a test passes a {type(value).__name__}, which cannot be sent to the program")
        return int(vars(value)["_number"])

    def _handle(self, number: int) -> Handle:
        return self._handles.setdefault(number, Handle(self, number))


class ProgramError(Exception):
    """An error of a class that the program defines."""


def _error(names: list[object], message: str) -> Exception:
    """The error as one of a built-in class. None that ends a loop: a test with `all(map(...))` would hold for nothing."""
    known = (getattr(builtins, name, None) for name in names if isinstance(name, str))
    errors = (one for one in known if isinstance(one, type) and issubclass(one, Exception))
    kind: Callable[[str], Exception] = next((one for one in errors if one is not StopIteration), ProgramError)
    shown = f"{names[0]}: {message}" if names and kind is ProgramError else message
    try:
        return kind(shown)
    except TypeError:  # UnicodeDecodeError and few others want more
        return ProgramError(f"{kind.__name__}: {message}")

"""Runs functions in child processes with limits on wall-clock time, processor time and memory.

Arguments and answers are JSON, because unpickling a hostile child's answer could run code in this process.
"""

import contextlib
import importlib
import json
import math
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, NoReturn, cast

WALL_FACTOR = 5  # wall-clock seconds per second of processor time, for busy machines
_START_SECONDS = 60.0
_END_SECONDS = 1.0  # for the end of a process that has closed its output
_NO_MEMORY = 3  # exit status
_CHUNK = 1 << 16  # bytes
_MAX_ANSWER = 4 << 20  # bytes
_START = (
    "import sys; sys.path.append(sys.argv.pop()); from arbitrage_cli.system import child; child.answer_requests(sys.argv[1])"
)
Cause = Literal["time", "memory", "crash", "machine"]
_PASSED_ON = ("PYTHON", "PATH", "HOME", "LANG", "LC_", "LD_", "DYLD_")  # environment variables without secrets


class ChildError(Exception):
    """Raised if a child does not answer.

    If `cause` is "machine", the process was killed or slowed down from outside, so a retry may succeed.
    """

    def __init__(self, cause: Cause, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class Process(contextlib.AbstractContextManager["Process"]):
    """A process with pipes for input and output. Deadlines are `perf_counter` times."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: str | None = None,
    ) -> None:
        try:
            self._process = subprocess.Popen(  # noqa: S603
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                cwd=folder,
                start_new_session=True,  # Ctrl-C must not reach it
            )
        except OSError as error:
            raise ChildError("machine", f"{command[0]} cannot be started ({error.strerror})") from error
        self._input, self._output = cast("tuple[IO[bytes], IO[bytes]]", (self._process.stdin, self._process.stdout))
        os.set_blocking(self._input.fileno(), False)
        self.id = self._process.pid

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill all processes in the process group and close the pipes. `wait` frees the group's id, so call `close` soon."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.id, signal.SIGKILL)
        self._process.wait()
        self._input.close()
        self._output.close()

    def write(self, data: bytes, deadline: float) -> None:
        """Write the data until the process ends. Raises TimeoutError at the deadline."""
        with contextlib.suppress(BrokenPipeError):
            while data:
                _await(self._input, select.POLLOUT, deadline)
                data = data[os.write(self._input.fileno(), data) :]

    def read(self, deadline: float) -> bytes:
        """Return the next output, or b"" at the end of the output. Raises TimeoutError at the deadline."""
        _await(self._output, select.POLLIN, deadline)
        return os.read(self._output.fileno(), _CHUNK)

    def wait(self, deadline: float) -> int:
        """Return the exit status, or the negative number of the signal that ended the process.

        Raises TimeoutError at the deadline.
        """
        try:
            return self._process.wait(max(0, deadline - time.perf_counter()))
        except subprocess.TimeoutExpired as error:
            raise TimeoutError from error


def _await(stream: IO[bytes], event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(stream, event)
    if not poll.poll(max(0, math.ceil(1000 * (deadline - time.perf_counter())))):
        raise TimeoutError


class Child(contextlib.AbstractContextManager["Child"]):
    """A function that runs in a child process. Threads may share it.

    `make` is the "module:name" of a factory that returns the function. The process calls the factory once, and forks for
    each call of the function that the factory made.

    A call may use `seconds` of processor time, WALL_FACTOR times as much wall-clock time, and `memory` more bytes of address
    space than before the call (Linux only).
    """

    def __init__(self, make: str, *, seconds: float, memory: int) -> None:
        self._make = make
        self._seconds = seconds
        self._memory = memory
        self._lock = threading.RLock()
        self._process: Process | None = None
        self._is_ready = False
        self._unread = b""

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process. The next call starts a new process."""
        if self._process:
            self._process.close()
        self._process = None
        self._unread = b""

    def __call__(self, *arguments: Any) -> Any:
        """Call the function.

        If the cause of a failure is "machine", retry once. Raises ChildError if there is no answer.
        """
        request = json.dumps([self._seconds, self._memory, arguments]).encode() + b"\n"
        with self._lock:
            try:
                return self._call(request)
            except ChildError as error:
                if error.cause != "machine":
                    raise
            return self._call(request)

    def _call(self, request: bytes) -> Any:
        try:
            process = self._started()
            limit = WALL_FACTOR * self._seconds
            deadline = time.perf_counter() + limit
            with _in_time(f"not finished after {limit:g} s of wall-clock time"):
                process.write(request, deadline)
                return self._answer(process, deadline)
        except BaseException:  # a late answer must not reach the next call
            self.close()
            raise

    def start(self) -> Process:
        """Return the process, even if it is still starting. Raises ChildError if the process cannot start."""
        with self._lock:
            if self._process is None:
                root = str(Path(__file__).parents[2])
                command = [sys.executable, "-P", "-c", _START, self._make, root]
                environment = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
                self._process = Process(command, environment=environment)
                self._is_ready = False
            return self._process

    def _started(self) -> Process:
        process = self.start()
        if not self._is_ready:
            with _in_time(f"not started after {_START_SECONDS:g} s"):
                if self._line(process, time.perf_counter() + _START_SECONDS) != ["ready"]:
                    raise self._died(process)
            self._is_ready = True
        return process

    def _answer(self, process: Process, deadline: float) -> Any:
        answers: list[Any] = []
        while line := self._line(process, deadline):
            match line:
                case ["answer", answer]:
                    answers.append(answer)
                case ["ended", 0] if len(answers) == 1:
                    return answers[0]
                case ["ended", int(code)]:
                    raise self._failure(code)
        raise self._died(process)

    def _line(self, process: Process, deadline: float) -> Any:
        """Return the next JSON line of the process, or None at the end."""
        while True:
            while b"\n" not in self._unread:
                if not (data := process.read(deadline)):
                    return None
                self._unread += data
                if len(self._unread) > _MAX_ANSWER:
                    raise ChildError("crash", "the answer is too long")
            line, self._unread = self._unread.split(b"\n", 1)
            with contextlib.suppress(ValueError, RecursionError):  # an empty line, or half a line of a killed fork
                return json.loads(line)

    @staticmethod
    def _died(process: Process) -> ChildError:
        code = process.wait(time.perf_counter() + _END_SECONDS)
        return ChildError("machine", f"the process ended ({describe_exit(code)})")

    def _failure(self, code: int) -> ChildError:
        reasons: dict[int, tuple[Cause, str]] = {
            -signal.SIGPROF: ("time", f"not finished after {self._seconds:g} s"),
            -signal.SIGKILL: ("machine", "the process was killed"),
            _NO_MEMORY: ("memory", f"needed more than {self._memory >> 20} MB of memory"),
        }
        return ChildError(*reasons.get(code, ("crash", f"the process ended itself ({describe_exit(code)})")))


@contextlib.contextmanager
def _in_time(late: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise ChildError("machine", late) from error


def describe_exit(code: int) -> str:
    """Describe an exit status. A negative status means that a signal ended the process."""
    if code >= 0:
        return f"exit status {code}"
    return next((one.name for one in signal.Signals if one == -code), f"signal {-code}")


def limit_memory(more: int) -> None:
    """Limit the address space of this process to `more` bytes above its current size, if the system supports such limits."""
    with contextlib.suppress(OSError, ValueError):
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = in_use + more if soft == resource.RLIM_INFINITY else min(soft, in_use + more)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def answer_requests(make: str) -> None:
    """Answer requests in the child until the input ends.

    A request is the line [seconds, bytes, arguments]. The answer is the lines ["answer", value] and ["ended",
    status].
    """
    answers = os.dup(1)
    os.dup2(2, 1)  # the function's prints must not mix with answers
    module, _, name = make.partition(":")
    function = getattr(importlib.import_module(module), name)()
    os.write(answers, b'["ready"]\n')
    for line in sys.stdin.buffer:
        if not (child := os.fork()):
            _answer_and_exit(function, json.loads(line), answers)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(answers, b"\n" + json.dumps(["ended", code]).encode() + b"\n")


def _answer_and_exit(function: Callable[..., Any], request: tuple[float, int, list[Any]], answers: int) -> NoReturn:
    status = 1
    try:
        seconds, memory, arguments = request
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        limit_memory(memory)
        os.write(answers, json.dumps(["answer", function(*arguments)]).encode() + b"\n")
        status = 0
    except MemoryError:
        status = _NO_MEMORY
    except Exception:  # noqa: BLE001 - any error of the function fails the call
        traceback.print_exc()
    finally:
        os._exit(status)

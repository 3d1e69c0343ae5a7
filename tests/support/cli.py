"""`arbitrage` as a forked process, a real process or in a terminal, and made-up records for tests that show or count them."""

import atexit
import functools
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import httpx2
import pexpect
import pyte

from arbitrage_cli.errors import ArbitrageError
from arbitrage_cli.types import Cost, Decided, Decision, Finished, Limits, ModelRole, Problem, Step, StepStop, Trace

PROGRAM = (sys.executable, "-m", "arbitrage_cli")
MODELS = ("--draft", "scripted:draft", "--target", "scripted:target")
TIMEOUT = 120.0  # for hangs only: a busy machine is slow
HERE = Path(__file__).parent  # the default working folder of runs
CLOSED, BROKEN = "closed", "broken"  # a stream that is closed, and a pipe without a reader

QUESTION = "What is 37 * 12 - 95?"
RIGHT, WRONG = "349", "359"  # the scripted target's answer to QUESTION, and the draft's
ESCAPE = b"\x1b"


def environment(changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """This process's environment without anything that changes what `arbitrage` does; None removes a variable."""
    unwanted = ("ARBITRAGE_", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "PY_COLORS", "COLORTERM", "GITHUB_", "TTY_")
    merged: dict[str, str | None] = {name: text for name, text in os.environ.items() if not name.startswith(unwanted)}
    merged |= {
        "TERM": "xterm-256color",
        "PYTHONPATH": str(HERE),  # with the backend of the scripted models
        "PYTHONUTF8": "1",
    } | dict(changes or {})
    return {name: text for name, text in merged.items() if text is not None}


@dataclass(frozen=True)
class Result:
    code: int
    stdout: bytes
    stderr: bytes

    @property
    def out(self) -> str:
        return self.stdout.decode()

    @property
    def err(self) -> str:
        return self.stderr.decode()

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stdout.split(b"\n") if line]

    @property
    def record(self) -> dict[str, Any]:
        """The only record of a command that succeeded."""
        assert self.code == 0, self.err
        (record,) = self.records
        return record


def assert_refused(result: Result, code: int, place: str = "", *words: str) -> None:
    """Nothing on stdout, no traceback, one message that begins with the place of the error, and at most one hint.

    Notes about the command may stand before the message.
    """
    assert (result.code, result.stdout) == (code, b""), result.err
    assert "Traceback" not in result.err
    lines = result.err.splitlines()
    (message,) = [line for line in lines if line.startswith("arbitrage: ")]
    assert message.startswith(f"arbitrage: {place}"), result.err
    assert message in lines[-2:], result.err
    assert [word for word in words if word not in flat(result.err)] == [], result.err


# --- in a forked process


class Program:
    """Runs `arbitrage` in a new process each time, without the time that it takes to start one (see `fork_server`)."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._server = subprocess.Popen(
            [sys.executable, str(HERE / "fork_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment({"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE}"}),
        )

    def close(self) -> None:
        self._server.communicate(timeout=TIMEOUT)
        self._folder.cleanup()

    def run(
        self,
        *arguments: str | bytes | Path,
        cwd: Path = HERE,
        stdin: bytes | Path | str = b"",
        stdout: str | None = None,
        stderr: str | None = None,
        env: Mapping[str, str | None] | None = None,
        **order: Any,
    ) -> Result:
        """Run one command line to its end. A stream is a path, CLOSED or BROKEN; no bytes for `stdin` are /dev/null.

        `order` says what goes wrong: `fault`; `kill_after` (seconds); `limits`; `noise`; `interrupt_in` a function (at its
        `call`-th call; by these `signals`); `die_on` a question;
        modules that cannot be imported (`without`). With `has_made_up_policy`, the table of policies has one more row.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        folder = Path(self._folder.name)
        if isinstance(stdin, bytes):
            (folder / "stdin").write_bytes(stdin)
            stdin = folder / "stdin" if stdin else "/dev/null"
        written = (folder / "stdout", folder / "stderr")
        for path in written:
            path.write_bytes(b"")
        request = {
            "folder": str(cwd),
            "arguments": [os.fsdecode(argument) for argument in arguments],
            "environment": environment(env),
            "streams": [str(stdin), stdout or str(written[0]), stderr or str(written[1])],
            **order,
        }
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        return Result(answer["code"], *(path.read_bytes() for path in written))


@functools.cache
def shared_program() -> Program:
    program = Program()
    atexit.register(program.close)
    return program


def run(*arguments: str | bytes | Path, **options: Any) -> Result:
    return shared_program().run(*arguments, **options)


def pair_named_mine(folder: Path, **entry: object) -> dict[str, str | None]:
    (folder / "arbitrage").mkdir(exist_ok=True)
    values = {name: json.dumps(str(value) if isinstance(value, Path) else value) for name, value in entry.items()}
    keys = {name: re.sub("^(draft|target|check)_?", r"\1.", name) for name in values}  # target_price is target.price
    lines = [
        f"{key}source = {values[name]}\n" if key.endswith(".") else f"{key} = {values[name]}\n" for name, key in keys.items()
    ]
    (folder / "arbitrage" / "pairs.toml").write_text("[mine]\n" + "".join(lines))
    return {"XDG_CONFIG_HOME": str(folder)}


def solve(*arguments: str | bytes, **options: Any) -> Result:
    return run("solve", *MODELS, *arguments, **options)


# --- as a real process


class Process(subprocess.Popen[bytes]):
    """A process whose streams are pipes."""

    stdin: IO[bytes]
    stdout: IO[bytes]
    stderr: IO[bytes]


def start(
    *arguments: str | bytes,
    stdin: int | IO[bytes] = subprocess.PIPE,
    env: Mapping[str, str | None] | None = None,
    cwd: Path = HERE,
    program: Iterable[str] = PROGRAM,
) -> Process:
    pipe = subprocess.PIPE
    return Process([*program, *arguments], stdin=stdin, stdout=pipe, stderr=pipe, env=environment(env), cwd=cwd)


def read_line(process: Process) -> bytes:
    line, deadline = b"", time.monotonic() + TIMEOUT
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"no line on stdout within {TIMEOUT} s"
        byte = os.read(process.stdout.fileno(), 1)
        assert byte, f"stdout ended after {line!r}"
        line += byte
    return line


@contextmanager
def served(
    *arguments: str,
    models: Sequence[str] = MODELS,
    env: Mapping[str, str | None] | None = None,
    cwd: Path = HERE,
    program: Iterable[str] = PROGRAM,
) -> Iterator[tuple[Process, httpx2.Client]]:
    """Run `arbitrage serve`, and yield a client of it too."""
    command = ("serve", *models, "--port", "0", *arguments)
    with start(*command, stdin=subprocess.DEVNULL, env=env, cwd=cwd, program=program) as process:
        try:
            with httpx2.Client(base_url=read_line(process).decode().strip(), timeout=TIMEOUT) as client:
                yield process, client
        finally:
            process.kill()


def many_problems(path: Path, number: int) -> Path:
    """A file of problems that takes a while: about 100 a second."""
    path.write_text("".join(f"{index} * 12 - 95\n" for index in range(101, 101 + number)))
    return path


# --- in a terminal


class Terminal:
    """The program in a pseudo-terminal, with what a user sees: a screen and everything that scrolled off it."""

    def __init__(
        self,
        *arguments: str,
        columns: int = 80,
        rows: int = 24,
        env: Mapping[str, str | None] | None = None,
        stdout: Path | None = None,
        cwd: Path = HERE,
    ) -> None:
        command = [*PROGRAM, *arguments]
        if stdout is not None:
            command = ["/bin/sh", "-c", 'out=$1; shift; exec "$@" > "$out"', "sh", str(stdout), *command]
        self.raw = b""
        self.screen = pyte.HistoryScreen(columns, rows, history=100_000)
        self._stream = pyte.ByteStream(self.screen)
        self.process = pexpect.spawn(
            command[0], command[1:], env=environment(env), dimensions=(rows, columns), timeout=TIMEOUT, cwd=str(cwd)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.close(force=True)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < deadline, f"not within {TIMEOUT} s; the screen shows:\n{self.text}"
            assert self._read(0.02), f"the program ended; the screen shows:\n{self.text}"

    def wait(self) -> int:
        """Read to the end; returns the exit code as a shell gives it."""
        deadline = time.monotonic() + TIMEOUT
        while self._read(0.1):
            assert time.monotonic() < deadline, f"still running after {TIMEOUT} s; the screen shows:\n{self.text}"
        self.process.wait()
        code: int | None = self.process.exitstatus
        return 128 + self.process.signalstatus if code is None else code

    def resize(self, columns: int, rows: int) -> None:
        self.process.setwinsize(rows, columns)
        self.screen.resize(rows, columns)

    @property
    def text(self) -> str:
        return scrollback(self.screen)

    def _read(self, seconds: float) -> bool:
        try:
            data: bytes = self.process.read_nonblocking(65536, timeout=seconds)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += data
        self._stream.feed(data)
        return True


def scrollback(screen: Any) -> str:
    past = ["".join(row[column].data for column in range(screen.columns)) for row in screen.history.top]
    return "\n".join(line.rstrip() for line in [*past, *screen.display]).rstrip()


def flat(text: str) -> str:
    """The text with all white space as single spaces, so that it is found wherever it was wrapped."""
    return " ".join(text.split())


# --- made-up records


def make_step(model: ModelRole, text: str = "2 + 2 = 4.\n\n", *, stop: StepStop = "separator") -> Step:
    tokens, seconds = (5, 0.5) if model == "draft" else (7, 2.0)
    return Step(model, text, tokens, Cost(decode_tokens=tokens, decode_seconds=seconds), stop)


def accept(text: str = "2 + 2 = 4.\n\n", *, stop: StepStop = "separator") -> Decision:
    draft = make_step("draft", text, stop=stop)
    return Decision(draft, draft=draft, score=0.2)


def escalate(drafted: str = "2 + 2 = 5.\n\n", written: str = "2 + 2 = 4.\n\n", *, stop: StepStop = "separator") -> Decision:
    draft, target = make_step("draft", drafted), make_step("target", written, stop=stop)
    return Decision(target, draft=draft, target=target, score=1.5)


def make_trace(*decisions: Decision, question: str = "What is 2 + 2?", identifier: str = "1") -> Trace:
    return Trace(Problem(identifier, question), Limits(), list(decisions))


def decide(trace: Trace, decision: Decision) -> Decided:
    trace.add(decision)
    return Decided(trace, decision)


def finish(trace: Trace, error: ArbitrageError | None = None, alone: float | None = None) -> Finished:
    return Finished(trace, error, alone)

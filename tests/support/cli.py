"""Helpers of the tests: `arbitrage` as a process, in a terminal, and made-up records for whoever shows or counts them."""

import fcntl
import json
import os
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import pexpect
import pyte

from arbitrage_cli.types import Cost, Decided, Decision, Finished, Limits, ModelRole, Problem, Step, StepStop, Trace

PROGRAM = (sys.executable, "-m", "arbitrage_cli")
MODELS = ("--draft", "scripted:draft", "--target", "scripted:target")
TIMEOUT = 30.0
HERE = Path(__file__).parent  # where processes run unless told otherwise: a folder without an arbitrage.toml

QUESTION = "What is 37 * 12 - 95?"
RIGHT, WRONG = "349", "359"  # the scripted target's answer to QUESTION, and the draft's
ESCAPE = b"\x1b"


def environment(changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """This process's environment without anything that changes what `arbitrage` does; None takes a variable away."""
    unwanted = ("ARBITRAGE_", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "PY_COLORS", "COLORTERM", "GITHUB_", "TTY_")
    merged: dict[str, str | None] = {name: text for name, text in os.environ.items() if not name.startswith(unwanted)}
    merged |= {"TERM": "xterm-256color", "PYTHONUTF8": "1", "XDG_CONFIG_HOME": "/nowhere"} | dict(changes or {})
    return {name: text for name, text in merged.items() if text is not None}


# --- as a process


@dataclass(frozen=True)
class Result:
    """How a process ended and what it wrote."""

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
        """The JSON objects on stdout, one a line."""
        return [json.loads(line) for line in self.stdout.split(b"\n") if line]


def start(
    *arguments: str | bytes,
    stdin: int | IO[bytes] = subprocess.PIPE,
    stdout: int | IO[bytes] = subprocess.PIPE,
    env: Mapping[str, str | None] | None = None,
    cwd: Path = HERE,
    program: Iterable[str] = PROGRAM,
) -> subprocess.Popen[bytes]:
    """Start the program and let it run."""
    command = [*program, *arguments]
    return subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, env=environment(env), cwd=cwd)


def run(
    *arguments: str | bytes,
    stdin: bytes | int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.PIPE,
    env: Mapping[str, str | None] | None = None,
    cwd: Path = HERE,
    program: Iterable[str] = PROGRAM,
) -> Result:
    """Run the program to its end. Bytes for `stdin` come through a pipe; anything else is what Popen takes."""
    text, source = (stdin, subprocess.PIPE) if isinstance(stdin, bytes) else (None, stdin)
    with start(*arguments, stdin=source, stdout=stdout, env=env, cwd=cwd, program=program) as process:
        try:
            written, told = process.communicate(text, timeout=TIMEOUT)
        finally:
            process.kill()
    return Result(process.returncode, written or b"", told)


def run_shell(redirections: str, *arguments: str) -> Result:
    """Run the program as a shell does that was given these redirections, such as `>&-`."""
    return run(*arguments, program=["/bin/sh", "-c", f'exec "$@" {redirections}', "sh", *PROGRAM])


def solve(*arguments: str | bytes, stdin: bytes | int | IO[bytes] = subprocess.DEVNULL, **options: Any) -> Result:
    """Run `arbitrage solve` with the scripted models."""
    return run("solve", *MODELS, *arguments, stdin=stdin, **options)


def read_line(process: subprocess.Popen[bytes]) -> bytes:
    """The next line of a running process's stdout; fails, and does not hang, if none comes."""
    assert process.stdout is not None
    line, deadline = b"", time.monotonic() + TIMEOUT
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"no line on stdout within {TIMEOUT} s"
        byte = os.read(process.stdout.fileno(), 1)
        assert byte, f"stdout ended after {line!r}"
        line += byte
    return line


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
    ) -> None:
        command = [*PROGRAM, *arguments]
        if stdout is not None:
            command = ["/bin/sh", "-c", 'out=$1; shift; exec "$@" > "$out"', "sh", str(stdout), *command]
        self.raw = b""
        self.screen = pyte.HistoryScreen(columns, rows, history=100_000)
        self._stream = pyte.ByteStream(self.screen)
        self.process = pexpect.spawn(
            command[0], command[1:], env=environment(env), dimensions=(rows, columns), timeout=TIMEOUT, cwd=str(HERE)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.close(force=True)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Go on reading what the program writes until the condition holds."""
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
        fcntl.ioctl(self.process.child_fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.screen.resize(rows, columns)

    @property
    def text(self) -> str:
        return scrollback(self.screen)

    def _read(self, seconds: float) -> bool:
        """Show what was written meanwhile; False at the end."""
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
    """Everything a user can scroll back to, and the screen below it; no trailing blanks."""
    past = ["".join(row[column].data for column in range(screen.columns)) for row in screen.history.top]
    return "\n".join(line.rstrip() for line in [*past, *screen.display]).rstrip()


def flat(text: str) -> str:
    """The text with all white space as single spaces, so that it is found wherever it was wrapped."""
    return " ".join(text.split())


# --- made-up records


def make_step(
    model: ModelRole = "draft",
    text: str = "2 + 2 = 4.\n\n",
    *,
    tokens: int = 5,
    seconds: float = 0.5,
    stop: StepStop = "separator",
) -> Step:
    """A step whose time is all decoding."""
    return Step(model, text, tokens, Cost(decode_tokens=tokens, decode_seconds=seconds), stop)


def accept(text: str = "2 + 2 = 4.\n\n", *, stop: StepStop = "separator", number: float = 0.2) -> Decision:
    """A drafted step that was kept."""
    draft = make_step("draft", text, stop=stop)
    return Decision(draft, draft=draft, probability=number)


def escalate(drafted: str = "2 + 2 = 5.\n\n", written: str = "2 + 2 = 4.\n\n", *, stop: StepStop = "separator") -> Decision:
    """A drafted step that the target wrote anew."""
    draft, target = make_step("draft", drafted), make_step("target", written, tokens=7, seconds=2.0, stop=stop)
    return Decision(target, draft=draft, target=target, probability=1.5)


def make_trace(*decisions: Decision, question: str = "What is 2 + 2?", identifier: str = "1") -> Trace:
    """A trace with these decisions, and the usual limits."""
    return Trace(Problem(identifier, question), Limits(), list(decisions))


def decide(trace: Trace, decision: Decision) -> Decided:
    """Add a decision to a trace, as a flow does, and the event that tells of it."""
    trace.add(decision)
    return Decided(trace, decision)


def finish(trace: Trace, error: Exception | None = None, alone: float | None = None) -> Finished:
    """The event that ends a trace."""
    return Finished(trace, error, alone)

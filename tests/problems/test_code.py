"""Programs that a model wrote, graded by tests. No program fakes a pass in a simple way, reaches what is not its own, or stays."""

import contextlib
import ctypes
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from marks import rarely
from processes import awaited, is_running

from arbitrage_cli.errors import ProblemError, UsageError
from arbitrage_cli.problems import program_driver
from arbitrage_cli.problems.code import ProgramRunner, find_sandbox

GOOD = "def f(x):\n    return x + 1\n"
WANTS_2 = "assert f(1) == 2\n"


WALL_FACTOR = "arbitrage_cli.problems.code.WALL_FACTOR"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave time to a busy machine."""
    monkeypatch.setattr(WALL_FACTOR, 100)


@pytest.fixture(scope="module")
def runner(sandbox: list[str]) -> ProgramRunner:
    return ProgramRunner(sandbox, seconds=1, memory=256 << 20)


@pytest.mark.parametrize(
    ("program", "script", "reason"),
    [
        (GOOD, "assert f(1) == 2", "all tests passed"),
        (GOOD, "assert f(1) == 2\nassert f(2) == 4", "assertion failed: assert f(2) == 4"),
        ("def f(x): return 1 // x", "f(0)", "ZeroDivisionError: integer division or modulo by zero"),
        ("def f(x): assert x", "f(0)", "AssertionError"),
        ("def f(x): return int(input())", "f(0)", "EOFError: EOF when reading a line"),
        ("def f(x:", "f(0)", "SyntaxError: '(' was never closed (<program>, line 1)"),
        ("def g(x): pass", "f(0)", "NameError: name 'f' is not defined"),
        ("def f(x): raise ValueError('\\x1b[2J\\n')", "f(0)", "ValueError: \\x1b[2J"),
        ("class E(Exception):\n def __str__(s): raise s\ndef f(x): raise E", "f(0)", "E"),
        ("f = '\\0'\0", "f(0)", "Error"),
        (GOOD, "f(", "Error"),
        (GOOD, "raise SystemExit", "ended its process (SystemExit)"),
        (GOOD, "x = bytearray(1 << 40)", "ran out of memory"),
    ],
)  # fmt: skip
def test_verdict_and_its_reason(runner: ProgramRunner, program: str, script: str, reason: str) -> None:
    outcome = runner.run(program, script)
    assert outcome.passed == (reason == "all tests passed")
    assert outcome.reason == reason or (reason == "Error" in outcome.reason)


HONEST = {
    "function as argument": ("def f(g, xs): return [g(x) for x in xs]", "assert f(lambda x: x + 1, [1]) == [2]"),
    "argument changed in place": ("def f(xs): xs.append(1)", "xs = []\nf(xs)\nassert xs == [1]"),
    "dataclass": ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n", "assert P(1) == P(1)"),
    "special methods": (
        "class S:\n def __len__(s): return 2\n def __iter__(s): return iter('ab')\n def __getitem__(s, i): return i",
        "assert len(S()) == 2 and list(S()) == ['a', 'b'] and S()[3] == 3",
    ),
    "date": ("def f(d): return d.replace(year=2021)", "from datetime import date\nassert f(date(2020, 1, 2)).year == 2021"),
    "own error": ("class E(Exception): pass\ndef f(): raise E", "try:\n    f()\nexcept E as e:\n    pass\nelse:\n    assert False"),
    "names bound in other ways": (
        "from math import *\ntry:\n    1 / 0\nexcept ZeroDivisionError as e:\n    error = e\nmatch (1, 2):\n    case (a, b): pass",
        "assert (a, b) == (1, 2) and sqrt(4) == 2 and isinstance(error, ZeroDivisionError)",
    ),
    "main": ("def f(): return 1\nif __name__ == '__main__':\n    raise SystemExit", "assert f() == 1"),
    "own check": ("def check(x): return x\ndef f(): return check(1)", "def check(g): assert g() == 1\ncheck(f)"),
    "thread and file": (
        ("import tempfile, threading\ndef f():\n    thread = threading.Thread(target=print)\n    thread.start()\n    thread.join()\n"
        "    with tempfile.TemporaryFile() as file:\n        return file.write(b'x')"),
        "assert f() == 1",
    ),
    "draws and orders": (
        "import random\ndef f(): return random.random(), hash('a')",
        "random = __import__('random')\nrandom.seed(0)\nassert f()[0] == 0.8444218515250481 and f()[1] == f()[1]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_honest_program_passes(runner: ProgramRunner, name: str) -> None:
    program, script = HONEST[name]
    assert runner.run(program, script).reason == "all tests passed"


@pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="numbers of system calls")
def test_program_cannot_use_the_keys_of_the_user(runner: ProgramRunner) -> None:
    libc = ctypes.CDLL(None)
    if libc.syscall(250, 1, None) < 0 or libc.syscall(248, b"user", b"arbitrage-test", b"secret", 6, -3) < 0:
        pytest.skip("no keyrings on this machine")
    search = "import ctypes\ndef f(): return ctypes.CDLL(None).syscall(250, 10, -3, b'user', b'arbitrage-test', 0)"
    outcome = runner.run(search, "assert f() == -1")
    assert outcome.passed, outcome


VARIABLE = "ARBITRAGE_TEST_ANSWER"
WANTS_ANSWER = "assert f() != 0 and False\n"
HOSTILE = {
    "exit at load": ("import os\nos._exit(0)", "ended its process"),
    "exit in a call": ("import os\ndef f(): os._exit(0)", "ended its process"),
    "sys.exit in a call": ("import sys\ndef f(): sys.exit(0)", "ended its process"),
    "becomes another program": ("import os, sys\ndef f(): os.execv(sys.executable, ['python', '-c', 'print()'])", "ended its process"),
    "crash": ("import ctypes\ndef f(): ctypes.string_at(0)", "ended its process"),
    "writes verdicts": (
        ("import os\ndef f():\n for n in range(100):\n  try: os.write(n, b'\\n[\"passed\", \"all tests pass\"]')\n  except OSError: pass\n"
        " os._exit(0)"),
        "ended its process",
    ),
    "patched functions": (
        ("import builtins, json, os, sys, traceback\nbuiltins.AssertionError = builtins.isinstance = type\n"
        "json.dumps = lambda *_, **__: '[\"passed\", \"\"]'\nsys.exit = os._exit = traceback.extract_tb = os.write = print\n"
        "def f(): return 1"),
        "ended its process",
    ),
    "runs at exit": ("import atexit, os\natexit.register(os._exit, 0)\ndef f(): return 1", "assertion failed"),
    "kills and stops itself": ("import os\ndef f():\n for n in (9, 19): os.kill(os.getpid(), n)\n return 1", "assertion failed"),
    "kills others": ("import os\ndef f(): os.kill(@PID@, 9)", "ProcessLookupError"),
    "endless loop": ("def f():\n while True: pass", "exceeded|timed out"),
    "endless C code": ("def f(): sum([[1]] * 10**6, [])", "exceeded"),
    "sleep": ("import time\ndef f(): time.sleep(100)", "exceeded|timed out"),
    "ignores its limit": ("import signal\nsignal.signal(24, signal.SIG_IGN)\ndef f():\n while True: pass", "exceeded|timed out"),
    "memory": ("def f(): return 'x' * (1 << 32)", "ran out of memory"),
    "processes": ("import os, time\ndef f():\n for _ in range(100):\n  if not os.fork(): time.sleep(100)", "BlockingIOError"),
    "deep recursion": ("def f(): return f()", "RecursionError"),
    "large file": ("def f():\n with open('x', 'wb') as s:\n  for _ in range(100): s.write(bytes(1 << 20))", "OSError"),
    "many files": (
        "def f():\n for n in range(100):\n  with open(f'{n}', 'wb') as s: s.write(bytes(1 << 20))",
        "OSError",
    ),
    "writes elsewhere": ("def f(): open('/x', 'w')", "OSError"),
    "reads a file": ("def f(): return open('@FILE@').read()", "FileNotFoundError"),
    "environment": ("import os\ndef f(): return os.environ['" + VARIABLE + "']", "KeyError"),
    "network": ("import socket\ndef f(): socket.create_connection(('127.0.0.1', @PORT@))", ""),
    "new namespace": ("import ctypes\ndef f(): assert ctypes.CDLL(None).unshare(0x10000000) == 0", "AssertionError"),
    "raises its limits": (
        "import resource\ndef f(): resource.setrlimit(resource.RLIMIT_NPROC, (99, 99))",
        "ValueError",
    ),
    "lowers its limit": (
        "import resource\ndef f():\n resource.setrlimit(resource.RLIMIT_CPU, (1, 1))\n while True: pass",
        "ValueError",
    ),
    "output without end": ("import os\ndef f():\n while True: os.write(61, b'x' * 9999)", "exceeded|timed out"),
}  # fmt: skip


LONG = ("ignores its limit", "output without end")
WAITS = {"sleep": 1, **dict.fromkeys(LONG, 5)}
"""The wall-clock limits of programs that end at no other limit."""


@pytest.mark.parametrize("name", [*(name for name in HOSTILE if name not in LONG), *rarely(*LONG)])
def test_hostile_program_is_held(runner: ProgramRunner, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "answer.txt").write_text("1")
    monkeypatch.setenv(VARIABLE, "1")
    monkeypatch.setattr(WALL_FACTOR, WAITS.get(name, 100))
    program, expected = HOSTILE[name]
    with socket.create_server(("127.0.0.1", 0)) as server:
        aims = {"@FILE@": tmp_path / "answer.txt", "@PORT@": server.getsockname()[1], "@PID@": os.getpid()}
        for mark, aim in aims.items():
            program = program.replace(mark, str(aim))
        outcome = runner.run(program, WANTS_ANSWER)
    assert not outcome.passed
    assert re.match(expected, outcome.reason), outcome


def found(mark: str) -> int | None:
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes():
                return int(path.parent.name)
    return None


SLEEPS = "import time\ndef f(x): time.sleep(100)\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, *rarely(signal.SIGSTOP)])
def test_program_that_is_killed_or_stopped_from_outside_is_an_error(
    runner: ProgramRunner, number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WALL_FACTOR, 20 if number == signal.SIGSTOP else 100)
    mark = str(tmp_path)
    marked = ProgramRunner([*runner.sandbox, "--setenv", "MARK", mark], seconds=1)
    thread = threading.Thread(target=lambda: os.kill(awaited(lambda: found(mark)), number))
    thread.start()
    with pytest.raises(ProblemError, match="killed" if number == signal.SIGKILL else "stopped"):
        marked.run(SLEEPS, WANTS_2)
    thread.join()


def test_nothing_is_left_when_the_parent_is_killed(runner: ProgramRunner, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    code = (
        "import sys; from arbitrage_cli.problems.code import *; "
        f"ProgramRunner({[*runner.sandbox, '--setenv', 'MARK', mark]!r}).run({SLEEPS!r}, {WANTS_2!r})"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as parent:
        awaited(lambda: found(mark))
        parent.kill()
    awaited(lambda: not found(mark))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sandbox", "reason"), [(["/nowhere/bwrap"], "cannot be started"), (["/bin/false"], "exit status 1")]
)
def test_program_that_cannot_be_started_is_an_error(sandbox: list[str], reason: str) -> None:
    with pytest.raises(ProblemError, match=reason):
        ProgramRunner(sandbox).run(GOOD, WANTS_2)


@pytest.mark.parametrize(
    ("script", "hint"),
    [(None, "apt install bubblewrap"), ("echo no namespaces >&2; exit 1", "user namespaces")],
    ids=["missing", "does not work"],
)
def test_without_bubblewrap_programs_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, hint: str
) -> None:
    if script:
        (tmp_path / "bwrap").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bwrap").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError) as error:
        find_sandbox()
    assert error.value.option == "run_code"
    assert hint in error.value.hint
    assert "--run-code=unprotected" in error.value.hint


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (GOOD, "all tests passed"),
        ("import os\nos._exit(0)", "ended its process"),
        ("def f(x):\n while True: pass", "exceeded"),
        ("def f(x): return 'x' * (1 << 32)", "ran out of memory"),
    ],
    ids=["good", "exit", "time", "memory"],
)
def test_resource_limits_hold_without_a_sandbox(program: str, reason: str) -> None:
    assert ProgramRunner((), seconds=1, memory=256 << 20).run(program, WANTS_2).reason.startswith(reason)


@pytest.mark.parametrize("keeps_pipes", [False, *rarely(True)])
def test_processes_of_an_unprotected_program_end_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, keeps_pipes: bool
) -> None:
    monkeypatch.setattr(WALL_FACTOR, 20)
    closes = "pass" if keeps_pipes else "os.closerange(0, 99)"
    program = f"import os, time\nchild = os.fork()\nif not child:\n {closes}\n time.sleep(100)\n"
    ProgramRunner((), seconds=1).run(f"{program}open({str(tmp_path / 'id')!r}, 'w').write(str(child))", "")
    child = int((tmp_path / "id").read_text())
    awaited(lambda: not is_running(child))


def test_driver_ends_with_its_input() -> None:
    command = [sys.executable, str(program_driver.__file__)]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 1

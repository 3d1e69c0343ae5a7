"""Ctrl-C, SIGTERM and SIGHUP: the run ends, the terminal is as it was, and what was finished is on stdout."""

import contextlib
import ctypes
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import termios
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from cli import (
    MODELS,
    PROGRAM,
    TIMEOUT,
    Process,
    Terminal,
    environment,
    many_problems,
    read_line,
    start,
)
from faults import write_problems
from marks import rarely
from processes import awaited, ended_by

INTERRUPTED = 130
COLOR = re.compile(rb"\x1b\[(\d+;)*3\dm")
PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENTRY = EntryPoint("arbitrage", PROJECT["scripts"]["arbitrage"], "console_scripts")


@pytest.fixture
def problems(tmp_path: Path) -> str:
    return str(many_problems(tmp_path / "problems.txt", 3000))


PIPE = 50_000  # bytes: almost all that a pipe holds


def num_unread(process: Process) -> int:
    return int.from_bytes(fcntl.ioctl(process.stdout.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_interrupt_leaves_a_terminal_as_it_was(tmp_path: Path, problems: str) -> None:
    output = tmp_path / "output"
    with Terminal("solve", *MODELS, "--input", problems, stdout=output) as terminal:
        echoed_before = terminal.process.getecho()
        terminal.wait_until(lambda: num_lines(output) >= 3)
        terminal.process.sendintr()
        assert terminal.wait() == INTERRUPTED
        assert terminal.process.getecho() == echoed_before
    assert not terminal.screen.cursor.hidden
    assert COLOR.search(terminal.raw)
    assert b"Traceback" not in terminal.raw
    assert terminal.text.replace("\n", "").endswith(
        "arbitrage: interrupted"
    )  # the echo of ^C may have moved it to the right
    records = [json.loads(line) for line in output.read_bytes().splitlines()]
    assert [record["id"] for record in records] == [str(number + 1) for number in range(len(records))]
    assert 3 <= len(records) < 3000


def test_signal_ends_a_run_after_a_whole_record(problems: str) -> None:
    command = ("solve", *MODELS, "-q", "--input", problems, "--concurrency", "4")
    with start(*command, stdin=subprocess.DEVNULL) as process:
        first = b"".join(read_line(process) for _ in range(3))
        process.send_signal(signal.SIGTERM)
        rest, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 128 + signal.SIGTERM
    assert err.endswith(b"arbitrage: interrupted\n")
    ids = [int(json.loads(line)["id"]) for line in (first + rest).splitlines()]
    assert ids == sorted(set(ids))
    assert 3 <= len(ids) < 3000


def test_interrupt_ends_a_run_that_waits_for_a_problem() -> None:
    with start("solve", *MODELS, "-q") as process:
        process.stdin.write(b"1 + 1\n")
        process.stdin.flush()
        read_line(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == INTERRUPTED
        process.stdin.close()


def test_reader_that_stopped_reading_cannot_keep_a_run_alive(problems: str) -> None:
    with start("solve", *MODELS, "-q", "--input", problems, stdin=subprocess.DEVNULL) as process:
        try:
            awaited(lambda: num_unread(process) > PIPE)
            process.send_signal(signal.SIGINT)
            try:
                code = process.wait(2)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
                code = process.wait(TIMEOUT)
        finally:
            process.kill()
        err = process.stderr.read().decode()
    assert code in (INTERRUPTED, -signal.SIGINT)
    assert "Traceback" not in err
    assert "Exception ignored" not in err


def test_pipe_that_nobody_reads_as_standard_error_stops_nothing(tmp_path: Path) -> None:
    rows, folder = write_problems(tmp_path / "problems.jsonl", ["1 + 1", "2 + 2", "3 + 3"]), tmp_path / "run"
    unread, stderr = os.pipe()
    os.set_blocking(stderr, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(stderr, bytes(4096))
    os.set_blocking(stderr, True)
    arguments = ("bench", *MODELS, "--dataset", str(rows), "--policy", "target,draft", "-o", str(folder))
    try:
        done = subprocess.run(
            [*PROGRAM, *arguments],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            timeout=TIMEOUT,
        )
    finally:
        os.close(unread)
        os.close(stderr)
    assert (done.returncode, num_lines(folder / "results.jsonl")) == (0, 6)
    assert b"target" in done.stdout


DEAF = """
import ctypes
from arbitrage_cli.system.signals import interruptible, noted_signals
with interruptible():
    with noted_signals():
        pass
    mutex, lock = ctypes.create_string_buffer(64), ctypes.PyDLL(None).pthread_mutex_lock
    lock(mutex)
    print(flush=True)
    lock(mutex)  # never returns, not even after a signal
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "sysv_signal"), reason="needs glibc")
@pytest.mark.parametrize("number", [signal.SIGINT, *rarely(signal.SIGTERM, signal.SIGHUP)])
def test_second_signal_ends_a_process_that_python_cannot_interrupt(number: int) -> None:
    with start(program=[sys.executable, "-c", DEAF], stdin=subprocess.DEVNULL) as process:
        read_line(process)
        awaited(lambda: "State:\tS" in Path(f"/proc/{process.pid}/status").read_text())
        assert ended_by(number, process) == -number


HOST = """
import signal
from arbitrage_cli.system.signals import noted_signals
with noted_signals():
    pass
for _ in range(2):
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        pass
"""


def test_a_host_program_handles_later_signals_as_before() -> None:
    assert subprocess.run([sys.executable, "-c", HOST], env=environment(), check=False).returncode == 0


IN_A_MESSAGE = """
import logging, os, sys
from arbitrage_cli.system.signals import Interruption, interruptible
from arbitrage_cli.inference.backend import LoadOptions
from arbitrage_cli.inference.llama.backend import LlamaBackend
from arbitrage_cli.system.files import models_folder

class Sender(logging.Handler):
    def emit(self, record):
        if "llama_context:" in record.getMessage():
            log.removeHandler(self)
            os.kill(os.getpid(), int(sys.argv[1]))

log = logging.getLogger("arbitrage.llama")
log.setLevel(logging.DEBUG)
log.addHandler(Sender())
try:
    with interruptible():
        LlamaBackend(models_folder() / "draft.gguf", LoadOptions(512, 1, 0)).close()
except Interruption as interruption:
    print(interruption.number)
"""


def test_signal_while_llama_cpp_writes_a_message_is_not_lost() -> None:
    """Python runs the handler in the callback then, and drops what it raises."""
    with start(str(signal.SIGTERM.value), program=[sys.executable, "-c", IN_A_MESSAGE], stdin=subprocess.DEVNULL) as process:
        out, err = process.communicate(timeout=TIMEOUT)
    assert (out.split(), err) == ([b"15"], b"")


INTERRUPTED_AT = """
import os, runpy, signal, sys

class Interrupting:
    def __init__(self, module):
        self.module = module

    def find_spec(self, name, path=None, target=None):
        if name == self.module:
            os.kill(os.getpid(), number)

number = int(sys.argv.pop(1))
for module in sys.argv[1:]:
    if not os.fork():
        sys.argv[1:] = []
        sys.meta_path.insert(0, Interrupting(module))
"""
AS_SCRIPT = f"        from {ENTRY.module} import {ENTRY.attr}\n        sys.exit({ENTRY.attr}())\n"
AS_MODULE = '        runpy.run_module("arbitrage_cli", run_name="__main__")\n'
REPORT = "    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)\n"


@pytest.mark.parametrize(
    ("code", "number"),
    [
        (AS_SCRIPT, signal.SIGINT),
        (AS_MODULE, signal.SIGTERM),
        *rarely((AS_SCRIPT, signal.SIGHUP), (AS_MODULE, signal.SIGINT)),
    ],
)
def test_signal_while_modules_are_imported_ends_in_one_line(code: str, number: signal.Signals) -> None:
    """From the first module of the program on: each fork is interrupted at another import."""
    modules = ("arbitrage_cli.cli.main", "arbitrage_cli.errors", "typer")
    program = [sys.executable, "-c", INTERRUPTED_AT + code + REPORT]
    with start(str(number.value), *modules, stdin=subprocess.DEVNULL, program=program) as process:
        out, err = process.communicate(timeout=TIMEOUT)
    assert out.decode().splitlines() == [str(128 + number)] * 3
    assert err == b"arbitrage: interrupted\n" * 3


@pytest.mark.parametrize("number", [signal.SIGINT, *rarely(signal.SIGTERM)])
def test_signal_while_the_process_ends_shows_no_traceback(number: int) -> None:
    """Python first waits for threads, here for ever."""
    code = (
        "import sys, threading, arbitrage_cli.__main__ as program, arbitrage_cli.cli.main as cli;"
        "cli.main = lambda: (threading.Thread(target=threading.Event().wait).start(), 0)[1];"
        "threading._register_atexit(lambda: print('ending', flush=True)); sys.exit(program.main())"
    )
    with start(program=(sys.executable, "-c", code), stdin=subprocess.DEVNULL) as process:
        assert read_line(process) == b"ending\n"
        process.send_signal(number)
        assert (process.wait(TIMEOUT), process.stderr.read()) == (-number, b"")

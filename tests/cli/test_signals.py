"""Ctrl-C and SIGTERM: the run ends, the terminal is as it was, and what was finished is on stdout."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import time
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from cli import MODELS, Terminal, many_problems, read_line, start

INTERRUPTED, TERMINATED = 130, 143
PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENTRY = EntryPoint("arbitrage", PROJECT["scripts"]["arbitrage"], "console_scripts")


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_interrupt_in_a_terminal_leaves_it_as_it_was(tmp_path: Path) -> None:
    output = tmp_path / "output"
    path = many_problems(tmp_path / "problems.txt", 3000)
    with Terminal("solve", *MODELS, "--input", str(path), stdout=output) as terminal:
        echoed_before = terminal.process.getecho()
        terminal.wait_until(lambda: num_lines(output) >= 3)
        terminal.process.sendintr()
        assert terminal.wait() == INTERRUPTED
        assert terminal.process.getecho() == echoed_before
    assert not terminal.screen.cursor.hidden
    assert b"Traceback" not in terminal.raw
    assert terminal.text.endswith("arbitrage: interrupted")
    records = [json.loads(line) for line in output.read_bytes().splitlines()]
    assert [record["id"] for record in records] == [str(number + 1) for number in range(len(records))]
    assert 3 <= len(records) < 3000


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["NO_COLOR", "TERM=dumb"])
def test_interrupt_in_a_plain_terminal_writes_no_escape_byte(tmp_path: Path, variables: dict[str, str]) -> None:
    output = tmp_path / "output"
    path = many_problems(tmp_path / "problems.txt", 3000)
    with Terminal("solve", *MODELS, "--input", str(path), stdout=output, env=variables) as terminal:
        terminal.wait_until(lambda: num_lines(output) >= 3)
        terminal.process.sendintr()
        assert terminal.wait() == INTERRUPTED
    assert b"\x1b" not in terminal.raw


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)])
def test_signal_ends_a_run_with_its_exit_code(tmp_path: Path, number: int, code: int) -> None:
    path = many_problems(tmp_path / "problems.txt", 3000)
    with start("solve", *MODELS, "-q", "--input", str(path), stdin=subprocess.DEVNULL) as process:
        first = read_line(process)
        process.send_signal(number)
        rest, told = process.communicate(timeout=10)
    assert process.returncode == code
    assert told == b"arbitrage: interrupted\n"
    for line in (first + rest).splitlines():
        json.loads(line)


def test_interrupt_while_waiting_for_a_problem() -> None:
    with start("solve", *MODELS, "-q") as process:
        assert process.stdin is not None
        process.stdin.write(b"1 + 1\n")
        process.stdin.flush()
        read_line(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == INTERRUPTED
        process.stdin.close()


def test_signal_while_nobody_reads_the_results(tmp_path: Path) -> None:
    path = many_problems(tmp_path / "problems.txt", 3000)
    with start("solve", *MODELS, "-q", "--input", str(path), stdin=subprocess.DEVNULL) as process:
        try:
            wait_until_pipe_is_full(process)
            process.send_signal(signal.SIGINT)
            try:
                code = process.wait(2)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
                code = process.wait(10)
        finally:
            process.kill()
        assert process.stderr is not None
        told = process.stderr.read().decode()
    assert code in (INTERRUPTED, -signal.SIGINT)
    assert "Traceback" not in told
    assert "Exception ignored" not in told


def wait_until_pipe_is_full(process: "subprocess.Popen[bytes]") -> None:
    """Wait until what lies unread in the process's stdout has not grown for half a second."""
    assert process.stdout is not None
    seen, since = 0, time.monotonic()
    while not seen or time.monotonic() - since < 0.5:
        assert process.poll() is None
        now = unread(process.stdout.fileno())
        if now != seen:
            seen, since = now, time.monotonic()
        os.sched_yield()


def unread(pipe: int) -> int:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.skipif(
    not Path("/proc/self/maps").exists(), reason="looks at what a process has loaded, which only Linux tells"
)
def test_interrupt_while_the_program_starts() -> None:
    with start("solve", *MODELS, "1 + 1", stdin=subprocess.DEVNULL) as process:
        wait_until_numpy_is_loading(process)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=10)
    assert b"Traceback" not in told
    assert process.returncode in (0, INTERRUPTED, -signal.SIGINT)


INTERRUPTED_AT = """
import os, runpy, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
"""
AS_SCRIPT = f"""{INTERRUPTED_AT}
from {ENTRY.module} import {ENTRY.attr}
sys.exit({ENTRY.attr}())
"""
AS_MODULE = f"""{INTERRUPTED_AT}
runpy.run_module("arbitrage_cli", run_name="__main__")
"""


@pytest.mark.parametrize("code", [AS_SCRIPT, AS_MODULE], ids=["script", "module"])
@pytest.mark.parametrize("module", ["arbitrage_cli.cli.main", "arbitrage_cli.errors", "typer"])
def test_interrupt_while_modules_are_imported(code: str, module: str) -> None:
    with start(module, stdin=subprocess.DEVNULL, program=[sys.executable, "-c", code]) as process:
        written, told = process.communicate(timeout=10)
    assert (process.returncode, written, told) == (INTERRUPTED, b"", b"arbitrage: interrupted\n")


def wait_until_numpy_is_loading(process: "subprocess.Popen[bytes]") -> None:
    """Wait until the process has mapped numpy, its largest import, or has ended."""
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and "_multiarray_umath" not in maps.read_text():
        os.sched_yield()

"""Threads, memory and load of a machine."""

import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import psutil
import pytest

from arbitrage_cli.system import machine


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Linux machine with 64 processors and 1,000 bytes of memory, 700 of them free, and empty system files."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: None)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=1000, available=700))
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("cores", "quota", "threads"),
    [
        (None, None, 64), (32, None, 32), (100, None, 64), (None, "200000 100000", 2), (None, "150000 100000", 1),
        (None, "50000 100000", 1), (None, "max 100000", 64), (None, "", 64), (None, "7", 64), (3, "200000 100000", 2),
    ],
)  # fmt: skip
def test_threads(root: Path, monkeypatch: pytest.MonkeyPatch, cores: int | None, quota: str | None, threads: int) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: None if logical else cores)
    if quota is not None:
        (root / "cpu.max").write_text(quota + "\n")
    assert machine.default_threads() == threads


def test_threads_are_at_most_those_of_llama_cpp(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(1536)), raising=False)
    assert machine.default_threads() == 512


@pytest.mark.parametrize(
    ("files", "total", "available"),
    [
        ({}, 1000, 700), ({"memory.max": "max"}, 1000, 700), ({"memory.max": "900", "memory.current": "0"}, 900, 700),
        ({"memory.max": "500", "memory.current": "400", "memory.stat": "anon 1\ninactive_file 200"}, 500, 300),
    ],
    ids=["machine", "no limit", "machine with less", "container"],
)  # fmt: skip
def test_memory(root: Path, files: dict[str, str], total: int, available: int) -> None:
    for name, text in files.items():
        (root / name).write_text(text + "\n")
    assert (machine.total_memory(), machine.available_memory()) == (total, available)


@pytest.mark.parametrize(
    ("used", "free"),
    [(0.0, 4), (2.0, 2), (0.3, 4), (4.0, 1), (-0.1, 4)],
    ids=["idle", "two taken", "hardly used", "all taken", "counted too late"],
)
def test_cores_that_other_programs_use_are_not_free(monkeypatch: pytest.MonkeyPatch, used: float, free: int) -> None:
    """The process may use 4 processors. The clock jumps while it sleeps."""
    now = itertools.count(0.0, 0.2)
    times = itertools.count(0.0, 0.2 * used)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)), raising=False)
    monkeypatch.setattr(machine, "other_seconds", times.__next__)
    monkeypatch.setattr(machine, "time", SimpleNamespace(perf_counter=now.__next__, sleep=lambda seconds: None))
    assert machine.free_cores() == free
    assert machine.other_cores() == pytest.approx(max(0.0, used))


class MacTimes(NamedTuple):
    user: float
    system: float
    idle: float


class LinuxTimes(NamedTuple):
    user: float
    system: float
    idle: float
    iowait: float = 50.0
    steal: float = 3.0
    guest: float = 2.0


@pytest.mark.parametrize(("make", "others"), [(MacTimes, 4.0), (LinuxTimes, 7.0)])
def test_the_time_of_other_programs_is_what_is_not_our_own(
    monkeypatch: pytest.MonkeyPatch, make: Callable[..., object], others: float
) -> None:
    """On processor 0. On Linux, the time of the user includes that of guests."""
    used = [make(7.0, 1.0, 100.0), make(1e6, 1e6, 1e6)]
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    monkeypatch.setattr(time, "process_time", lambda: 4.0)
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: used)
    assert machine.other_seconds() == others


@pytest.mark.parametrize(("physical", "all_logical", "cores"), [(4, 8, 1.0), (8, 8, 2.0), (None, None, 2.0)])
def test_two_processors_may_share_a_core(
    monkeypatch: pytest.MonkeyPatch, physical: int | None, all_logical: int | None, cores: float
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: all_logical if logical else physical)
    assert machine.physical_cores() == cores

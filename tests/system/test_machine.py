"""Threads, memory and load of a machine."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

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
    ("busy", "free"),
    [((0, 0, 0, 0), 4), ((100, 100, 0, 0), 2), ((0, 0, 30, 0), 4), ((100, 100, 100, 100), 1), ((), 4)],
    ids=["idle", "two taken", "hardly used", "all taken", "unknown"],
)
def test_cores_that_other_programs_use_are_not_free(
    monkeypatch: pytest.MonkeyPatch, busy: tuple[float, ...], free: int
) -> None:
    """The process may use processors 0 to 3 of 8. Others may be busy."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)), raising=False)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval, percpu: [*busy, 100, 100] if busy else [])
    assert machine.free_cores() == free

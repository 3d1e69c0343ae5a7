"""Threads, memory and load of a machine."""

import os
import sys
from pathlib import Path

import pytest

from arbitrage_cli.system import machine


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Linux machine with 64 processors and empty system files."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(64), raising=False)
    for name in ("CPUS", "CGROUP", "MEMORY"):
        monkeypatch.setattr(machine, name, tmp_path / name)
    return tmp_path


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def cores(*siblings: str) -> dict[str, str]:
    return {f"CPUS/cpu{number}/topology/thread_siblings_list": text for number, text in enumerate(siblings)}


@pytest.mark.parametrize(
    ("files", "threads"),
    [
        ({}, 64),
        (cores("0,2", "1,3", "0,2", "1,3"), 2),  # hyper-threads are not cores
        (cores(*map(str, range(100))), 64),
        ({"CGROUP/cpu.max": "200000 100000"}, 2),
        ({"CGROUP/cpu.max": "150000 100000"}, 1),
        ({"CGROUP/cpu.max": "50000 100000"}, 1),
        ({"CGROUP/cpu.max": "max 100000"}, 64),
        ({"CGROUP/cpu.max": ""}, 64),
        ({"CGROUP/cpu.max": "7"}, 64),
        (cores("0", "1", "2") | {"CGROUP/cpu.max": "200000 100000"}, 2),
    ],
)
def test_threads(root: Path, files: dict[str, str], threads: int) -> None:
    write(root, files)
    assert machine.default_threads() == threads


@pytest.mark.parametrize(
    ("files", "total", "available"),
    [
        ({}, 1 << 20, 1 << 20),
        ({"MEMORY": "MemTotal: 16 kB\nMemAvailable:       12 kB"}, 1 << 20, 12 * 1024),
        ({"CGROUP/memory.max": "max"}, 1 << 20, 1 << 20),
        (
            {
                "CGROUP/memory.max": "10000",
                "CGROUP/memory.current": "7000",
                "CGROUP/memory.stat": "anon 1\ninactive_file 2000",
            },
            10000,
            5000,
        ),
        ({"MEMORY": "MemAvailable: 3 kB", "CGROUP/memory.max": "10000", "CGROUP/memory.current": "0"}, 10000, 3072),
    ],
    ids=["nothing said", "machine", "no limit", "container", "machine with less"],
)
def test_memory(root: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], total: int, available: int) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 1024)
    write(root, files)
    assert (machine.total_memory(), machine.available_memory()) == (total, available)

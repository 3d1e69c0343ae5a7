"""Threads, memory and load of a machine."""

import os
import sys
import time
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


@pytest.mark.parametrize(
    ("busy", "free"),
    [((0, 0, 0, 0), 4), ((1, 1, 0, 0), 2), ((0, 0, 0.3, 0), 4), ((1, 1, 1, 1), 1), (None, 3)],
    ids=["idle", "two taken", "hardly used", "all taken", "no /proc"],
)
def test_cores_that_other_programs_use_are_not_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: tuple[float, ...] | None, free: int
) -> None:
    """The process may use processors 0 to 3 of 8, whose ticks are read twice. Others may be busy."""
    monkeypatch.setattr(machine, "LOAD", tmp_path / "stat")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(4), raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (1.0, 2.0, 3.0))
    ticks = machine.LOOK_SECONDS * os.sysconf("SC_CLK_TCK")

    def tell(share: float) -> None:
        rows = [
            f"cpu{number} {int(share * one * ticks)} 0 0 900 50 0 0 0" for number, one in enumerate((*(busy or ()), 1, 1))
        ]
        (tmp_path / "stat").write_text("\n".join(["cpu 1 2 3 4", *rows]) if busy else "")

    tell(0.0)
    monkeypatch.setattr(time, "sleep", lambda seconds: tell(1.0))
    assert machine.free_cores() == free

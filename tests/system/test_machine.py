"""How many threads are worth starting, how much memory can be had."""

import os
import sys
from pathlib import Path

import pytest

from arbitrage_cli.system import machine


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def topology(root: Path, *siblings: str) -> Path:
    for number, text in enumerate(siblings):
        write(root / f"cpu{number}" / "topology" / "thread_siblings_list", text + "\n")
    return root


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS is asked by sysctl, not by files")
def test_hyper_threads_are_not_cores(tmp_path: Path) -> None:
    """Logical processors that share a core count once."""
    assert machine._physical_cores(topology(tmp_path, "0,2", "1,3", "0,2", "1,3")) == 2


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS is asked by sysctl, not by files")
def test_no_topology_is_no_bound(tmp_path: Path) -> None:
    """A system that does not say how many cores it has sets none."""
    assert machine._physical_cores(tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("200000 100000", 2), ("150000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("", None), ("7", None)],
)
def test_quota_of_a_container(tmp_path: Path, text: str, cpus: int | None) -> None:
    """Whole CPUs, at least one; no quota or an unreadable one is no bound (cgroup version 2)."""
    write(tmp_path / "cpu.max", text + "\n")
    assert machine._cgroup_quota(tmp_path) == cpus


@pytest.mark.parametrize(("quota", "cpus"), [("300000", 3), ("-1", None)])
def test_quota_of_an_old_container(tmp_path: Path, quota: str, cpus: int | None) -> None:
    """The same in cgroup version 1, where -1 is no quota."""
    write(tmp_path / "cpu/cpu.cfs_quota_us", quota)
    write(tmp_path / "cpu/cpu.cfs_period_us", "100000")
    assert machine._cgroup_quota(tmp_path) == cpus


def test_no_cgroup_is_no_bound(tmp_path: Path) -> None:
    """As on a system without any."""
    assert machine._cgroup_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("cores", "allowed", "quota", "threads"),
    [(8, 4, None, 4), (2, 16, 8, 2), (None, 3, None, 3), (8, 8, 1, 1), (0, 0, 0, 1)],
)
def test_the_least_bound_counts(
    monkeypatch: pytest.MonkeyPatch, cores: int | None, allowed: int, quota: int | None, threads: int
) -> None:
    """Cores, affinity, quota: the least of those known, and at least one thread."""
    monkeypatch.setattr(machine, "_physical_cores", lambda: cores)
    monkeypatch.setattr(machine, "logical_processors", lambda: allowed)
    monkeypatch.setattr(machine, "_cgroup_quota", lambda: quota)
    assert machine.default_threads() == threads


def test_cores_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """The load of the last minute; not known where the system has no such thing."""
    monkeypatch.setattr("os.getloadavg", lambda: (1.5, 0.0, 0.0))
    assert machine.cores_in_use() == 1.5
    monkeypatch.delattr("os.getloadavg")
    assert machine.cores_in_use() is None


def test_this_machine_has_threads() -> None:
    """Whatever it is, between one and all of its processors."""
    assert 1 <= machine.default_threads() <= (os.cpu_count() or 1)


def test_memory_that_can_be_had_is_the_least_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system has free, or what is left of a container's limit; file cache can be had."""
    write(tmp_path / "meminfo", "MemTotal: 16 kB\nMemAvailable:       12 kB\n")
    assert machine._free_memory(tmp_path / "meminfo") == 12 * 1024
    assert machine._free_memory(tmp_path / "missing") is None
    assert machine._cgroup_memory(tmp_path) is None
    write(tmp_path / "memory.max", "max\n")
    assert machine._cgroup_memory(tmp_path) is None
    write(tmp_path / "memory.max", "10000\n")
    write(tmp_path / "memory.current", "7000\n")
    write(tmp_path / "memory.stat", "anon 1\ninactive_file 2000\n")
    assert machine._cgroup_memory(tmp_path) == 5000
    monkeypatch.setattr(machine, "_free_memory", lambda: 9000)
    monkeypatch.setattr(machine, "_cgroup_memory", lambda: 5000)
    assert machine.available_memory() == 5000


def test_a_container_has_no_more_than_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All memory is the machine's, or the container's where that has a limit below it."""
    whole = machine.total_memory()
    assert whole
    write(tmp_path / "memory.max", "max\n")
    assert machine._cgroup_limit(tmp_path) is None
    write(tmp_path / "memory.max", "10000\n")
    assert machine._cgroup_limit(tmp_path) == 10000
    monkeypatch.setattr(machine, "_cgroup_limit", lambda: 10000)
    assert machine.total_memory() == 10000


def test_memory_of_an_old_container(tmp_path: Path) -> None:
    """The same in cgroup version 1."""
    write(tmp_path / "memory/memory.limit_in_bytes", "10000\n")
    write(tmp_path / "memory/memory.usage_in_bytes", "4000\n")
    assert machine._cgroup_memory(tmp_path) == 6000

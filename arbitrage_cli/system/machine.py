"""What this machine offers to a computation: how many threads are worth starting, how much memory it has.

Knows no model. Reads the system's own files and falls back to the number of logical processors where there are none.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path


def default_threads() -> int:
    """Threads for llama.cpp: the least of physical cores, CPUs this process may run on, and the container's CPU quota."""
    bounds = [_physical_cores(), logical_processors(), _cgroup_quota()]
    return max(1, min(bound for bound in bounds if bound is not None))


def logical_processors() -> int:
    """Those that this process may run on, hyper-threads counted."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cores_in_use() -> float | None:
    """How many processors were busy in the last minute, by the system's count; None if it does not say."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def total_memory() -> int | None:
    """Bytes of physical memory, or those of the container if that has fewer; None if the system does not say."""
    bounds = [_physical_memory(), _cgroup_limit()]
    return min((bound for bound in bounds if bound is not None), default=None)


def available_memory() -> int | None:
    """Bytes that can be had without pushing anything out: of the machine, and of the container if that has a limit.

    Where the system does not say, all of its memory; None if it does not say that either.
    """
    bounds = [_free_memory() or total_memory(), _cgroup_memory()]
    return min((bound for bound in bounds if bound is not None), default=None)


def gpu_shares_memory() -> bool:
    """Whether the GPU computes in the machine's own memory, as that of Apple silicon does."""
    return sys.platform == "darwin" and platform.machine() == "arm64"


def processor_name() -> str:
    """The model of the processor, as the system calls it."""
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        name, _, text = line.partition(":")
        if name.strip() == "model name" and text.strip():
            return text.strip()
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def _physical_cores(topology: Path = Path("/sys/devices/system/cpu")) -> int | None:
    """Cores without their hyper-threads; on Apple silicon the performance cores. None if the system does not say."""
    if sys.platform == "darwin":
        return _number("hw.perflevel0.physicalcpu") or _number("hw.physicalcpu")
    siblings = set()
    for path in topology.glob("cpu[0-9]*/topology/thread_siblings_list"):
        text = _read(path)
        if text:
            siblings.add(text)
    return len(siblings) or None


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Whole CPUs of the cgroup's quota (version 2, then 1); None without a quota. A quota below one CPU counts as one."""
    text = _read(root / "cpu.max")
    if text is None:
        text = f"{_read(root / 'cpu/cpu.cfs_quota_us')} {_read(root / 'cpu/cpu.cfs_period_us')}"
    quota, _, period = text.partition(" ")
    if quota.isdigit() and period.isdigit() and int(period) > 0:
        return max(1, int(quota) // int(period))
    return None


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _free_memory(path: Path = Path("/proc/meminfo")) -> int | None:
    """What Linux thinks can be had; None on other systems."""
    for line in (_read(path) or "").splitlines():
        name, _, text = line.partition(":")
        amount = text.split()
        if name == "MemAvailable" and amount and amount[0].isdigit():
            return int(amount[0]) * 1024
    return None


def _cgroup_limit(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that the cgroup may have (version 2, then 1); None without a limit."""
    text = _read(root / "memory.max") or _read(root / "memory/memory.limit_in_bytes") or ""
    return int(text) if text.isdigit() else None


def _cgroup_memory(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What is left of the cgroup's limit (version 2, then 1), its file cache aside, which gives way; None without a limit."""
    used, cache = "memory.current", "memory.stat"
    if not (root / "memory.max").exists():
        used, cache = "memory/memory.usage_in_bytes", "memory/memory.stat"
    most, now = _cgroup_limit(root), _read(root / used) or ""
    if most is None or not now.isdigit():
        return None
    lines = (line.split() for line in (_read(root / cache) or "").splitlines())
    inactive = next((int(line[1]) for line in lines if line[:1] == ["inactive_file"]), 0)
    return max(0, most - int(now) + inactive)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _number(name: str) -> int | None:
    text = _sysctl(name)
    return int(text) if text and text.isdigit() else None


def _sysctl(name: str) -> str | None:
    try:
        command = ["/usr/sbin/sysctl", "-n", name]
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout  # noqa: S603 - no input
    except (OSError, subprocess.SubprocessError):
        return None
    return found.strip() or None

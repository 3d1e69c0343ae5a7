"""Describes this machine's processors and memory."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")
CGROUP = Path("/sys/fs/cgroup")
MEMORY = Path("/proc/meminfo")
LOAD = Path("/proc/stat")
LOOK_SECONDS = 0.2  # in which the load of the processors is measured
CACHED_BYTES = 32 << 20  # bytes of weights that usually fit in a processor's cache


def default_threads() -> int:
    """Return the number of physical cores, limited by the process's affinity and the container's CPU quota."""
    bounds = [_physical_cores(), logical_processors(), _cgroup_quota()]
    return max(1, min(bound for bound in bounds if bound is not None))


def logical_processors() -> int:
    """Return the number of logical processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_cores() -> int:
    """Return how many of the processors that this process may use are idle. Without /proc, the load average is used."""
    before = _busy_ticks()
    if before is None:
        return max(1, round(logical_processors() - os.getloadavg()[0]))
    time.sleep(LOOK_SECONDS)
    busy = ((_busy_ticks() or before) - before) / os.sysconf("SC_CLK_TCK") / LOOK_SECONDS
    return max(1, round(logical_processors() - busy))


def _busy_ticks() -> int | None:
    """Return how long the processors that this process may use have been busy, in clock ticks, or None if unknown."""
    lines = (line.split() for line in _read(LOAD).splitlines())
    times = {words[0]: [*map(int, words[1:9])] for words in lines if words and words[0].startswith("cpu")}
    own = [times[name] for number in os.sched_getaffinity(0) if (name := f"cpu{number}") in times] if times else []
    return sum(sum(one) - one[3] - one[4] for one in own) if own else None  # idle, and waiting for input or output


def total_memory() -> int | None:
    """Return the bytes of physical memory, or the container's limit if this is lower. Return None if unknown."""
    return _least(_physical_memory(), _cgroup_limit())


def available_memory() -> int | None:
    """Return the bytes of memory that new programs can use. If this is unknown, return the total memory."""
    kilobytes = _field(MEMORY, "MemAvailable:")
    return _least(total_memory() if kilobytes is None else kilobytes * 1024, _cgroup_memory())


def gpu_shares_memory() -> bool:
    """Return whether the GPU shares the machine's memory, as on Apple silicon."""
    return sys.platform == "darwin" and platform.machine() == "arm64"


def processor_features() -> frozenset[str]:
    """Return the names of the processor's instruction sets. Outside Linux, the result is empty."""
    return frozenset(_cpu_info("flags").split())


def processor_name() -> str:
    if name := _cpu_info("model name"):
        return name
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def _cpu_info(field: str) -> str:
    lines = (line.partition(":") for line in _read(Path("/proc/cpuinfo")).splitlines())
    return next((text.strip() for name, _, text in lines if name.strip() == field and text.strip()), "")


def _physical_cores() -> int | None:
    """Return the number of cores, or None if unknown. On Apple silicon, only performance cores are counted."""
    if sys.platform == "darwin":
        return _number(_sysctl("hw.perflevel0.physicalcpu")) or _number(_sysctl("hw.physicalcpu"))
    siblings = {_read(path) for path in CPUS.glob("cpu[0-9]*/topology/thread_siblings_list")}
    return len(siblings - {""}) or None


def _cgroup_quota() -> int | None:
    """Return the CPU quota of the cgroup (version 2), rounded down but at least 1, or None if there is no quota."""
    quota, _, period = _read(CGROUP / "cpu.max").partition(" ")
    cpus, unit = _number(quota), _number(period)
    return max(1, cpus // unit) if cpus is not None and unit else None


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _cgroup_limit() -> int | None:
    return _number(_read(CGROUP / "memory.max"))


def _cgroup_memory() -> int | None:
    """Return the free bytes within the cgroup's limit, including the file cache, or None if there is no limit."""
    limit, now = _cgroup_limit(), _number(_read(CGROUP / "memory.current"))
    if limit is None or now is None:
        return None
    return max(0, limit - now + (_field(CGROUP / "memory.stat", "inactive_file") or 0))


def _least(*bounds: int | None) -> int | None:
    return min((bound for bound in bounds if bound is not None), default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _field(path: Path, name: str) -> int | None:
    lines = (line.split() for line in _read(path).splitlines())
    return next((_number(words[1]) for words in lines if len(words) > 1 and words[0] == name), None)


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _sysctl(name: str) -> str:
    try:
        command = ["/usr/sbin/sysctl", "-n", name]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()  # noqa: S603 - no input
    except (OSError, subprocess.SubprocessError):
        return ""

"""Describes this machine's processors and memory."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

MAX_THREADS = 512  # llama.cpp's limit, which it does not check
CGROUP = Path("/sys/fs/cgroup")
LOAD_SECONDS = 0.2  # in which the load of the processors is measured
CACHED_BYTES = 32 << 20  # bytes of weights that usually fit in a processor's cache


def default_threads() -> int:
    """Return the number of physical cores, limited by the process's affinity and the container's CPU quota."""
    return _least(logical_processors(), _physical_cores(), _cgroup_quota(), MAX_THREADS)


def logical_processors() -> int:
    """Return the number of logical processors that this process may use."""
    return len(_own_processors())


def free_cores() -> int:
    """Return how many of the processors that this process may use other programs leave idle, but at least 1."""
    return max(1, round(logical_processors() - other_cores()))


def other_cores(seconds: float = LOAD_SECONDS) -> float:
    """Return how many cores other programs use on average during the next `seconds`."""
    before, began = other_seconds(), time.perf_counter()
    time.sleep(seconds)
    return max(0.0, other_seconds() - before) / (time.perf_counter() - began)


def other_seconds() -> float:
    """Return the processor time of other programs, and of interrupts, on the processors that this process may use.

    The time begins at an unknown moment, so only differences mean something. Systems count it in ticks of about 0.01 s for
    each processor.
    """
    own = _own_processors()
    used = [times for number, times in enumerate(psutil.cpu_times(percpu=True)) if number in own]
    return sum(map(_busy_seconds, used)) - time.process_time()


def _busy_seconds(times: Any) -> float:
    """Return the seconds in which a processor was not idle. Linux counts the time of guests twice."""
    apart = ("idle", "iowait", "guest", "guest_nice")
    return float(sum(times) - sum(getattr(times, name, 0.0) for name in apart))


def physical_cores() -> float:
    """Return the number of physical cores to which the processors of this process belong."""
    logical: int = psutil.cpu_count() or 1
    return logical_processors() * (psutil.cpu_count(logical=False) or logical) / logical


def _own_processors() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def total_memory() -> int:
    """Return the bytes of physical memory, or the container's limit if this is lower."""
    return _least(psutil.virtual_memory().total, _cgroup_limit())


def available_memory() -> int:
    """Return the bytes of memory that new programs can use."""
    return _least(psutil.virtual_memory().available, _cgroup_memory())


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
    cores: int | None = psutil.cpu_count(logical=False)
    return (_number(_sysctl("hw.perflevel0.physicalcpu")) if sys.platform == "darwin" else None) or cores


def _cgroup_quota() -> int | None:
    """Return the CPU quota of the cgroup (version 2), rounded down but at least 1, or None if there is no quota."""
    quota, _, period = _read(CGROUP / "cpu.max").partition(" ")
    cpus, unit = _number(quota), _number(period)
    return max(1, cpus // unit) if cpus is not None and unit else None


def _cgroup_limit() -> int | None:
    return _number(_read(CGROUP / "memory.max"))


def _cgroup_memory() -> int | None:
    """Return the free bytes within the cgroup's limit, including the file cache, or None if there is no limit."""
    limit = _cgroup_limit()
    now = _number(_read(CGROUP / "memory.current"))
    if limit is None or now is None:
        return None
    return max(0, limit - now + (_field(CGROUP / "memory.stat", "inactive_file") or 0))


def _least(known: int, *bounds: int | None) -> int:
    return min([known, *(bound for bound in bounds if bound is not None)])


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

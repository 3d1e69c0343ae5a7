"""What keeps a program apart from the machine: as much as this system allows. Knows neither programs nor tests.

`prepare` is called once, in the process that forks the others. Each of these calls `Confinement.enter`, which cannot be undone.
"""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from arbitrage_cli.grading.programs import namespaces
from arbitrage_cli.grading.programs.audit import refuse_by_hook
from arbitrage_cli.grading.programs.landlock import restrict_files
from arbitrage_cli.grading.programs.seccomp import filter_system_calls
from arbitrage_cli.grading.programs.system_calls import (
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    drop_capabilities,
    prctl,
)

NOBODY = 65534
_WORK = "/program"  # of the own root
_FILE_BYTES, _OPEN_FILES = 1 << 20, 64
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/nix/store")
_REMOVAL_SECONDS = 2.0  # for one of the two commands


@dataclass(frozen=True, slots=True)
class Confinement:
    """How programs are kept apart on this machine. `root` has the folders that they can write to."""

    root: Path
    readable: tuple[str, ...]
    mapped: int
    changes_user: bool
    has_namespaces: bool
    has_landlock: bool
    has_filter: bool

    @property
    def protections(self) -> list[str]:
        """What is active, in words."""
        linux = sys.platform == "linux"
        words = {
            "resource limits": True,
            "another user": self.changes_user,
            "no new privileges": linux,
            "own namespaces (files, network, processes)": self.has_namespaces,
            "Landlock": self.has_landlock,
            "system call filter": self.has_filter,
            "audit hook": not self.has_files_apart,
        }
        return [word for word, is_active in words.items() if is_active]

    @property
    def unprotected(self) -> list[str]:
        """What a hostile program can reach here."""
        words = {"files": not self.has_files_apart, "network": not (self.has_namespaces or self.has_filter)}
        return [word for word, is_open in words.items() if is_open]

    @property
    def has_files_apart(self) -> bool:
        """Whether the system itself keeps programs from all other files."""
        return self.has_namespaces or self.has_landlock

    def fork(self) -> int:
        """Fork a child, as the first process of a namespace if possible."""
        return namespaces.fork_apart() if self.has_namespaces else os.fork()

    @contextlib.contextmanager
    def empty_folder(self) -> Iterator[str]:
        """An empty folder for one program, which is gone afterwards with all it has."""
        user = NOBODY if self.changes_user else os.geteuid()
        if self.has_namespaces:
            with namespaces.empty_folder(_WORK, user):
                yield _WORK
            return
        folder = tempfile.mkdtemp(dir=self.root)
        os.chown(folder, user, -1)
        try:
            yield folder
        finally:
            remove(folder)

    def enter(self, folder: str, seconds: int, memory: int) -> None:
        """Confine this process, which may compute for so many seconds, map so many bytes more and write here. OSError."""
        os.setsid()
        os.chdir(folder)
        _limit(seconds, self.mapped + memory)
        if self.has_landlock:
            restrict_files(self.readable, folder)
        if self.changes_user:
            _become_nobody()
        if sys.platform == "linux":
            drop_capabilities()
            prctl(PR_SET_DUMPABLE, 0)
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if self.has_filter:
            filter_system_calls()
        if not self.has_files_apart:
            refuse_by_hook(self.readable, folder)


def prepare(folder: str) -> Confinement:
    """Find out what works here, and enter the namespaces if they do. `folder` exists and is this process's own."""
    linux = sys.platform == "linux"
    os.umask(0o022)
    Path(folder).chmod(0o711)  # another user enters it
    readable, mapped = _readable_folders(), _mapped_bytes()
    if linux:
        prctl(PR_SET_NO_NEW_PRIVS, 1)
    has_namespaces = linux and _works(lambda: _try_namespaces(folder, readable))
    if has_namespaces:
        namespaces.enter(folder, readable, _WORK)
    if linux:
        prctl(PR_SET_DUMPABLE, 0)  # no other process may look into this one
    return Confinement(
        Path(folder),
        readable,
        mapped,
        changes_user=not os.geteuid() and _works(_become_nobody),
        has_namespaces=has_namespaces,
        has_landlock=linux and _works(lambda: restrict_files(readable, "/")),
        has_filter=linux and _works(filter_system_calls),
    )


def _become_nobody() -> None:
    """As root: give that up. OSError if this system has no such user, as some containers."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def _works(attempt: Callable[[], object]) -> bool:
    """Whether it can be done, tried in a child."""
    child = os.fork()
    if not child:
        status = 1
        try:
            attempt()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def _try_namespaces(folder: str, readable: tuple[str, ...]) -> None:
    namespaces.enter(folder, readable, _WORK)
    with namespaces.empty_folder(_WORK, os.geteuid()):
        child = namespaces.fork_apart()
        if not child:
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            raise OSError("no process can be started apart")


def _readable_folders() -> tuple[str, ...]:
    """Python's own library, and those of the system; none of them below another."""
    wanted = [*_LIBRARIES, sysconfig.get_path("stdlib"), f"{sys.base_prefix}/lib"]
    found = sorted({folder for folder in wanted if Path(folder).is_dir()})
    return tuple(one for one in found if not any(one.startswith(f"{other}/") for other in found))


def _mapped_bytes() -> int:
    """The address space of this process; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    return 0


def _limit(seconds: int, address_space: int) -> None:
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: _FILE_BYTES,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform == "linux":  # macOS has the limit and does not keep it
        limits[resource.RLIMIT_AS] = address_space
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (bound, bound))


def remove(folder: str) -> None:
    """Remove it, whatever a program made in it, if that does not take long: closed folders, paths too long to name."""
    for command in (["chmod", "-R", "u+rwx", folder], ["rm", "-rf", folder]):
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(  # noqa: S603
                command, check=False, timeout=_REMOVAL_SECONDS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )

"""Namespaces of Linux: a process leaves the machine's files, network and processes behind. Knows no program."""

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

from arbitrage_cli.grading.programs.system_calls import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    PR_SET_PDEATHSIG,
    call,
    mount,
    prctl,
)

_PLAIN = MS_NOSUID | MS_NODEV
_FILES, _FOLDER_BYTES = 1000, "16m"


def enter(root: str, readable: Iterable[str], work: str) -> None:
    """Go on in a process with a network without devices, and an own root with these folders, read-only, and an empty `work`.

    `root` is an existing folder, whose content is hidden. A user who is not root becomes it in a namespace of users, with rights over
    nothing else. OSError if this system does not allow it.
    """
    user, group = os.geteuid(), os.getegid()
    if user:
        call("unshare", CLONE_NEWUSER)
        for name, line in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            Path("/proc/self", name).write_text(line, encoding="ascii")
    call("unshare", CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWPID)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", _PLAIN, "mode=755,size=1m")
    for folder in readable:
        _show(Path(folder), Path(root + folder))
    Path(root + work).mkdir()
    os.chdir(root)
    call("pivot_root", b".", b".")  # the old root lies on top of the new one
    call("umount2", b".", MNT_DETACH)
    os.chdir("/")
    mount("none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | _PLAIN)
    _go_on_in_child()


def _go_on_in_child() -> None:
    """Become the first process of the new namespace, with which all others there die. This one waits for it, and ends like it."""
    child = os.fork()
    if child:
        os._exit(os.waitpid(child, 0)[1] != 0)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _show(folder: Path, place: Path) -> None:
    """The folder read-only at another place; a link as it is."""
    if folder.is_symlink():
        place.symlink_to(folder.readlink())
        return
    place.mkdir(parents=True)
    mount(str(folder), str(place), None, MS_BIND | MS_REC)
    kept = os.statvfs(place).f_flag & (_PLAIN | MS_NOEXEC)  # they may be locked
    mount("none", str(place), None, MS_REMOUNT | MS_BIND | MS_RDONLY | _PLAIN | kept)


@contextlib.contextmanager
def empty_folder(folder: str, user: int) -> Iterator[None]:
    """Mount an empty file system in memory there, of limited size, that belongs to a user; and take it away with all it has."""
    options = f"mode=700,uid={user},size={_FOLDER_BYTES},nr_inodes={_FILES}"
    mount("tmpfs", folder, "tmpfs", _PLAIN | MS_NOEXEC, options)
    try:
        yield
    finally:
        call("umount2", os.fsencode(folder), MNT_DETACH)


def fork_apart() -> int:
    """Fork a child that sees no process but its own: it is the first of a namespace, and all others die with it."""
    here = os.pidfd_open(os.getpid())
    try:
        call("unshare", CLONE_NEWPID)
        child = os.fork()
        if child:
            call("setns", here, CLONE_NEWPID)
        return child
    finally:
        os.close(here)

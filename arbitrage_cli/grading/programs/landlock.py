"""Landlock: a Linux process gives up all files but those below a few folders, and TCP. It needs no privilege.

The rights are bits of `linux/landlock.h`; later kernels know more of them.
"""

import ctypes
import os
from collections.abc import Iterable

from arbitrage_cli.grading.programs.system_calls import call

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # system calls, the same everywhere
_VERSION = 1  # flag of the first: the version of the kernel's Landlock
_BENEATH = 1  # kind of rule: a folder and all below
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
_WRITE = (
    1 << 1 | _READ_FILE | _READ_FOLDER | 1 << 5 | 1 << 8 | 1 << 14
)  # write, remove, make and truncate files; no folders or links
_FILES_OF_VERSION = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # rights that each version knows; later ones know as many
_NETWORK = 0b11  # bind and connect TCP, since version 4
_SCOPES = 0b11  # abstract sockets and signals, since version 6


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _Below(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("rights", ctypes.c_uint64), ("folder", ctypes.c_int32))


def restrict_files(readable: Iterable[str], writable: str) -> None:
    """From now on, read below these folders only, and keep plain files in one. Needs no_new_privs. OSError if this system cannot."""
    version = call("syscall", _CREATE_RULESET, None, 0, _VERSION)
    everything = (1 << _FILES_OF_VERSION[min(version, max(_FILES_OF_VERSION))]) - 1
    ruleset = _Ruleset(everything, _NETWORK if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = call("syscall", _CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(size), 0)
    for folder in readable:
        _allow(rules, folder, _READ_FILE | _READ_FOLDER)
    _allow(rules, writable, _WRITE & everything)
    call("syscall", _RESTRICT_SELF, rules, 0)
    os.close(rules)


def _allow(rules: int, folder: str, rights: int) -> None:
    opened = os.open(folder, os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)
    call("syscall", _ADD_RULE, rules, _BENEATH, ctypes.byref(_Below(rights, opened)), 0)
    os.close(opened)

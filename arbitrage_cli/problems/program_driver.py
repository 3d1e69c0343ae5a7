"""Runs a program and its tests. `python -c` executes this source in the sandbox, where the package is not installed.

The input contains a length, a JSON job of this length, and a secret. The secret is read only after all tests have passed.
The output is "started", followed by a JSON line: ["passed", secret] or ["failed", reason].
"""

import ctypes
import errno
import faulthandler
import json
import linecache
import os
import random
import resource
import signal
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

_PROGRAM, _TESTS = "<program>", "<tests>"
_MAX_LINE = 200  # characters of a failed test
_MAX_MESSAGE = 500  # characters of an error message
_OUTPUT, _SECRET = 61, 62  # file descriptors
_KEYCTL = {"x86_64": 250, "aarch64": 219}  # number of the system call
_JOIN_SESSION_KEYRING = 1


def main() -> None:
    # The program can replace anything in this process, so the functions that are needed afterwards are stored.
    read = os.read
    write = os.write
    leave = os._exit
    dumps = json.dumps
    extract = traceback.extract_tb
    _leave_keyring()
    os.dup2(1, _OUTPUT)
    os.dup2(0, _SECRET)
    job = json.loads(_read(int(_read(16))))
    for stream in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), stream)
    for name, limit in job["limits"].items():
        hard = resource.RLIM_INFINITY if name == "RLIMIT_CPU" else limit
        resource.setrlimit(getattr(resource, name), (limit, hard))
    sys.addaudithook(_keep_cpu_limit)
    faulthandler.register(signal.SIGXCPU, _OUTPUT, all_threads=False)  # works inside C code
    write(_OUTPUT, b"started")
    random.seed(0)  # reproducible draws
    try:
        _run(job["preamble"], job["program"], job["tests"])
        outcome = ["passed", read(_SECRET, 1000).decode()]
    except MemoryError:
        outcome = ["failed", "ran out of memory"]
    except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt are failures too
        outcome = [
            "failed",
            _reason(error, [line for line in extract(error.__traceback__) if line.filename in (_PROGRAM, _TESTS)]),
        ]
    write(_OUTPUT, ("\n" + dumps(outcome)).encode())
    leave(0)  # without the program's exit handlers


def _leave_keyring() -> None:
    """Replace the user's session keyring, which bubblewrap does not hide, with an empty one."""
    number = _KEYCTL.get(os.uname().machine) if sys.platform == "linux" else None
    refused = number is not None and ctypes.CDLL(None, use_errno=True).syscall(number, _JOIN_SESSION_KEYRING, None) < 0
    if refused and ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM):  # errors of systems without keyrings
        raise OSError(ctypes.get_errno(), "cannot leave the session keyring")


def _keep_cpu_limit(event: str, arguments: Sequence[object]) -> None:
    """Keep the infinite hard limit, because the SIGKILL at a hard limit would look like one from outside."""
    if event in ("resource.setrlimit", "resource.prlimit") and arguments[-2] == resource.RLIMIT_CPU:
        raise ValueError("not allowed to change this limit")


def _read(size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (part := os.read(_SECRET, size - len(data))):
            sys.exit(1)  # the parent was killed
        data += part
    return data


def _run(preamble: str, program: str, tests: str) -> None:
    """Run the program, then the tests.

    The tests can use the program's names, but the program cannot use the tests' names.
    """
    module = ModuleType("program")
    sys.modules["program"] = module  # dataclasses and pickle look up the module here
    linecache.cache[_TESTS] = len(tests), None, tests.splitlines(keepends=True), _TESTS
    execute = exec
    translate = compile
    namespace = vars(module)
    execute(translate(preamble, "<preamble>", "exec", dont_inherit=True), namespace)
    execute(translate(program, _PROGRAM, "exec", dont_inherit=True), namespace)
    execute(translate(tests, _TESTS, "exec", dont_inherit=True), {**namespace, "__name__": "tests"})


def _reason(error: BaseException, lines: Sequence[traceback.FrameSummary]) -> str:
    """Describe a failure. `lines` are the traceback entries for the program and its tests."""
    if isinstance(error, SystemExit):
        return "ended its process (SystemExit)"
    if isinstance(error, AssertionError) and lines and lines[-1].filename == _TESTS:
        return f"assertion failed: {(lines[-1].line or '')[:_MAX_LINE]}"
    name = type(error).__name__
    try:
        message = str(error)[:_MAX_MESSAGE]
    except BaseException:  # noqa: BLE001 - a program's own __str__ may raise
        message = ""
    return f"{name}: {message}" if message else name


if __name__ == "__main__":
    main()

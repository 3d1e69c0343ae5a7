"""Runs a program and its tests in one process. `python -c` starts its text, behind the wall, where this package is not.

It reads a length, a line of JSON of that length, and, only after all tests have passed, the secret that proves it. It writes that
it has started, then one line of JSON: ["passed", secret], or how the tests failed and why. The program may change anything in this
process. So what is used afterwards is taken before, and the secret stays in the pipe meanwhile.
"""

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
_MAX_LINE = 200  # characters of a test that failed
_MAX_MESSAGE = 500  # characters of an error's message
_VERDICT, _SECRET = 61, 62  # descriptors


def main() -> None:
    """Writes the verdict, and ends the process at once: nothing that the program left behind runs."""
    read, write, leave, dumps, extract = os.read, os.write, os._exit, json.dumps, traceback.extract_tb
    os.dup2(1, _VERDICT)
    os.dup2(0, _SECRET)
    job = json.loads(_read(int(_read(16))))
    for stream in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), stream)
    for name, limit in job["limits"].items():
        hard = resource.RLIM_INFINITY if name == "RLIMIT_CPU" else limit  # its SIGKILL would look like one from outside
        resource.setrlimit(getattr(resource, name), (limit, hard))
    faulthandler.register(signal.SIGXCPU, _VERDICT, all_threads=False)  # says so in C
    write(_VERDICT, b"started")
    random.seed(0)  # draws are the same in every run
    try:
        _run(job["preamble"], job["program"], job["tests"])
        verdict = ["passed", read(_SECRET, 1000).decode()]
    except MemoryError:
        verdict = ["memory", "it needs too much memory"]
    except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt are failures too
        verdict = _described(error, [line for line in extract(error.__traceback__) if line.filename in (_PROGRAM, _TESTS)])
    write(_VERDICT, ("\n" + dumps(verdict)).encode())
    leave(0)


def _read(size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += os.read(_SECRET, size - len(data))
    return data


def _run(preamble: str, program: str, tests: str) -> None:
    """The tests see what the program defines; what they define themselves is not the program's."""
    module = ModuleType("program")
    sys.modules["program"] = module  # where dataclasses and pickle look for it
    linecache.cache[_TESTS] = len(tests), None, tests.splitlines(keepends=True), _TESTS
    execute, translate, namespace = exec, compile, vars(module)
    execute(translate(preamble, "<preamble>", "exec", dont_inherit=True), namespace)
    execute(translate(program, _PROGRAM, "exec", dont_inherit=True), namespace)
    execute(translate(tests, _TESTS, "exec", dont_inherit=True), {**namespace, "__name__": "tests"})


def _described(error: BaseException, passed: Sequence[traceback.FrameSummary]) -> list[str]:
    """The kind and the reason of a failure, from the error and the lines that it passed through."""
    if isinstance(error, SystemExit):
        return ["ended", "it ended its process (SystemExit)"]
    if isinstance(error, AssertionError) and passed and passed[-1].filename == _TESTS:
        return ["failed", f"false: {(passed[-1].line or '')[:_MAX_LINE]}"]
    name = type(error).__name__
    try:
        message = str(error)[:_MAX_MESSAGE]
    except BaseException:  # noqa: BLE001 - the program may define how its errors are shown
        message = ""
    return ["error", f"{name}: {message}" if message else name]


if __name__ == "__main__":
    main()

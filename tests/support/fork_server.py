"""A process that has the program imported and forks for each run: hundreds of whole runs in seconds.

The server never runs llama.cpp, only its forks do. OpenMP's threads are not in a fork, and libgomp waits for them for ever: on a
processor with AMX, where llama.cpp converts weights in an OpenMP region, no fork of a process that has loaded a model ever ends.

Reads one JSON object a line from standard input and answers each with one: see `cli.Program`. Faults are put into a run's
process from here, by replacing functions; the program does not know.
"""

import contextlib
import errno
import functools
import gc
import io
import itertools
import json
import os
import pkgutil
import resource
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import made_up_policy
from hurry import hurry
from scripted_models import Arithmetic, Continuation

from arbitrage_cli.app.deciding import prepare
from arbitrage_cli.cli.main import main
from arbitrage_cli.costs import probing
from arbitrage_cli.inference.chat_template import ChatPrompt, PromptStyle
from arbitrage_cli.inference.engine import Engine
from arbitrage_cli.inference.open import load_llama
from arbitrage_cli.model_files.gguf import read_header
from arbitrage_cli.system.files import models_folder
from arbitrage_cli.system.machine import logical_processors

TOO_LONG = 600.0  # seconds: a run that hangs is killed too
FAILURES = {"full": errno.ENOSPC, "io": errno.EIO}
CALLS = ("write", "fsync", "replace", "ftruncate")


def serve() -> None:
    warm_up()
    ignore_other_tests()
    gc.freeze()  # a collection in a fork would copy the pages of all these objects, which takes time that tests measure
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            run_and_exit(order)
        timer = threading.Timer(order.get("kill_after") or TOO_LONG, os.kill, (pid, signal.SIGKILL))
        timer.daemon = True
        timer.start()
        _, status = os.waitpid(pid, 0)
        timer.cancel()
        sys.stdout.write(json.dumps({"code": os.waitstatus_to_exitcode(status)}) + "\n")
        sys.stdout.flush()


def warm_up() -> None:
    """Run with scripted models, ask a server that is away, import llama.cpp, and render the built-in models' template.

    The forks need not do or import it again. The settings are empty, because advice stored by a test would start llama.cpp.
    """
    quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    empty = tempfile.TemporaryDirectory()
    with quiet[0], quiet[1], empty as folder, mock.patch.dict(os.environ, XDG_CONFIG_HOME=folder):
        problems, models = Path(folder) / "problems.jsonl", ("--draft", "scripted:draft", "--target", "scripted:target")
        problems.write_text('{"question": "1 + 1", "answer": "2"}\n')
        code = main(["bench", "--dataset", str(problems), *models, "-q", "-o", f"{folder}/run"])
        away = main(["solve", "--draft", "scripted:draft", "--target", "http://127.0.0.1:9/v1", "-q", "1 + 1"])
    assert (code, away) == (0, 3)
    load_llama()
    template = read_header(models_folder() / "draft.gguf").metadata["tokenizer.chat_template"]
    for variables in ({}, {"eos_token": "<|end|>"}):  # before a model is loaded its tokens are not known
        assert ChatPrompt(str(template), (), style=PromptStyle(""), variables=variables).thinks_by_itself is False


def ignore_other_tests() -> None:
    """Other tests use the processor, too. Here, no measurement counts as disturbed, and no core as taken."""
    probing.Probes.is_disturbed = lambda probes, **options: False  # type: ignore[method-assign]
    vars(probing)["other_seconds"] = float
    vars(prepare)["free_cores"] = logical_processors
    vars(prepare)["other_cores"] = lambda seconds: 0.0


def run_and_exit(order: Mapping[str, Any]) -> None:
    code: Any = 70
    try:
        code = run(order)
    except SystemExit as end:
        code = end.code
        sys.stdout.flush()
    finally:
        os._exit(code or 0)


def run(order: Mapping[str, Any]) -> int:
    """In the child: prepare streams, environment and faults, and run the program."""
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    open_streams(order["streams"])
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup, also by children
    prepare_faults(order)
    if order.get("has_made_up_policy"):
        made_up_policy.add()
    for name in order.get("without", ()):
        hide(name)
    for name, limit in (order.get("limits") or {}).items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    return main(order["arguments"])


def hide(name: str) -> None:
    """Have the module, and those of the program that imported it, not imported; it cannot be now."""
    for known in [*sys.modules]:
        if known.startswith((f"{name}.", "arbitrage_cli.inference.llama", "arbitrage_cli.serving")):
            del sys.modules[known]
    sys.modules[name] = None  # type: ignore[assignment]


def open_streams(streams: Sequence[str]) -> None:
    """Descriptors 0 to 2 and the objects of `sys`: a path, `closed`, or `broken` for a pipe without a reader."""
    for descriptor, path in enumerate(streams):
        if path == "closed":
            os.close(descriptor)
            continue
        reader, opened = os.pipe() if path == "broken" else (-1, os.open(path, os.O_WRONLY if descriptor else os.O_RDONLY))
        if reader >= 0:
            os.close(reader)
        os.dup2(opened, descriptor)
        if opened != descriptor:
            os.close(opened)
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
    for number, (name, path) in enumerate(zip(("stdin", "stdout", "stderr"), streams, strict=True)):
        mode = "w" if number else "r"
        stream = None if path == "closed" else open(number, mode, encoding=encoding, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)


def prepare_faults(order: Mapping[str, Any]) -> None:
    hurry(order.get("hurry") or {})
    if order.get("noise"):
        make_noise(order["noise"])
    if order.get("interrupt_in"):
        signals = order.get("signals", [signal.SIGINT])
        at_call(order["interrupt_in"], order.get("call", 1), functools.partial(send, signals))
    if order.get("die_on"):
        at_question(order["die_on"], functools.partial(os.kill, os.getpid(), signal.SIGABRT))
    if order.get("fault"):
        Fault(order["fault"])


class Fault:
    """The `number`-th of those calls that change files fails, or ends or interrupts the process. Only files count."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        self._calls = order.get("calls") or CALLS
        self._number, self._action = order["number"], order["action"]
        self._count = 0
        for name in self._calls:
            setattr(os, name, self._replacement(name, getattr(os, name)))

    def _replacement(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *rest: Any, **options: Any) -> Any:
            if name == "write" and not stat.S_ISREG(os.fstat(first).st_mode):
                return real(first, *rest, **options)
            self._count += 1
            if self._count != self._number:
                return real(first, *rest, **options)
            if self._action in FAILURES:
                raise OSError(FAILURES[self._action], os.strerror(FAILURES[self._action]))
            if self._action == "interrupt":
                os.kill(os.getpid(), signal.SIGINT)
                return real(first, *rest, **options)
            if self._action == "half and killed":
                real(first, rest[0][: len(rest[0]) // 2])
            elif self._action == "after":
                real(first, *rest, **options)
            os.kill(os.getpid(), signal.SIGKILL)
            return None

        return call


def make_noise(text: str) -> None:
    """Write text to descriptor 1 at each tick of an engine, as a C library may."""
    quiet = Engine.tick

    def tick(engine: Engine) -> Any:
        os.write(1, text.encode())
        return quiet(engine)

    setattr(Engine, "tick", tick)  # noqa: B010 - mypy minds an assignment


def at_call(name: str, number: int, happens: Callable[[], None]) -> None:
    owner, _, function = name.rpartition(".")
    holder = pkgutil.resolve_name(owner)
    real = getattr(holder, function)
    calls = itertools.count(1)

    def call(*arguments: Any, **options: Any) -> Any:
        if next(calls) == number:
            happens()
        return real(*arguments, **options)

    setattr(holder, function, call)


def send(signals: Sequence[int]) -> None:
    for number in signals:
        os.kill(os.getpid(), number)


def at_question(question: str, happens: Callable[[], object]) -> None:
    """Run an action when the demo target first continues this question."""
    real = Arithmetic.__call__
    waiting = [happens]

    def call(script: Arithmetic, asked: str, solution: str) -> Continuation:
        while waiting and asked == question and script._reliable:
            waiting.pop()()
        return real(script, asked, solution)

    setattr(Arithmetic, "__call__", call)  # noqa: B010 - mypy minds an assignment


if __name__ == "__main__":
    serve()

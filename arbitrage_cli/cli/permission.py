"""Permission to run programs that a model has written."""

import sys

from arbitrage_cli.display.text import write
from arbitrage_cli.errors import UsageError
from arbitrage_cli.problems.task import Task


def permitted(task: Task, run_code: str | None) -> Task:
    """Return the task with the sandbox that `--run-code` selects. If the option is missing, asks the user in a terminal.

    Raises UsageError if the task runs programs without permission or without bubblewrap.
    """
    if not task.runs_code:
        return task
    if run_code == "unprotected":
        from arbitrage_cli.problems.code import without_sandbox

        return without_sandbox(task)
    from arbitrage_cli.problems.programs import find_sandbox

    find_sandbox()
    if run_code is None and not _is_confirmed(f"Task {task.name} runs model-written programs in bubblewrap."):
        hint = 'use --run-code, or set run-code = "sandboxed" in a settings file; see arbitrage guide code'
        raise UsageError(f"task {task.name} runs model-written programs on this machine", hint)
    return task


def _is_confirmed(statement: str) -> bool:
    if sys.stdin is None or not sys.stdin.isatty() or sys.stderr is None or not sys.stderr.isatty():
        return False
    write(sys.stderr, f"{statement} Run them? [y/N] ")
    return sys.stdin.readline().strip().lower() in ("y", "yes")

"""Programs that models wrote run only if the user allows it."""

import sys

from arbitrage_cli.display.text import write
from arbitrage_cli.errors import UsageError
from arbitrage_cli.tasks.task import Task


def permitted(task: Task, run_code: str | None) -> Task:
    """The task as `--run-code` has it graded. UsageError if it runs code and may not; in a terminal the user is asked."""
    if not task.runs_code:
        return task
    if run_code == "unprotected":
        from arbitrage_cli.tasks.code import unprotected

        return unprotected(task)
    from arbitrage_cli.grading.programs import find_wall

    find_wall()
    if run_code is None and not _is_confirmed(f"Task {task.name} runs programs that models wrote, behind bubblewrap."):
        hint = '--run-code, or run-code = "sandboxed" in a settings file, allows it; see arbitrage guide code'
        raise UsageError(f"task {task.name} is graded by running programs that models wrote, on this machine", hint)
    return task


def _is_confirmed(what: str) -> bool:
    """Whether the user agrees; False if nobody can be asked."""
    if sys.stdin is None or not sys.stdin.isatty() or sys.stderr is None or not sys.stderr.isatty():
        return False
    write(sys.stderr, f"{what} Run them? [y/N] ")
    return sys.stdin.readline().strip().lower() in ("y", "yes")

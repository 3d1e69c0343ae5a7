"""Programs that models wrote run only if the user allows it."""

import sys

from arbitrage_cli.cli.output import confirmed
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
    if run_code is None:
        _ask(f"task {task.name} is graded by running programs that models wrote, on this machine")
    return task


def _ask(what: str) -> None:
    if _can_ask() and confirmed(f"{what[0].upper()}{what[1:]}, behind bubblewrap. Run them?"):
        return
    raise UsageError(what, '--run-code, or run-code = "sandboxed" in a settings file, allows it; see arbitrage guide code')


def _can_ask() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr is not None and sys.stderr.isatty()

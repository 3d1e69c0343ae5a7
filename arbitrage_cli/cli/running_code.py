"""Programs that models wrote run only if the user allows it."""

import sys

from arbitrage_cli.cli.output import confirmed
from arbitrage_cli.errors import UsageError
from arbitrage_cli.tasks.task import Task


def refuse_running_code(task: Task, *, is_allowed: bool) -> None:
    """UsageError if the task's answers are graded by running them, and that is not allowed; in a terminal the user is asked."""
    if not task.runs_code or is_allowed:
        return
    what = f"task {task.name} is graded by running programs that models wrote, on this machine"
    isolation = _isolation()
    if _can_ask() and confirmed(f"{what[0].upper()}{what[1:]}. Protection: {isolation}. Run them?"):
        return
    raise UsageError(
        f"{what} (protection: {isolation})",
        "--run-code, or run-code = true in a settings file, allows it; arbitrage guide code says what stops what",
    )


def _isolation() -> str:
    from arbitrage_cli.grading.programs.runner import ProgramRunner  # slow: it tries what works here

    with ProgramRunner() as runner:
        return str(runner.isolation)


def _can_ask() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr is not None and sys.stderr.isatty()

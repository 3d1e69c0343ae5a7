"""Programs that models wrote run only if the user allows it."""

from arbitrage_cli.errors import UsageError
from arbitrage_cli.tasks.task import Task


def refuse_running_code(task: Task, *, is_allowed: bool) -> None:
    """UsageError if the task's answers are graded by running them, and that is not allowed."""
    if task.runs_code and not is_allowed:
        raise UsageError(
            f"task {task.name} is graded by running programs that models wrote",
            "--run-code allows it: they run in processes that are confined as far as this system can (arbitrage guide code)",
        )

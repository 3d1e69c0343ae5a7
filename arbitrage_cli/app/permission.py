"""Whether programs that models write may run on this machine."""

from arbitrage_cli.app.options import RunCode
from arbitrage_cli.errors import ProgramsNotAllowedError
from arbitrage_cli.problems.code import find_sandbox
from arbitrage_cli.problems.tasks import Task, without_sandbox


def permitted(task: Task, run_code: RunCode | None) -> Task:
    """Return the task with the sandbox that `--run-code` selects.

    Raises ProgramsNotAllowedError if the task runs programs without permission; UsageError without bubblewrap.
    """
    if not task.runs_code:
        return task
    if run_code == "unprotected":
        return without_sandbox(task)
    find_sandbox()
    if run_code is None:
        hint = 'use --run-code, or set run-code = "sandboxed" in a settings file; for details, run arbitrage guide code'
        raise ProgramsNotAllowedError(f"task {task.name} runs model-written programs on this machine", hint)
    return task

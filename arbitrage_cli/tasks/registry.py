"""The tasks by name."""

from collections.abc import Mapping
from types import MappingProxyType

from arbitrage_cli.data.rows import Form
from arbitrage_cli.errors import unknown
from arbitrage_cli.tasks.choice import CHOICE
from arbitrage_cli.tasks.code import CODE
from arbitrage_cli.tasks.free import FREE
from arbitrage_cli.tasks.math import MATH
from arbitrage_cli.tasks.task import Task

TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in (MATH, CODE, CHOICE, FREE)})
FORMS: tuple[Form, ...] = tuple(form for task in TASKS.values() for form in task.forms)


def find_task(name: str | None) -> Task:
    """The task of that name; mathematics for None. UsageError."""
    if name is None:
        return MATH
    if name not in TASKS:
        raise unknown("task", name, TASKS, option="task")
    return TASKS[name]

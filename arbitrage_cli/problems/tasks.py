"""Lists all tasks by name, and defines the tasks `math` and `free`. A task is a kind of problem."""

from collections.abc import Mapping
from contextlib import nullcontext
from types import MappingProxyType

from arbitrage_cli.errors import unknown
from arbitrage_cli.inference.chat_template import INSTRUCTIONS
from arbitrage_cli.problems.answers import boxed_answer
from arbitrage_cli.problems.code import CODE
from arbitrage_cli.problems.math_grader import MathGrader, grader_version
from arbitrage_cli.problems.multiple_choice import CHOICE
from arbitrage_cli.problems.rows import Form
from arbitrage_cli.problems.task import AnswerGrader, Task
from arbitrage_cli.types import Grade

MATH = Task("math", INSTRUCTIONS, boxed_answer, MathGrader, grader_version)
FREE = Task(
    "free",
    "",
    lambda text: None,
    lambda: nullcontext(AnswerGrader(lambda text, gold: Grade("unscored", None, "task free is not graded"))),
    lambda: "none",
)
TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in (MATH, CODE, CHOICE, FREE)})
FORMS: tuple[Form, ...] = tuple(form for task in TASKS.values() for form in task.forms)


def find_task(name: str | None) -> Task:
    """Return a task by name. The default is `math`. Raises UsageError for an unknown name."""
    if name is not None and name not in TASKS:
        raise unknown("task", name, TASKS, option="task")
    return TASKS[name or MATH.name]

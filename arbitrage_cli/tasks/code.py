"""Programming: a function in Python, graded by running its tests.

A step is a group of lines: most functions have no blank line, and a single line is seldom worth a call of the target.
"""

import ast
import platform
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from arbitrage_cli.data.problems import UnusableError
from arbitrage_cli.data.rows import Form, Row
from arbitrage_cli.grading.programs import ProgramRunner, Tests, find_wall, humaneval_tests, mbpp_tests
from arbitrage_cli.inference.step_text import StepEnd
from arbitrage_cli.tasks.task import Task
from arbitrage_cli.types import Grade

INSTRUCTIONS = "Write the Python function that is asked for, in one ```python block, and nothing else."

_BLOCK = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)

_DEFINITION = re.compile(r"^\s*(?:async\s+def|def|class)\s", re.MULTILINE)


def find_program(text: str) -> str | None:
    """The last block of code that defines something, else the last that is not blank, closed or not; else the whole text."""
    blocks: list[str] = [block.rstrip() for block in _BLOCK.findall(text) or [text] if block.strip()]
    defining = [block for block in blocks if _DEFINITION.search(block)]
    found = defining or blocks
    return found[-1] if found else None


class _Grader:
    """Runs the tests of a problem on a program."""

    def __init__(self, runner: ProgramRunner) -> None:
        self._runner = runner
        self.protections = runner.protections

    def grade(self, text: str, gold: Mapping[str, Any]) -> Grade:
        program = find_program(text)
        if not gold:
            return Grade("unscored", program, "the data have no tests")
        if program is None:
            return Grade("incorrect", None, "no program found")
        if "answer" in gold:  # the target's own program
            if _is_same(program, gold["answer"]):
                return Grade("correct", program, "the program to reach")
            return Grade("incorrect", program, "not the program to reach")
        verdict = self._runner.run(program, Tests(**gold))
        return Grade("correct" if verdict.passed else "incorrect", program, verdict.reason)


def _is_same(first: str, second: str) -> bool:
    """Whether two programs differ in layout and comments only."""
    try:
        return ast.dump(ast.parse(first)) == ast.dump(ast.parse(second))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return first.split() == second.split()


def _open_grader(*, is_walled: bool = True) -> nullcontext[_Grader]:
    return nullcontext(_Grader(ProgramRunner(find_wall() if is_walled else ())))


def unprotected(task: Task) -> Task:
    """The same task, grading programs without a wall."""
    return replace(task, open_grader=partial(_open_grader, is_walled=False))


def _grader_version() -> str:
    return f"programs 3, Python {platform.python_version()}"


def _humaneval(row: Row) -> tuple[str, dict[str, Any]]:
    """A function to complete; the tests come with what is before it."""
    _check_texts(row, "prompt", "entry_point", "test")
    return f"Complete this function:\n\n```python\n{row['prompt'].strip()}\n```", asdict(humaneval_tests(row))


def _mbpp(row: Row) -> tuple[str, dict[str, Any]]:
    """A description; its first test shows the function's name and signature, as is usual."""
    described = "text" if "text" in row else "prompt"
    _check_texts(row, described)
    tests = row["test_list"]
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise UnusableError("its test_list is not a list of strings")
    question = f"{row[described].strip()}\nYour code should pass this test:\n\n```python\n{tests[0].strip()}\n```"
    return question, asdict(mbpp_tests(row))


def _check_texts(row: Row, *names: str) -> None:
    for name in names:
        if not isinstance(row[name], str):
            raise UnusableError(f"its {name} is not a string")


CODE = Task(
    "code",
    INSTRUCTIONS,
    find_program,
    _open_grader,
    _grader_version,
    step_end=StepEnd("\n", 40),
    runs_code=True,
    policy="speculative",  # routed by log-probabilities, code keeps no more right answers than the draft has: tests/benchmarks
    forms=(
        Form("code", frozenset(("prompt", "entry_point", "test")), _humaneval, id="task_id"),
        Form("code", frozenset(("text", "test_list")), _mbpp, id="task_id"),
        Form("code", frozenset(("prompt", "test_list")), _mbpp, id="task_id"),
    ),
)

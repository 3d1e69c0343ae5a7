"""Task `code`: Python functions, graded by running their tests.

A step is a group of lines, because most functions contain no blank lines, and a single line is rarely worth a call to the
target.
"""

import ast
import platform
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from arbitrage_cli.inference.step_text import StepEnd
from arbitrage_cli.problems.lines import UnusableError
from arbitrage_cli.problems.programs import ProgramRunner, Tests, find_sandbox
from arbitrage_cli.problems.rows import Form, Row, check_texts
from arbitrage_cli.problems.task import Task
from arbitrage_cli.types import Grade

INSTRUCTIONS = "Write the Python function that is asked for, in one ```python block, and nothing else."

_BLOCK = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_DEFINITION = re.compile(r"^\s*(?:async\s+def|def|class)\s", re.MULTILINE)


def find_program(text: str) -> str | None:
    """Return the last code block with a definition.

    Without such a block, return the last code block, or else the whole text.
    """
    blocks: list[str] = [block.rstrip() for block in _BLOCK.findall(text) or [text] if block.strip()]
    return next(reversed([block for block in blocks if _DEFINITION.search(block)] or blocks), None)


class _Grader:
    def __init__(self, runner: ProgramRunner) -> None:
        self._runner = runner
        self.protections = runner.protections

    def grade(self, text: str, gold: Mapping[str, Any]) -> Grade:
        program = find_program(text)
        if not gold:
            return Grade("unscored", program, "no tests in the data set")
        if program is None:
            return Grade("incorrect", None, "no program found")
        if "answer" in gold:  # the target's own program
            if _is_same(program, gold["answer"]):
                return Grade("correct", program, "same program as in the gold answer")
            return Grade("incorrect", program, "differs from the program in the gold answer")
        outcome = self._runner.run(program, Tests(**gold))
        return Grade("correct" if outcome.value == "passed" else "incorrect", program, outcome.reason)


def _is_same(first: str, second: str) -> bool:
    """Return whether two programs differ only in layout and comments."""
    try:
        return ast.dump(ast.parse(first)) == ast.dump(ast.parse(second))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return first.split() == second.split()


def _open_grader(*, is_sandboxed: bool = True) -> nullcontext[_Grader]:
    return nullcontext(_Grader(ProgramRunner(find_sandbox() if is_sandboxed else ())))


def without_sandbox(task: Task) -> Task:
    return replace(task, open_grader=partial(_open_grader, is_sandboxed=False))


def _grader_version() -> str:
    return f"programs 3, Python {platform.python_version()}"


def _humaneval(row: Row) -> tuple[str, dict[str, Any]]:
    check_texts(row, "prompt", "entry_point", "test")
    name, prompt = row["entry_point"], _parsed(row["prompt"], "prompt")
    definitions = ast.FunctionDef | ast.ClassDef
    prompt.body = [node for node in prompt.body if not (isinstance(node, definitions) and node.name == name)]
    tests = Tests(f"{row['test']}\ncheck({name})\n", ast.unparse(prompt))
    return f"Complete this function:\n\n```python\n{row['prompt'].strip()}\n```", asdict(tests)


def _mbpp(row: Row) -> tuple[str, dict[str, Any]]:
    """Build a prompt from the description and the first test. The test shows the name and signature of the function."""
    field = "text" if "text" in row else "prompt"
    check_texts(row, field)
    imports, setup, tests = row.get("test_imports") or [], row.get("test_setup_code") or "", row["test_list"]
    lines = [*imports, setup, *tests] if isinstance(imports, list) and isinstance(tests, list) and tests else []
    if not lines or not all(isinstance(line, str) for line in [*lines, row.get("test") or ""]):
        raise UnusableError("test, test_list, test_imports, test_setup_code: expected strings, or lists of strings")
    question = f"{row[field].strip()}\nYour code should pass this test:\n\n```python\n{tests[0].strip()}\n```"
    script = row.get("test") or "\n".join(lines)
    _parsed(script, "tests")
    return question, asdict(Tests(script))


def _parsed(code: str, field: str) -> ast.Module:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UnusableError(f"{field}: invalid Python: {error}") from error


CODE = Task(
    "code",
    INSTRUCTIONS,
    find_program,
    _open_grader,
    _grader_version,
    step_end=StepEnd("\n", 40),
    runs_code=True,
    policy="speculative",  # routing by log-probability scored no better than the draft: tests/benchmarks
    forms=(
        Form("code", frozenset(("prompt", "entry_point", "test")), _humaneval, id="task_id"),
        Form("code", frozenset(("text", "test_list")), _mbpp, id="task_id"),
        Form("code", frozenset(("prompt", "test_list")), _mbpp, id="task_id"),
    ),
)

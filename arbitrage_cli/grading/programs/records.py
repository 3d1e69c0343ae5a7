"""The tests of a problem, as data sets have them, and the verdict on a program. Starts no process."""

import ast
import builtins
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from arbitrage_cli.errors import UsageError

_DEFINITION = ast.FunctionDef | ast.ClassDef

VerdictValue = Literal["passed", "failed", "error", "time", "memory", "ended"]
"""`failed`: a test is false. `error`: the program, or a test with its answers, raised an error. `ended`: it ended its process."""


@dataclass(frozen=True, slots=True)
class Tests:
    """Code that tests a program: it is as trusted as its data set.

    `names` are the functions and classes that the tests take from the program. `script` has the tests; a false assertion fails
    the program. `preamble` is code that the program and the tests may build on: the imports and helpers of a prompt.
    """

    names: tuple[str, ...]
    script: str
    preamble: str = ""
    language: Literal["python"] = "python"

    __test__: ClassVar[bool] = False  # pytest takes every class of this name for a test case


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a program passed its tests, and the reason in plain words: one short line without control characters."""

    value: VerdictValue
    reason: str

    @property
    def passed(self) -> bool:
        return self.value == "passed"


@dataclass(frozen=True, slots=True)
class Isolation:
    """What keeps programs apart from this machine, in words; and what a hostile one can reach all the same."""

    protections: tuple[str, ...]
    unprotected: tuple[str, ...]

    def __str__(self) -> str:
        reach = f"; not protected: {', '.join(self.unprotected)}" if self.unprotected else ""
        return f"{', '.join(self.protections)}{reach}"


def humaneval_tests(row: Mapping[str, Any]) -> Tests:
    """The tests of a row of HumanEval: `prompt`, `entry_point`, and `test`, which defines `check`. UsageError."""
    name = row["entry_point"]
    prompt = _parsed(row["prompt"], "prompt")
    prompt.body = [node for node in prompt.body if not (isinstance(node, _DEFINITION) and node.name == name)]
    return Tests((name,), f"{row['test']}\ncheck({name})\n", ast.unparse(prompt))


def mbpp_tests(row: Mapping[str, Any]) -> Tests:
    """The tests of a row of MBPP: `test`, or `test_list` after imports and setup code. UsageError.

    The tests call what the row's own solution, `code`, defines, and what they name without defining it.
    """
    setup = [*row.get("test_imports", ()), row.get("test_setup_code", ""), *row["test_list"]]
    script = row.get("test") or "\n".join(setup)
    solved = {node.name for node in _parsed(row.get("code", ""), "code").body if isinstance(node, _DEFINITION)}
    nodes = list(ast.walk(_parsed(script, "tests")))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    bound = _bound(nodes) | {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    used = dict.fromkeys(node.id for node in names if node.id not in bound)
    return Tests(tuple(name for name in used if name in solved or not hasattr(builtins, name)), script)


def _bound(nodes: Iterable[ast.AST]) -> set[str]:
    """The names that definitions, imports and parameters give to something."""
    defined = {node.name for node in nodes if isinstance(node, _DEFINITION)}
    imports = (node.names for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))
    imported = {(one.asname or one.name).partition(".")[0] for names in imports for one in names}
    return defined | imported | {node.arg for node in nodes if isinstance(node, ast.arg)}


def _parsed(code: str, field: str) -> ast.Module:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UsageError(f"a problem's {field} cannot be read as Python ({error})", "correct the data set") from error

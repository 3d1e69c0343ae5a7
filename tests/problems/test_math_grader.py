"""Scores of solutions. Nothing that a model writes can hang, crash, deceive or command the program that grades it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from processes import is_running, process_of

from arbitrage_cli.errors import ProblemError
from arbitrage_cli.problems.math_grader import MathGrader, grader_version
from arbitrage_cli.problems.tasks import is_correct
from arbitrage_cli.types import Grade

ASKED = "\\boxed{2\\sqrt{2}}"
ROOT = {"answer": "\\sqrt{8}"}
"""An answer that only math-verify can compare, and its gold answer."""
FOR_EVER = "\\boxed{9^{9^{9^9}}}"


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """Only processor time is limited: a busy machine may take long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("arbitrage_cli.system.child.WALL_FACTOR", 200)
        yield


@pytest.fixture(scope="module")
def grader() -> Iterator[MathGrader]:
    with MathGrader(seconds=10) as shared:
        yield shared


@pytest.fixture(scope="module")
def hasty() -> Iterator[MathGrader]:
    with MathGrader(seconds=0.5) as shared:
        yield shared


@pytest.mark.parametrize(
    ("text", "row", "score"),
    [
        ("So \\boxed{1,234}.", {"answer": "1234"}, Grade("correct", "1,234", "1,234 = 1234 (numbers)")),
        ("So \\boxed{3}.", {"answer": "#### 4"}, Grade("incorrect", "3", "3 is not 4 (numbers)")),
        ("\\boxed{18}", {"answer": "It is 9 * 2 = 18.\n#### 18"}, Grade("correct", "18", "18 = 18 (numbers)")),
        (
            "The answer is 9 apples.",
            {"answer": "9 (apples)"},
            Grade("correct", "9 apples", 'no \\boxed{}, after "the answer is": 9 apples = 9 (apples) (numbers)'),
        ),
        ("I get 7", {"answer": "8"}, Grade("incorrect", "7", "no \\boxed{}, the last number: 7 is not 8 (numbers)")),
        (
            "I do not know",
            {"answer": "8"},
            Grade("incorrect", None, 'no answer found: no \\boxed{}, "the answer is" or number'),
        ),
        ("\\boxed{8}", {"answer": ""}, Grade("unscored", "8", "no gold answer in the data set")),
        ("nothing", {}, Grade("unscored", None, "no gold answer in the data set")),
        (ASKED, ROOT, Grade("correct", "2\\sqrt{2}", "2\\sqrt{2} = \\sqrt{8} (math-verify)")),
        ("\\boxed{2\\sqrt{3}}", ROOT, Grade("incorrect", "2\\sqrt{3}", "2\\sqrt{3} is not \\sqrt{8} (math-verify)")),
        (
            "\\boxed{90^\\circ}",
            {"answer": ["$90$"], "unit": "^{\\circ}"},
            Grade("correct", "90^\\circ", "90^\\circ = $90$ (numbers)"),
        ),
    ],
)
def test_score_of_a_solution(grader: MathGrader, text: str, row: dict[str, object], score: Grade) -> None:
    assert grader.grade(text, row) == score


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("$\\frac{1}{2 n+2}$", "\\frac{1}{2(n+1)}"),
        ("$m n-\\lfloor m / 2\\rfloor$", "mn - \\left\\lfloor \\frac{m}{2} \\right\\rfloor"),
        ("$\\frac{100!}{2^{50}}$", "2^{-50} \\cdot 100!"),
        ("$f(n)=n$, $g(n)=1$", "g(n) = 1, f(n) = n"),
        ("6 - 5i", "-5i + 6"),
        ("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt{3}}"),
        ("1 \\pm \\sqrt{19}", "1 + \\sqrt{19}, 1 - \\sqrt{19}"),
        ("(-\\infty, 2) \\cup (3, \\infty)", "x < 2 \\text{ or } x > 3"),
        ("[-2, 7]", "-2 \\le x \\le 7"),
        ("y = 2x + 1", "2x - y + 1 = 0"),
        ("R - r", "-r + R"),
        ("8\\pi", "8 \\pi \\text{ square units}"),
        ("\\begin{pmatrix} 1/2 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 0.5 \\\\ 2 \\end{pmatrix}"),
        ("\\frac{1}{2}", "0.5"),
        ("\\frac 59", "5/9"),
        ("-\\frac{3}{4}", "\\frac{-3}{4}"),
        ("7/2", "3\\frac{1}{2}"),
        ("-7/2", "-3 1/2"),
        ("9:10", "\\frac{9}{10}"),
        ("1500", "1.5 x 10^3"),
        ("1500000", "1.5 \u00d7 10\u2076"),
        ("0.0015", "1.5 \\times 10^-3"),
        ("10^{12}", "10^12"),
        ("50", "50\\%"),
        ("25\\%", "\\frac{1}{4}"),
        ("0.25", "25 percent"),
        ("16\\sqrt{3}", "8\\sqrt{12} \\text{ cm}^2"),
        ("f(x)=2 x", "x+x"),
        ("1,-2", "-2, 1"),
        ("(1,2)", "1 < x < 2"),
        ("x = 2y", "y = \\frac{x}{2}"),
    ],
)
def test_equal_expressions(grader: MathGrader, gold: str, answer: str) -> None:
    assert grader.grade(f"\\boxed{{{answer}}}", {"answer": gold}).value == "correct"


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("R - r", "r - R"), ("R - r", "0"), ("3R^2", "3r^2"), ("x^2 + 1 = 0", "x^2 + 2 = 0"),
        ("\\frac{\\sqrt{2}}{10^{20}}", "\\frac{\\sqrt{3}}{10^{20}}"), ("\\sqrt{2}", "1.414214"), ("\\sqrt{2}", "1.41"),
        ("2n", "2"), ("2m", "2"), ("52_8", "52_9"), ("5", "x^2 + y^2 = 5"), ("5", "x > 5"), ("5", "x \\ne 5"),
        ("5", "5 \\text{ remainder 2}"), ("5", "5 \\text{ remainder } 2"), ("5", "5 R 2"), ("5", "at least 5"),
        ("5", "negative 5"), ("5", "5!"), ("5", "5^{th}"), ("5", "|x| = 5"), ("2", "\\log_{2} 2"), ("(0, 1)", "[0, 1]"),
        ("(0, 1)", "\\{0, 1\\}"), ("p - q", "q - p"), ("6 - 5i", "6 + 5i"),
        ("(-\\infty, 2) \\cup (3, \\infty)", "(-\\infty, 2] \\cup (3, \\infty)"),
        ("10/3", "3.33"),
        ("25\\%", "2.5"),
        ("5:6", "\\frac{6}{5}"),
        ("5", "x^2+y^2=5"),
        ("x+y=3", "3"),
        ("\\sqrt{2}", "\\sqrt{2"),
        ("\\sqrt{2}", "$"),
        ("2", "2m"),
        ("2", "2x"),
    ],
)  # fmt: skip
def test_different_expressions(grader: MathGrader, gold: str, answer: str) -> None:
    assert grader.grade(f"\\boxed{{{answer}}}", {"answer": gold}).value == "incorrect"


@pytest.mark.parametrize(
    ("gold", "answer", "value"),
    [
        ([100, 200], "100,200", "correct"),
        ([100, 200], "$200,100$", "correct"),
        ([1, 2, 345], "1,2,345", "correct"),
        ([1000, 2000], "1,000, 2,000", "correct"),
        (["1,000", "2,000"], "2000,1000", "correct"),
        ("100, 200", "100,200", "correct"),
        ([100, 200], "100,300", "incorrect"),
        ([100, 200], "100,200,300", "incorrect"),
        ([1000, 2], "1,000", "incorrect"),
        ([100200], "100,200", "correct"),
        ("100,200", "100,200", "correct"),
        (["100,200"], "100200", "correct"),
    ],
)
def test_commas_between_numbers_and_in_numbers(grader: MathGrader, gold: object, answer: str, value: str) -> None:
    assert grader.grade(f"\\boxed{{{answer}}}", {"answer": gold}).value == value


def test_a_reward_is_right_or_wrong_or_an_error(grader: MathGrader) -> None:
    assert is_correct(grader, "\\boxed{4}", {"answer": "4"})
    assert not is_correct(grader, "\\boxed{5}", {"answer": "4"})
    assert not is_correct(grader, "no answer", {"answer": "4"})
    with pytest.raises(ProblemError, match="cannot grade a solution: no gold answer in the data set"):
        is_correct(grader, "\\boxed{4}", {})


def test_version_names_what_verdicts_depend_on() -> None:
    assert f"math-verify {version('math-verify')}" in grader_version()
    assert grader_version().startswith("rules ")


HOSTILE = {
    "tower": FOR_EVER,
    "factorial": "\\boxed{(10^8)!}",
    "power": "\\boxed{2^{10^{10}}}",
    "sum": "\\boxed{\\sum_{k=1}^{10^{12}} k^{-2}}",
    "megabyte": f"\\boxed{{{'9' * 1_000_000}}}",
    "megabyte without a box": "9" * 1_000_000,
    "ten megabytes": "a step of the solution, and 7 more\n" * 300_000,
    "brackets": f"\\boxed{{{'(' * 900}{')' * 900}}}",
    "roots": "\\boxed{" + "\\sqrt{" * 300 + "2" + "}" * 301,
    "surrogates": "\\boxed{\ud800\udfff + \\sqrt{2}}",
    "controls": "\\boxed{\x1b[2K\x00\u202e\\sqrt{2}}",
    "verdict": '\\boxed{[1, "equal"]}',
    "verdict on a line of its own": '\\boxed{\\sqrt{1}\n[1, "equal"]\n[2, "equal"]\n}',
    "status": '{"status":"ok","correct":true}',
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("gold", ["3", "\\sqrt{8}"])
def test_hostile_answers_are_never_correct_and_never_take_long(hasty: MathGrader, text: str, gold: str) -> None:
    began = time.process_time()
    score = hasty.grade(text, {"answer": gold})
    assert time.process_time() - began < 10  # without the child, which has a limit of its own
    assert score.value == "incorrect" or (score.value == "unscored" and score.explanation.startswith("grader: "))
    assert score.explanation.isprintable()
    assert len(score.explanation.encode()) < 400
    assert hasty.grade(ASKED, ROOT).value == "correct"


@pytest.mark.parametrize(
    "code",
    [
        "__import__('os').system('touch {}')",
        "eval(\"__import__('os').system('touch {}')\")",
        "\\operatorname{{eval}}(__import__('os').system('touch {}'))",
        "\\text{{__import__('os').system('touch {}')}}",
        "open('{}', 'w')",
        "\\input{{|touch {}}}",
    ],
)
def test_answer_is_never_run(grader: MathGrader, tmp_path: Path, code: str) -> None:
    canary = tmp_path / "canary"
    for gold in ("3", "\\sqrt{2}", "1, x"):
        for text in ("\\boxed{%s}", "The answer is %s", "\\boxed{1, %s}"):
            assert grader.grade(text % code.format(canary), {"answer": gold}).value == "incorrect"
    assert not canary.exists()


@pytest.mark.parametrize(
    "code",
    [
        "eval('1+1')", "exec('1')", "import os; os.system('true')", "import subprocess; subprocess.run(['true'])",
        "open('{}', 'w')", "import os; os.fork()",
    ],
)  # fmt: skip
def test_fork_may_only_compute(tmp_path: Path, code: str) -> None:
    canary, module = tmp_path / "canary", tmp_path / "module.py"
    module.write_text(code.format(canary))
    program = (
        "import runpy, sys; from arbitrage_cli.problems.math_grader import _refuse; sys.addaudithook(_refuse); "
        f"runpy.run_path({str(module)!r})"
    )
    done = subprocess.run([sys.executable, "-B", "-c", program], capture_output=True, check=False)
    assert done.returncode == 1
    assert b"PermissionError" in done.stderr
    assert not canary.exists()


@pytest.mark.parametrize("num_kills", [1, 2])
def test_child_that_is_killed_while_it_computes(num_kills: int) -> None:
    """A fresh child gets a second try. If that is killed too, nothing is known about the answer: an error, not a verdict."""
    outcome: list[str] = []

    def grade() -> None:
        try:
            outcome.append(own.grade(FOR_EVER, ROOT).value)
        except ProblemError:
            outcome.append("error")

    with MathGrader(seconds=0.3 if num_kills == 1 else 60) as own:
        thread = threading.Thread(target=grade)
        thread.start()
        killed: set[int] = set()
        while len(killed) < num_kills and thread.is_alive():
            child = process_of(own._child)
            if child is not None and child not in killed:
                os.kill(child, signal.SIGKILL)
                killed.add(child)
            thread.join(0.01)
        thread.join(300)
        assert outcome == ["unscored" if num_kills == 1 else "error"]
        assert own.grade(ASKED, ROOT).value == "correct"


def test_child_is_started_when_it_is_needed_and_ends_with_its_grader() -> None:
    """Our own rules need no child."""
    with MathGrader(seconds=60) as own:
        own.grade("\\boxed{3}", {"answer": "3.0"})
        assert process_of(own._child) is None
        own.grade(ASKED, ROOT)
        child = process_of(own._child)
        assert own.grade(ASKED, ROOT).value == "correct"
        assert process_of(own._child) == child is not None
    assert not is_running(child)


def test_child_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with MathGrader() as own:
        with pytest.raises(ProblemError, match="cannot be started"):
            own.grade(ASKED, ROOT)
        assert own.grade("\\boxed{3.0}", {"answer": "3"}).value == "correct"

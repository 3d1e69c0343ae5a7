"""Tasks: reading rows, and grading solutions."""

import io
import json
from typing import Any

import pytest

from arbitrage_cli.errors import UsageError
from arbitrage_cli.problems.code import find_program
from arbitrage_cli.problems.rows import Dataset, make_dataset, read_json_rows
from arbitrage_cli.problems.tasks import CODE, FORMS, MATH, Task, find_letter, find_task

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'import math\n\n\ndef half(n: int) -> int:\n    """Half of n, rounded down."""\n',
    "entry_point": "half",
    "canonical_solution": "    return n // 2\n",
    "test": "def check(candidate):\n    assert candidate(5) == 2\n    assert candidate(8) == 4\n",
}
MBPP = {
    "task_id": 7,
    "text": "Halve a number.",
    "code": "def half(n):\n    return n // 2",
    "test_list": ["assert half(5) == 2"],
}
RIGHT = "Here it is:\n```python\ndef half(n):\n    return n // 2\n```\nIt halves."
WRONG = RIGHT.replace("//", "/")


def dataset(*rows: dict[str, Any], **options: Any) -> Dataset:
    lines = b"\n".join(json.dumps(row).encode() for row in rows)
    return make_dataset("some.jsonl", read_json_rows(io.BytesIO(lines)), forms=FORMS, **options)


def grade(task: Task, text: str, gold: dict[str, Any]) -> str:
    with task.open_grader() as grader:
        return grader.grade(text, gold).value


@pytest.mark.parametrize(
    ("row", "task", "identifier", "asked"),
    [
        (HUMANEVAL, "code", "HumanEval/0", "Half of n, rounded down."),
        (MBPP, "code", "7", "assert half(5) == 2"),
        ({**MBPP, "text": None, "prompt": "Halve a number."} | {"text": "Halve."}, "code", "7", "Halve."),
        ({"question": "Which?", "choices": ["x", "y"], "answer": 1}, "choice", "1", "Which?\n\nA. x\nB. y"),
        (
            {"id": "q", "question": "Which?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
            "choice",
            "q",
            "B. y",
        ),
        ({"question": "1 + 1?", "answer": "2"}, None, "1", "1 + 1?"),
    ],
    ids=["HumanEval", "MBPP", "description", "choices", "ARC", "mathematics"],
)
def test_a_data_set_has_the_task_that_its_rows_show(
    row: dict[str, Any], task: str | None, identifier: str, asked: str
) -> None:
    found = dataset(row)
    (item,) = found.items
    assert (found.task, item.problem.id) == (task, identifier)
    assert asked in item.problem.question
    assert item.gold


def test_rows_of_another_form_are_refused() -> None:
    with pytest.raises(UsageError, match="line 2: no field 'test_list'"):
        dataset(MBPP, {"question": "1 + 1?", "answer": "2"})


@pytest.mark.parametrize(
    "broken",
    [
        {**HUMANEVAL, "test": 1},
        {**MBPP, "test_list": []},
        {**MBPP, "test_list": "assert"},
        {**MBPP, "test_list": ["assert ("]},
        {**HUMANEVAL, "prompt": "def ("},
        {"question": "?", "choices": ["x"], "answer": 0},
        {"question": "?", "choices": ["x", "y"], "answer": 2},
        {"question": "?", "choices": {"label": ["A"]}, "answerKey": "A"},
        {"question": "?", "choices": {"text": ["x", "y"], "label": ["A", "B", "C"]}, "answerKey": "C"},
        {"question": "?", "choices": {"text": ["x", "y"], "label": 7}, "answerKey": "A"},
        {"question": None, "choices": ["x", "y"], "answer": 0},
        {**MBPP, "test_imports": 3},
        {**MBPP, "test_setup_code": 3},
    ],
)
def test_rows_that_cannot_be_read_are_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"some\.jsonl: line 1"):
        dataset(broken)


@pytest.mark.parametrize(
    ("choices", "answer", "letter"),
    [
        (["x", "y", "z"], 1, "B"),
        (["x", "y", "z"], "C", "C"),
        ({"text": ["x", "y", "z"], "label": [1, 2, 3]}, 1, "A"),
        ({"text": ["x", "y", "z"], "label": [1, 2, 3]}, 3, "C"),
        ({"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "2", "B"),
        ({"text": ["x", "y", "z"], "label": ["A", "B", "C"]}, 2, "C"),
        ({"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, 2, "B"),
        ({"text": ["x", "y", "z"], "label": [1, 2, 3]}, "2", "B"),
        ({"text": ["x", "y", "z"]}, 0, "A"),
    ],
)
def test_the_gold_of_a_choice_is_its_letter(choices: object, answer: object, letter: str) -> None:
    row = {"question": "Which?", "choices": choices, "answer": answer}
    assert dataset(row).items[0].gold == {"answer": letter}


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize("row", [HUMANEVAL, MBPP], ids=["HumanEval", "MBPP"])
def test_programs_are_graded_by_their_tests(row: dict[str, Any]) -> None:
    gold = json.loads(json.dumps(dataset(row).items[0].gold))  # as a row of a run has it
    assert grade(CODE, RIGHT, gold) == "correct"
    assert grade(CODE, WRONG, gold) == "incorrect"
    assert grade(CODE, "", gold) == "incorrect"


@pytest.mark.parametrize(
    ("row", "script", "preamble"),
    [
        (
            HUMANEVAL | {"prompt": 'import math\n\ndef one():\n    return 1\n\ndef half(n):\n    """Half of n."""\n'},
            f"{HUMANEVAL['test']}\ncheck(half)\n",
            "import math\n\ndef one():\n    return 1",
        ),
        (MBPP | {"test_list": ["assert f(1) == 2", "assert f(2)"]}, "\nassert f(1) == 2\nassert f(2)", ""),
        (
            MBPP | {"test_list": ["assert g()"], "test_imports": ["import math"], "test_setup_code": "x = 1"},
            "import math\nx = 1\nassert g()",
            "",
        ),
        (MBPP | {"test": "assert f(1) == 2"}, "assert f(1) == 2", ""),
        (MBPP | {"test_list": ["assert g()"], "test_imports": None, "test_setup_code": None}, "\nassert g()", ""),
    ],
    ids=["HumanEval", "list", "imports and setup", "script", "empty fields"],
)
def test_the_gold_of_code_is_its_tests(row: dict[str, Any], script: str, preamble: str) -> None:
    assert dataset(row).items[0].gold == {"script": script, "preamble": preamble}


@pytest.mark.parametrize(
    ("text", "program"),
    [
        (RIGHT, "def half(n):\n    return n // 2"),
        ("```python\nx = 1", "x = 1"),
        ("```\n\n```\n```py\nx = 1\n```", "x = 1"),
        ("1. So:\n   ```python\n   if x:\n       y = 1\n   ```", "if x:\n    y = 1"),
        ("x = 1", "x = 1"),
        (" \n", None),
        ("```\ndef f(): return 1\n```\nNo, better:\n```\ndef f(): return 2\n```", "def f(): return 2"),
        ("```\ndef f(): return 1\n```\nFor example:\n```\nprint(f())\n```", "def f(): return 1"),
        ("```\ndef f(): return 1\n```\n```\nclass TestF:\n    def test_f(self): f()\n```", "def f(): return 1"),
        ("```\ndef test_prime(): return 1\n```\n```\nprint(test_prime())\n```", "def test_prime(): return 1"),
    ],
    ids=[
        "in a block",
        "not closed",
        "after an empty block",
        "in a list",
        "without a block",
        "nothing",
        "a later one",
        "with an example",
        "with tests",
        "named like a test",
    ],
)
def test_a_program_is_the_last_block_that_defines_something(text: str, program: str | None) -> None:
    assert find_program(text) == program


HELPER = "```python\ndef test_half(n):\n    assert half(5) == n\n```\n"
AGAIN = "```python\ndef half(n):\n    return n / 2\n```\n"


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize("row", [HUMANEVAL, MBPP], ids=["HumanEval", "MBPP"])
@pytest.mark.parametrize(
    ("text", "value"),
    [
        (f"{RIGHT}\n{HELPER}", "correct"),
        (f"{RIGHT}\n{HELPER.replace('test_half', 'main')}", "correct"),
        (f"{RIGHT}\n{AGAIN}", "incorrect"),
        (f"{AGAIN}\n{RIGHT}\n{HELPER}", "correct"),
        (HELPER, "incorrect"),
    ],
    ids=["tests", "a use", "an error", "a correction", "only tests"],
)
def test_the_block_that_defines_what_the_tests_use_is_graded(row: dict[str, Any], text: str, value: str) -> None:
    assert grade(CODE, text, dict(dataset(row).items[0].gold)) == value


@pytest.mark.usefixtures("sandbox")
def test_a_function_of_the_name_of_a_test_is_graded() -> None:
    row = MBPP | {"test_list": ["assert set(test_prime(5)) == {5}"]}
    text = "```\ndef test_prime(n):\n    return [n]\n```\n```\ndef main():\n    print(test_prime(3))\n```"
    with CODE.open_grader() as grader:
        assert grader.grade(text, dict(dataset(row).items[0].gold)).answer == "def test_prime(n):\n    return [n]"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("\\boxed{B}", "B"), ("\\boxed{\\text{C}}", "C"), ("The answer is (D).", "D"), ("The answer is A. Paris", "A"),
        ("\\boxed{Because}", None), ("I do not know", None), ("\\boxed{A train}", None), ("\\boxed{I think}", None),
        ("\\boxed{A}", "A"), ("The answer is A because it is.", "A"), ("\\boxed{B train}", "B"), ("\\boxed{\\text{A}}", "A"),
        ("\\boxed{A is right}", "A"), ("\\boxed{I as it grows}", "I"), ("The correct answer is I since it is.", "I"),
        ("\\boxed{A 12}", "A"), ("\\boxed{\\text{I} 12}", "I"), ("The answer is A 12 km walk.", None),
        ("The answer is I am not sure.", None), ("The answer is I was 12.", None), ("\\boxed{A12}", None), ("\\boxed{Is}", None),
        ("\\boxed{A isosceles}", None), ("\\boxed{I'm sure}", None),
        ("\\boxed{\\text{(B)}}", "B"), ("\\boxed{\\textbf{(B)}}", "B"), ("\\boxed{\\textbf{(B)}\\ 7}", "B"),
        ("\\boxed{\\mathrm{B}}", "B"), ("\\boxed{(\\text{B})}", "B"), ("\\boxed{$B$}", "B"), ("\\boxed{\\(\\mathbf{I}\\)}", "I"),
        ("\\boxed{**A**}", "A"), ("\\boxed{\\text{ (A) }}", "A"), ("\\boxed{Option B}", "B"), ("\\boxed{\\text{Option A}}", "A"),
        ("\\boxed{\\textbf{Choice: (C)}}", "C"), ("The answer is option B.", "B"), ("The correct answer is choice (C).", "C"),
        ("The answer is option A because it is.", "A"), ("\\boxed{\\mathbb{R}}", None), ("\\boxed{\\{B\\}}", None),
        ("\\boxed{\\text{A train}}", None), ("\\boxed{\\textbf{I think}}", None), ("\\boxed{$Bx$}", None),
        ("The answer is choice I made.", None), ("The answer is options Because", None), ("The answer is optional.", None),
        ("\\boxed{B, C}", None), ("\\boxed{\\text{(B) and (C)}}", None), ("The answer is B or C.", None), ("\\boxed{A, B, C}", None),
        ("\\boxed{B, since A is wrong}", "B"), ("The answer is B, and A is wrong.", "B"), ("\\boxed{B. A}", "B"),
        ("\\boxed{OptionB}", None), ("The correct option is B.", "B"), ("The correct choice is (B) 7.", "B"),
        ("**Best answer:** C", "C"), ("The right answer choice is:\n\n**D) 12**", "D"), ("The best option is to wait.", None),
        ("The answer is B. The best option is clear.", "B"), ("The answer is A? No, the correct option is B.", "B"),
        ("The correct option is B. \\boxed{C}", "C"), ("The correct option is A 12 km walk.", None),
        ("The answer is A. But wait. So the answer is B or C.", None), ("The answer is B. Wait, the answer is unclear.", None),
        ("The answer is A.\n\nThat is wrong. The answer is neither A nor B, it is D.", None),
        ("The correct answer is not A. The answer is C.", "C"), ("Answer: A and the correct option is D", "D"),
        ("The answer is C.\n\nActually the final answer is: none of the above", None), ("The answer is B, C", None),
        ("The answer is (B) 12 and (C) is wrong.", "B"), ("The answer is A? No. The correct answer: both B and D.", None),
        ("The answer is B. The answer is explained by their sum.", "B"), ("\\boxed{A} \\boxed{B, C}", None),
    ],
)  # fmt: skip
def test_letters(text: str, letter: str | None) -> None:
    assert find_letter(text) == letter


@pytest.mark.parametrize("task", ["math", "choice"])
@pytest.mark.parametrize(
    ("text", "is_stated"),
    [
        ("It is \\boxed{B}.", True), ("So the answer is B.", True), ("**Answer:** B", True), ("#### B", True),
        ("They form group B.", False), ("So B follows from line B.", False), ("", False),
    ],
)  # fmt: skip
def test_an_answer_is_stated_or_incidental(task: str, text: str, is_stated: bool) -> None:
    answer = {"math": "2", "choice": "B"}[task]
    assert find_task(task).stated_answer(text.replace("B", answer)) == (answer if is_stated else None)


@pytest.mark.parametrize("text", ["2", "$2$", "**2**", "2.\n"])
def test_a_solution_that_is_nothing_but_a_number_states_it(text: str) -> None:
    assert (MATH.stated_answer(text), MATH.stated_answer(f"See equation {text}")) == ("2", None)


@pytest.mark.parametrize("task", ["code", "free"])
def test_programs_and_free_texts_state_no_answer(task: str) -> None:
    assert find_task(task).stated_answer(f"{RIGHT}\nThe answer is \\boxed{{2}}.") is None


def test_tasks_by_name() -> None:
    assert find_task(None) is MATH
    assert find_task("code") is CODE
    with pytest.raises(UsageError, match="unknown task 'coda'"):
        find_task("coda")

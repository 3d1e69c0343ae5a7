"""Programs that a model wrote, graded by tests. No program can fake a pass, reach what is not its own, or outlive its verdict."""

import pytest

from arbitrage_cli.errors import UsageError
from arbitrage_cli.grading.programs.records import Tests, humaneval_tests, mbpp_tests

# --- the tests of a problem


def test_tests_of_a_row_of_humaneval() -> None:
    """The prompt's imports and helpers stay, its unfinished function does not."""
    row = {
        "prompt": 'import math\n\ndef half(x):\n    return x / 2\n\ndef root(x):\n    """The root."""\n',
        "entry_point": "root",
        "test": "def check(candidate):\n    assert candidate(4) == 2\n",
    }
    wanted = "def check(candidate):\n    assert candidate(4) == 2\n\ncheck(root)\n"
    assert humaneval_tests(row) == Tests(("root",), wanted, "import math\n\ndef half(x):\n    return x / 2")


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"test_list": ["assert f(1) == 2", "assert abs(f(-1)) == 2"]}, ("f",)),
        ({"test_list": ["assert sum(1, 2) == 3"], "code": "def sum(a, b):\n    return a + b"}, ("sum",)),
        ({"test_list": ["assert len(f()) == 3"], "code": "def f():\n    len = 1\n    return [1]"}, ("f",)),
        ({"test_list": ["assert f(root) == 1"], "test_setup_code": "root = Node(1)\r\nroot.left = Node(2)"}, ("Node", "f")),
        ({"test_list": ["assert math.isclose(f(), 1)"], "test_imports": ["import math"]}, ("f",)),
        ({"test_list": [], "test": "def near(a, b):\n    return a == b\nassert near(f(1), 1)"}, ("f",)),
    ],
    ids=["function", "a builtin's name", "a local name", "class", "import", "helper"],
)
def test_names_that_tests_of_mbpp_take_from_the_program(row: dict[str, object], names: tuple[str, ...]) -> None:
    assert set(mbpp_tests(row).names) == set(names)


def test_tests_that_are_no_python() -> None:
    with pytest.raises(UsageError):
        mbpp_tests({"test_list": ["assert f( == 2"]})

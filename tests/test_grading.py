"""The answer of a solution: the content of its last complete box."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbitrage_cli.grading import boxed_answer

balanced = st.recursive(
    st.text("ab1 +-\\,", max_size=5).filter(lambda text: not text.endswith("\\")),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(lambda parts: "{" + "".join(parts) + "}"),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is \\boxed{42}.", "42"),
        ("\\boxed{1} no, \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed {7}", "7"),
        ("\\boxed{ 7\n}", "7"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\text{yes}} }}}", "\\text{yes}"),
        ("\\boxed{\\boxed{5}}", "\\boxed{5}"),
        ("$\\boxed{3}$ and then \\boxed{4", "3"),
        ("{ \\boxed{9}", "9"),
        ("\\boxed{8} \\boxed{}", "8"),
        ("\\boxed{8} \\boxed{ \n }", "8"),
    ],
)
def test_last_complete_box_is_the_answer(text: str, answer: str) -> None:
    """The last box that is closed and not blank counts, its braces balanced, the outer of nested ones."""
    assert boxed_answer(text) == answer


@pytest.mark.parametrize(
    "text", ["", "42", "\\boxed", "\\boxed 42", "\\boxed{42", "\\boxed{}", "boxed{42}", "}\\boxed{", "\\fbox{1}"]
)
def test_no_complete_box_is_no_answer(text: str) -> None:
    """Without a closed box there is no answer, however much the text looks like one."""
    assert boxed_answer(text) is None


@given(balanced.filter(lambda text: bool(text.strip())), st.text("xyz {}\n", max_size=20))
def test_any_balanced_content_comes_out_whole(content: str, before: str) -> None:
    """Whatever stands before it, a box at the end gives exactly its content."""
    assert boxed_answer(f"{before}\\boxed{{{content}}}") == content.strip()


@given(st.text())
def test_text_without_a_box_has_no_answer(text: str) -> None:
    """Text that never says \\boxed has no answer."""
    assert boxed_answer(text.replace("\\boxed", "")) is None or "\\boxed" in text.replace("\\boxed", "")


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 100_000,
        "\\boxed{" * 100_000 + "}" * 100_000,
        "\\boxed" + " " * 700_000,
        "{" * 700_000,
        "\\boxed{x}" * 80_000,
    ],
    ids=["open", "nested", "blank", "braces", "many"],
)
def test_hostile_text_takes_time_in_proportion_to_its_length(text: str) -> None:
    """Hundreds of thousands of boxes, open or nested, are read in one pass."""
    began = time.process_time()
    boxed_answer(text)
    assert time.process_time() - began < 0.7

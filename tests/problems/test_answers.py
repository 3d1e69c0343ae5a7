"""The final answer of a solution, and the gold answer of a row."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbitrage_cli.problems.answers import boxed_answer, final_answer, gold_answer

balanced = st.recursive(
    st.text("ab1 +-\\,", max_size=5).filter(lambda text: not text.endswith("\\")),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(lambda parts: "{" + "".join(parts) + "}"),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is \\boxed{42}.", "42"), ("\\boxed{1} no, \\boxed{2}", "2"), ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed {7}", "7"), ("\\boxed{ 7\n}", "7"), ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\text{yes}} }}}", "\\text{yes}"), ("\\boxed{\\boxed{5}}", "\\boxed{5}"),
        ("$\\boxed{3}$ and then \\boxed{4", "3"), ("{ \\boxed{9}", "9"), ("\\boxed{8} \\boxed{}", "8"),
        ("\\boxed{8} \\boxed{ \n }", "8"),
    ],
)  # fmt: skip
def test_last_complete_box_is_the_answer(text: str, answer: str) -> None:
    assert boxed_answer(text) == answer


@pytest.mark.parametrize(
    "text", ["", "42", "\\boxed", "\\boxed 42", "\\boxed{42", "\\boxed{}", "boxed{42}", "}\\boxed{", "\\fbox{1}"]
)
def test_no_complete_box_is_no_answer(text: str) -> None:
    assert boxed_answer(text) is None


@given(balanced.filter(lambda text: bool(text.strip())), st.text("xyz {}\n", max_size=20))
def test_any_balanced_content_comes_out_whole(content: str, before: str) -> None:
    assert boxed_answer(f"{before}\\boxed{{{content}}}") == content.strip()


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
    began = time.process_time()
    boxed_answer(text)
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("text", "answer", "how"),
    [
        ("So 5. \\boxed{7}. The answer is 8.", "7", "the last \\boxed{}"),
        ("The answer is 7.", "7", 'after "the answer is"'),
        ("the answer is 6. So the answer is: **7**.\nBye 8.", "7", 'after "the answer is"'),
        ("The final answer is $\\frac{1}{2}$.", "\\frac{1}{2}", 'after "the final answer is"'),
        ("Final answer: 1,234.50 dollars. Done.", "1,234.50 dollars", 'after "final answer"'),
        ("**Final Answer:**\n\n\\[\n x = 7\n\\]", "x = 7", 'after "final answer"'),
        ("Final answer: $$7$$ or so", "7", 'after "final answer"'),
        ("The answer is \\(7\\), not 8.", "7", 'after "the answer is"'),
        ("The answer is Mrs. Hilt. She has 3.", "Mrs. Hilt", 'after "the answer is"'),
        ("Answer: Yes", "Yes", 'after "answer"'),
        ("It is 3 + 4 = 7\n#### 7", "7", 'after "####"'),
        ("The answer is\n\nThe answer is", "The answer is", 'after "the answer is"'),
        ("We have 3 apples, so 7 of them.", "7", "the last number"),
        ("It costs $1,234.50.", "1,234.50", "the last number"),
        ("It falls by -3.", "-3", "the last number"),
        ("5-3", "3", "the last number"),
        ("It is \\frac{3}{4} of it", "\\frac{3}{4}", "the last number"),
        ("That is 3/4.", "3/4", "the last number"),
        ("That is 25\\%.", "25\\%", "the last number"),
        ("\\boxed{} so 7", "7", "the last number"),
        ("The answer is ", None, 'no \\boxed{}, "the answer is" or number'),
        ("", None, 'no \\boxed{}, "the answer is" or number'),
        ("nothing", None, 'no \\boxed{}, "the answer is" or number'),
    ],
)
def test_final_answer_and_where_it_was_found(text: str, answer: str | None, how: str) -> None:
    found = final_answer(text)
    assert (found.answer, found.how) == (answer, how)


@given(st.text(max_size=200))
def test_any_text_has_a_final_answer_or_none(text: str) -> None:
    answer = final_answer(text).answer
    assert answer is None or (answer.strip() and answer in text)


@pytest.mark.parametrize(
    "piece",
    ["the answer is ", "answer:\n", "$", "1,", "1,111", "9", "-", "####", "\\frac{1}", "\n", "\\(", "Mr. ", "\\frac{1}{2"],
)
def test_final_answer_of_megabytes_takes_little_time(piece: str) -> None:
    text = piece * (2_000_000 // len(piece))
    began = time.process_time()
    final_answer(text)
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("row", "gold"),
    [
        ({"answer": "It is 9 * 2 = $<<9*2=18>>18.\n#### 18"}, "18"), ({"answer": "#### 2,125"}, "2,125"),
        ({"answer": "9 (apples)"}, "9 (apples)"), ({"answer": "\\frac{1}{2}"}, "\\frac{1}{2}"),
        ({"answer": ["$\\frac{1}{2 n+2}$"], "unit": None}, "$\\frac{1}{2 n+2}$"),
        ({"answer": ["$k=1$", "$k=2$"]}, "$k=1$, $k=2$"),
        ({"answer": ["$90$"], "unit": " ^{\\circ} "}, "$90$"), ({"answer": 204}, "204"),
        ({"answer": 27.0}, "27"), ({"answer": 0.5}, "0.5"), ({"answer": ""}, None),
        ({"answer": "  "}, None), ({"answer": "#### "}, None), ({"answer": None}, None),
        ({"answer": True}, None), ({"answer": {"a": 1}}, None), ({"answer": [None, ""]}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_gold_answer_of_a_row(row: dict[str, Any], gold: str | None) -> None:
    assert gold_answer(row) == gold

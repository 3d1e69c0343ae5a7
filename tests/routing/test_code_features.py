"""What the features of code say of a step, by their names."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbitrage_cli.routing.code_features import CODE_FEATURES, code_features
from arbitrage_cli.types import Cost, Decision, Limits, Problem, Step, StepStop, TokenStats, Trace

QUESTION = "Write a function.\n```python\nassert total([1, 2]) == 3\n```"
HEAD = "```python\ndef total(values):\n"


def make_step(text: str, stop: StepStop = "separator", sure: float = -0.1, unsure: str = "") -> Step:
    """A step of words and signs. The tokens that contain `unsure` have a log-probability of -5."""
    pieces = re.findall(r"\s?\w+|\s?[^\w\s]|\s+", text) or [text]
    values = [-5.0 if unsure and unsure in piece else sure for piece in pieces]
    numbers = [1.0] * len(pieces)
    return Step("draft", text, len(pieces), Cost(), stop, TokenStats(values, numbers, numbers, None, pieces))


def found(*texts: str, question: str = QUESTION, stop: StepStop = "separator", unsure: str = "") -> dict[str, float]:
    """The features of the last text after the others."""
    *before, last = texts
    trace = Trace(Problem("1", question), Limits())
    for text in before:
        trace.add(Decision(make_step(text)))
    values = map(float, code_features(trace, make_step(last, stop, unsure=unsure)))
    return dict(zip((name.removeprefix("code_") for name in CODE_FEATURES), values, strict=True))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ((HEAD,), {"in_block": 0, "ends_block": 0, "is_incomplete": 1, "lines": 1, "definition": 1, "new_names": 0}),
        (
            (HEAD, "    return sum(values)\n```"),
            {"in_block": 1, "ends_block": 1, "is_incomplete": 0, "return": 1, "call": 1},
        ),
        ((HEAD, "    return sum(valeus)\n"), {"is_wrong": 0, "new_names": 1}),
        ((HEAD, "    for one, other in values:\n        x = one.size\n"), {"new_names": 0, "loop": 1, "indent": 2}),
        ((HEAD, "  \treturn sum((values)\n"), {"is_wrong": 0, "is_incomplete": 1, "open_brackets": 1}),
        ((HEAD, "    return sum(values))\n"), {"is_wrong": 1, "is_incomplete": 0}),
        ((HEAD, "    if values:\n        return 1\n", "    return ')'\n"), {"dedent": 1, "open_brackets": 0}),
        ((HEAD, "    # ( a comment\n    x = 1\n"), {"comment_lines": 1, "lines": 2, "open_brackets": 0}),
        ((HEAD, "assert total([1, 2]) == 3\n"), {"repeated_lines": 1}),
        (("Here is the function:\n",), {"in_block": 0, "lines": 0, "is_wrong": 0}),
        ((HEAD + "    pass\n```\n", "It passes.\n"), {"in_block": 0, "lines": 0}),
    ],
)
def test_facts_of_the_program(texts: tuple[str, ...], expected: dict[str, float]) -> None:
    features = found(*texts)
    assert {name: features[name] for name in expected} == expected


def test_the_last_line_of_a_step_that_was_stopped_is_not_judged() -> None:
    """It is half a line: a name may go on."""
    whole, begun = (found(HEAD, "    x = 1\n    return su", stop=stop) for stop in ("end", "early"))
    assert (whole["new_names"], begun["new_names"]) == (1, 0)
    assert (whole["lines"], begun["lines"]) == (2, 1)


def test_comments_and_strings_do_not_count_as_unsure() -> None:
    text = "    # first unlikely\n    x = 'unlikely' + likely\n"
    assert found(HEAD, text, unsure="unlikely")["sure_min"] == pytest.approx(-0.1)
    assert found(HEAD, text.replace(" likely", " unlikely"), unsure="unlikely")["sure_min"] == -5.0
    assert found(HEAD, "    unlikely = 1\n", unsure="unlikely")["line_start_min"] == -5.0
    assert found(HEAD, "    x = 7\n", unsure="7")["name_min"] == pytest.approx(-0.1)


@pytest.mark.parametrize(
    "program", ["(" * 100_000, "-" * 7000 + "1", "x\0", "'" * 9999, "f'{" * 60, "if x:\n" * 2000, "\\", "#" * 9000]
)
def test_no_program_is_too_much(program: str) -> None:
    assert all(map(math.isfinite, found(HEAD, program).values()))


@given(st.lists(st.text(alphabet="`py\n\t d(=:'\"#x1\\é", max_size=40), min_size=1, max_size=4))
def test_features_are_finite_for_any_text(texts: list[str]) -> None:
    assert all(map(math.isfinite, found(*texts, question=texts[0]).values()))

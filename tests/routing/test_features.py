"""Features of a drafted step, which are always finite numbers."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbitrage_cli.routing.features import FEATURES, MAX_TOKEN_LOG_ODDS, EarlierSteps
from arbitrage_cli.types import Cost, Decision, ModelRole, Phase, Problem, Step, StepStop, TokenStats

QUESTION = "Anna has 12 apples and 30 pears."
PIECES = ("12", " +", " 30", " =", " 42", ".\n\n")
LOG_PROBABILITIES = (-0.1, -0.2, -0.3, -0.4, -3.0, -0.01)
CERTAIN_ENTROPY = math.log(1e-4)


def token_stats(pieces: Sequence[str] = PIECES) -> TokenStats:
    return TokenStats(LOG_PROBABILITIES, (0.5, 0.4, 0.3, 0.2, 0.9, 0.1), (2.0, 3.0, 4.0, 5.0, 0.25, 6.0), pieces=pieces)


def make(
    model: ModelRole = "draft",
    text: str = "".join(PIECES),
    *,
    shown: TokenStats | None = None,
    tokens: int = 6,
    stop: StepStop = "separator",
) -> Step:
    return Step(model, text, tokens, Cost(), stop, shown)


def accepted(step: Step) -> Decision:
    return Decision(step, draft=step)


def replaced(drafted: Step, written: Step) -> Decision:
    return Decision(written, draft=drafted, target=written)


def named(step: Step, *before: Decision, question: str = QUESTION) -> dict[str, float]:
    return dict(zip(FEATURES, EarlierSteps(Problem("1", question)).features(before, step).tolist(), strict=True))


def log_odds(log_probability: float) -> float:
    p = math.exp(log_probability)
    return math.log(p / (1 - p))


def approx(value: float) -> object:
    return pytest.approx(value, rel=1e-5)


def test_log_probabilities_are_summed_up_as_log_odds() -> None:
    found = named(make(shown=token_stats()))
    assert found["logprob_first"] == approx(log_odds(-0.1))
    assert found["logprob_last"] == approx(log_odds(-0.01))
    assert found["logprob_min"] == approx(log_odds(-3.0))
    assert found["logprob_2nd_min"] == approx(log_odds(-0.4))
    assert found["logprob_sum"] == approx(sum(LOG_PROBABILITIES))
    assert found["logprob_mean"] == approx(sum(LOG_PROBABILITIES) / 6)
    assert found["least_likely_position"] == approx(4 / 5)


def test_kinds_of_tokens_and_earlier_drafts_are_seen_apart() -> None:
    earlier = TokenStats((-0.1, -0.4), (0.2, 0.1), (1.0, 1.0))
    found = named(make(shown=token_stats()), accepted(make(shown=token_stats())), accepted(make(shown=earlier, tokens=2)))
    expected = {
        "digit_logprob_min": log_odds(-3.0), "digit_logprob_2nd_min": log_odds(-0.3),
        "operator_share": 2 / 6, "operator_logprob_min": log_odds(-0.4), "operator_logprob_sum": -0.6,
        "previous_tokens": math.log1p(2),
        "previous_draft_logprob_min": log_odds(-0.4),
        "previous_draft_entropy_max": math.log(0.2 + 1e-4),
        "drafts_logprob_min": log_odds(-3.0), "drafts_logprob_sum": sum(LOG_PROBABILITIES) - 0.5,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("pieces", [(), ("a", "b", "c", "d", "e", "f")])
def test_no_digit_is_as_good_as_a_certain_one(pieces: Sequence[str]) -> None:
    found = named(make(shown=token_stats(pieces)))
    assert (found["digit_share"], found["digit_logprob_mean"], found["digit_logprob_min"]) == (0, 0, MAX_TOKEN_LOG_ODDS)
    assert found["digit_entropy_max"] == approx(CERTAIN_ENTROPY)


def test_text_is_counted() -> None:
    text = "So 12 * 30 + 7 = 1,367 and \\boxed{1,367}."
    before = accepted(make(text="We carry the 7.\n\n", shown=token_stats()))
    found = named(make(text=text, shown=token_stats()), before)
    assert (found["numbers"], found["longest_number"], found["unseen_numbers"]) == (5, 5, 2)
    assert (found["plus_signs"], found["times_signs"], found["minus_signs"], found["equal_signs"], found["has_box"]) == (
        1,
        1,
        0,
        1,
        1,
    )
    assert (found["problem_numbers"], found["problem_longest_number"]) == (2, 2)


@pytest.mark.parametrize(("phase", "unseen"), [("answer", 2), ("think", 1)])
def test_a_number_may_continue_in_the_next_step_of_its_phase(phase: Phase, unseen: int) -> None:
    before = (accepted(replace(make(text="56", stop="budget"), phase=phase)), accepted(make(text="78\n\n")))
    assert named(make(text="Is it 5678 or 56 or 78?", shown=token_stats()), *before)["unseen_numbers"] == unseen


def test_stated_arithmetic_is_checked() -> None:
    found = named(make(text="12 + 30 = 42, so 42 * 2 = 84. Shared: 84 / 2 = 21.\n\n", shown=token_stats()))
    assert (found["equations"], found["wrong_equations"], found["last_equation_wrong"]) == (3, 1, 1)
    assert (found["equation_error"], found["wrong_equations_before"]) == (0.5, 0)
    after = named(make(text="12 + 30 = 42\n\n", shown=token_stats()), accepted(make(text="30 - 12 = 19\n\n")))
    assert (after["wrong_equations"], after["last_equation_wrong"], after["wrong_equations_before"]) == (0, 0, 1)


@pytest.mark.parametrize(
    ("text", "unknown", "overused", "unused"),
    [
        ("42 - 2 = 40", 1, 0, 2),  # nobody gave a 2
        ("42 - 12 = 30", 0, 1, 2),  # the 12 apples are in the 42
        ("42 + 42 = 84", 0, 1, 2),  # 42 was computed once
        ("42 - 5 = 37", 0, 0, 1),
        ("The answer is \\boxed{42}.", 0, 0, 2),
    ],
)
def test_where_operands_come_from(text: str, unknown: int, overused: int, unused: int) -> None:
    question = "Anna has 12 apples and 30 pears, and eats 5. How many are left?"
    before = accepted(make(text="12 + 30 = 42\n\n"))
    found = named(make(text=text, shown=token_stats(), stop="end"), before, question=question)
    assert (found["unknown_operands"], found["overused_operands"]) == (unknown, overused)
    assert (found["unused_numbers"], found["unused_numbers_at_end"]) == (unused, unused)
    assert named(make(text=text, shown=token_stats()), before, question=question)["unused_numbers_at_end"] == 0


def test_a_beginning_is_not_blamed_for_what_it_has_not_written() -> None:
    """A step that ends in the middle of a number contains no equation yet."""
    begun = make(text="12 * 30 = 36", shown=token_stats(), stop="early")
    assert named(begun)["wrong_equations"] == 0
    assert named(make(text=begun.text, shown=token_stats()))["wrong_equations"] == 1


@pytest.mark.parametrize(("stop", "wrong"), [("separator", 1), ("budget", 0), ("context", 0), ("loop", 0)])
def test_an_earlier_step_that_was_cut_is_not_blamed_either(stop: StepStop, wrong: int) -> None:
    before = accepted(make(text="Then 12 * 3 = 3", shown=token_stats(), stop=stop))
    assert named(make(shown=token_stats()), before)["wrong_equations_before"] == wrong


@pytest.mark.parametrize("shown", [None, token_stats()])
def test_who_wrote_the_steps_before_does_not_matter(shown: TokenStats | None) -> None:
    """An escalation must not make the next one more likely, so features do not depend on the writers of earlier steps."""
    draft = make(shown=token_stats())
    kept = named(make(shown=token_stats()), accepted(draft))
    assert named(make(shown=token_stats()), replaced(draft, make("target", shown=shown))) == kept


PARTS = ("3", "7", ",", ".", " ", " x = ", "\n\n", " 3 + 7 = 10", " 3 * 7 = 22", " 0.5 + 0.5 = 1", "\u0663")
nats = st.floats(-40, 0)


def _step(model: ModelRole, phase: Phase, tokens: list[tuple[str, float]]) -> Step:
    pieces, log_probabilities = zip(*tokens, strict=True)
    shown = TokenStats(log_probabilities, [0.5] * len(pieces), [1.0] * len(pieces), pieces)
    return replace(make(model, "".join(pieces), shown=shown, tokens=len(pieces)), phase=phase)


tokens = st.lists(st.tuples(st.sampled_from(PARTS), nats), min_size=1, max_size=9)
drafts = st.builds(_step, st.just("draft"), st.sampled_from(["think", "answer"]), tokens)
earlier = st.one_of(
    st.builds(accepted, drafts),
    st.builds(lambda draft, texts: replaced(draft, _step("target", draft.phase, texts)), drafts, tokens),
    st.builds(lambda target: Decision(target, target=target), drafts),  # without a draft
)


@given(
    st.text(st.sampled_from("37,. x"), max_size=6), st.lists(earlier, max_size=8), st.lists(drafts, min_size=9, max_size=9)
)
def test_earlier_steps_are_summed_up_exactly(question: str, decisions: list[Decision], drafts: list[Step]) -> None:
    """Features computed while a solution grows equal features computed from the whole solution."""
    growing = EarlierSteps(Problem("1", question))
    for position in range(len(decisions) + 1):
        before, draft = decisions[:position], drafts[position]
        for step in (replace(draft, stop="early"), replace(draft, stop="end"), draft):
            found = growing.features(before, step)
            np.testing.assert_array_equal(found, EarlierSteps(Problem("1", question)).features(before, step))


numbers = st.floats(allow_nan=False, width=32)


@given(
    st.lists(st.tuples(st.floats(max_value=0, allow_nan=False), st.floats(0, 20), numbers, st.text(max_size=3)), min_size=1)
)
def test_always_finite(tokens: list[tuple[float, float, float, str]]) -> None:
    log_probabilities, entropies, margins, pieces = zip(*tokens, strict=True)
    step = make(text="".join(pieces), shown=TokenStats(log_probabilities, entropies, margins, pieces=pieces))
    found = EarlierSteps(Problem("1", "?")).features([accepted(step)], step)
    assert found.dtype == np.float32
    assert found.shape == (len(FEATURES),)
    assert np.isfinite(found).all()

"""The frozen meaning of all features, on fixed steps. Whoever changes it must train the shipped routers again."""

import pytest

from arbitrage_cli.routing.features import FEATURES, FEATURES_VERSION, EarlierSteps
from arbitrage_cli.types import Cost, Decision, Phase, Problem, Step, StepStop, TokenStats

TRAIN_AGAIN = """A feature means something else now, so routers that were trained before are no longer right. Train again:
1. Raise FEATURES_VERSION in routing/features.py by one.
2. Train the shipped routers again (models/README.md), and publish their figures.
3. Replace the vectors in this test."""

QUESTION = "Anna has 1,200 apples and 30 pears, sells 3/4 of them at 2.50 each, and gives 12 away. What is 25% of the rest?"


def step(text: str, stop: StepStop = "separator", phase: Phase = "answer") -> Step:
    """Return a drafted step with a token per word, and made-up statistics."""
    pieces = [word for line in text.split("\n") for word in line.replace(" ", "\0 ").split("\0") if word] or [text]
    count = len(pieces)
    log_probabilities = [-((index * 7 % 11) ** 2) / 20 for index in range(count)]
    entropies = [(index * 5 % 7) / 4 for index in range(count)]
    margins = [index * 3 % 13 * 1.5 for index in range(count)]
    stats = TokenStats(log_probabilities, entropies, margins, pieces)
    return Step("draft", text, count, Cost(), stop, stats, phase=phase)


STEPS = (
    step("So 1,200 + 30 = 1230, or 1,230 * 2.50 = 3075?\n\n", phase="think"),
    step("Together: 1200 + 30 = 1230 fruits, and \\frac{3}{4} \\times 1230 = 922.5 \u2248 923.\n\n"),
    step("She has 1230 - 923 - 12 = 285 left, 17 / 5 = 3 remainder 2, and memo[0 + 1] = 2.\n\n"),
    step("In 1990-1995 = 5 years, 1/2 hour = 30 minutes, 25% of 80 = 20, 3 / 4 * 100 = 75%.\n\n"),
    step("Then 12 * 3 = 3", "budget"),
    step("6 more: 295 + 285 = 2 * 290 = 580, 3 \u00d7 4 = 13, half of 10 + 2 = 7\n\n"),
    step("The answer is \\boxed{71.25}, since 285 / 4 = 71.25.", "end"),
)

FROZEN = {
    "logprob_sum": (-19.25, -27.15, -38.5, -38.5, -9.9, -38.5, -18.45),
    "logprob_mean": (-1.60417, -1.81, -1.67391, -1.75, -1.65, -1.67391, -1.845),
    "logprob_first": (15, 15, 15, 15, 15, 15, 15),
    "logprob_last": (15, -4.99324, 15, -0.203382, 1.50777, 15, -3.15838),
    "logprob_min": (-4.99324, -4.99324, -4.99324, -4.99324, -4.99324, -4.99324, -4.99324),
    "logprob_2nd_min": (-4.03242, -4.99324, -4.99324, -4.99324, -2.35975, -4.99324, -4.03242),
    "logprob_q10": (-4.03242, -4.99324, -4.03242, -4.03242, -4.99324, -4.03242, -4.99324),
    "logprob_q25": (-3.15838, -3.15838, -3.15838, -3.15838, -2.35975, -3.15838, -3.15838),
    "logprob_q50": (-0.91242, -0.91242, -0.91242, -0.91242, -1.61932, -0.91242, -1.61932),
    "entropy_mean": (-0.287549, -0.356532, -0.302146, -0.334062, -0.233489, -0.302146, -0.321446),
    "entropy_first": (-9.21034, -9.21034, -9.21034, -9.21034, -9.21034, -9.21034, -9.21034),
    "entropy_last": (0.405532, -9.21034, 0.223224, -9.21034, 9.9995e-05, 0.223224, -0.287549),
    "entropy_max": (0.405532, 0.405532, 0.405532, 0.405532, 0.405532, 0.405532, 0.405532),
    "entropy_2nd_max": (0.405532, 0.405532, 0.405532, 0.405532, 0.223224, 0.405532, 0.223224),
    "entropy_q90": (0.405532, 0.405532, 0.405532, 0.405532, 0.405532, 0.405532, 0.405532),
    "entropy_q75": (0.223224, 0.223224, 0.223224, 0.223224, 0.223224, 0.223224, 0.223224),
    "entropy_q50": (-0.287549, -0.287549, -0.287549, -0.287549, 9.9995e-05, -0.287549, -0.287549),
    "margin_mean": (8.5, 8.1, 8.80435, 9.13636, 8, 8.80435, 8.55),
    "margin_first": (0, 0, 0, 0, 0, 0, 0),
    "margin_last": (10.5, 4.5, 1.5, 16.5, 3, 1.5, 1.5),
    "margin_min": (0, 0, 0, 0, 0, 0, 0),
    "margin_2nd_min": (1.5, 0, 0, 0, 3, 0, 1.5),
    "margin_q10": (1.5, 0, 1.5, 1.5, 0, 1.5, 0),
    "margin_q25": (3, 3, 3, 4.5, 3, 3, 3),
    "margin_q50": (7.5, 7.5, 9, 9, 4.5, 9, 7.5),
    "least_likely_position": (0.272727, 0.214286, 0.136364, 0.142857, 0.6, 0.136364, 0.333333),
    "digit_share": (0.5, 0.466667, 0.478261, 0.5, 0.5, 0.521739, 0.4),
    "digit_logprob_mean": (-2.01667, -2.27857, -1.75, -2.05909, -2.55, -1.15417, -2.4125),
    "digit_logprob_sum": (-12.1, -15.95, -19.25, -22.65, -7.65, -13.85, -9.65),
    "digit_logprob_min": (-4.99324, -4.99324, -4.99324, -4.99324, -4.99324, -4.03242, -4.99324),
    "digit_logprob_2nd_min": (-3.15838, -4.99324, -4.03242, -4.99324, -2.35975, -3.15838, -3.15838),
    "digit_entropy_max": (0.405532, 0.223224, 0.405532, 0.223224, 0.223224, 0.405532, 9.9995e-05),
    "digit_margin_min": (1.5, 3, 1.5, 3, 3, 0, 1.5),
    "operator_share": (0.333333, 0.2, 0.304348, 0.272727, 0.333333, 0.347826, 0.2),
    "operator_logprob_mean": (-0.775, -0.75, -1.10714, -1.13333, -1.125, -2.24375, -2.05),
    "operator_logprob_sum": (-3.1, -2.25, -7.75, -6.8, -2.25, -17.95, -4.1),
    "operator_logprob_min": (-1.61932, -1.61932, -4.99324, -3.15838, -1.61932, -4.99324, -4.03242),
    "operator_logprob_2nd_min": (-0.203382, 0.565084, -0.91242, -0.91242, 0.565084, -4.99324, 2.97063),
    "operator_entropy_max": (0.405532, 0.405532, 0.405532, 0.405532, 0.405532, 9.9995e-05, 0.223224),
    "operator_margin_min": (6, 9, 0, 0, 9, 1.5, 7.5),
    "tokens": (2.56495, 2.77259, 3.17805, 3.13549, 1.94591, 3.17805, 2.3979),
    "ends_solution": (0, 0, 0, 0, 0, 0, 1),
    "cut_off": (0, 0, 0, 0, 1, 0, 0),
    "has_box": (0, 0, 0, 0, 0, 0, 1),
    "is_thought": (1, 0, 0, 0, 0, 0, 0),
    "numbers": (6, 8, 11, 13, 3, 12, 4),
    "longest_number": (5, 5, 4, 4, 2, 3, 5),
    "unseen_numbers": (3, 3, 7, 6, 0, 7, 2),
    "plus_signs": (1, 1, 1, 0, 0, 2, 0),
    "minus_signs": (0, 0, 2, 1, 0, 0, 0),
    "times_signs": (1, 1, 0, 1, 1, 2, 0),
    "division_signs": (0, 1, 1, 2, 0, 0, 1),
    "equal_signs": (2, 2, 3, 4, 1, 4, 1),
    "lines": (2, 2, 2, 2, 0, 2, 0),
    "equations": (2, 2, 2, 3, 0, 3, 1),
    "wrong_equations": (0, 0, 2, 1, 0, 1, 0),
    "last_equation_wrong": (0, 0, 1, 0, 0, 1, 0),
    "equation_error": (0, 0, 0.5, 2, 0, 0.0769231, 0),
    "wrong_equations_before": (0, 0, 0, 2, 3, 3, 4),
    "unknown_operands": (0, 0, 3, 4, 0, 1, 0),
    "overused_operands": (0, 2, 1, 2, 0, 2, 2),
    "unused_numbers": (5, 4, 5, 7, 7, 8, 9),
    "unused_numbers_at_end": (0, 0, 0, 0, 0, 0, 9),
    "problem_length": (4.7185, 4.7185, 4.7185, 4.7185, 4.7185, 4.7185, 4.7185),
    "problem_numbers": (7, 7, 7, 7, 7, 7, 7),
    "problem_longest_number": (5, 5, 5, 5, 5, 5, 5),
    "position": (0, 1, 2, 3, 4, 5, 6),
    "tokens_before": (0, 2.56495, 3.3322, 3.93183, 4.29046, 4.36945, 4.62497),
    "previous_tokens": (0, 2.56495, 2.77259, 3.17805, 3.13549, 1.94591, 3.17805),
    "previous_draft_logprob_mean": (0, -1.60417, -1.81, -1.67391, -1.75, -1.65, -1.67391),
    "previous_draft_logprob_min": (15, -4.99324, -4.99324, -4.99324, -4.99324, -4.99324, -4.99324),
    "previous_draft_entropy_max": (-9.21034, 0.405532, 0.405532, 0.405532, 0.405532, 0.405532, 0.405532),
    "drafts_logprob_min": (15, -4.99324, -4.99324, -4.99324, -4.99324, -4.99324, -4.99324),
    "drafts_logprob_sum": (-0, -19.25, -46.4, -84.9, -120, -133.3, -171.8),
}
"""The values of each feature, one for each of the steps."""


def test_the_meaning_of_the_features_is_frozen() -> None:
    earlier = EarlierSteps(Problem("", QUESTION))
    decisions: list[Decision] = []
    found: dict[str, list[float]] = {name: [] for name in FEATURES}
    for drafted in STEPS:
        for name, value in zip(FEATURES, earlier.features(decisions, drafted).tolist(), strict=True):
            found[name].append(value)
        decisions.append(Decision(drafted, draft=drafted))
    assert (FEATURES_VERSION, list(found)) == (1, list(FROZEN)), TRAIN_AGAIN
    for name, values in FROZEN.items():
        assert found[name] == pytest.approx(values, rel=1e-4, abs=1e-4), f"{name}: {TRAIN_AGAIN}"

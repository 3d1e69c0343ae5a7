"""Figures as text: three digits, no exponent, no false zero, and correct plurals."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbitrage_cli.numbers import formatting
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.route import Route

TAUS = st.floats(-1e9, 1e9, allow_subnormal=False)


@given(TAUS)
def test_a_tau_has_three_digits_no_exponent_and_no_false_zero(tau: float) -> None:
    text = formatting.tau(tau)
    assert "e" not in text
    assert len(text.lstrip("-").replace(".", "").strip("0")) <= 3
    assert float(text) == pytest.approx(tau, rel=0.005, abs=0)


@given(TAUS | st.just(math.inf) | st.just(-math.inf))
def test_a_route_is_named_by_its_very_tau(tau: float) -> None:
    policy, _, text = Route(POLICIES["entropy"], tau).name.partition("@")
    assert (policy, float(text)) == ("entropy", tau)
    assert "e" not in text


@pytest.mark.parametrize(
    ("tau", "name", "shown"),
    [
        (0.0213849, "balanced", "balanced (0.0214)"),
        (0.000012, "30%", "30% (0.000012)"),
        (0.0, "careful", "careful (escalates every step)"),
        (0.5, None, "0.5"),
        (math.inf, None, "inf"),
    ],
)
def test_a_label_has_the_name_of_a_tau_and_its_number(tau: float, name: str | None, shown: str) -> None:
    assert Route(POLICIES["arbitrage"], tau, name).label == f"arbitrage@{shown}"


@given(st.floats(0, 100), st.floats(-1, 100))
def test_a_score_beside_tau_shows_which_is_greater(score: float, tau: float) -> None:
    shown, beside = formatting.compared(score, tau)
    assert "e" not in shown + beside
    assert (float(shown.replace(",", "")) > float(beside)) == (score > tau)
    assert (float(beside) == 0) == (tau == 0)


@pytest.mark.parametrize(("value", "text"), [(0, "0 steps"), (1, "1 step"), (1200, "1,200 steps")])
def test_one_has_no_plural(value: int, text: str) -> None:
    assert formatting.count(value, "step") == text


def test_a_tau_of_hundreds_of_digits_has_an_exponent() -> None:
    assert (formatting.tau(-1e308), formatting.compared(0.5, -1e308)) == ("-1e+308", ("0.50", "-1e+308"))
    assert Route(POLICIES["entropy"], -1e308).name == "entropy@-1e+308"


@pytest.mark.parametrize(
    ("interval", "text"),
    [(None, ""), ((0.787, 0.864), "[79-86]"), ((-1.51, -0.28), "[-151 to -28]"), ((-0.004, 0.3), "[0-30]")],
)
def test_an_interval_of_shares_has_a_readable_minus(interval: tuple[float, float] | None, text: str) -> None:
    assert formatting.percent_range(interval) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.975, "97.5%"), (0.9996, "99.9%"), (0.99949, "99.9%"), (1.0, "100%"), (11.0, "1100.0%"), (0.0, "0.0%"), (None, "-")],
)
def test_only_the_whole_is_a_hundred_percent(share: float | None, text: str) -> None:
    assert formatting.percent(share) == text

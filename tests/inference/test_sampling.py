"""From logits to a token."""

import itertools
from typing import Any

import numpy as np
import pytest

from arbitrage_cli.errors import ComputeError
from arbitrage_cli.inference.backend import Floats
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.types import ROLES


def logits_of(*probabilities: float) -> Floats:
    return np.log(np.array(probabilities, np.float32))


def frequencies(sampler: Sampler, logits: Floats, draws: int = 4000) -> Floats:
    counts = np.bincount([sampler.choose(logits, "p", position) for position in range(draws)], minlength=len(logits))
    return (counts / draws).astype(np.float32)


def test_greedy_takes_the_likeliest_and_the_first_of_equals() -> None:
    assert Sampler().choose(logits_of(0.2, 0.5, 0.3), "p", 0) == 1
    assert Sampler().choose(logits_of(0.2, 0.4, 0.4), "p", 0) == 1


def test_draws_follow_the_distribution() -> None:
    found = frequencies(Sampler(temperature=1.0), logits_of(0.1, 0.6, 0.3))
    np.testing.assert_allclose(found, [0.1, 0.6, 0.3], atol=0.03)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"top_p": 0.79}, [0, 0.625, 0, 0.375]),  # the smallest set that holds this share
        ({"top_p": 0.81}, [0.158, 0.526, 0, 0.316]),
        ({"top_p": 0.4}, [0, 1, 0, 0]),
        ({"top_p": 0.0}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 0.625, 0, 0.375]),
        ({"top_k": 9}, [0.15, 0.5, 0.05, 0.3]),
        ({"min_p": 0.31}, [0, 0.625, 0, 0.375]),
        ({"min_p": 0.29}, [0.158, 0.526, 0, 0.316]),
        ({"min_p": 1.0}, [0, 1, 0, 0]),
        ({"top_k": 3, "top_p": 0.8}, [0, 0.625, 0, 0.375]),  # 0.5 and 0.3 have 0.84 of what is left
    ],
)
def test_the_least_likely_are_left_out(options: dict[str, Any], expected: list[float]) -> None:
    found = frequencies(Sampler(1.0, **options), logits_of(0.15, 0.5, 0.05, 0.3))
    np.testing.assert_allclose(found, expected, atol=0.03)


@pytest.mark.parametrize(("temperature", "num_drawn"), [(0.5, 2), (2.0, 5)])
def test_the_temperature_comes_before_the_other_settings(temperature: float, num_drawn: int) -> None:
    found = frequencies(Sampler(temperature, top_p=0.8), logits_of(0.5, 0.2, 0.1, 0.1, 0.05, 0.05))
    assert np.count_nonzero(found) == num_drawn


def test_a_draw_depends_on_seed_role_problem_and_position_alone() -> None:
    logits = np.arange(1000, dtype=np.float32) * 1e-6
    usual = [Sampler(1.0, seed=1).choose(logits, "p", position) for position in range(10)]
    assert [Sampler(1.0, seed=1).choose(logits, "p", position) for position in range(10)] == usual
    assert [Sampler(1.0, seed=2).choose(logits, "p", position) for position in range(10)] != usual
    assert [Sampler(1.0, seed=1).choose(logits, "q", position) for position in range(10)] != usual
    assert [Sampler(1.0, seed=1).of_sample(0).choose(logits, "p", position) for position in range(10)] == usual
    further = [[Sampler().of_sample(sample).choose(logits, "p", position) for position in range(10)] for sample in (1, 2)]
    assert further[0] != further[1]
    by_role = [
        [Sampler(1.0, seed=1).of_model(role).choose(logits, "p", position) for position in range(10)] for role in ROLES
    ]
    assert all(first != second for first, second in itertools.combinations(by_role, 2))
    assert len(set(usual)) > 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_error(value: float, temperature: float) -> None:
    logits = logits_of(0.2, 0.5, 0.3)
    logits[2] = value
    with pytest.raises(ComputeError):
        Sampler(temperature).choose(logits, "p", 0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_all_equal_are_an_error(temperature: float) -> None:
    """A file whose weights are zeros has such logits."""
    with pytest.raises(ComputeError):
        Sampler(temperature).choose(np.zeros(3, np.float32), "p", 0)


@pytest.mark.parametrize("temperature", [1e-3, 1e-10, 1e-39, 1e-60])
def test_a_tiny_temperature_is_all_but_greedy(temperature: float) -> None:
    assert Sampler(temperature).choose(logits_of(0.2, 0.5, 0.3), "p", 0) == 1

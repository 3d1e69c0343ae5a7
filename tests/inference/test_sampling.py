"""From logits to a token."""

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2_contingency, chisquare

from arbitrage_cli.errors import ComputeError
from arbitrage_cli.inference.backend import Floats
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.types import ROLES


def logits_of(*probabilities: float) -> Floats:
    return np.log(np.array(probabilities, np.float32))


def counts_of(sampler: Sampler, logits: Floats, draws: int = 4000) -> NDArray[np.intp]:
    return np.bincount([sampler.choose(logits, "p", position) for position in range(draws)], minlength=len(logits))


def test_greedy_takes_the_likeliest_and_the_first_of_equals() -> None:
    assert Sampler().choose(logits_of(0.2, 0.5, 0.3), "p", 0) == 1
    assert Sampler().choose(logits_of(0.2, 0.4, 0.4), "p", 0) == 1


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1, 2, 3]),
        ({"temperature": 0.5}, [0, 1, 2, 3]),
        ({"temperature": 3.0}, [0, 1, 2, 3]),
        ({"top_p": 0.79}, [1, 3]),  # the smallest set that holds this share
        ({"top_p": 0.81}, [0, 1, 3]),
        ({"top_p": 0.4}, [1]),
        ({"top_p": 0.0}, [1]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 9}, [0, 1, 2, 3]),
        ({"min_p": 0.31}, [1, 3]),
        ({"min_p": 0.29}, [0, 1, 3]),
        ({"min_p": 1.0}, [1]),
        ({"top_k": 3, "top_p": 0.8}, [1, 3]),  # 0.5 and 0.3 have 0.84 of what is left
    ],
    ids=str,
)
def test_draws_follow_the_distribution_of_the_tokens_that_pass_the_filters(options: dict[str, Any], kept: list[int]) -> None:
    """The random numbers are the same in every run, so a test with the significance 0.001 passes always or never."""
    sampler = Sampler(**{"temperature": 1.0} | options)
    weights = np.array([0.15, 0.5, 0.05, 0.3]) ** (1 / sampler.temperature)
    counts = counts_of(sampler, logits_of(0.15, 0.5, 0.05, 0.3))
    assert counts.sum() == counts[kept].sum()
    if len(kept) > 1:
        assert chisquare(counts[kept], weights[kept] / weights[kept].sum() * counts.sum()).pvalue > 0.001


def test_draws_of_many_tokens_follow_the_distribution_for_any_seed() -> None:
    """Tokens that follow each other in the vocabulary are independent, as are positions, questions and seeds."""
    logits = (np.random.default_rng(0).normal(size=200) / 2).astype(np.float32)
    weights = np.exp(logits.astype(np.float64))
    keys = itertools.product(range(4), "pqrs", range(2000))
    drawn = [Sampler(1.0, seed=seed).choose(logits, question, position) for seed, question, position in keys]
    assert chisquare(np.bincount(drawn, minlength=200), weights / weights.sum() * len(drawn)).pvalue > 0.001
    pairs = np.zeros((2, 2))  # whether a token of the first half follows one of the first half
    np.add.at(pairs, tuple(np.array([drawn[:-1], drawn[1:]]) // 100), 1)
    assert chi2_contingency(pairs).pvalue > 0.001


def test_models_that_share_their_random_numbers_draw_equal_tokens_as_often_as_their_distributions_overlap() -> None:
    """Even if they disagree on which token is the likeliest. No two draws can be equal more often than 1 - distance."""
    draft, target = (0.4, 0.3, 0.2, 0.1), (0.3, 0.4, 0.2, 0.1)
    distance = 0.1
    first, second = (
        [Sampler(1.0).choose(logits_of(*one), "p", position) for position in range(4000)] for one in (draft, target)
    )
    equal = np.mean(np.equal(first, second))
    assert (1 - distance) / (1 + distance) - 0.02 < equal < 1 - distance + 0.02


@pytest.mark.parametrize(("temperature", "num_drawn"), [(0.5, 2), (2.0, 5)])
def test_the_temperature_comes_before_the_other_settings(temperature: float, num_drawn: int) -> None:
    counts = counts_of(Sampler(temperature, top_p=0.8), logits_of(0.5, 0.2, 0.1, 0.1, 0.05, 0.05))
    assert np.count_nonzero(counts) == num_drawn


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

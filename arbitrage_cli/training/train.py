"""Trains a router on collected states: fits several networks, then chooses, calibrates and measures one network.

Each recipe is cross-validated in FOLDS rounds. In each round, a network is fitted to all folds of the problems but two. One of
the two decides when fitting stops, which recipe is chosen, and how it is calibrated. The other only measures the network. Over
all rounds, each problem is measured once, by a network that does not know it. The router is the average of the networks, and
its table of taus is computed from these measurements. Networks are fitted with scikit-learn. Results depend only on the states
and the seed.
"""

import importlib
import math
import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from types import ModuleType
from typing import Any

import numpy as np

from arbitrage_cli import __version__
from arbitrage_cli.errors import UsageError
from arbitrage_cli.inference.backend import Floats
from arbitrage_cli.numbers.intervals import Indices, Mask, Numbers
from arbitrage_cli.routing.features import FEATURES
from arbitrage_cli.routing.policies import WRONG_EQUATION
from arbitrage_cli.routing.presets import TauTable
from arbitrage_cli.routing.router import MAX_LOG_ODDS, Network, Router, RouterCard, digest_of_problem
from arbitrage_cli.training.measurement import (
    Prefixes,
    Truth,
    auc,
    auc_gaps,
    figure,
    make_table,
    measure,
    spread_taus,
)
from arbitrage_cli.training.states import FOLDS, Collected
from arbitrage_cli.types import Json, frozen

Parameters = tuple[Floats, Floats, Floats, float]  # the weights (d, h) and biases (h,) of the units, and those of the output

INVERSE_PENALTIES = (0.001, 0.03, 1.0)  # C in scikit-learn's logistic regression
PENALTIES = (30.0, 8.0, 2.0)  # alpha in scikit-learn's networks
UNITS = 32
MAX_EPOCHS, PATIENCE, BATCH_SIZE, LEARNING_RATE = 100, 6, 256, 1e-3
MAX_ITERATIONS = 2000
SEEDS = 2**32  # scikit-learn's number of seeds

NO_PENALTY = 1e6  # as an inverse penalty
LEAST_SLOPE = 1e-3  # smallest slope of a calibration


@frozen
class Recipe:
    """The settings of a logistic regression (`units` is 0) or of a network with one hidden layer."""

    units: int
    penalty: float


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Training examples: float32 inputs of shape (n, d), and labels and weights of shape (n,). The mean weight is 1."""

    inputs: Floats
    labels: Mask
    weights: Numbers


RECIPES: tuple[Recipe, ...] = (  # the simplest first
    *(Recipe(0, penalty) for penalty in INVERSE_PENALTIES),
    *(Recipe(UNITS, penalty) for penalty in PENALTIES),
)


def balanced(labels: Mask, groups: Indices) -> Numbers:
    """Return weights with the same sum for each class in each group.

    Their mean is 1 if every group contains both classes.
    """
    weights = np.ones(len(labels))
    classes = [(groups == number) & members for number in np.unique(groups) for members in (labels, ~labels)]
    for members in classes:
        weights[members] = len(labels) / len(classes) / max(members.sum(), 1)
    return weights


def standardiser(inputs: Floats) -> Network:
    """Return a network without weights that standardises inputs of shape (n, d) to mean 0 and variance 1."""
    mean = inputs.mean(axis=0, dtype=np.float64).astype(np.float32)
    spread = inputs.std(axis=0, dtype=np.float64).astype(np.float32)
    return Network(mean, np.where(spread > 1e-6, spread, 1).astype(np.float32), np.zeros_like(mean), 0.0)


def fit(recipe: Recipe, blank: Network, training: Examples, validation: Examples, seed: int) -> Network:
    """Fit a logistic regression or a network to inputs that `blank` standardises.

    Training of a network stops when the validation loss stops falling.
    """
    scaled = replace(training, inputs=blank.standardised(training.inputs))
    if not recipe.units:
        output, bias = _fit_line(scaled, recipe.penalty)
        return replace(blank, output=output.astype(np.float32), output_bias=bias)
    unseen = replace(validation, inputs=blank.standardised(validation.inputs))
    weights, biases, outputs, bias = _fit_units(recipe, scaled, unseen, seed)
    return replace(blank, output=outputs, output_bias=bias, layer=(weights, biases))


def average(networks: Sequence[Network]) -> Network:
    """Return one network with the mean log-odds of networks that standardise inputs in the same way."""
    first, count = networks[0], len(networks)
    outputs, bias = [network.output / count for network in networks], fmean(network.output_bias for network in networks)
    if first.layer is None:
        return replace(first, output=np.stack(outputs).sum(axis=0), output_bias=bias)
    layers = [network.layer for network in networks if network.layer]
    weights, biases = (np.ascontiguousarray(np.concatenate(arrays, axis=-1)) for arrays in zip(*layers, strict=True))
    return replace(first, output=np.concatenate(outputs), output_bias=bias, layer=(weights, biases))


def calibrate(log_odds: Numbers, labels: Mask, weights: Numbers | float = 1.0) -> tuple[float, float]:
    """Return the slope and shift of Platt scaling (J. Platt, Probabilistic outputs for support vector machines, 1999).

    Raises UsageError if the slope is not positive.
    """
    examples = Examples(log_odds[:, None].astype(np.float32), labels, np.ones(len(labels)) * weights)
    (slope,), bias = _fit_line(examples, NO_PENALTY)
    if slope < LEAST_SLOPE:
        raise UsageError(
            "the router learned nothing: on the validation part, its score does not increase with the advantage",
            "collect more states, or use another reward: arbitrage collect",
        )
    return float(slope), bias


def _sklearn(module: str) -> ModuleType:
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise UsageError(f"cannot import scikit-learn ({error})", 'pip install "scikit-learn>=1.7"') from error


def _fit_line(examples: Examples, inverse_penalty: float) -> tuple[Numbers, float]:
    model = _sklearn("linear_model").LogisticRegression(C=inverse_penalty, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        # The last digits do not matter: candidates are compared on other data.
        warnings.simplefilter("ignore", _sklearn("exceptions").ConvergenceWarning)
        model.fit(examples.inputs, examples.labels, sample_weight=examples.weights)
    return model.coef_[0], float(model.intercept_[0])


def _fit_units(recipe: Recipe, training: Examples, validation: Examples, seed: int) -> Parameters:
    model = _sklearn("neural_network").MLPClassifier(
        hidden_layer_sizes=(recipe.units,),
        alpha=recipe.penalty,
        batch_size=min(BATCH_SIZE, len(training.labels)),
        learning_rate_init=LEARNING_RATE,
        random_state=np.random.RandomState(seed % SEEDS),  # a number would shuffle each epoch alike
    )
    least, waited = math.inf, 0
    for epoch in range(MAX_EPOCHS):
        model.partial_fit(training.inputs, training.labels, classes=[False, True], sample_weight=training.weights)
        loss, waited = _loss(model, validation), waited + 1
        if not epoch or loss < least:
            least, waited = loss, 0
            (weights, output), (biases, output_bias) = model.coefs_, model.intercepts_
            best = (
                weights.astype(np.float32),
                biases.astype(np.float32),
                output[:, 0].astype(np.float32),
                float(output_bias[0]),
            )
        if waited >= PATIENCE:
            break
    return best


def _loss(model: Any, examples: Examples) -> float:
    probability = np.clip(model.predict_proba(examples.inputs)[:, 1].astype(np.float64), 1e-7, 1 - 1e-7)
    return float(-np.average(np.log(np.where(examples.labels, probability, 1 - probability)), weights=examples.weights))


Announce = Callable[[str], None]

BASELINES: Mapping[str, Mapping[str, float]] = {  # scores as weighted sums of features
    "lowest logprob": {"logprob_min": -1},
    "mean logprob": {"logprob_mean": -1},
    "equations": {"logprob_mean": -1, "wrong_equations": WRONG_EQUATION},
    "entropy": {"entropy_first": 1},
}
COMPARED = (*BASELINES, "random")  # a useful router outperforms all of them

MIN_CLASS = 30  # states per class
ENOUGH_SOLUTIONS = 300  # for `careful` to accept a fifth of the steps of a real pair; estimated from 99 solutions as 280
COLLECT_TO_THE_END = "to resume the run, repeat the command that collected the states"


@dataclass(frozen=True, slots=True, eq=False)
class FittedRecipe:
    """The networks of a recipe, one per round.

    `validated` and `measured`, of shape (n,), contain each state's log-odds in the round in which its problem belongs to the
    validation fold or to the test fold.
    """

    recipe: Recipe
    networks: Sequence[Network]
    validated: Numbers
    measured: Numbers
    auc: float


def train(
    collected: Collected,
    *,
    name: str,
    command: Sequence[str],
    created: str,
    seed: int = 0,
    on_progress: Announce = lambda text: None,
) -> Router:
    """Train a router. Raises UsageError if there are too few states, or if the router learned nothing."""
    _check(collected)
    truth = _truth_of(collected)
    candidates: list[FittedRecipe] = []
    for recipe in RECIPES:
        on_progress(f"learning: {recipe.units or 'no'} hidden units, penalty {recipe.penalty:g}")
        candidates.append(cross_validate(collected, recipe, seed))
    chosen = choose(candidates, truth)
    on_progress("calibrating and measuring")
    slope, shift = calibrate(chosen.validated, truth.is_better, truth.weight)
    network = average(chosen.networks).moved(slope, shift)
    probability = 1 / (1 + np.exp(-np.clip(slope * chosen.measured + shift, -MAX_LOG_ODDS, MAX_LOG_ODDS)))
    card = _card(collected, seed, name=name, command=tuple(command), created=created)
    metrics = {
        **_metrics(probability, collected),
        "architecture": {"recipe": asdict(chosen.recipe), "members": FOLDS},
    }
    router = Router(network, card)
    taus = _table(router, collected, collected.is_whole, probability).to_json()
    return Router(network, replace(card, metrics=metrics, taus=taus))


def with_taus(router: Router, collected: Collected, *, name: str | None = None) -> Router:
    """Return the router with a table of taus computed from other states.

    Problems on which the router was trained are excluded. Raises RouterError if steps end differently than in the training
    states; UsageError if there are too few states.
    """
    router.check_steps(collected.runs[0].facts.step_end)
    if not collected.is_whole.any():
        raise UsageError("these runs contain no finished solution", COLLECT_TO_THE_END)
    chosen = collected.is_whole & ~np.array(router.card.known(collected.questions))[collected.outcomes.problem]
    _check_part(collected, chosen, "of new problems to make presets")
    about = {"runs": [run.about for run in collected.runs], "rewards": list(collected.rewards)}
    taus = _table(router, collected, chosen, router.probabilities(collected.features)).to_json()
    data = {**router.card.data, "taus_of": about}
    return Router(router.network, replace(router.card, name=name or router.card.name, taus=taus, data=data))


def _table(router: Router, collected: Collected, chosen: Mask, probability: Numbers) -> TauTable:
    """Return the table of the chosen states, given the probabilities of all states."""
    rows, state, tokens = collected.prefixes(chosen)
    prefixes, own = Prefixes(state, tokens, router.probabilities(rows)), probability[chosen]
    return make_table(own, collected.outcomes.take(chosen), spread_taus(own), collected.costs, prefixes)


# --- learning


def choose(candidates: Sequence[FittedRecipe], truth: Truth) -> FittedRecipe:
    """Return the first (simplest) candidate within one standard error of the best candidate on the validation folds.

    This is the one-standard-error rule of Breiman et al., Classification and Regression Trees (1984), section 3.4.3.
    """
    best = max(candidates, key=lambda candidate: candidate.auc)
    for candidate in candidates:
        gap, *resampled = auc_gaps(best.validated, candidate.validated, truth)
        if gap <= float(np.nanstd(resampled)):
            return candidate
    return best


def cross_validate(collected: Collected, recipe: Recipe, seed: int) -> FittedRecipe:
    features, fold, truth = collected.features, collected.fold, _truth_of(collected)
    blank, networks = standardiser(features), list[Network]()
    validated, measured = np.empty(len(fold)), np.empty(len(fold))
    for number in range(FOLDS):
        validating, testing = fold == (number + 1) % FOLDS, fold == number
        training, validation = (_examples(collected, chosen) for chosen in (~validating & ~testing, validating))
        networks.append(fit(recipe, blank, training, validation, seed + number))
        log_odds = networks[-1].log_odds(features)
        validated[validating], measured[testing] = log_odds[validating], log_odds[testing]
    return FittedRecipe(recipe, networks, validated, measured, auc(validated, truth))


def _examples(collected: Collected, chosen: Mask) -> Examples:
    is_better = collected.outcomes.advantage[chosen] > 0
    return Examples(collected.features[chosen], is_better, balanced(is_better, collected.pair[chosen]))


def _truth_of(collected: Collected) -> Truth:
    return Truth(collected.outcomes.advantage > 0, collected.outcomes.problem, collected.weight)


# --- enough states


def _check(collected: Collected) -> None:
    if not collected.is_whole.any():
        raise UsageError("the runs contain no finished solution, so taus cannot be measured", COLLECT_TO_THE_END)
    for index, pair in enumerate(collected.pairs):  # all pairs have the same weight, so each needs enough states
        of = f" for draft {pair['draft']['name']}" if len(collected.pairs) > 1 else ""
        _check_part(collected, collected.pair == index, f"to train on{of}")


def _check_part(collected: Collected, chosen: Mask, what_for: str) -> None:
    labels = collected.outcomes.advantage[chosen] > 0
    for members, what in ((labels, "with"), (~labels, "without")):
        if members.sum() < MIN_CLASS:
            found = f"{int(members.sum())} {what} an advantage, at least {MIN_CLASS} are needed"
            command = shlex.join(collected.runs[0].facts.command)
            hint = f"collect more problems with a higher --limit, or use another --dataset and another -o: {command}"
            raise UsageError(f"too few states {what_for}: {found}", hint)


# --- the card


def _card(collected: Collected, seed: int, **names: Any) -> RouterCard:
    truth = _truth_of(collected)
    size = {"problems": len(collected.questions), "states": len(truth.problem), "improvable": int(truth.is_better.sum())}
    rewards = collected.rewards
    return RouterCard(
        features=FEATURES,
        pairs=collected.pairs,
        reward=dict(rewards[0]) if len(rewards) == 1 else {"kind": "several", "all": list(rewards)},
        data={
            "runs": [run.about for run in collected.runs],
            "seed": seed,
            "learned": " ".join(sorted(map(digest_of_problem, collected.questions))),
            "step_end": asdict(collected.runs[0].facts.step_end),
            "thoughts": int(collected.features[:, FEATURES.index("is_thought")].sum()),
            "parts": {"cross-validation": size},
        },
        metrics={},
        taus={},
        version=__version__,
        **names,
    )


def _metrics(probability: Numbers, collected: Collected) -> Json:
    truth = _truth_of(collected)
    measured: Json = {}
    leads: Json = {}
    for name, values in scores(probability, collected).items():
        measured[name] = measure(values, truth, is_probability=name == "arbitrage")
        if name in COMPARED:
            leads[name] = figure(auc_gaps(probability, values, truth), truth)
    return {"test": measured, "leads": leads}


def scores(probability: Numbers, collected: Collected) -> dict[str, Numbers]:
    """Return the router's and the baselines' scores for each state. `rsd` uses the true reward of the drafted step."""
    columns = dict(zip(FEATURES, collected.features.T.astype(np.float64), strict=True))
    plain = {name: sum(weight * columns[feature] for feature, weight in sums.items()) for name, sums in BASELINES.items()}
    return {
        "arbitrage": probability,
        **plain,
        "rsd": 1.0 - collected.outcomes.draft_reward,
        "random": np.random.default_rng(0).random(len(probability)),
    }

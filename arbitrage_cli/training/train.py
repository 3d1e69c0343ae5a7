"""Trains a router's head on collected states: learn, choose, calibrate, measure.

Their problems are split three ways. Heads learn on the first part; which of them is taken, when learning stops, the calibration
and the named taus are decided on the second; every figure on the card is measured on the third, which decides nothing.
Runs no model and knows no terminal. The same states, settings and machine give the same head.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from arbitrage_cli import __version__
from arbitrage_cli.errors import UsageError
from arbitrage_cli.routing.features import FEATURES, Floats
from arbitrage_cli.routing.head import Card, Head, Network
from arbitrage_cli.routing.policies import WRONG_EQUATION
from arbitrage_cli.routing.thresholds import Costs, TauTable, make_table, spread_taus, tabulate
from arbitrage_cli.stats.ranking import Truth, best_threshold, measure, selection_score, selection_score_gaps
from arbitrage_cli.training.examples import SPLIT, TEST, TRAINING, VALIDATION, Collected
from arbitrage_cli.training.fit import MEMBERS, RECIPES, Examples, Recipe, balanced, calibrate, fit

Numbers = NDArray[np.float64]
Inputs = Literal["agnostic", "hidden", "both"]
Watch = Callable[[str], None]
"""Told in words what is being done."""

ALL_INPUTS: tuple[Inputs, ...] = ("agnostic", "hidden", "both")
BASELINES: Mapping[str, Mapping[str, float]] = {
    "lowest logprob": {"logprob_min": -1},
    "mean logprob": {"logprob_mean": -1},
    "equations": {"logprob_mean": -1, "wrong_equations": WRONG_EQUATION},
    "entropy": {"entropy_first": 1},
}
"""Numbers that route without a head: sums of features, each times its weight."""

MIN_CLASS = 10  # states of each class in each part


@dataclass(frozen=True, slots=True)
class Settings:
    """How to learn. A step is worth escalating if its advantage is above `margin`."""

    margin: float = 0.0
    by_advantage: bool = False  # states with a large advantage, or a large loss, count more
    inputs: tuple[Inputs, ...] = ALL_INPUTS
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A network that was learned, what it reads, and its merit on the validation."""

    recipe: Recipe
    inputs: Inputs
    network: Network
    log_odds: Numbers  # of the validation
    selection_score: float

    @property
    def label(self) -> str:
        return f"{self.recipe.label}, {self.inputs}"

    @property
    def size(self) -> int:
        """Numbers that were learned: of two that are as good, the smaller is taken."""
        layer = self.network.layer
        return self.network.output.size + (sum(array.size for array in layer) if layer else 0)


def train(
    collected: Collected,
    settings: Settings,
    *,
    name: str,
    command: Sequence[str],
    created: str,
    watch: Watch = lambda text: None,
) -> Head:
    """The head of these states. UsageError if there are too few of them, or nothing can be learned from them."""
    truth = _truth(collected, settings.margin)
    _check(collected, truth)
    choosing, testing = collected.part == VALIDATION, collected.part == TEST
    candidates = _candidates(collected, truth, settings, watch)
    chosen = choose(candidates, _take(truth, choosing))
    if chosen.recipe.units:
        watch(f"averaging {MEMBERS} of {chosen.label}")
        chosen = _learn(chosen.recipe, chosen.inputs, collected, truth, settings, MEMBERS)
    watch("calibrating")
    validation = _take(truth, choosing)
    method, knots = calibrate(chosen.log_odds, validation.is_better, validation.problem, validation.weight)
    card = _card(collected, chosen, settings, name=name, command=command, created=created)
    head = Head(chosen.network, knots, card)
    watch("measuring on the test")
    probability = head.probabilities(collected.features, collected.hidden)
    table = _taus(probability, collected, choosing & collected.is_whole, testing & collected.is_whole)
    metrics = {
        **_metrics(probability, collected, truth, choosing, testing),
        "calibration": method,
        "architecture": {"inputs": chosen.inputs, "recipe": asdict(chosen.recipe), "members": _members(chosen)},
        "candidates": [{"candidate": one.label, **asdict(one.recipe), "merit": one.selection_score} for one in candidates],
    }
    data = {**card.data, **_counts(collected, truth)}
    return Head(chosen.network, knots, replace(card, data=data, metrics=metrics, taus=table.to_json()))


def with_taus(head: Head, collected: Collected, costs: Costs | None = None, *, name: str | None = None) -> Head:
    """The same head, by another name if one is given, with taus named and tabulated on other states: all of these, whatever they were collected for.

    `costs` are those of this machine, if they were measured; else those that were collected are taken.
    """
    card = head.card
    if card.hidden_size and collected.hidden is None:
        raise UsageError("these runs do not have the hidden states that the head reads", "collect again: arbitrage collect")
    for pair in collected.pairs:
        head.check(pair["draft"], 0 if collected.hidden is None else collected.hidden.shape[1])
    whole = collected.is_whole
    if not whole.any():
        raise UsageError("no solution of these runs was collected to its end", "go on with the command that collected them")
    _check_part(collected.outcomes.advantage[whole] > 0, "to calibrate on", "these runs", len(whole))
    probability = head.probabilities(collected.features, collected.hidden)[whole]
    table = make_table(probability, collected.outcomes.take(whole), spread_taus(probability), costs or collected.costs)
    about = {
        "runs": list(collected.runs),
        "rewards": list(collected.rewards),
        "costs": "the runs" if costs is None else "the machine that calibrated",
    }
    made = replace(card, name=name or card.name, taus=table.to_json(), data={**card.data, "taus_of": about})
    return Head(head.network, head.knots, made)


def choose(candidates: Sequence[Candidate], truth: Truth) -> Candidate:
    """The best on the validation; or rather the simplest that is within one standard error of it over problems.

    One that reads hidden states is less simple than any that does not: they take time, and are of one draft only. The rule of one standard error: L. Breiman and others, Classification and Regression Trees (1984), 3.4.3.
    """
    best = max(candidates, key=lambda one: one.selection_score)

    def is_as_good(candidate: Candidate) -> bool:
        gaps = selection_score_gaps(best.log_odds, candidate.log_odds, truth)
        return candidate is best or best.selection_score - candidate.selection_score <= float(np.nanstd(gaps))

    simplest_first = sorted(candidates, key=lambda one: (one.inputs != "agnostic", one.size, -one.selection_score))
    return next(one for one in simplest_first if is_as_good(one))


def _members(chosen: Candidate) -> int:
    return MEMBERS if chosen.recipe.units else 1


def _candidates(collected: Collected, truth: Truth, settings: Settings, watch: Watch) -> list[Candidate]:
    """All recipes on all inputs that are wanted and there; of each recipe's penalties, the best."""
    possible = [one for one in settings.inputs if one == "agnostic" or collected.hidden is not None]
    if not possible:
        raise UsageError(
            "these runs have no hidden states, or those of different drafts",
            "train on the agnostic features, or collect with hidden states of one draft",
        )
    found: dict[str, Candidate] = {}
    for inputs in possible:
        for recipe in RECIPES:
            if f"{recipe.label}, {inputs}" not in found:
                watch(f"learning: {recipe.label}, {inputs}")
            candidate = _learn(recipe, inputs, collected, truth, settings, 1)
            if candidate.label not in found or candidate.selection_score > found[candidate.label].selection_score:
                found[candidate.label] = candidate
    return list(found.values())


def _learn(
    recipe: Recipe, inputs: Inputs, collected: Collected, truth: Truth, settings: Settings, members: int
) -> Candidate:
    parts = []
    for part in (TRAINING, VALIDATION):
        chosen = collected.part == part
        labels = truth.is_better[chosen]
        weights = balanced(labels, _importance(truth.advantage[chosen], settings), collected.pair[chosen])
        parts.append(Examples(_inputs(collected, inputs, chosen), labels, weights))
    training, validation = parts
    network = fit(recipe, training, validation, settings.seed, members)
    log_odds = network.log_odds(validation.inputs).astype(np.float64)
    return Candidate(
        recipe, inputs, network, log_odds, selection_score(log_odds, _take(truth, collected.part == VALIDATION))
    )


def _importance(advantage: Numbers, settings: Settings) -> Numbers:
    """What a state counts: the same for all, or its advantage's size beside the mean of that, so that none counts nothing."""
    if not settings.by_advantage:
        return np.ones(len(advantage))
    sizes: Numbers = np.abs(advantage)
    return sizes + float(sizes.mean())


def _inputs(collected: Collected, inputs: Inputs, chosen: NDArray[np.bool_]) -> Floats:
    """What a network of that kind reads of the chosen states: (n, d)."""
    parts: list[NDArray[Any]] = []
    if inputs != "hidden":
        parts.append(collected.features[chosen])
    if inputs != "agnostic" and collected.hidden is not None:
        parts.append(collected.hidden[chosen])
    return np.concatenate(parts, axis=1, dtype=np.float32)


def _truth(collected: Collected, margin: float) -> Truth:
    advantage = collected.outcomes.advantage
    return Truth(advantage, advantage > margin, collected.outcomes.problem, collected.weight)


def _take(truth: Truth, chosen: NDArray[np.bool_]) -> Truth:
    weight = None if truth.weight is None else truth.weight[chosen]
    return Truth(truth.advantage[chosen], truth.is_better[chosen], truth.problem[chosen], weight)


def _check(collected: Collected, truth: Truth) -> None:
    for part, called in enumerate(SPLIT):
        _check_part(truth.is_better[collected.part == part], "to train on", f"the {called} part", len(truth.is_better))
        if part != TRAINING and not (collected.is_whole & (collected.part == part)).any():
            raise UsageError(
                f"no solution of the {called} part was collected to its end: what a tau does cannot be told",
                "go on with the command that collected them",
            )
    if len(collected.pairs) > 1:  # each counts as much in learning: a few states must not
        for index, pair in enumerate(collected.pairs):
            for part in sorted({*collected.part[collected.pair == index]} - {TEST}):
                chosen = (collected.part == part) & (collected.pair == index)
                of = f"the {SPLIT[part]} part of draft {pair['draft']['name']}"
                _check_part(truth.is_better[chosen], "to train on", of, len(truth.is_better))


def _check_part(labels: NDArray[np.bool_], what_for: str, of: str, num_states: int) -> None:
    for members, what in ((labels, "with"), (~labels, "without")):
        if members.sum() < MIN_CLASS:
            raise UsageError(
                f"too few states {what_for}: {int(members.sum())} {what} an advantage in {of}, of {num_states} states in all",
                "collect more problems: arbitrage collect",
            )


# --- the card


def _card(
    collected: Collected, chosen: Candidate, settings: Settings, *, name: str, command: Sequence[str], created: str
) -> Card:
    reward = (
        dict(collected.rewards[0]) if len(collected.rewards) == 1 else {"kind": "several", "all": list(collected.rewards)}
    )
    return Card(
        name=name,
        features=FEATURES if chosen.inputs != "hidden" else (),
        hidden_size=0 if chosen.inputs == "agnostic" or collected.hidden is None else collected.hidden.shape[1],
        pairs=collected.pairs,
        reward=reward,
        margin=settings.margin,
        data={"runs": list(collected.runs), "seed": settings.seed, "by_advantage": settings.by_advantage},
        metrics={},
        taus={},
        command=tuple(command),
        version=__version__,
        created=created,
    )


def _counts(collected: Collected, truth: Truth) -> dict[str, Any]:
    """Problems, states, and states worth escalating, of each part."""
    counts = {}
    for part, called in enumerate(SPLIT):
        chosen = collected.part == part
        counts[called] = {
            "problems": len(np.unique(truth.problem[chosen])),
            "states": int(chosen.sum()),
            "improvable": int(truth.is_better[chosen].sum()),
        }
    return {"parts": counts}


def _taus(probability: Numbers, collected: Collected, choosing: NDArray[np.bool_], testing: NDArray[np.bool_]) -> TauTable:
    """The taus: spread and named on the validation, with the figures that they have on the test."""
    spread = spread_taus(probability[choosing])
    named_on = make_table(probability[choosing], collected.outcomes.take(choosing), spread, collected.costs)
    return tabulate(named_on, probability[testing], collected.outcomes.take(testing))


def _metrics(
    probability: Numbers,
    collected: Collected,
    truth: Truth,
    choosing: NDArray[np.bool_],
    testing: NDArray[np.bool_],
) -> dict[str, Any]:
    """Every number's measures on the test: the head's, and those that need no training, or no thought."""
    tested = _take(truth, testing)
    measured: dict[str, Any] = {}
    for number, values in _numbers(probability, collected).items():
        fixed = number in ("always", "never")
        threshold = 0.5 if fixed else best_threshold(values[choosing], truth.is_better[choosing])
        figures = measure(values[testing], tested, threshold, is_probability=fixed or number == "arbitrage")
        measured[number] = {name: [one.value, one.low, one.high] for name, one in figures.items()}
    return {"test": measured, "threshold": best_threshold(probability[choosing], truth.is_better[choosing])}


def _numbers(probability: Numbers, collected: Collected) -> dict[str, Numbers]:
    """What the head is measured beside: higher means rather escalate."""
    count = len(probability)
    columns = dict(zip(FEATURES, collected.features.T.astype(np.float64), strict=True))
    plain = {name: sum(weight * columns[feature] for feature, weight in sums.items()) for name, sums in BASELINES.items()}
    return {
        "arbitrage": probability,
        **plain,
        "rsd": 1.0 - collected.outcomes.draft_reward,
        "random": np.random.default_rng(0).random(count),
        "always": np.ones(count),
        "never": np.zeros(count),
    }

"""Trains a router's head on collected states: learn, choose, calibrate, measure.

Problems are split three ways. Heads learn on the training part. The validation part decides which of them is taken, when learning
stops, and the calibration. Figures of the head are measured on the test part, which decides nothing of it. The table of taus is of
both other parts. The same states, settings and machine give the same head.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arbitrage_cli import __version__
from arbitrage_cli.errors import UsageError
from arbitrage_cli.routing.features import FEATURES
from arbitrage_cli.routing.head import Head, HeadCard, Network, digest_of_problem
from arbitrage_cli.routing.pair_costs import Costs
from arbitrage_cli.routing.policies import WRONG_EQUATION
from arbitrage_cli.routing.thresholds import TauTable
from arbitrage_cli.stats.ranking import Truth, measure, selection_lead, selection_score, selection_score_gaps
from arbitrage_cli.training.examples import SPLIT, TEST, TRAINING, VALIDATION, Collected
from arbitrage_cli.training.fit import MEMBERS, RECIPES, Examples, Recipe, balanced, calibrate, fit
from arbitrage_cli.training.tau_tables import Beginnings, make_table, spread_taus

Numbers = NDArray[np.float64]
Progress = Callable[[str], None]
"""Called with what is being done, in words."""

BASELINES: Mapping[str, Mapping[str, float]] = {
    "lowest logprob": {"logprob_min": -1},
    "mean logprob": {"logprob_mean": -1},
    "equations": {"logprob_mean": -1, "wrong_equations": WRONG_EQUATION},
    "entropy": {"entropy_first": 1},
}
"""Numbers that route without a head: weighted sums of features."""

COMPARED = (*BASELINES, "random")
"""What a head must be better than to be worth training."""

MIN_CLASS = 10  # states of each class in each part
COLLECT_TO_THE_END = "run the command that collected them again: it resumes"


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How to learn. A step is worth escalating if its advantage is above `margin`."""

    margin: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A network that was learned, and its log-odds and selection score on the validation part."""

    recipe: Recipe
    network: Network
    log_odds: Numbers
    selection_score: float

    @property
    def size(self) -> int:
        layer = self.network.layer
        return self.network.output.size + (sum(array.size for array in layer) if layer else 0)


def train(
    collected: Collected,
    settings: TrainSettings,
    *,
    name: str,
    command: Sequence[str],
    created: str,
    on_progress: Progress = lambda text: None,
) -> Head:
    """The head of these states. UsageError if there are too few of them, or nothing can be learned from them."""
    learner = _Learner(collected, settings, _truth(collected, settings.margin))
    learner.check()
    candidates = learner.candidates(on_progress)
    chosen = choose(candidates, learner.truth_of(VALIDATION))
    if chosen.recipe.units:
        on_progress(f"averaging {MEMBERS} of {chosen.recipe.label}")
        chosen = learner.learn(chosen.recipe, MEMBERS)
    on_progress("calibrating")
    validation = learner.truth_of(VALIDATION)
    knots = calibrate(chosen.log_odds, validation.is_better, validation.weight)
    card = _card(collected, settings, name=name, command=command, created=created)
    head = Head(chosen.network, knots, card)
    on_progress("measuring on the test")
    probability = head.probabilities(collected.features)
    members = MEMBERS if chosen.recipe.units else 1
    metrics = {
        **_metrics(probability, learner),
        "calibration": "platt",
        "architecture": {"recipe": asdict(chosen.recipe), "members": members},
        "candidates": [
            {"candidate": one.recipe.label, **asdict(one.recipe), "selection_score": one.selection_score}
            for one in candidates
        ],
    }
    data = {**card.data, "parts": learner.counts()}
    card = replace(card, data=data, metrics=metrics, taus=_taus(head, probability, collected).to_json())
    return Head(chosen.network, knots, card)


def with_taus(head: Head, collected: Collected, costs: Costs | None = None, *, name: str | None = None) -> Head:
    """The same head with taus chosen and measured on other states, at the costs of this machine or else the collected ones."""
    card = head.card
    head.check_steps(collected.step_end)
    whole = collected.is_whole
    if not whole.any():
        raise UsageError("no solution of these runs was collected to its end", COLLECT_TO_THE_END)
    _check_part(collected.outcomes.advantage[whole] > 0, "to calibrate on", "these runs", len(whole))
    probability = head.probabilities(collected.features)[whole]
    outcomes, beginnings = collected.outcomes.take(whole), _beginnings(head, collected, whole)
    table = make_table(probability, outcomes, spread_taus(probability), costs or collected.costs, beginnings)
    about = {
        "runs": list(collected.runs),
        "rewards": list(collected.rewards),
        "costs": "the runs" if costs is None else "the machine that calibrated",
    }
    made = replace(card, name=name or card.name, taus=table.to_json(), data={**card.data, "taus_of": about})
    return Head(head.network, head.knots, made)


def choose(candidates: Sequence[Candidate], truth: Truth) -> Candidate:
    """The simplest candidate within one standard error, over problems, of the best on the validation part.

    Fewer numbers are simpler. The rule of one standard error: L. Breiman and others, Classification and Regression Trees (1984), 3.4.3.
    """
    best = max(candidates, key=lambda one: one.selection_score)

    def is_as_good(candidate: Candidate) -> bool:
        gaps = selection_score_gaps(best.log_odds, candidate.log_odds, truth)
        return candidate is best or best.selection_score - candidate.selection_score <= float(np.nanstd(gaps))

    simplest_first = sorted(candidates, key=lambda one: (one.size, -one.selection_score))
    return next(one for one in simplest_first if is_as_good(one))


@dataclass(frozen=True, slots=True, eq=False)
class _Learner:
    """What heads learn from: states, settings, and which states are worth escalating."""

    collected: Collected
    settings: TrainSettings
    truth: Truth

    def truth_of(self, part: int) -> Truth:
        return _take(self.truth, self.collected.part == part)

    def check(self) -> None:
        """UsageError if a part, or a pair in it, has too few states to learn from."""
        collected, count = self.collected, len(self.truth.is_better)
        for part, called in enumerate(SPLIT):
            _check_part(self.truth_of(part).is_better, "to train on", f"the {called} part", count)
            if part != TRAINING and not (collected.is_whole & (collected.part == part)).any():
                reason = f"no solution of the {called} part was collected to its end, so taus cannot be measured"
                raise UsageError(reason, COLLECT_TO_THE_END)
        if len(collected.pairs) > 1:  # each counts the same, so none may have only a few states
            for index, pair in enumerate(collected.pairs):
                for part in sorted({*collected.part[collected.pair == index]} - {TEST}):
                    labels = self.truth.is_better[(collected.part == part) & (collected.pair == index)]
                    _check_part(labels, "to train on", f"the {SPLIT[part]} part of draft {pair['draft']['name']}", count)

    def candidates(self, on_progress: Progress) -> list[Candidate]:
        """All recipes; of each form, the best penalty."""
        found: dict[str, Candidate] = {}
        for recipe in RECIPES:
            if recipe.label not in found:
                on_progress(f"learning: {recipe.label}")
            candidate = self.learn(recipe)
            if recipe.label not in found or candidate.selection_score > found[recipe.label].selection_score:
                found[recipe.label] = candidate
        return list(found.values())

    def learn(self, recipe: Recipe, members: int = 1) -> Candidate:
        training, validation = self._examples(TRAINING), self._examples(VALIDATION)
        network = fit(recipe, training, validation, self.settings.seed, members)
        log_odds = network.log_odds(validation.inputs).astype(np.float64)
        return Candidate(recipe, network, log_odds, selection_score(log_odds, self.truth_of(VALIDATION)))

    def counts(self) -> dict[str, Any]:
        """Problems, states, and states worth escalating in each part."""
        parts = {called: self.truth_of(part) for part, called in enumerate(SPLIT)}
        return {
            called: {
                "problems": len(np.unique(truth.problem)),
                "states": len(truth.problem),
                "improvable": int(truth.is_better.sum()),
            }
            for called, truth in parts.items()
        }

    def _examples(self, part: int) -> Examples:
        """What a network learns from: each class of each pair counts the same."""
        chosen, truth = self.collected.part == part, self.truth_of(part)
        weights = balanced(truth.is_better, self.collected.pair[chosen])
        return Examples(self.collected.features[chosen], truth.is_better, weights)


def _truth(collected: Collected, margin: float) -> Truth:
    advantage = collected.outcomes.advantage
    return Truth(advantage, advantage > margin, collected.outcomes.problem, collected.weight)


def _take(truth: Truth, chosen: NDArray[np.bool_]) -> Truth:
    weight = None if truth.weight is None else truth.weight[chosen]
    return Truth(truth.advantage[chosen], truth.is_better[chosen], truth.problem[chosen], weight)


def _check_part(labels: NDArray[np.bool_], what_for: str, of: str, num_states: int) -> None:
    for members, what in ((labels, "with"), (~labels, "without")):
        if members.sum() < MIN_CLASS:
            raise UsageError(
                f"too few states {what_for}: {int(members.sum())} {what} an advantage in {of}, of {num_states} states in all",
                "collect more problems: arbitrage collect",
            )


# --- the card


def _card(collected: Collected, settings: TrainSettings, *, name: str, command: Sequence[str], created: str) -> HeadCard:
    reward = (
        dict(collected.rewards[0]) if len(collected.rewards) == 1 else {"kind": "several", "all": list(collected.rewards)}
    )
    return HeadCard(
        name=name,
        features=FEATURES,
        pairs=collected.pairs,
        reward=reward,
        margin=settings.margin,
        data={
            "runs": list(collected.runs),
            "seed": settings.seed,
            "learned": _learned(collected),
            "step_end": asdict(collected.step_end),
        },
        metrics={},
        taus={},
        command=tuple(command),
        version=__version__,
        created=created,
    )


def _learned(collected: Collected) -> str:
    """The digests of all problems but those of the test."""
    numbers = np.unique(collected.outcomes.problem[collected.part != TEST])
    return " ".join(sorted(digest_of_problem(collected.questions[number]) for number in numbers))


def _taus(head: Head, probability: Numbers, collected: Collected) -> TauTable:
    """The table of taus on the whole solutions that no network learned from: the validation and the test part."""
    chosen = collected.is_whole & (collected.part != TRAINING)
    outcomes, begun = collected.outcomes.take(chosen), _beginnings(head, collected, chosen)
    return make_table(probability[chosen], outcomes, spread_taus(probability[chosen]), collected.costs, begun)


def _beginnings(head: Head, collected: Collected, chosen: NDArray[np.bool_]) -> Beginnings | None:
    """What the head says of the beginnings of the chosen states' steps; None if their texts were not kept."""
    try:
        rows, state, tokens = collected.beginnings(chosen)
    except ValueError:
        return None
    return Beginnings(state, tokens, head.probabilities(rows))


def _metrics(probability: Numbers, learner: _Learner) -> dict[str, Any]:
    """The measures of the head's number, and of those without a head, on the test part."""
    testing, tested = learner.collected.part == TEST, learner.truth_of(TEST)
    measured: dict[str, Any] = {}
    leads: dict[str, Any] = {}
    for number, values in numbers(probability, learner.collected).items():
        figures = measure(values[testing], tested, is_probability=number == "arbitrage")
        measured[number] = {name: [one.value, one.low, one.high] for name, one in figures.items()}
        if number in COMPARED:
            lead = selection_lead(probability[testing], values[testing], tested)
            leads[number] = [lead.value, lead.low, lead.high]
    return {"test": measured, "leads": leads}


def numbers(probability: Numbers, collected: Collected) -> dict[str, Numbers]:
    """The head's number of each state (n,), and those that it is compared with, by name.

    `rsd` knows the true reward of the drafted step, and `agreement` whether the target's step concludes the same.
    """
    columns = dict(zip(FEATURES, collected.features.T.astype(np.float64), strict=True))
    plain = {name: sum(weight * columns[feature] for feature, weight in sums.items()) for name, sums in BASELINES.items()}
    return {
        "arbitrage": probability,
        **plain,
        "rsd": 1.0 - collected.outcomes.draft_reward,
        "agreement": 1.0 - collected.agrees,
        "random": np.random.default_rng(0).random(len(probability)),
    }

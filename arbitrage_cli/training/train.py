"""Trains a router on collected states: fits several networks, then chooses, calibrates and measures one network.

Networks are fitted to the training part. The validation part decides when fitting stops, which network is chosen, and how it
is calibrated. The test part only measures the router. The table of taus is computed from both the validation part and the
test part. Training is deterministic.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arbitrage_cli import __version__
from arbitrage_cli.errors import UsageError
from arbitrage_cli.numbers.intervals import Numbers
from arbitrage_cli.routing.features import FEATURES
from arbitrage_cli.routing.policies import WRONG_EQUATION
from arbitrage_cli.routing.presets import TauTable
from arbitrage_cli.routing.router import Network, Router, RouterCard, digest_of_problem
from arbitrage_cli.training.fit import MEMBERS, RECIPES, Examples, Recipe, balanced, calibrate, fit
from arbitrage_cli.training.ranking import Truth, figure, measure, selection_gaps, selection_score
from arbitrage_cli.training.states import SPLIT, TEST, TRAINING, VALIDATION, Collected
from arbitrage_cli.training.tau_tables import Prefixes, make_table, spread_taus

Progress = Callable[[str], None]

BASELINES: Mapping[str, Mapping[str, float]] = {  # scores as weighted sums of features
    "lowest logprob": {"logprob_min": -1},
    "mean logprob": {"logprob_mean": -1},
    "equations": {"logprob_mean": -1, "wrong_equations": WRONG_EQUATION},
    "entropy": {"entropy_first": 1},
}
THINKING = "arbitrage, thinking steps"  # the router's figures for these steps alone
COMPARED = (*BASELINES, "random")  # a useful router outperforms all of them

MIN_CLASS = 10  # states per class in each part
COLLECT_TO_THE_END = "to resume the run, repeat the command that collected the states"


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A fitted network, with its log-odds and selection score on the validation part."""

    recipe: Recipe
    network: Network
    log_odds: Numbers
    selection_score: float


def train(
    collected: Collected,
    *,
    name: str,
    command: Sequence[str],
    created: str,
    seed: int = 0,
    on_progress: Progress = lambda text: None,
) -> Router:
    """Train a router. Raises UsageError if there are too few states, or if the router learned nothing."""
    _check(collected)
    candidates, validation = _candidates(collected, seed, on_progress), _truth_of(collected, VALIDATION)
    chosen = choose(candidates, validation)
    members = MEMBERS if chosen.recipe.units else 1
    if members > 1:
        on_progress(f"averaging {members} of {chosen.recipe.label}")
        chosen = _learn(collected, chosen.recipe, seed, members)
    on_progress("calibrating")
    network = chosen.network.moved(*calibrate(chosen.log_odds, validation.is_better, validation.weight))
    card = _card(collected, seed, name=name, command=tuple(command), created=created)
    on_progress("measuring on the test")
    router = Router(network, card)
    metrics = {
        **_metrics(router.probabilities(collected.features), collected),
        "calibration": "platt",
        "architecture": {"recipe": asdict(chosen.recipe), "members": members},
        "candidates": [
            {"candidate": found.recipe.label, **asdict(found.recipe), "selection_score": found.selection_score}
            for found in candidates
        ],
    }
    unlearned = collected.is_whole & (collected.part != TRAINING)
    taus = _table(router, collected, unlearned).to_json()
    return Router(network, replace(card, metrics=metrics, taus=taus))


def with_taus(router: Router, collected: Collected, *, name: str | None = None) -> Router:
    """Return the router with a table of taus computed from other states.

    Problems on which the router was trained are excluded. Raises RouterError if steps end differently than in the training
    states; UsageError if there are too few states.
    """
    router.check_steps(collected.runs[0].step_end)
    if not collected.is_whole.any():
        raise UsageError("these runs contain no finished solution", COLLECT_TO_THE_END)
    chosen = collected.is_whole & ~np.array(router.card.known(collected.questions))[collected.outcomes.problem]
    _check_part(collected, chosen, "to make presets", "problems new to the router")
    about = {"runs": [run.about for run in collected.runs], "rewards": list(collected.rewards)}
    taus = _table(router, collected, chosen).to_json()
    data = {**router.card.data, "taus_of": about}
    return Router(router.network, replace(router.card, name=name or router.card.name, taus=taus, data=data))


def _table(router: Router, collected: Collected, chosen: NDArray[np.bool_]) -> TauTable:
    probability = router.probabilities(collected.features[chosen])
    rows, state, tokens = collected.prefixes(chosen)
    prefixes = Prefixes(state, tokens, router.probabilities(rows))
    return make_table(probability, collected.outcomes.take(chosen), spread_taus(probability), collected.costs, prefixes)


# --- learning


def choose(candidates: Sequence[Candidate], truth: Truth) -> Candidate:
    """Return the first (simplest) candidate within one standard error of the best candidate on the validation part.

    This is the one-standard-error rule of Breiman et al., Classification and Regression Trees (1984), section 3.4.3.
    """
    best = max(candidates, key=lambda candidate: candidate.selection_score)
    for candidate in candidates:
        gap, *resampled = selection_gaps(best.log_odds, candidate.log_odds, truth)
        if gap <= float(np.nanstd(resampled)):
            return candidate
    return best


def _candidates(collected: Collected, seed: int, on_progress: Progress) -> list[Candidate]:
    found: dict[str, Candidate] = {}
    for recipe in RECIPES:
        if recipe.label not in found:
            on_progress(f"learning: {recipe.label}")
        candidate = _learn(collected, recipe, seed)
        if recipe.label not in found or candidate.selection_score > found[recipe.label].selection_score:
            found[recipe.label] = candidate
    return list(found.values())


def _learn(collected: Collected, recipe: Recipe, seed: int, members: int = 1) -> Candidate:
    validation = _examples(collected, VALIDATION)
    network = fit(recipe, _examples(collected, TRAINING), validation, seed, members)
    log_odds = network.log_odds(validation.inputs).astype(np.float64)
    return Candidate(recipe, network, log_odds, selection_score(log_odds, _truth_of(collected, VALIDATION)))


def _examples(collected: Collected, part: int) -> Examples:
    chosen, is_better = collected.part == part, _truth_of(collected, part).is_better
    return Examples(collected.features[chosen], is_better, balanced(is_better, collected.pair[chosen]))


def _truth_of(collected: Collected, part: int) -> Truth:
    return _truth_at(collected, collected.part == part)


def _truth_at(collected: Collected, chosen: NDArray[np.bool_]) -> Truth:
    outcomes = collected.outcomes.take(chosen)
    return Truth(outcomes.advantage > 0, outcomes.problem, collected.weight[chosen])


# --- enough states


def _check(collected: Collected) -> None:
    for part, called in enumerate(SPLIT):
        chosen = collected.part == part
        _check_part(collected, chosen, "to train on", f"the {called} part")
        if part != TRAINING and not (collected.is_whole & chosen).any():
            reason = f"the {called} part contains no finished solution, so taus cannot be measured"
            raise UsageError(reason, COLLECT_TO_THE_END)
        # All pairs have the same weight, so each needs enough states.
        for index in np.unique(collected.pair[chosen]) if len(collected.pairs) > 1 and part != TEST else ():
            of = f"the {called} part for draft {collected.pairs[index]['draft']['name']}"
            _check_part(collected, chosen & (collected.pair == index), "to train on", of)


def _check_part(collected: Collected, chosen: NDArray[np.bool_], what_for: str, of: str) -> None:
    labels = collected.outcomes.advantage[chosen] > 0
    for members, what in ((labels, "with"), (~labels, "without")):
        if members.sum() < MIN_CLASS:
            found = f"{int(members.sum())} {what} an advantage in {of}, at least {MIN_CLASS} are needed"
            command = shlex.join(collected.runs[0].facts["command"])
            hint = f"collect more problems with a higher --limit, or from another --dataset to another -o: {command}"
            raise UsageError(f"too few states {what_for}: {found}", hint)


# --- the card


def _card(collected: Collected, seed: int, **names: Any) -> RouterCard:
    learned = np.unique(collected.outcomes.problem[collected.part != TEST])
    truths = {called: _truth_of(collected, part) for part, called in enumerate(SPLIT)}
    parts = {
        called: {
            "problems": len(np.unique(truth.problem)),
            "states": len(truth.problem),
            "improvable": int(truth.is_better.sum()),
        }
        for called, truth in truths.items()
    }
    rewards = collected.rewards
    return RouterCard(
        features=FEATURES,
        pairs=collected.pairs,
        reward=dict(rewards[0]) if len(rewards) == 1 else {"kind": "several", "all": list(rewards)},
        data={
            "runs": [run.about for run in collected.runs],
            "seed": seed,
            "learned": " ".join(sorted(digest_of_problem(collected.questions[number]) for number in learned)),
            "step_end": asdict(collected.runs[0].step_end),
            "thoughts": int(collected.features[collected.part == TRAINING, FEATURES.index("is_thought")].sum()),
            "parts": parts,
        },
        metrics={},
        taus={},
        version=__version__,
        **names,
    )


def _metrics(probability: Numbers, collected: Collected) -> dict[str, Any]:
    testing, tested = collected.part == TEST, _truth_of(collected, TEST)
    measured: dict[str, Any] = {}
    leads: dict[str, Any] = {}
    for name, values in scores(probability, collected).items():
        measured[name] = measure(values[testing], tested, is_probability=name == "arbitrage")
        if name in COMPARED:
            leads[name] = figure(selection_gaps(probability[testing], values[testing], tested), tested)
    thoughts = testing & (collected.features[:, FEATURES.index("is_thought")] == 1)
    if thoughts.any():
        measured[THINKING] = measure(probability[thoughts], _truth_at(collected, thoughts), is_probability=True)
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

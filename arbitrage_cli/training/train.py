"""Trains a router on collected states, measures it, and describes it on its card.

The network is learned in `learning`.
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from arbitrage_cli import __version__
from arbitrage_cli.errors import UsageError
from arbitrage_cli.learning.examples import FOLDS
from arbitrage_cli.learning.learn import Announce, learn
from arbitrage_cli.learning.quality import Truth, auc_gaps, figure, measure
from arbitrage_cli.numbers.intervals import Mask, Numbers
from arbitrage_cli.routing.features import FEATURES, FEATURES_VERSION
from arbitrage_cli.routing.presets import TauTable
from arbitrage_cli.routing.router import Router, RouterCard, digest_of_problem
from arbitrage_cli.training.collected import Collected
from arbitrage_cli.training.taus import Prefixes, make_table, spread_taus
from arbitrage_cli.types import Json

BASELINES: Mapping[str, Mapping[str, float]] = {  # scores as weighted sums of features
    "lowest logprob": {"logprob_min": -1},
    "mean logprob": {"logprob_mean": -1},
    "entropy": {"entropy_first": 1},
}
COMPARED = (*BASELINES, "random")  # a useful router outperforms all of them

MIN_CLASS = 30  # states per class
SPARE = 1.2  # factor on an estimated number of problems
ENOUGH_SOLUTIONS = 300  # for `careful` to accept a fifth of the steps of a real pair; estimated from 99 solutions as 280
COLLECT_TO_THE_END = "to resume the run, repeat the command that collected the states"


def train(
    collected: Collected,
    *,
    name: str,
    command: Sequence[str],
    created: str,
    seed: int = 0,
    on_progress: Announce = lambda text: None,
) -> Router:
    """Train a router. With several pairs, its figures and presets are those of the last run's pair.

    Raises UsageError if there are too few states, or if the router learned nothing.
    """
    _check(collected)
    learned = learn(collected.examples, seed=seed, on_progress=on_progress)
    card = _card(collected, seed, name=name, command=tuple(command), created=created)
    metrics = {
        **_metrics(learned.probability, collected),
        "architecture": {"recipe": asdict(learned.recipe), "members": FOLDS},
    }
    router = Router(learned.network, card)
    chosen = collected.is_whole & collected.is_measured
    taus = _table(router, collected, chosen, learned.probability).to_json()
    return Router(learned.network, replace(card, metrics=metrics, taus=taus))


def with_taus(router: Router, collected: Collected, *, name: str | None = None) -> Router:
    """Return the router with a table of taus computed from other states.

    Problems on which the router was trained are excluded. Raises RouterError if steps end differently than in the training
    states; UsageError if there are too few states.
    """
    router.check_steps(collected.runs[0].conditions.step_end)
    _check_solutions(collected)
    chosen = collected.is_whole & ~np.array(router.card.known(collected.questions))[collected.outcomes.problem]
    _check_part(collected, chosen, "of new problems to make presets")
    about = {"runs": [run.about for run in collected.runs], "rewards": list(collected.rewards)}
    taus = _table(router, collected, chosen, router.probabilities(collected.features)).to_json()
    data = {**router.card.data, "taus_of": about}
    return Router(router.network, replace(router.card, name=name or router.card.name, taus=taus, data=data))


def _table(router: Router, collected: Collected, chosen: Mask, probability: Numbers) -> TauTable:
    """Return the table of the chosen states, given the probabilities of all states."""
    rows, state, tokens = collected.prefixes(chosen)
    prefixes = Prefixes(state, tokens, router.probabilities(rows))
    own = probability[chosen]
    return make_table(own, collected.outcomes.take(chosen), spread_taus(own), collected.costs, prefixes)


# --- enough states


def _check(collected: Collected) -> None:
    _check_solutions(collected)
    for index, pair in enumerate(collected.pairs):  # all pairs have the same weight, so each needs enough states
        of = f" for draft {pair['draft'].name}" if len(collected.pairs) > 1 else ""
        _check_part(collected, collected.pair == index, f"to train on{of}")


def _check_solutions(collected: Collected) -> None:
    if not (collected.is_whole & collected.is_measured & collected.outcomes.is_written).any():
        raise UsageError("the runs contain no finished solution, so taus cannot be measured", COLLECT_TO_THE_END)


def _check_part(collected: Collected, chosen: Mask, what_for: str) -> None:
    labels = collected.outcomes.advantage[chosen] > 0
    for members, what in ((labels, "in which the target's step is better"), (~labels, "in which it is not")):
        if members.sum() < MIN_CLASS:
            found = f"{int(members.sum())} {what}; at least {MIN_CLASS} are needed"
            raise UsageError(f"too few states {what_for}: {found}", _how_to_collect_more(collected, chosen))


def problems_needed(problems: int, with_advantage: int, without: int) -> int | None:
    """Return about how many problems have enough states of both classes, or None if these problems have enough.

    These problems are assumed to be typical. A class without a state is assumed to have one in the next problem.
    """
    rarest = min(with_advantage, without)
    if rarest >= MIN_CLASS:
        return None
    counted = (problems, rarest) if rarest else (problems + 1, 1)
    return math.ceil(SPARE * MIN_CLASS * counted[0] / counted[1])


def _how_to_collect_more(collected: Collected, chosen: Mask) -> str:
    labels = collected.outcomes.advantage[chosen] > 0
    num_problems = len(np.unique(collected.outcomes.problem[chosen]))
    needed = problems_needed(num_problems, int(labels.sum()), int((~labels).sum())) or num_problems
    others = len(collected.questions) - num_problems  # for example, problems that the router knows
    hint = f"collect about {needed + others:,} problems"
    command = with_limit(collected.runs[0].conditions.command, needed + others) if len(collected.runs) == 1 else None
    if command:
        hint += f": {shlex.join(command)}"
    return f"{hint}; if the data set has fewer, use another --dataset and another --output"


def with_limit(command: Sequence[str], size: int) -> list[str] | None:
    """Return a command line whose --limit selects `size` problems, or None if it has no --limit."""
    changed = list(command)
    for index, word in enumerate(command):
        name, equals, value = word.partition("=")
        if name == "--limit" and (equals or index + 1 < len(command)):
            first, dash, _ = (value if equals else command[index + 1]).partition("-")
            limit = f"{first}-{int(first) + size - 1}" if dash else str(size)
            changed[index : index + 2 - len(equals)] = [name, limit]
            return changed
    return None


# --- the card


def _card(collected: Collected, seed: int, **names: Any) -> RouterCard:
    measured = collected.is_measured
    size = {
        "problems": len(np.unique(collected.outcomes.problem[measured])),
        "states": int(measured.sum()),
        "improvable": int((collected.outcomes.advantage[measured] > 0).sum()),
    }
    rewards = collected.rewards
    return RouterCard(
        features_version=FEATURES_VERSION,
        features=FEATURES,
        pairs=collected.pairs,
        reward=dict(rewards[0]) if len(rewards) == 1 else {"kind": "several", "all": list(rewards)},
        data={
            "runs": [run.about for run in collected.runs],
            "seed": seed,
            "learned": " ".join(sorted(map(digest_of_problem, collected.questions))),
            "step_end": asdict(collected.runs[0].conditions.step_end),
            "thoughts": int(collected.features[:, FEATURES.index("is_thought")].sum()),
            "parts": {"cross-validation": size},
        },
        metrics={},
        taus={},
        version=__version__,
        **names,
    )


def _metrics(probability: Numbers, collected: Collected) -> Json:
    chosen = collected.is_measured
    truth = Truth(collected.outcomes.advantage[chosen] > 0, collected.outcomes.problem[chosen])
    measured: Json = {}
    leads: Json = {}
    for name, values in scores(probability, collected).items():
        measured[name] = measure(values[chosen], truth, is_probability=name == "arbitrage")
        if name in COMPARED:
            leads[name] = figure(auc_gaps(probability[chosen], values[chosen], truth), truth)
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

"""The figures of a run: accuracy, time, routing and cost of each policy, with how sure they are.

One function makes them, as JSON, from the rows of a run; tables, reports and `--json` are drawn from that and from nothing
else. What each figure is stands in `definitions`, and wherever a figure is shown. Every ratio has its numerator and
denominator beside it (`ratios`). What is not known is None, never a guess. Knows no model, no file and no terminal.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from arbitrage_cli.errors import UsageError
from arbitrage_cli.evaluation import throughput
from arbitrage_cli.evaluation.costs import KINDS, Measured, Units, measure, tokens_and_seconds
from arbitrage_cli.evaluation.curve import curve
from arbitrage_cli.runs.labels import tau_in_json
from arbitrage_cli.runs.rows import (
    Group,
    Level,
    Outcome,
    Result,
    group_rows,
    paired,
    paired_done,
    problems_of,
    sums_by_problem,
    total,
)
from arbitrage_cli.stats.intervals import Floats, Interval, bootstrap, paired_difference, ratio_of_sums, wilson
from arbitrage_cli.stats.ratios import Ratios, over, ratio

SCHEMA = 1

MIN_PROBLEMS = 5
"""With fewer there is nothing to resample a ratio of times from."""

SPEEDUP_BINS = tuple(2.0 ** (quarter / 4) for quarter in range(-12, 13))
"""Edges of the histogram of `problem_speedups`: quarters of an octave from 1/8 to 8. What is outside is in the end bins."""

THROUGHPUT = ("problems_per_second", "throughput_ratio", "throughput_ratio_interval", "blocks", "blocks_compared")
LATENCY = (
    *("seconds_mean", "seconds_median", "seconds_p90", "speedup", "speedup_interval", "problem_speedups"),
    *("target_token_equivalents", "equivalent_speedup", "equivalent_speedup_interval"),
    *("projected_speedup", "projected_speedup_interval", "projection_terms"),
)
"""Figures of a policy that only runs of the one or the other kind have: of problems a second, or of seconds a problem."""

OUTCOMES: Mapping[str, Outcome] = {"correct": "correct", "incorrect": "incorrect", "unscored": "unscored", "errors": "error"}


@dataclass(frozen=True, slots=True)
class _Scope:
    """What the figures of every policy of a run are made with."""

    num_problems: int
    samples: int
    levels: Mapping[str, Level] | None  # of all planned problems; None where they are not known
    costs: Measured
    cost_ratio: float | None
    alone: Group | None  # the target
    concurrency: int = 1

    @property
    def is_throughput(self) -> bool:
        """Whether several problems were solved at once: then no time is that of one problem."""
        return self.concurrency > 1


def figures(run: Mapping[str, Any], rows: Iterable[Mapping[str, Any]], *, cost_ratio: float | None = None) -> dict[str, Any]:
    """All figures of a run, as JSON. The order of the rows does not matter.

    `cost_ratio` asks for the projection to a pair whose target costs so many times as much a token as its draft.
    UsageError if it is not above 0, or if the rows are not those of one run.
    """
    if cost_ratio is not None and not 0 < cost_ratio < math.inf:
        raise UsageError(f"a cost ratio of {cost_ratio:g} makes no sense", "give a number above 0: --cost-ratio 8")
    groups = group_rows(run, rows)
    seen = problems_of(groups)
    num_problems = _num_planned(run, len(seen))
    concurrency = run.get("concurrency") or 1
    costs = measure(result for group in groups for result in group.results.values())
    scope = _Scope(
        num_problems=num_problems,
        samples=_num_samples(run, groups),
        levels=_levels(run, seen, num_problems),
        costs=costs,
        cost_ratio=cost_ratio,
        alone=_find(groups, "target"),
        concurrency=concurrency,
    )
    policies = [_policy(group, scope) for group in groups]
    dataset = run.get("dataset") or {}
    return {
        "schema": SCHEMA,
        "dataset": dataset.get("name"),
        "dataset_sha256": dataset.get("sha256"),
        "n": scope.num_problems,
        "samples": scope.samples,
        "concurrency": concurrency,
        "policies": policies,
        "curves": [] if scope.is_throughput else _curves(groups),
        "measured_cost_ratio": None if scope.is_throughput else costs.cost_ratio,
        "projection": None
        if cost_ratio is None or scope.is_throughput
        else {"cost_ratio": cost_ratio, "is_projection": True},
        "token_costs": {"draft": _costs(costs, "draft"), "target": _costs(costs, "target")},
        "speedup_bins": list(SPEEDUP_BINS),
        "notes": [
            *(throughput.notes(concurrency, groups, policies) if scope.is_throughput else ()),
            *_notes(scope, policies),
        ],
    }


def _num_planned(run: Mapping[str, Any], num_seen: int) -> int:
    """Problems that the run was asked for; where the run does not say, those that it has a row for."""
    planned = run.get("planned")
    return num_seen if planned is None else max(int(planned), num_seen)


def _levels(run: Mapping[str, Any], seen: Mapping[str, Level], num_problems: int) -> Mapping[str, Level] | None:
    """Levels by problem id: an earlier version did not record them, so that those of problems without a row are not known."""
    levels = {**(run.get("levels") or {}), **seen}
    return levels if len(levels) == num_problems else None


def _num_samples(run: Mapping[str, Any], groups: Sequence[Group]) -> int:
    asked = (run.get("sampling") or {}).get("samples") or 1
    return max([asked, *(sample + 1 for group in groups for _, sample in group.results)])


def _find(groups: Sequence[Group], policy: str) -> Group | None:
    return next((group for group in groups if group.policy == policy and group.results), None)


def _curves(groups: Sequence[Group]) -> list[Mapping[str, Any]]:
    """One for each policy that was run at several taus."""
    names = dict.fromkeys(group.policy for group in groups if group.tau is not None)
    draft, target = _find(groups, "draft"), _find(groups, "target")
    swept = {name: [group for group in groups if group.policy == name and group.tau is not None] for name in names}
    return [curve(name, taus, draft, target) for name, taus in swept.items() if len(taus) > 1]


def _notes(scope: _Scope, policies: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know before reading the figures."""
    notes = []
    if scope.alone is None:
        notes.append(
            "There is no result of policy target: nothing can be compared with the target alone, so speed-ups are not given."
        )
    if scope.samples > 1:
        notes.append(
            f"Each problem was tried {scope.samples} times: accuracy is the mean over all attempts, intervals are over problems."
        )
    if any(0 < (policy["problem_speedups"] or {"n": 0})["n"] < MIN_PROBLEMS for policy in policies):
        notes.append(f"A speed-up over fewer than {MIN_PROBLEMS} problems has no interval: it takes more problems.")
    missing = sum(policy["missing"] for policy in policies)
    if missing:
        notes.append(
            f"The run is not complete: {missing} attempts are missing, and accuracies are over those that were made: "
            "a policy's may be over other problems than another's."
        )
    return notes


def _costs(measured: Measured, model: str) -> dict[str, Any]:
    """Tokens, seconds and seconds per token of each kind."""
    costs = {}
    for kind in KINDS:
        tokens, seconds = tokens_and_seconds(getattr(measured, model), kind)
        costs[kind] = {"tokens": tokens, "seconds": seconds, "seconds_per_token": over(seconds, tokens)}
    return costs


# --- one policy


def _policy(group: Group, scope: _Scope) -> dict[str, Any]:
    made: dict[str, Any] = {
        "policy": group.policy,
        "tau": tau_in_json(group.tau),
        "label": group.label,
        "number": group.number,
        "ratios": {},
    }
    made |= _accuracy(group, scope, scope.num_problems, made["ratios"])
    made |= dict.fromkeys(THROUGHPUT) | dict.fromkeys(LATENCY)
    if scope.is_throughput:
        made |= throughput.throughput(group, scope.alone, made["ratios"])
    else:
        made |= _seconds(group, made["ratios"])
        made |= _speedup(group, scope, made["ratios"])
        made["problem_speedups"] = _distribution(_seconds_table(group, scope)) if group is not scope.alone else None
        made |= _equivalents(group, scope, made["ratios"])
    made |= _routing(group, made["ratios"])
    made["time"] = _time(group)
    made["by_level"] = _by_level(group, scope)
    return made


def _accuracy(group: Group, scope: _Scope, num_problems: int, ratios: Ratios) -> dict[str, Any]:
    """Counts of every outcome, which add up to n, accuracy, and its difference from the target alone."""
    planned = num_problems * scope.samples
    outcomes = [result.outcome for result in group.results.values()]
    counts = {name: outcomes.count(outcome) for name, outcome in OUTCOMES.items()}
    return {
        "n": planned,
        **counts,
        "missing": planned - len(outcomes),
        "accuracy": ratio(ratios, "accuracy", counts["correct"], len(outcomes)),
        "accuracy_interval": _accuracy_interval(group),
        **_difference(group, scope, ratios),
    }


def _accuracy_interval(group: Group) -> Interval | None:
    """Over problems. Where these are all alike, resampling shows no spread: then as if a problem's samples were one."""
    correct = sums_by_problem(((key[0], [one.is_correct, 1.0]) for key, one in group.results.items()), 2)
    if not len(correct):
        return None
    if np.any(correct[:, 1] > 1) and len(np.unique(ratio_of_sums(correct))) > 1:
        return bootstrap(correct, ratio_of_sums)
    right, tried = (math.fsum(column) for column in correct.T)
    return wilson(right / tried * len(correct), len(correct))


def _difference(group: Group, scope: _Scope, ratios: Ratios) -> dict[str, Any]:
    if scope.alone is None or scope.alone is group:
        return {"accuracy_difference": None, "accuracy_difference_interval": None}
    pairs = paired(group, scope.alone)
    gained = sum(one.is_correct - other.is_correct for one, other in pairs)
    value = ratio(ratios, "accuracy_difference", gained, len(pairs))
    return {"accuracy_difference": value, "accuracy_difference_interval": difference_interval(pairs, scope.samples)}


def difference_interval(pairs: Sequence[tuple[Result, Result]], samples: int) -> Interval | None:
    """Interval of the accuracy of the first of each pair minus that of the second.

    Over problems; where these all differ alike, or not at all, as if a problem's samples were one.
    """
    differences = sums_by_problem(((one.key[0], [one.is_correct - other.is_correct, 1.0]) for one, other in pairs), 2)
    if samples > 1 and len(np.unique(ratio_of_sums(differences))) > 1:
        return bootstrap(differences, ratio_of_sums)
    both = [(one.is_correct, other.is_correct) for one, other in pairs]
    cells = (both.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False)))
    return paired_difference(*(cell * len(differences) / max(1, len(pairs)) for cell in cells))


def _seconds(group: Group, ratios: Ratios) -> dict[str, Any]:
    seconds = [result.seconds or 0.0 for result in group.done]
    return {
        "seconds_mean": ratio(ratios, "seconds_mean", math.fsum(seconds), len(seconds)),
        "seconds_median": float(np.median(seconds)) if seconds else None,
        "seconds_p90": float(np.percentile(seconds, 90)) if seconds else None,
    }


def _speedup(group: Group, scope: _Scope, ratios: Ratios) -> dict[str, Any]:
    table = _seconds_table(group, scope)
    value, interval = _ratio_of_columns(table, "speedup", ratios) if len(table) else (None, None)
    return {"speedup": value, "speedup_interval": interval}


def _seconds_table(group: Group, scope: _Scope) -> Floats:
    """Seconds of the target alone and of the policy, one row for each problem that both finished."""
    pairs = paired_done(group, scope.alone) if scope.alone else []
    return _table(pairs, lambda result: result.seconds or 0.0)


def _table(pairs: Sequence[tuple[Result, Result]], cost: Callable[[Result], float]) -> Floats:
    """Costs of the target alone and of the policy, one row a problem."""
    return sums_by_problem(((one.key[0], [cost(alone), cost(one)]) for one, alone in pairs), 2)


def _ratio_of_columns(table: Floats, name: str, ratios: Ratios) -> tuple[float | None, Interval | None]:
    """Ratio and interval; none where there is little to resample from, or for the target alone against itself."""
    above, below = (math.fsum(column) for column in table.T)
    is_unsure = len(table) >= MIN_PROBLEMS and not np.array_equal(*table.T)
    return ratio(ratios, name, above, below), bootstrap(table, ratio_of_sums) if is_unsure else None


def _distribution(table: Floats) -> dict[str, Any] | None:
    """How the ratios of single problems are spread."""
    timed = table[(table > 0).all(axis=1)]
    if not len(timed):
        return None
    ratios = ratio_of_sums(timed)
    points = dict(zip(("p10", "p25", "p50", "p75", "p90"), np.percentile(ratios, [10, 25, 50, 75, 90]), strict=True))
    clipped = np.clip(ratios, SPEEDUP_BINS[0], np.nextafter(SPEEDUP_BINS[-1], 0))
    return {
        "n": len(ratios),
        "slower": int((ratios < 1).sum()),
        "min": float(ratios.min()),
        **{name: float(value) for name, value in points.items()},
        "max": float(ratios.max()),
        "counts": np.histogram(clipped, SPEEDUP_BINS)[0].tolist(),
    }


def _routing(group: Group, ratios: Ratios) -> dict[str, Any]:
    done = group.done
    summed = total(result.tally for result in done)
    kept_steps, kept_tokens = sum(one.kept_steps for one in done), sum(one.kept_tokens for one in done)
    by_target = sum(one.kept_target_tokens for one in done)
    drafting, writing = summed.draft_cost, summed.target_cost
    return {
        "acceptance_rate": ratio(ratios, "acceptance_rate", summed.accepted_steps, summed.drafted_steps),
        "stopped_early_rate": ratio(ratios, "stopped_early_rate", summed.stopped_steps, summed.drafted_steps),
        "token_acceptance_rate": ratio(ratios, "token_acceptance_rate", summed.accepted_tokens, summed.drafted_tokens),
        "target_call_rate": ratio(ratios, "target_call_rate", summed.target_steps, kept_steps),
        "wasted_draft_tokens": summed.wasted_tokens,
        "target_token_share": ratio(ratios, "target_token_share", by_target, kept_tokens),
        "draft_tokens_per_second": ratio(ratios, "draft_tokens_per_second", drafting.decode_tokens, drafting.decode_seconds),
        "target_tokens_per_second": ratio(ratios, "target_tokens_per_second", writing.decode_tokens, writing.decode_seconds),
    }


def _equivalents(group: Group, scope: _Scope, ratios: Ratios) -> dict[str, Any]:
    """Cost in target tokens: as measured, against the target alone, and projected."""
    costs = [cost for result in group.done if (cost := _equivalents_of(result, scope, scope.costs.cost_ratio)) is not None]
    pairs = paired_done(group, scope.alone) if scope.alone else []
    projected = scope.cost_ratio is not None
    speedup, interval = _cost_speedup(pairs, scope, scope.costs.cost_ratio, "equivalent_speedup", ratios)
    future, future_interval = (
        _cost_speedup(pairs, scope, scope.cost_ratio, "projected_speedup", ratios) if projected else (None, None)
    )
    return {
        "target_token_equivalents": ratio(ratios, "target_token_equivalents", math.fsum(costs), len(costs)),
        "equivalent_speedup": speedup,
        "equivalent_speedup_interval": interval,
        "projected_speedup": future,
        "projected_speedup_interval": future_interval,
        "projection_terms": _terms(pairs, scope),
    }


def _equivalents_of(result: Result, scope: _Scope, cost_ratio: float | None) -> float | None:
    cost = scope.costs.units(result)
    return cost.equivalents(cost_ratio) if cost else None


def _cost_speedup(
    pairs: Sequence[tuple[Result, Result]], scope: _Scope, cost_ratio: float | None, name: str, ratios: Ratios
) -> tuple[float | None, Interval | None]:
    costs = {id(one): _equivalents_of(one, scope, cost_ratio) for pair in pairs for one in pair}
    if not costs or None in costs.values():
        return None, None
    return _ratio_of_columns(_table(pairs, lambda one: costs[id(one)] or 0.0), name, ratios)


def _terms(pairs: Sequence[tuple[Result, Result]], scope: _Scope) -> dict[str, float] | None:
    """What a projection to cost ratio R is made of: speed-up = alone / (target + draft / R + fixed)."""
    made = [scope.costs.units(one) for one, _ in pairs]
    alone = [scope.costs.units(other) for _, other in pairs]
    if not pairs or None in made or None in alone:
        return None
    known: list[Units] = [one for one in made if one]
    return {
        "alone": math.fsum(one.target + one.fixed for one in alone if one),
        "target": math.fsum(one.target for one in known),
        "draft": math.fsum(one.draft for one in known),
        "fixed": math.fsum(one.fixed for one in known),
    }


def _time(group: Group) -> dict[str, float]:
    """Seconds of the finished attempts by what they went into."""
    done = group.done
    parts = {
        f"{model}_{kind}": math.fsum(tokens_and_seconds(getattr(one.tally, f"{model}_cost"), kind)[1] for one in done)
        for model in ("draft", "target")
        for kind in KINDS
    }
    parts["router"] = math.fsum(one.router_seconds for one in done)
    parts["reward"] = math.fsum(one.reward_seconds for one in done)
    wall = math.fsum(one.share.seconds if one.share else one.seconds or 0.0 for one in done)
    return {"wall": wall, **parts, "rest": wall - math.fsum(parts.values())}


def _by_level(group: Group, scope: _Scope) -> dict[str, Any] | None:
    """Accuracy and speed-up of each level; None where the data set has none, or they are not known of all problems."""
    known = scope.levels or {}
    levels = sorted({level for level in known.values() if level is not None}, key=_level_order)
    made = {}
    for level in levels:
        problems = {problem for problem, own in known.items() if own == level}
        ratios: Ratios = {}
        part = _only(group, problems)
        within = (
            scope if scope.alone is None else _within(scope, part if scope.alone is group else _only(scope.alone, problems))
        )
        made[str(level)] = {
            **_accuracy(part, within, len(problems), ratios),
            **(dict.fromkeys(("speedup", "speedup_interval")) if scope.is_throughput else _speedup(part, within, ratios)),
            "ratios": ratios,
        }
    return made or None


def _only(group: Group, problems: set[str]) -> Group:
    results = {key: result for key, result in group.results.items() if key[0] in problems}
    return Group(group.policy, group.tau, group.number, results)


def _within(scope: _Scope, alone: Group) -> _Scope:
    return replace(scope, alone=alone)


def _level_order(level: str | int) -> tuple[bool, float, str]:
    """Numbers by value, then names."""
    is_name = not str(level).lstrip("-").isdigit()
    return is_name, 0.0 if is_name else float(level), str(level)

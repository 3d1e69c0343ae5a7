"""Computes a run's figures as JSON: each policy's accuracy, time, routing and price, with confidence intervals.

Tables, reports and `--json` output show only these figures. Unknown figures are None.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from arbitrage_cli.costs.prices import Prices, parse_prices
from arbitrage_cli.evaluation import speed
from arbitrage_cli.evaluation.accuracy import accuracy, compared_with_target, cut_by_limit
from arbitrage_cli.evaluation.expected import expected_effects
from arbitrage_cli.evaluation.verdict import verdict
from arbitrage_cli.numbers import formatting
from arbitrage_cli.numbers.intervals import MIN_PROBLEMS, Ratio
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.runs.records import Level, tau_in_json
from arbitrage_cli.runs.results import PolicyResults, Result, concurrency_of, results_by_policy, unit_costs_of

SCHEMA = 1
MAX_RATIO = 1.1  # largest ratio of a clock speed-up to the computed speed-up that is not noted

LATENCY = tuple(
    f"{kind}{name}"
    for kind in ("", "measured_")
    for name in ("seconds_mean", "speedup", "speedup_log_error", "speedup_interval")
)
"""The time figures. Seconds and speed-ups are computed from the counted work; figures with the prefix `measured_` are
wall-clock times. `speedup_log_error` is the standard error of the logarithm of the speed-up. It includes the error of the unit costs.
"""


def figures(run: Mapping[str, Any], results: Iterable[Result], *, prices: Prices | None = None) -> dict[str, Any]:
    """Return all figures of a run as JSON. Raises the same errors as `results_by_policy`."""
    policies, whole = results_by_policy(run, results), run
    if run.get("skips_attempts"):
        run, policies = _attempted(run, policies)
    policies = speed.with_computed_seconds(run, policies)
    target = next((policy for policy in policies if policy.policy is POLICIES["target"] and policy.results), None)
    prices = prices or (parse_prices(run["price"]) if run.get("price") else None)
    made = [_policy_figures(policy, target, run, prices) for policy in policies]
    ratio, ratio_interval = speed.token_ratio(run, policies)
    notes = list(_notes(run, policies, made))
    if target is None:
        notes.append("Speed-ups and differences are unavailable, because the run has no results for policy target.")
    if prices and (uncounted := [policy.label for policy in policies if not speed.counts_tokens(run, policy)]):
        which = "Prices" if len(uncounted) == len(policies) else f"The prices of {', '.join(uncounted)}"
        notes.append(f"{which} are unavailable, because a server did not report all token counts.")
    found = {
        "schema": SCHEMA,
        "dataset": run["dataset"]["name"],
        "dataset_sha256": run["dataset"]["sha256"],
        "dataset_size": run["dataset"]["count"],
        "n": len(run["levels"]),
        "samples": run["samples"],
        "concurrency": concurrency_of(run),
        "policies": made,
        "token_ratio": ratio,
        "token_ratio_interval": ratio_interval,
        "notes": [*notes, *run["warnings"]],
    }
    decided = verdict(found, expected_effects(whole)) if target or run.get("skips_attempts") else None
    return found | {"verdict": decided and asdict(decided)}


def _attempted(run: Mapping[str, Any], policies: Sequence[PolicyResults]) -> tuple[Mapping[str, Any], list[PolicyResults]]:
    """Leave out the policies that `advise` skipped, and the problems that no policy has attempted."""
    made = [policy for policy in policies if policy.results or policy.policy is POLICIES["target"]]
    ids = {key[0] for policy in made for key in policy.results}
    return {**run, "levels": {name: level for name, level in run["levels"].items() if name in ids}}, made


def _policy_figures(
    policy: PolicyResults, target: PolicyResults | None, run: Mapping[str, Any], prices: Prices | None
) -> dict[str, Any]:
    levels, samples = run["levels"], run["samples"]
    found = _with_ratios(
        accuracy(policy.results.values(), len(levels) * samples)
        | compared_with_target(policy, target)
        | dict.fromkeys(LATENCY)
        | speed.latency(policy, target, unit_costs_of(run), has_clock=concurrency_of(run) == 1)
        | _routing(policy)
        | speed.price_figures(policy, target, run, prices)
    )
    if found["accuracy"] is None:
        found |= dict.fromkeys(("accuracy_difference", "accuracy_difference_interval"))
    return {
        "policy": policy.policy.name,
        "kind": policy.policy.kind,
        "tau": tau_in_json(policy.tau),
        "tau_name": policy.tau_name,
        "label": policy.label,
        "score_is": policy.policy.score_is or None,
        **found,
        "time": speed.time_parts(policy),
        "by_level": _by_level(policy, levels, samples),
    }


def _with_ratios(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Replace each `Ratio` with its value, and store its numerator and denominator under the key `ratios`."""
    ratios = {name: asdict(figure) for name, figure in figures.items() if isinstance(figure, Ratio)}
    values = {name: figure.value if isinstance(figure, Ratio) else figure for name, figure in figures.items()}
    return values | {"ratios": ratios}


def _routing(policy: PolicyResults) -> dict[str, Any]:
    total = policy.tally
    draft, target = total.draft_cost, total.target_cost
    return {
        "acceptance_rate": Ratio(total.accepted_steps, total.drafted_steps),
        "stopped_early_rate": Ratio(total.stopped_steps, total.drafted_steps),
        "target_call_rate": Ratio(total.target_steps, sum(result.kept_steps for result in policy.done)),
        "called_rate": Ratio(sum(result.tally.target_steps > 0 for result in policy.done), len(policy.done))
        if policy.policy.kind == "checked"
        else None,
        "wasted_draft_tokens": total.wasted_tokens,
        "thinking_tokens_mean": _rate(total.thinking_tokens, len(policy.done)),
        "draft_tokens_per_second": _rate(draft.decode_tokens, draft.decode_seconds),
        "target_tokens_per_second": _rate(target.decode_tokens, target.decode_seconds),
    }


def _rate(tokens: int, per: float) -> Ratio | None:
    return Ratio(tokens, per) if tokens else None


def _by_level(policy: PolicyResults, levels: Mapping[str, Level], samples: int) -> dict[str, Any] | None:
    planned = Counter(levels.values())
    results: dict[Level, list[Result]] = {level: [] for level in planned}
    for result in policy.results.values():
        results[levels[result.key[0]]].append(result)
    known = sorted((level for level in planned if level is not None), key=_level_order)
    return {str(level): _with_ratios(accuracy(results[level], planned[level] * samples)) for level in known} or None


def _level_order(level: str | int) -> tuple[bool, int, str]:
    is_number = re.fullmatch("-?[0-9]{1,20}", str(level)) is not None
    return not is_number, int(level) if is_number else 0, str(level)


def _differs_by_clock(policy: Mapping[str, Any]) -> bool:
    computed, clock = policy["speedup"], policy["measured_speedup"]
    return bool(computed and clock) and not 1 / MAX_RATIO <= clock / computed <= MAX_RATIO


def _notes(run: Mapping[str, Any], policies: Sequence[PolicyResults], made: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    done = [result for policy in policies for result in policy.done]
    for flag, count in sorted(cut_by_limit(done).items()):
        cut = f"{count} of {formatting.count(len(done), 'attempt')}"
        yield f"The limit {flag} was reached in {cut}. The unfinished solutions were graded. To finish them, raise {flag}."
    if concurrency_of(run) > 1:
        yield f"{concurrency_of(run)} problems were solved at once. Times are computed for one problem at a time."
    for policy in made:
        if POLICIES[policy["policy"]].speculates and policy["texts_differ"]:
            texts = formatting.count(policy["texts_differ"], "text")
            yield f"Policy speculative differs from the target in {texts}, because of near-ties."
    if (samples := run["samples"]) > 1:
        yield f"Each problem has {samples} attempts. Accuracy is averaged over all attempts; intervals are over problems."
    if clock := [f"{one['label']} {formatting.number(one['measured_speedup'])}" for one in made if _differs_by_clock(one)]:
        yield f"Speed-ups by the clock differ by more than {MAX_RATIO - 1:.0%}: {', '.join(clock)}."
    if any(policy["speedup"] and not policy["speedup_interval"] and policy["policy"] != "target" for policy in made):
        yield f"Speed-ups on fewer than {MIN_PROBLEMS} problems are approximate and have no interval; use more problems."
    failed = [f"{policy['errors']} for {policy['label']}" for policy in made if policy["errors"]]
    if failed and any(policy["speedup"] for policy in made):
        yield f"Speed-ups exclude problems with failed attempts: {', '.join(failed)}."
    missing = sum(policy["missing"] for policy in made)
    if missing and not run.get("skips_attempts"):
        yield (
            f"The run is incomplete: {formatting.count(missing, 'attempt')} missing. Accuracy covers only the attempts made, "
            "so policies may be compared on different problems."
        )

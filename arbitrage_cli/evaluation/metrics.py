"""Computes a run's figures: each policy's accuracy, time, routing and price, with confidence intervals, and the verdict.

Tables, reports and `--json` output show only these figures. Unknown figures are None.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from arbitrage_cli.costs.pair import Prices
from arbitrage_cli.evaluation import speed
from arbitrage_cli.evaluation.bounds import bounds_of_run
from arbitrage_cli.evaluation.expected import expected_effects
from arbitrage_cli.evaluation.figures import Estimate, PolicyFigures, flat
from arbitrage_cli.evaluation.verdict import Basis, Verdict, verdict
from arbitrage_cli.numbers import formatting
from arbitrage_cli.numbers.intervals import MIN_FOR_RATIO, Interval, Ratio, paired_difference, wilson
from arbitrage_cli.routing.policies import TARGET_ALONE
from arbitrage_cli.routing.route import Route
from arbitrage_cli.routing.router import RouterCard
from arbitrage_cli.runs.records import LIMITS
from arbitrage_cli.runs.results import Pairs, PolicyResults, Result, paired, results_by_policy, sums_by_problem
from arbitrage_cli.runs.run import Run
from arbitrage_cli.types import Json, frozen

SCHEMA = 1
MAX_RATIO = 1.1  # largest ratio of a clock speed-up to the computed speed-up that is not noted


@frozen
class RunFigures:
    """The figures of a run of `bench` or `advise`.

    `token_ratio` is the cost of a decoded target token in draft tokens. `is_priced` is true if the models have prices.
    A benchmark has no verdict unless a policy uses both models.
    """

    schema: int
    dataset: str | None
    dataset_sha256: str | None
    dataset_size: int
    n: int
    samples: int
    concurrency: int
    is_priced: bool
    policies: Sequence[PolicyFigures]
    token_ratio: Estimate
    notes: Sequence[str]
    verdict: Verdict | None

    def of(self, route: Route) -> PolicyFigures | None:
        return next((one for one in self.policies if one.route == route), None)

    def to_json(self) -> Json:
        return flat(self) | {
            "policies": [one.to_json() for one in self.policies],
            "notes": [*self.notes],
            "verdict": self.verdict.to_json() if self.verdict else None,
        }


def figures(
    run: Run, results: Iterable[Result], card: RouterCard | None = None, *, prices: Prices | None = None
) -> RunFigures:
    """Return all figures of a run, and the verdict, which depends on the card of the run's router.

    If the run has a router and its card is missing, there is no verdict. Raises the same errors as `results_by_policy`.
    """
    policies, whole = results_by_policy(run, results), run
    if run.skips_attempts:
        run, policies = _attempted(run, policies)
    policies = speed.with_computed_seconds(run, policies)
    target = next((policy for policy in policies if policy.policy is TARGET_ALONE and policy.results), None)
    prices = prices or run.decided.prices
    made = [_policy_figures(policy, target, run, prices) for policy in policies]
    is_judged = target and any(one.policy.is_candidate and one.policy.uses_both for one in policies)
    lacks_card = run.decided.router is not None and card is None
    decided = _verdict(whole, made, card, prices) if (is_judged or run.skips_attempts) and not lacks_card else None
    return RunFigures(
        schema=SCHEMA,
        dataset=run.dataset.name if run.dataset else None,
        dataset_sha256=run.dataset.sha256 if run.dataset else None,
        dataset_size=run.dataset.count if run.dataset else 0,
        n=len(run.levels),
        samples=run.samples,
        concurrency=run.decided.concurrency,
        is_priced=prices is not None,
        policies=tuple(made),
        token_ratio=speed.token_ratio(run, policies),
        notes=(
            *_notes(run, policies, made, has_target=target is not None, has_prices=prices is not None),
            *(_without_card(run) if lacks_card else ()),
            *run.warnings,
        ),
        verdict=decided,
    )


def _without_card(run: Run) -> Iterator[str]:
    """Yield the reason why there is no verdict."""
    if router := run.decided.router:
        place = run.places.get("router", "its old place")
        yield f"There is no verdict, because router {router.name} (sha256 {router.sha256[:12]}) was not found at {place}."


def _verdict(run: Run, made: Sequence[PolicyFigures], card: RouterCard | None, prices: Prices | None) -> Verdict | None:
    """Return the verdict by price if the models have prices and those of all finished attempts are known, or by time.

    Bounds count only in runs that skip the policies that they exclude.
    """
    compared = [one for one in made if one.both_finished and one.route.policy.is_candidate]
    is_known = all(one.price_ratio.value is not None for one in compared)
    basis: Basis = "price" if prices and is_known else "time"
    known = prices if basis == "price" else None
    bounds = bounds_of_run(run, card, known) if run.skips_attempts else []
    return verdict(made, expected_effects(run, card, known), bounds, samples=run.samples, basis=basis)


def _attempted(run: Run, policies: Sequence[PolicyResults]) -> tuple[Run, list[PolicyResults]]:
    """Leave out the policies that `advise` skipped, and the problems that no policy has attempted."""
    made = [policy for policy in policies if policy.results or policy.policy is TARGET_ALONE]
    ids = {key[0] for policy in made for key in policy.results}
    return run.changed(levels={name: level for name, level in run.levels.items() if name in ids}), made


def _policy_figures(policy: PolicyResults, target: PolicyResults | None, run: Run, prices: Prices | None) -> PolicyFigures:
    found = with_accuracy(PolicyFigures(policy.route), policy.results.values(), len(run.levels) * run.samples)
    found = with_comparison(found, policy, target)
    found = speed.with_times(found, policy, target, run.decided.unit_costs, has_clock=run.decided.concurrency == 1)
    found = _with_steps(found, policy)
    return speed.with_prices(found, policy, target, run, prices) if prices else found


def with_accuracy(figures: PolicyFigures, results: Collection[Result], planned: int) -> PolicyFigures:
    """Return the figures with the outcome counts of all `planned` attempts, and the accuracy of the attempts made so far.

    The accuracy is unknown if no answer was graded. If all attempts failed, it is 0.
    """
    counts = Counter[str](result.outcome for result in results)
    counted = results if is_scored(results) else ()
    return replace(
        figures,
        n=planned,
        correct=counts["correct"],
        incorrect=counts["incorrect"],
        unscored=counts["unscored"],
        errors=counts["error"],
        missing=planned - len(results),
        cut=cut_by_limit(result for result in results if result.is_done).total(),
        accuracy=Estimate(Ratio(counts["correct"], len(counted)), _interval(counted)),
    )


def is_scored(results: Iterable[Result]) -> bool:
    """Return whether these results have an accuracy: an answer was graded, or none is unscored."""
    outcomes = {result.outcome for result in results}
    return bool(outcomes & {"correct", "incorrect"}) or "unscored" not in outcomes


def cut_by_limit(results: Iterable[Result]) -> Counter[str]:
    return Counter(flag for result in results if (flag := LIMITS.get(result.stop or "")))


def with_comparison(figures: PolicyFigures, policy: PolicyResults, target: PolicyResults | None) -> PolicyFigures:
    """Return the figures, with the figures that compare a policy's accuracy and answers with those of the target alone.

    The target itself is not compared. Accuracies are, if both are known. Answers are gained or lost where the target's answer has a grade. Where it has none,
    an answer either equals the target's answer or differs from it. Failed attempts are not compared. An answer is also not
    compared if the target reached a limit before its own.
    """
    if target is None or target is policy:
        return figures
    pairs = paired(policy, target)
    done = [(own, other) for own, other in pairs if own.is_done and other.is_done and other.stop not in LIMITS]
    graded = [(own, other) for own, other in done if other.is_graded]
    same = [own.same_as_target for own, other in done if not other.is_graded and own.same_as_target is not None]
    lost = sum(other.is_correct and not own.is_correct for own, other in graded)
    gained = sum(own.is_correct and not other.is_correct for own, other in graded)
    scored = pairs if is_scored(policy.results.values()) and is_scored(target.results.values()) else []
    difference = Ratio(sum(own.is_correct - other.is_correct for own, other in scored), len(scored))
    return replace(
        figures,
        accuracy_difference=Estimate(difference, difference_interval(scored)),
        answers_gained=Ratio(gained, len(graded)),
        answers_lost=Ratio(lost, len(graded)),
        answers_same=Ratio(sum(same), len(same)),
        target_right=Ratio(sum(other.is_correct for _, other in graded), len(graded)),
        both_finished=len(done),
    )


def difference_interval(pairs: Pairs) -> Interval | None:
    """Return the interval of the accuracy difference (first minus second), or None if there are no attempts."""
    if not pairs:
        return None
    table = Counter((own.is_correct, other.is_correct) for own, other in pairs)
    count = _effective_count([(own.key[0], own.is_correct - other.is_correct) for own, other in pairs])
    cells = ((True, True), (True, False), (False, True), (False, False))
    return paired_difference(*(table[cell] * count / len(pairs) for cell in cells))


def _interval(results: Collection[Result]) -> Interval | None:
    if not results:
        return None
    count = _effective_count([(result.key[0], int(result.is_correct)) for result in results])
    return wilson(sum(result.is_correct for result in results) * count / len(results), count)


def _effective_count(values: Sequence[tuple[str, int]]) -> float:
    """Return how many attempts at different problems would determine the mean of the values as precisely (Kish).

    Attempts at the same problem tend to have equal values. If all values are equal, each problem counts once.
    """
    table = sums_by_problem(((problem, [value, 1.0]) for problem, value in values), 2)
    total, count = table.sum(axis=0).tolist()
    spread = count * sum(value**2 for _, value in values) - total**2
    between = float(((count * table[:, 0] - total * table[:, 1]) ** 2).sum())
    if not spread:
        return len(table)
    return float(min(count, count**2 * spread / between)) if between else float(count)


def _with_steps(figures: PolicyFigures, policy: PolicyResults) -> PolicyFigures:
    total, done = policy.tally, policy.done
    called = sum(result.tally.target_steps > 0 for result in done)
    return replace(
        figures,
        acceptance_rate=Ratio(total.accepted_steps, total.drafted_steps),
        stopped_early_rate=Ratio(total.stopped_steps, total.drafted_steps),
        called_rate=Ratio(called, len(done)) if policy.policy.compares_answers else None,
        wasted_draft_tokens=total.wasted_tokens,
        thinking_tokens_mean=_rate(total.thinking_tokens, len(done)),
        draft_tokens_per_second=_rate(total.draft_cost.decode_tokens, total.draft_cost.decode_seconds),
        target_tokens_per_second=_rate(total.target_cost.decode_tokens, total.target_cost.decode_seconds),
    )


def _rate(tokens: int, per: float) -> Ratio | None:
    return Ratio(tokens, per) if tokens else None


def _differs_by_clock(policy: PolicyFigures) -> bool:
    computed, clock = policy.speedup.value, policy.measured_speedup.value
    if not computed or not clock:
        return False
    return not 1 / MAX_RATIO <= clock / computed <= MAX_RATIO


def _times_at_once(run: Run) -> str:
    """Return a sentence on the times of a run that solved several problems at once.

    Those of models without unit costs, such as models on servers, are measured.
    """
    writing = [role for role in run.decided.models if role != "prm"]
    measured = [role for role in writing if role not in run.decided.unit_costs]
    if len(measured) == len(writing):
        return "Times were measured meanwhile."
    but = f", but those of the {' and the '.join(measured)} were measured meanwhile" if measured else ""
    return f"Times are computed for one problem at a time{but}."


def _notes(
    run: Run, policies: Sequence[PolicyResults], made: Sequence[PolicyFigures], *, has_target: bool, has_prices: bool
) -> Iterator[str]:
    for name, reason in run.decided.left_out.items():
        yield f"Not tried: {name}, because {reason}."
    done = [result for policy in policies for result in policy.done]
    for flag, count in sorted(cut_by_limit(done).items()):
        cut = f"{count} of {formatting.count(len(done), 'attempt')}"
        yield f"The limit {flag} was reached in {cut}. The unfinished solutions were graded. To finish them, raise {flag}."
    if roles := [role for role, model in run.decided.models.items() if model.costs_are_approximate]:
        which = " and ".join(roles)
        yield f"Other programs disturbed the measurement of the token costs of {which}, so computed times are approximate."
    if run.decided.concurrency > 1:
        yield f"{run.decided.concurrency} problems were solved at once. {_times_at_once(run)}"
    if (samples := run.samples) > 1:
        yield f"Each problem has {samples} attempts. Accuracy is averaged over all attempts; intervals are over problems."
    if clock := [
        f"{one.route.label} {formatting.number(one.measured_speedup.value)}" for one in made if _differs_by_clock(one)
    ]:
        reason = "because other programs affect wall-clock times"
        yield f"Speed-ups are computed from the counted work, {reason}. Wall-clock speed-ups: {', '.join(clock)}."
    compared = [one for one in made if one.speedup.value is not None]
    if any(one.speedup.interval is None and one.route.policy is not TARGET_ALONE for one in compared):
        yield f"Speed-ups on fewer than {MIN_FOR_RATIO} problems are approximate and have no interval; use more problems."
    failed = [f"{one.errors} for {one.route.label}" for one in made if one.errors]
    if failed and compared:
        yield f"Speed-ups and the verdict exclude problems with failed attempts: {', '.join(failed)}."
    missing = sum(one.missing for one in made)
    if missing and not run.skips_attempts:
        yield (
            f"The run is incomplete: {formatting.count(missing, 'attempt')} missing. Accuracy covers only the attempts made, "
            "so policies may be compared on different problems."
        )
    if not has_target and any(policy.results for policy in policies):
        yield "Speed-ups and differences are unavailable, because the run has no results for the target policy."
    uncounted = [one.route.label for one in made if one.price is None and one.seconds_mean and one.seconds_mean.denominator]
    if has_prices and uncounted:
        which = "Prices" if len(uncounted) == len(made) else f"The prices of {', '.join(uncounted)}"
        yield f"{which} are unavailable, because a server did not report all token counts."

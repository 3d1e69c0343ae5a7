"""What it would save to stop a bad draft early: to escalate a step before it is finished, where the head is sure enough.

Usage: python tests/benchmarks/early_stop.py [--dataset builtin-dev] [--limit N] [--pair NAME] [--draft MODEL] [--target MODEL]
       [--head FILE] [--tau exact] [--threads N] [--cpu-time]

Solves the problems with policy arbitrage as it is, and asks the head afterwards what it would have said of each drafted step
when only some of its tokens were there. A rule looks once, after the first token, or every so many tokens, or after tokens
that were unsure (by a margin in nats), and stops a step whose probability is above tau_stop. Where the step is escalated
anyway, the text is the same, the draft writes less, and the proposal is shorter: of the tokens that were not drafted, those
that the target writes as well are no longer verified but decoded. Where it would have been accepted, there is one target call
more; how the solution would go on from there is not known. Times are as measured in the run; a look takes what the head took,
watching and interrupting the draft nothing. A rule is chosen on every second problem, and told with what it does on the others.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, takewhile

import numpy as np
from chosen import add_models, chosen_head, chosen_pair
from numpy.typing import NDArray

from arbitrage_cli.data.datasets import load_dataset
from arbitrage_cli.inference.backend import Backend, Options
from arbitrage_cli.inference.chat_template import INSTRUCTIONS
from arbitrage_cli.inference.engine import Engine
from arbitrage_cli.inference.open import open_model
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Scheduler
from arbitrage_cli.model_files.pairs import Pair, head_file
from arbitrage_cli.routing.head import Head, clearly_above, load
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.thresholds import TauTable
from arbitrage_cli.runs.summary import Tally, tally
from arbitrage_cli.stats.intervals import bootstrap, ratio_of_sums
from arbitrage_cli.types import Finished, Limits, ModelRole, Problem, Step, TokenStats, Trace

PLACES: Mapping[str, tuple[range, float]] = {  # after how many tokens to look, if the last of them had a margin below this
    "once": (range(1, 2), math.inf),
    **{f"every {count}": (range(count, sys.maxsize, count), math.inf) for count in (2, 4, 8)},
    **{f"margin<{margin:g}": (range(1, sys.maxsize), margin) for margin in (0.5, 1, 2)},
}
ODDS = (1, 1.5, 2, 3, 5)  # of tau_stop, by those of tau
FEW = 0.005  # extra target calls, as a share of the steps
RIGHT, WRONG, SAVED, UNDRAFTED, SHARED, SECONDS = range(6)  # columns of `totals`

Numbers = NDArray[np.float64]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Drafted:
    """A step as it was drafted: each token's margin, and the head's probability after each token but the last.

    If it was escalated, the target wrote the first `shared` tokens as well, `kept` of them by verifying the proposal, and
    `rejected` were verified in vain.
    """

    num_tokens: int
    margins: Sequence[float]
    probabilities: Sequence[float]
    escalated: bool
    shared: int = 0
    kept: int = 0
    rejected: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """When to look at a step that is being drafted, and above which probability to stop it."""

    places: str
    tau_stop: float

    def looks(self, step: Drafted) -> list[int]:
        """After how many of its tokens; not after the last, where the head decides as it does now."""
        places, margin = PLACES[self.places]
        return [place for place in range(1, step.num_tokens) if place in places and step.margins[place - 1] < margin]


@dataclass(frozen=True, slots=True)
class Prices:
    """Seconds: of a token drafted, read by the draft, decoded and verified by the target; of what that reads before a step;
    of a look. 0 for what was never bought in the run.
    """

    draft: float
    reading: float
    decode: float
    verify: float
    catching_up: float
    look: float


def solve(pair: Pair, problems: Sequence[Problem], head: Head, tau: float, threads: int | None, clock: Clock) -> list[Trace]:
    """The solutions with policy arbitrage; those that failed are left out."""
    policy = POLICIES["arbitrage"]
    system = INSTRUCTIONS if pair.system is None else pair.system
    sources: dict[ModelRole, str] = {"draft": pair.draft, "target": pair.target}
    with ExitStack() as stack:
        engines: dict[ModelRole, Engine] = {}
        for role, source in sources.items():
            backend: Backend = stack.enter_context(closing(open_model(source, Options(pair.ctx, threads))))
            engine = Engine(role, backend, Sampler(), instructions=system, keep_token_stats=role == "draft", clock=clock)
            engine.measure()
            engines[role] = engine
        scheduler = Scheduler(engines, lambda trace: policy.flow(trace, tau, 0, head.router()), Limits())
        ended = [event for event in scheduler.run(problems) if isinstance(event, Finished)]
    return [event.trace for event in ended if event.error is None]


def beginning(draft: Step, num_tokens: int) -> Step:
    """The step when it had so many tokens. It had not ended, which the head was not trained to know: taken for a separator."""
    of = draft.known_token_stats
    hidden = of.hidden[:num_tokens] if isinstance(of.hidden, np.ndarray) else None
    pieces = (of.pieces or ())[:num_tokens]
    numbers = (of.log_probabilities[:num_tokens], of.entropies[:num_tokens], of.margins[:num_tokens])
    cut = TokenStats(*numbers, hidden, pieces)
    return replace(draft, text="".join(pieces), num_tokens=num_tokens, stop="separator", token_stats=cut)


def look_back(traces: Sequence[Trace], head: Head, clock: Clock) -> tuple[list[list[Drafted]], float]:
    """The drafted steps of each solution, and the seconds of a look."""
    seconds, num_looks = 0.0, 0
    solutions: list[list[Drafted]] = []
    for trace in traces:
        solutions.append([])
        for index, decision in enumerate(trace.decisions):
            draft, before = decision.draft, Trace(trace.problem, trace.limits, trace.decisions[:index])
            assert draft is not None
            began = clock()
            probabilities = [head.probability(before, beginning(draft, place)) for place in range(1, draft.num_tokens)]
            seconds += clock() - began
            num_looks += len(probabilities)
            solutions[-1].append(compare(draft, decision.target, probabilities))
    return solutions, seconds / max(1, num_looks)


def compare(draft: Step, target: Step | None, probabilities: Sequence[float]) -> Drafted:
    """The drafted step beside the target's, None where that was not called."""
    token_stats = draft.known_token_stats
    if target is None:
        return Drafted(draft.num_tokens, token_stats.margins, probabilities, escalated=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(draft.text, target.text, strict=False)))
    shared = sum(end <= same for end in accumulate(map(len, token_stats.pieces or ())))
    kept, rejected = target.cost.verify_kept, target.cost.verify_tokens - target.cost.verify_kept
    return Drafted(draft.num_tokens, token_stats.margins, probabilities, True, shared, min(shared, kept), rejected)


def prices_of(total: Tally, look: float) -> Prices:
    """What was paid in the run."""
    draft, target = total.draft_cost, total.target_cost
    return Prices(
        draft.decode_seconds / max(1, draft.decode_tokens),
        draft.prefill_seconds / max(1, draft.prefill_tokens),
        target.decode_seconds / max(1, target.decode_tokens),
        target.verify_seconds / max(1, target.verify_tokens),
        target.prefill_seconds / max(1, total.target_steps),
        look,
    )


def stopped(step: Drafted, place: int, prices: Prices) -> float:
    """Change of time, in seconds, if the step is stopped after `place` tokens. Looks are not counted."""
    left = step.num_tokens - place
    if not step.escalated:  # as if the target wrote the same step: it decodes the rest, and the draft reads that
        return prices.catching_up + place * prices.verify + left * (prices.decode + prices.reading - prices.draft)
    to_decode, to_read = max(0, step.kept - place), max(0, step.shared - place)
    not_rejected = step.rejected - min(step.rejected, max(0, place - step.shared))
    lost = to_decode * (prices.decode - prices.verify) + to_read * prices.reading
    return lost - not_rejected * prices.verify - left * prices.draft


def outcome(step: Drafted, rule: Rule, prices: Prices) -> tuple[float, ...]:
    """What the rule does to one step, in the order of the columns."""
    looks = rule.looks(step)
    place = next((place for place in looks if step.probabilities[place - 1] > rule.tau_stop), None)
    if place is None:
        return 0, 0, 0, 0, 0, len(looks) * prices.look
    left = step.num_tokens - place
    seconds = stopped(step, place, prices) + looks.index(place) * prices.look  # the last look is instead of that at the end
    undrafted, shared = (left, max(0, step.shared - place)) if step.escalated else (0, 0)
    return step.escalated, not step.escalated, left, undrafted, shared, seconds


def totals(solutions: Sequence[Sequence[Drafted]], rule: Rule, prices: Prices) -> Numbers:
    """What the rule does to each solution: (problems, columns)."""
    return np.array([np.sum([outcome(step, rule, prices) for step in steps], axis=0) for steps in solutions], np.float64)


def row(rule: Rule, found: Numbers, now: Numbers) -> str:
    """A row of the table. `now` (problems, 4) are steps, escalated ones, draft tokens and seconds, without the rule."""
    sums, (steps, escalated, tokens, seconds) = found.sum(axis=0), now.sum(axis=0)
    shared = f"{sums[SHARED] / sums[UNDRAFTED]:8.1%}" if sums[UNDRAFTED] else f"{'-':>8}"
    stops = f"{sums[RIGHT] / max(1, escalated):8.1%} {sums[SAVED] / tokens:8.1%} {sums[WRONG] / steps:8.2%}"
    return f"{rule.places:10} {rule.tau_stop:8.3g} {stops} {shared} {sums[SECONDS] / seconds:+8.2%}"


def choose(found: Mapping[Rule, Numbers], now: Numbers, most_extra: float) -> str:
    """The rule that takes the least time on every second problem, what it does on the others, and what follows from that."""
    allowed = [rule for rule in found if found[rule][::2, WRONG].sum() <= most_extra * now[::2, 0].sum()]
    best = min(allowed, key=lambda rule: float(found[rule][::2, SECONDS].sum()))
    others = found[best][1::2]
    low, high = bootstrap(np.stack([others[:, SECONDS], now[1::2, 3]], axis=1), ratio_of_sums) or (-math.inf, math.inf)
    return f"{row(best, others, now[1::2])} [{low:+.2%}, {high:+.2%}]: {'it saves time' if high < 0 else 'no gain'}"


def tell(traces: Sequence[Trace], head: Head, tau: float, clock: Clock) -> Iterator[str]:
    """The report, line by line."""
    solutions, look = look_back(traces, head, clock)
    total = tally(decision for trace in traces for decision in trace.decisions)
    prices = prices_of(total, look)
    tallies = [tally(trace.decisions) for trace in traces]
    now = np.array(
        [
            (one.drafted_steps, one.target_steps, one.drafted_tokens, one.seconds + one.drafted_steps * look)
            for one in tallies
        ]
    )
    seconds, wasted = now[:, 3].sum(), total.wasted_tokens
    escalated = [step for steps in solutions for step in steps if step.escalated]
    shared, kept = sum(step.shared for step in escalated), sum(step.kept for step in escalated)
    best = sum(min(stopped(step, place, prices) for place in range(1, step.num_tokens + 1)) for step in escalated)
    yield f"{len(traces)} problems, tau {tau:g}: {total.target_steps} of {total.drafted_steps} steps escalated"
    yield f"wasted: {wasted} of {total.drafted_tokens} draft tokens, {wasted * prices.draft / seconds:.1%} of the time"
    yield f"of these the target wrote {shared / max(1, wasted):.1%} as well, {kept / max(1, wasted):.1%} by verifying them"
    yield "milliseconds: " + ", ".join(f"{name} {1000 * price:.3g}" for name, price in asdict(prices).items())
    yield f"the most to gain, each escalated step stopped where it is best, without a look: {best / seconds:+.2%}"
    yield f"\n{'look':10} {'tau_stop':>8} {'stopped':>8} {'saved':>8} {'extra':>8} {'shared':>8} {'time':>8}"
    rules = [Rule(places, clearly_above(tau, odds)) for places in PLACES for odds in ODDS]
    found = {rule: totals(solutions, rule, prices) for rule in rules}
    yield from (row(rule, found[rule], now) for rule in rules)
    yield "stopped: of escalated steps; saved: of draft tokens; extra: target calls, of steps; shared: of tokens not drafted"
    yield f"\nchosen on one half of the problems, told of the other: with at most {FEW:.1%} extra target calls, then with any number"
    yield from (choose(found, now, most) for most in (FEW, 1.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="builtin-dev")
    parser.add_argument("--limit", type=int)
    add_models(parser)
    parser.add_argument("--tau", default="exact", help="a number, or a name of the head's table")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cpu-time", action="store_true", help="of the process, for a busy machine: with --threads 1 only")
    arguments = parser.parse_args()
    pair, head = chosen_pair(arguments), load(head_file(chosen_head(parser, arguments)))
    tau = TauTable.from_json(head.card.taus).resolve(arguments.tau)
    problems = [item.problem for item in load_dataset(arguments.dataset, offline=True).items[: arguments.limit]]
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    traces = solve(pair, problems, head, tau, arguments.threads, clock)
    if len(traces) < 2:
        parser.error("fewer than two problems were solved: no half is left to choose on")
    for line in tell(traces, head, tau, clock):
        sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()

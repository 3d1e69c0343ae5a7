"""Measure how often the decisions of policy `relaxed` depend on how problems share batches, which are rounded differently.

Usage: python tests/benchmarks/relaxed_rounding.py DRAFT TARGET PROBLEMS.jsonl [--tau 0.5] [--limit 8] [--max-tokens 600]

Solves the problems several times, each time with other token costs or concurrency, and so with other batches. Each solution
is compared with that of the first row, token by token, up to the first token that differs: after it, the texts cannot be
compared. One thread.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from arbitrage_cli.arbitrage import Flow
from arbitrage_cli.inference.backend import Backend, Floats, LoadOptions
from arbitrage_cli.inference.engine import Engine
from arbitrage_cli.inference.kv_cache import KvCache
from arbitrage_cli.inference.open import open_model
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Job, Scheduler
from arbitrage_cli.inference.speculation import Planner
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.route import Route
from arbitrage_cli.types import Finished, Limits, ModelRole, Problem, Trace, frozen

CONTEXT = 2048
NEAR = 0.1  # nats
HEADINGS = (
    "batches",
    "texts changed",
    "differences",
    "kept",
    f"score within {NEAR} nats of tau",
    "decision changed",
    "other choice of a model",
    "change of the score, nats: mean, largest",
)
USUAL = (UnitCosts((0.5, 0.7, 0.85, 1.2, 1.9), 0.07), UnitCosts((1.0, 1.8, 2.1, 2.6, 3.3), 0.07))
"""Costs of draft and target like those of 4-bit models of 0.5 and 1.5 billion parameters."""
FREE = (UnitCosts((0.001,) * 5, 0.001), UnitCosts((1.0,) * 5, 0.001))


@frozen
class Way:
    """How the problems are solved. `costs` are those of the draft and the target."""

    name: str
    costs: tuple[UnitCosts | None, UnitCosts | None]
    concurrency: int = 1


WAYS = (
    Way("one token", (None, None)),
    Way("a few tokens", USUAL),
    Way("up to 24 tokens", FREE),
    Way("a few tokens of each of 4 problems", USUAL, concurrency=4),
)


@frozen
class Place:
    """A position in a solution: the draft's and the target's choices, the score, and whether the drafted token was kept."""

    drafted: int
    own: int
    score: float
    is_kept: bool

    @property
    def is_difference(self) -> bool:
        return self.drafted != self.own

    @property
    def token(self) -> int:
        return self.drafted if self.is_kept else self.own


@dataclass(frozen=True, slots=True)
class DraftSampler(Sampler):
    """Remembers the draft's choice at each position of each problem. Both models have the same prompt, so positions agree."""

    chosen: dict[tuple[str, int], int] = field(default_factory=dict)

    def choose(self, logits: Floats, question: str, position: int) -> int:
        token = Sampler.choose(self, logits, question, position)  # super() does not know a class with slots
        self.chosen[question, position] = token
        return token


@dataclass(frozen=True, slots=True)
class TargetSampler(Sampler):
    """Compares the target's choices with those of the draft, which chooses before the target. Tokens come in order."""

    draft: DraftSampler = field(default_factory=DraftSampler)
    places: dict[str, list[Place]] = field(default_factory=dict)

    def choose(self, logits: Floats, question: str, position: int) -> int:
        own = Sampler.choose(self, logits, question, position)
        drafted = self.draft.chosen[question, position]
        score = float(logits[own]) - float(logits[drafted])
        self.places.setdefault(question, []).append(Place(drafted, own, score, is_kept=False))
        return own


def solve(
    models: dict[ModelRole, Backend], problems: Sequence[Problem], tau: float, way: Way, limits: Limits
) -> list[list[Place]]:
    """Return the places of each problem's solution."""
    draft_costs, target_costs = way.costs
    drafts = DraftSampler()
    targets = TargetSampler(draft=drafts)
    draft = Engine("draft", KvCache(models["draft"]), drafts, planner=Planner(draft_costs))
    target = Engine("target", KvCache(models["target"]), targets, planner=Planner(target_costs))
    route = Route(POLICIES["relaxed"], tau)

    def flow(trace: Trace) -> Flow:
        return route.flow(trace, 0, None)

    scheduler = Scheduler({"draft": draft, "target": target}, concurrency=way.concurrency, speculator=draft)
    for event in scheduler.run(Job(problem, flow, limits) for problem in problems):
        if isinstance(event, Finished):
            if event.error:
                raise event.error
            mark_kept(targets.places[event.trace.problem.question], event.trace)
    return [targets.places[problem.question] for problem in problems]


def mark_kept(places: list[Place], trace: Trace) -> None:
    first = 0
    for decision in trace.decisions:
        for one in decision.kept.differences:
            places[first + one.position] = replace(places[first + one.position], is_kept=True)
        first += decision.kept.num_tokens


def compared(first: Sequence[Place], second: Sequence[Place]) -> Iterator[tuple[Place, Place]]:
    """Yield the places of two solutions up to the first token that differs, and the place of this token."""
    for one, other in zip(first, second, strict=False):
        yield one, other
        if one.token != other.token:
            return


@frozen
class Row:
    """The comparison of two ways. `changes` are those of the scores, in nats, of differences between the same two tokens.

    `num_near` of the differences have a score within `NEAR` of tau, and `num_flipped` were kept in one way only. `num_others`
    texts changed because a model chose another token.
    """

    num_texts: int
    num_kept: int
    changes: Sequence[float]
    num_near: int
    num_flipped: int
    num_others: int


def compare(first: Sequence[Sequence[Place]], second: Sequence[Sequence[Place]], tau: float) -> Row:
    pairs = [pair for one, other in zip(first, second, strict=True) for pair in compared(one, other)]
    same = [
        (one, other) for one, other in pairs if one.is_difference and (one.drafted, one.own) == (other.drafted, other.own)
    ]
    num_flipped = sum(one.is_kept != other.is_kept for one, other in same)
    return Row(
        num_texts=sum([one.token for one in a] != [other.token for other in b] for a, b in zip(first, second, strict=True)),
        num_kept=sum(one.is_kept for one, _ in same),
        changes=[abs(one.score - other.score) for one, other in same],
        num_near=sum(abs(one.score - tau) < NEAR for one, _ in same),
        num_flipped=num_flipped,
        num_others=sum(one.token != other.token for one, other in pairs) - num_flipped,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("draft")
    parser.add_argument("target")
    parser.add_argument("problems", type=Path)
    parser.add_argument("--tau", type=float, default=0.5)
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=600)
    options = parser.parse_args()
    lines = options.problems.read_text(encoding="utf-8").splitlines()[: options.limit]
    problems = [Problem(str(number), json.loads(line)["question"]) for number, line in enumerate(lines)]
    limits = Limits(max_tokens=options.max_tokens)
    loading = LoadOptions(CONTEXT, threads=1, num_sequences=max(way.concurrency for way in WAYS))
    with ExitStack() as stack:
        draft, target = (stack.enter_context(closing(open_model(name, loading))) for name in (options.draft, options.target))
        models: dict[ModelRole, Backend] = {"draft": draft, "target": target}
        reference: list[list[Place]] = []
        print(f"| {' | '.join(HEADINGS)} |")
        print("|---" * len(HEADINGS) + "|")
        for way in WAYS:
            solved = solve(models, problems, options.tau, way, limits)
            reference = reference or solved
            row = compare(reference, solved, options.tau)
            changes = row.changes or [0.0]
            figures = (
                f"{row.num_texts} of {len(problems)}",
                len(row.changes),
                row.num_kept,
                row.num_near,
                row.num_flipped,
                row.num_others,
                f"{sum(changes) / len(changes):.3f}, {max(changes):.3f}",
            )
            print(f"| {way.name} | {' | '.join(map(str, figures))} |", flush=True)


if __name__ == "__main__":
    main()

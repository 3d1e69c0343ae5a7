"""What proposals save: the same problems with and without the target verifying the rejected drafts, in turns.

Usage: python tests/benchmarks/proposals.py [--dataset builtin-dev] [--limit N] [--pair NAME] [--draft MODEL] [--target MODEL]
       [--head FILE] [--policy arbitrage@exact] [--threads N] [--max-tokens N]

Each problem is solved in both ways before the next one, in changing order. Told are seconds a problem, the target's tokens
(decoded one by one, verified in batches, kept of those), the ratio of the times with its interval over problems, and how many
texts differ: where two tokens are nearly as likely as each other, a batch may decide for the other one.
"""

import argparse
from collections.abc import Mapping
from contextlib import ExitStack, closing

import numpy as np
from chosen import add_models, chosen_columns, chosen_pair

from arbitrage_cli.backends import Backend, Options
from arbitrage_cli.benchmark import Column
from arbitrage_cli.engine import Engine
from arbitrage_cli.intervals import bootstrap, ratio_of_sums
from arbitrage_cli.named_datasets import load_dataset
from arbitrage_cli.pairs import Pair, open_model
from arbitrage_cli.prompts import INSTRUCTIONS
from arbitrage_cli.router import Head
from arbitrage_cli.sampling import Sampler
from arbitrage_cli.scheduler import Scheduler
from arbitrage_cli.summary import Tally, tally
from arbitrage_cli.types import Finished, Limits, ModelRole, Problem, Trace

WAYS = ("without", "with")


def solve(scheduler: Scheduler, problem: Problem) -> Trace:
    (finished,) = (event for event in scheduler.run([problem]) if isinstance(event, Finished))
    if finished.error:
        raise finished.error
    return finished.trace


def compare(
    pair: Pair,
    backends: Mapping[ModelRole, Backend],
    arguments: argparse.Namespace,
    column: Column,
    head: Head | None,
    problems: list[Problem],
) -> Mapping[str, list[Trace]]:
    """The solutions in each of `WAYS`, in the order of the problems."""
    router = head.router() if head else None
    system = INSTRUCTIONS if pair.system is None else pair.system
    schedulers = {}
    for way in WAYS:
        engines = {
            role: Engine(
                role, backend, Sampler(), instructions=system, keep_evidence=role == "draft", use_proposals=way == "with"
            )
            for role, backend in backends.items()
        }
        engines["target"].measure()
        schedulers[way] = Scheduler(
            engines, lambda trace: column.policy.flow(trace, column.tau, 0, router), Limits(max_tokens=arguments.max_tokens)
        )
    found: dict[str, list[Trace]] = {way: [] for way in WAYS}
    for index, problem in enumerate(problems):
        for way in WAYS if index % 2 else WAYS[::-1]:
            found[way].append(solve(schedulers[way], problem))
    return found


def row(way: str, total: Tally, num_problems: int) -> str:
    cost = total.target_cost
    tokens = f"{cost.decode_tokens:10} {cost.verify_tokens:10} {cost.verify_kept:10}"
    return f"{way:8} {total.seconds / num_problems:12.4f} {cost.seconds / num_problems:12.4f} {tokens}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="builtin-dev")
    parser.add_argument("--limit", type=int)
    add_models(parser)
    parser.add_argument("--policy", default="arbitrage", help="one, as arbitrage bench takes it: arbitrage@fast")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--max-tokens", type=int, default=Limits().max_tokens)
    arguments = parser.parse_args()
    pair = chosen_pair(arguments)
    (column, *others), head = chosen_columns(parser, arguments, arguments.policy)
    if others or len(column.policy.models) < 2:
        parser.error("give one policy in which the target writes what the draft proposed")
    problems = [item.problem for item in load_dataset(arguments.dataset, offline=True).items[: arguments.limit]]
    with ExitStack() as stack:
        options = Options(pair.ctx, arguments.threads, hidden_states=head is not None and head.reads_hidden)
        sources: dict[ModelRole, str] = {"draft": pair.draft, "target": pair.target}
        backends = {role: stack.enter_context(closing(open_model(name, options))) for role, name in sources.items()}
        found = compare(pair, backends, arguments, column, head, problems)
    tallies = {way: [tally(trace.decisions) for trace in traces] for way, traces in found.items()}
    print(f"{len(problems)} problems, policy {column.label}")
    print(f"{'':8} {'s a problem':>12} {'target s':>12} {'decoded':>10} {'verified':>10} {'kept':>10}")
    for way in WAYS:
        total = tally(decision for trace in found[way] for decision in trace.decisions)
        print(row(way, total, len(problems)))
    seconds = np.array([[one.seconds for one in tallies[way]] for way in WAYS]).T
    ratio, interval = seconds[:, 0].sum() / seconds[:, 1].sum(), bootstrap(seconds, ratio_of_sums)
    told = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
    differ = sum(one.text != other.text for one, other in zip(*found.values(), strict=True))
    print(f"time without / with: {ratio:.3f}{told}; {differ} of {len(problems)} texts differ")


if __name__ == "__main__":
    main()

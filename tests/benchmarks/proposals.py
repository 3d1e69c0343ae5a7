"""What proposals save: the same problems with and without the target verifying the rejected drafts, in turns.

Usage: python tests/benchmarks/proposals.py [--dataset builtin-dev] [--limit N] [--pair NAME] [--draft MODEL] [--target MODEL]
       [--head FILE] [--policy arbitrage] [--tau exact] [--threads N] [--max-tokens N]

Each problem is solved in both ways before the next one, in changing order. Told are seconds a problem, the target's tokens
(decoded one by one, verified in batches, kept of those), the ratio of the times with its interval over problems, and how many
texts differ: where two tokens are nearly as likely as each other, a batch may decide for the other one.
"""

import argparse
from collections.abc import Mapping
from contextlib import ExitStack, closing

import numpy as np
from chosen import add_models, chosen_head, chosen_pair

from arbitrage_cli.arbitrage import POLICIES, Router
from arbitrage_cli.backends import Backend, Options
from arbitrage_cli.engine import Engine
from arbitrage_cli.intervals import bootstrap, ratio_of_sums
from arbitrage_cli.named_datasets import load_dataset
from arbitrage_cli.pairs import Pair, head_file, open_model
from arbitrage_cli.prompts import INSTRUCTIONS
from arbitrage_cli.router import load
from arbitrage_cli.sampling import Sampler
from arbitrage_cli.scheduler import Scheduler
from arbitrage_cli.summary import Tally, tally
from arbitrage_cli.taus import TauTable
from arbitrage_cli.types import Finished, Limits, ModelRole, Problem, Trace

WAYS = ("without", "with")


def routing(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> tuple[float, Router | None]:
    """The tau that is meant, and the head's router if the policy needs one."""
    if not POLICIES[arguments.policy].needs_head:
        return float(arguments.tau), None
    head = load(head_file(chosen_head(parser, arguments)))
    return TauTable.from_json(head.card.taus).resolve(arguments.tau), head.router()


def solve(scheduler: Scheduler, problem: Problem) -> Trace:
    (finished,) = (event for event in scheduler.run([problem]) if isinstance(event, Finished))
    if finished.error:
        raise finished.error
    return finished.trace


def compare(
    pair: Pair,
    backends: Mapping[ModelRole, Backend],
    arguments: argparse.Namespace,
    tau: float,
    router: Router | None,
    problems: list[Problem],
) -> Mapping[str, list[Trace]]:
    """The solutions in each of `WAYS`, in the order of the problems."""
    policy = POLICIES[arguments.policy]
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
            engines, lambda trace: policy.flow(trace, tau, 0, router), Limits(max_tokens=arguments.max_tokens)
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
    parser.add_argument("--policy", default="arbitrage")
    parser.add_argument("--tau", default="exact", help="a number, or a name of the head's table")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--max-tokens", type=int, default=Limits().max_tokens)
    arguments = parser.parse_args()
    pair = chosen_pair(arguments)
    tau, router = routing(parser, arguments)
    problems = [item.problem for item in load_dataset(arguments.dataset, offline=True).items[: arguments.limit]]
    with ExitStack() as stack:
        options = Options(pair.ctx, arguments.threads)
        sources: dict[ModelRole, str] = {"draft": pair.draft, "target": pair.target}
        backends = {role: stack.enter_context(closing(open_model(name, options))) for role, name in sources.items()}
        found = compare(pair, backends, arguments, tau, router, problems)
    tallies = {way: [tally(trace.decisions) for trace in traces] for way, traces in found.items()}
    print(f"{len(problems)} problems, policy {arguments.policy}, tau {arguments.tau}")
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

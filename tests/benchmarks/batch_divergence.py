"""Where the greedy text of several problems at once first differs from that of one at a time, and how near a tie it was.

Usage: python tests/benchmarks/batch_divergence.py [--draft MODEL.gguf --target MODEL.gguf] [--concurrency 8] [--limit 40]

llama.cpp computes a batch and a single token with different kernels, which differ in the last bits. If two tokens are almost
equally likely, the text may differ from there on. For three policies (draft, target, and entropy at its default tau) this lists
each problem whose text differs, with the first token that does and its margin: how far the log-probability of the likeliest
token was above that of the second. Default: the built-in pair, on `builtin`.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import zip_longest

from arbitrage_cli.data.datasets import load_dataset
from arbitrage_cli.inference.backend import Backend, Options
from arbitrage_cli.inference.chat_template import INSTRUCTIONS
from arbitrage_cli.inference.engine import Engine
from arbitrage_cli.inference.kv_cache import Cache
from arbitrage_cli.inference.open import open_model
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Scheduler
from arbitrage_cli.model_files.pairs import find_pair, read_pairs
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.types import Decided, Event, Limits, ModelRole, Problem, Wrote

Tokens = list[tuple[str, float]]
"""Text and margin of each token of a solution."""


def kept_tokens(events: Iterable[Event]) -> dict[str, Tokens]:
    """The tokens of the kept steps, by problem id."""
    written: dict[tuple[str, ModelRole], list[str]] = defaultdict(list)
    kept: dict[str, Tokens] = defaultdict(list)
    for event in events:
        if isinstance(event, Wrote):
            written[event.trace.problem.id, event.model].append(event.text)
        elif isinstance(event, Decided):
            name, step = event.trace.problem.id, event.decision.kept
            margins = step.token_stats.margins if step.token_stats else ()
            kept[name] += zip(written[name, step.model], margins, strict=True)
            written[name, "draft"], written[name, "target"] = [], []
    return kept


def solve(
    sources: Mapping[ModelRole, str], problems: Sequence[Problem], policy: str, system: str, concurrency: int
) -> dict[str, Tokens]:
    """The tokens of each solution, with `concurrency` problems at once."""
    chosen = POLICIES[policy]
    with ExitStack() as stack:
        engines: dict[ModelRole, Engine] = {}
        for role in chosen.models:
            options = Options(num_sequences=concurrency)
            backend: Backend = stack.enter_context(closing(open_model(sources[role], options)))
            engines[role] = Engine(role, Cache(backend, system), Sampler(), keep_token_stats=True)
        scheduler = Scheduler(
            engines, lambda trace: chosen.flow(trace, chosen.default_tau, 0), Limits(), concurrency=concurrency
        )
        return kept_tokens(scheduler.run(problems))


def first_difference(one: Tokens, other: Tokens) -> int | None:
    """The index of the first token that differs; None if none does."""
    texts = zip_longest((text for text, _ in one), (text for text, _ in other))
    return next((place for place, (text, other_text) in enumerate(texts) if text != other_text), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pair = find_pair("builtin", read_pairs())
    parser.add_argument("--draft", default=pair.draft)
    parser.add_argument("--target", default=pair.target)
    parser.add_argument("--dataset", default="builtin")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--limit", type=int, default=40)
    arguments = parser.parse_args()
    sources: dict[ModelRole, str] = {"draft": arguments.draft, "target": arguments.target}
    is_built_in = (arguments.draft, arguments.target) == (pair.draft, pair.target)
    system = pair.system if is_built_in and pair.system is not None else INSTRUCTIONS
    problems = [item.problem for item in load_dataset(arguments.dataset, offline=True).items[: arguments.limit]]
    for policy in ("draft", "target", "entropy"):
        alone = solve(sources, problems, policy, system, 1)
        together = solve(sources, problems, policy, system, arguments.concurrency)
        num_different = 0
        for name, tokens in alone.items():
            place = first_difference(tokens, together[name])
            if place is not None:
                num_different += 1
                text, margin = tokens[place] if place < len(tokens) else ("", float("nan"))
                sys.stdout.write(f"  {name}: token {place} of {len(tokens)}, {text!r}, margin {margin:.2g} nats\n")
        sys.stdout.write(f"{policy}: {num_different} of {len(alone)} problems differ with {arguments.concurrency} at once\n")


if __name__ == "__main__":
    main()

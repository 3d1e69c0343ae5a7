"""Made-up run folders of `arbitrage collect`, whose best possible scorer is known."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from made_up_runs import as_run, describe, settings
from made_up_tuning import unit_costs
from numpy.typing import NDArray

from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.step_text import BLANK_LINE
from arbitrage_cli.routing.features import FEATURES, EarlierSteps
from arbitrage_cli.routing.router import TrainedModel
from arbitrage_cli.runs.folder import RunFolder
from arbitrage_cli.runs.records import SCHEMA
from arbitrage_cli.runs.rows import CollectedRow
from arbitrage_cli.training.states import State
from arbitrage_cli.types import Cost, Problem, Step, TokenStats

DRAFT, TARGET = TrainedModel("Tiny draft", "d" * 64), TrainedModel("Tiny target", "e" * 64)
TARGET_SECONDS = 0.01  # per token
COSTS = {
    "draft": asdict(unit_costs(0.001)),
    "target": asdict(unit_costs(TARGET_SECONDS, few=4.0, many=8.8, prefill=0.001)),
}


@dataclass(frozen=True)
class World:
    """A model that generates states: the log-odds of an advantage are the bias plus the weighted features.

    The features that weights may name vary by about 1: the least likely token, the first token's entropy, and how many numbers
    a step has.

    An advantage is 1; without one it is -1 with the probability `harm`, else 0. The first of the `steps` are `thoughts`.
    """

    bias: float = -2.0
    weights: tuple[tuple[str, float], ...] = (("logprob_min", -1.0), ("entropy_first", 0.7), ("numbers", 0.5))
    harm: float = 0.05
    steps: int = 5
    thoughts: int = 0

    def probability(self, features: NDArray[np.float32]) -> float:
        """P(advantage > 0) of a state: no router can know more."""
        log_odds = self.bias + sum(weight * float(features[FEATURES.index(name)]) for name, weight in self.weights)
        return 1 / (1 + math.exp(-log_odds))


def make_states(world: World, seed: int) -> list[State]:
    rng = np.random.default_rng(seed)
    states = []
    for position in range(world.steps):
        drafted = replace(_draft(rng), phase="think" if position < world.thoughts else "answer")
        found = EarlierSteps(Problem("", "")).features([], drafted)
        is_better = rng.random() < world.probability(found)
        draft, target = (0.0, 1.0) if is_better else (1.0, 0.0) if rng.random() < world.harm else (1.0, 1.0)
        written = Step(
            "target", f"target's step {position}\n\n", drafted.num_tokens + 2, Cost(prefill_tokens=12), "separator"
        )
        states.append(State.of(position, drafted, written, draft, target))
    return states


def _draft(rng: np.random.Generator) -> Step:
    """A drafted step of 10 to 29 tokens, the first of which has the highest entropy, and a token at random the least probability."""
    count = int(rng.integers(10, 30))
    least, first = rng.normal(size=2)
    log_odds = least + np.abs(rng.normal(size=count))
    log_odds[rng.integers(count)] = least
    log_probabilities = (-np.log1p(np.exp(-log_odds))).tolist()
    entropies = np.exp(first - np.arange(count) / count).tolist()
    pieces = [f" {number}" if number < rng.integers(4) else " step" for number in range(count)]
    token_stats = TokenStats(log_probabilities, entropies, np.exp(rng.normal(size=count)).tolist(), pieces=pieces)
    return Step("draft", "".join(pieces), count, Cost(), "separator", token_stats)


def write_run(
    folder: Path,
    problems: Sequence[str],
    world: World | None = None,
    *,
    changes: dict[str, Any] | None = None,
    ids: Sequence[str] | None = None,
) -> Path:
    """A run folder with one row for each problem, in the way that `arbitrage collect` writes it."""
    changes = changes or {}
    ids = ids or [str(number) for number in range(len(problems))]
    run = describe(dict.fromkeys(ids, 1), [("oracle", 0.0)]) | {
        "kind": "collect",
        "reward": {"kind": "prm", "name": "made up"},
    }
    names: dict[str, TrainedModel] = changes.get("models", {"draft": DRAFT, "target": TARGET})
    run["decided"] |= {
        "models": {
            role: {"name": f"{role}.gguf", "sha256": one.sha256, "costs": changes.get("costs", COSTS).get(role)}
            for role, one in names.items()
        },
        "settings": settings(Sampler(seed=zlib.crc32(folder.name.encode())), step_min_chars=BLANK_LINE.min_chars)
        | changes.get("settings", {}),
    }
    run["loaded"] = {role: {**run["loaded"][role], "name": one.name} for role, one in names.items()}
    run |= {name: value for name, value in changes.items() if name not in ("models", "costs", "settings", "command")}
    run["asked"]["command"] = changes.get("command", run["asked"]["command"])
    with RunFolder(folder, kind="collect") as opened:
        opened.save_run(as_run(run))
        rows = []
        for identifier, question in zip(ids, problems, strict=True):
            seed = int.from_bytes(question.encode()[-8:], "big")
            states = make_states(world or World(), seed)
            rows.append(
                CollectedRow(
                    schema=SCHEMA,
                    id=identifier,
                    sample=0,
                    policy="oracle",
                    tau=0.0,
                    status="done",
                    error=None,
                    level=1,
                    text="",
                    seconds=0.0,
                    question=question,
                    states=[state.to_dict() for state in states],
                )
            )
        opened.rewrite(rows)
    return folder


def questions(count: int, start: int = 0) -> list[str]:
    return [f"What is {number} + 1?" for number in range(start, start + count)]

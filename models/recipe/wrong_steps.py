"""Write steps that are known to be right or wrong, for the process reward model: steps of both models, and true steps with inserted errors.

    python wrong_steps.py train --draft draft.gguf --target target.gguf --out steps.jsonl
    python wrong_steps.py dev --draft draft.gguf --target target.gguf --out steps-dev.jsonl

A step is right if it and all earlier steps equal the true solution. The models run in `arbitrage` itself, which must be installed;
PyTorch is not needed. Training problems have a seed of their own, so the models have not seen them. `dev` and `test` are the held-out
problems, each solved by every source.
"""

import argparse
import itertools
import json
import operator
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from generate import HELD_OUT_PER_LEVEL, HELD_OUT_SEEDS, Problem, held_out, training_problems
from lines import NUMBER, Line, result, slip

from arbitrage_cli.inference.backend import LoadOptions
from arbitrage_cli.inference.chat_template import PromptStyle
from arbitrage_cli.inference.engine import Engine
from arbitrage_cli.inference.kv_cache import KvCache
from arbitrage_cli.inference.llama.backend import LlamaBackend
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Job, Scheduler
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.route import Route
from arbitrage_cli.types import Finished, Limits, ModelRole
from arbitrage_cli.types import Problem as Question

CONTEXT_SIZE = 512
LIMITS = Limits(max_steps=12, max_tokens=400, max_step_tokens=120)
TAU = 0.5  # of policy `random`, so that the target writes half of the steps
WAYS = ((0.0, 1), (1.0, 4))
"""Temperature and lowest level for each half of the training problems."""
MAX_AFTER = 2  # steps after the first wrong one, in training
SHARE_WRONG = 0.4  # share of wrong labels in training


@dataclass(frozen=True, slots=True)
class Labelled:
    """A question, steps for it, whether each step is right, and the source of the steps.

    `agrees` is the number of characters that the first wrong step shares with the right one.
    """

    question: str
    steps: tuple[str, ...]
    labels: tuple[bool, ...]
    source: str
    agrees: int

    def json(self) -> str:
        return json.dumps(asdict(self))


def labelled(problem: Problem, steps: Sequence[str], source: str) -> Labelled:
    """Label steps. All steps after the first wrong one are wrong."""
    same = [step == true for step, true in itertools.zip_longest(steps, problem.steps)][: len(steps)]
    labels: tuple[bool, ...] = tuple(itertools.accumulate(same, operator.and_))
    num_right = labels.count(True)
    pairs = zip("".join(steps[num_right : num_right + 1]), "".join(problem.steps[num_right : num_right + 1]), strict=False)
    agrees = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return Labelled(problem.question, tuple(steps), labels, source, agrees)


# --- what the models write


def solutions(
    backends: Mapping[ModelRole, LlamaBackend],
    policy: str,
    problems: Sequence[Problem],
    temperature: float,
    concurrency: int,
) -> Iterator[tuple[Problem, list[str]]]:
    """Return the steps that a policy writes for each problem, without separators."""
    models = {role: backends[role] for role in POLICIES[policy].models}
    sampler = Sampler(temperature)
    engines = {role: Engine(role, KvCache(backend, PromptStyle("")), sampler) for role, backend in models.items()}
    questions = (Question(str(index), problem.question) for index, problem in enumerate(problems))
    jobs = (Job(question, partial(Route(POLICIES[policy], TAU).flow, seed=0), LIMITS) for question in questions)
    for event in Scheduler(engines, concurrency=concurrency).run(jobs):
        if isinstance(event, Finished) and event.trace.decisions:
            steps = [decision.kept.text.strip() for decision in event.trace.decisions]
            yield problems[int(event.trace.problem.id)], steps


SOURCES = {"draft": "draft", "target": "target", "mixed": "random"}
"""The policy of each source of steps."""


def balanced(rows: Iterable[Labelled], share_wrong: float, rng: random.Random) -> list[Labelled]:
    """Return all rows with an error, cut soon after it, and as many others as are needed for SHARE_WRONG."""
    flawed: list[Labelled] = []
    flawless: list[Labelled] = []
    for row in rows:
        (flawless if all(row.labels) else flawed).append(_cut(row))
    rng.shuffle(flawless)
    num_wrong = sum(row.labels.count(False) for row in flawed)
    missing = num_wrong / share_wrong - sum(len(row.labels) for row in flawed)
    lengths = itertools.accumulate(len(row.labels) for row in flawless)
    chosen = [*flawed, *(row for row, length in zip(flawless, lengths, strict=True) if length <= missing)]
    rng.shuffle(chosen)
    return chosen


def _cut(row: Labelled) -> Labelled:
    kept = row.labels.count(True) + 1 + MAX_AFTER
    return replace(row, steps=row.steps[:kept], labels=row.labels[:kept])


# --- errors put into true steps

_LABELS = ("Left", "Then", "In all", "Together", "Cost", "Total", "One part", "Per hour", "Change", "Difference", "Earned")


def with_error(problem: Problem, rng: random.Random) -> list[str]:
    """Return the true steps up to one with an inserted error, perhaps with later steps."""
    while True:
        index = rng.randrange(len(problem.steps))
        error = rng.choice(ERRORS)
        wrong = error(problem, index, rng)
        if wrong and wrong != problem.steps[index]:
            break
    rest = problem.steps[index + (2 if error is skipped else 1) :]
    later = _followed(rest, result(problem.steps[index]), result(wrong)) if rng.random() < 0.5 else rest
    return [*problem.steps[:index], wrong, *later[: rng.choice((0, 0, *range(MAX_AFTER + 1)))]]


def wrong_result(problem: Problem, index: int, rng: random.Random) -> str | None:
    """Change a digit in the step's last number."""
    return _replaced(problem.steps[index], -1, rng)


def wrong_number(problem: Problem, index: int, rng: random.Random) -> str | None:
    """Change a digit in another number of the step: a factor, a partial product."""
    step = problem.steps[index]
    return _replaced(step, rng.randrange(len(NUMBER.findall(step))), rng)


def wrongly_copied(problem: Problem, index: int, rng: random.Random) -> str | None:
    """Change a digit in an operand, and calculate the result from it."""
    line = Line.read(problem.steps[index])
    return None if line is None else _with_operand(line, lambda operand: slip(operand, rng), rng)


def other_operand(problem: Problem, index: int, rng: random.Random) -> str | None:
    """Replace an operand by a number from the question or an earlier step."""
    line = Line.read(problem.steps[index])
    known = [number for told in (problem.question, *problem.steps[:index]) for number in NUMBER.findall(told)]
    return None if line is None else _with_operand(line, lambda operand: rng.choice(known), rng)


def other_sign(problem: Problem, index: int, rng: random.Random) -> str | None:
    """Change the operation, or swap the operands, and calculate the result."""
    line = Line.read(problem.steps[index])
    if line is None:
        return None
    if rng.random() < 0.25:
        return replace(line, left=line.right, right=line.left).write()
    return replace(line, sign=rng.choice("+-*/")).write()


def other_label(problem: Problem, index: int, rng: random.Random) -> str | None:
    """Change or remove the name of the result."""
    line = Line.read(problem.steps[index])
    return replace(line, label=rng.choice(("", *_LABELS))).write() if line and line.label else None


def skipped(problem: Problem, index: int, rng: random.Random) -> str | None:
    """Return the following step instead."""
    return problem.steps[index + 1] if index + 1 < len(problem.steps) else None


def repeated(problem: Problem, index: int, rng: random.Random) -> str | None:
    """Return an earlier step instead."""
    return rng.choice(problem.steps[:index]) if index else None


def ended_early(problem: Problem, index: int, rng: random.Random) -> str | None:
    """Answer with the result so far, or with a number from the question."""
    earlier = [result(step) for step in problem.steps[:index]] or NUMBER.findall(problem.question)
    return f"The answer is \\boxed{{{rng.choice(earlier[-2:])}}}."


ERRORS: tuple[Callable[[Problem, int, random.Random], str | None], ...] = (
    wrong_result, wrong_result, wrong_result, wrong_result, wrong_number, wrong_number, wrong_number, wrongly_copied,
    wrongly_copied, other_operand, other_operand, other_sign, other_label, skipped, repeated, ended_early,
)  # fmt: skip
"""Kinds of errors. Wrong digits are repeated: trained models still make them, and they are the hardest to detect."""


def _followed(steps: Sequence[str], old: str, new: str) -> list[str]:
    """Return the later steps, calculated from the wrong result."""
    followed = []
    for step in steps:
        line = Line.read(step)
        if line is None:
            changed: str | None = step.replace(f"{{{old}}}", f"{{{new}}}")
        else:
            changed = replace(line, **{side: new for side in ("left", "right") if getattr(line, side) == old}).write()
        if changed is None:
            break
        followed.append(changed)
        old, new = result(step), result(changed)
    return followed


def _with_operand(line: Line, change: Callable[[str], str], rng: random.Random) -> str | None:
    side = rng.choice(("left", "right"))
    return replace(line, **{side: change(getattr(line, side))}).write()


def _replaced(step: str, which: int, rng: random.Random) -> str:
    """Change a digit in one number of the step."""
    match = list(NUMBER.finditer(step))[which]
    return step[: match.start()] + slip(match.group(), rng) + step[match.end() :]


# --- the files


def training_rows(
    backends: Mapping[ModelRole, LlamaBackend], counts: Mapping[str, int], seed: int, concurrency: int
) -> list[Labelled]:
    """Return balanced rows for these numbers of problems by source. No problem is used twice."""
    problems = training_problems(seed)
    rng = random.Random(seed)
    rows = []
    for source, policy in SOURCES.items():
        for temperature, lowest in WAYS:
            hard = (problem for problem in problems if problem.level >= lowest)
            some = list(itertools.islice(hard, counts[source] // len(WAYS)))
            began = time.perf_counter()
            found = [labelled(*told, source) for told in solutions(backends, policy, some, temperature, concurrency)]
            _report(f"{source} at temperature {temperature:g}", found, time.perf_counter() - began)
            rows += found
    rows += _corrupted(itertools.islice(problems, counts["corrupted"]), rng)
    return balanced(rows, SHARE_WRONG, rng)


def held_out_rows(backends: Mapping[ModelRole, LlamaBackend], name: str, per_level: int, concurrency: int) -> list[Labelled]:
    """Return rows for held-out problems of each level, each solved greedily by every source."""
    problems = [problem for index, problem in enumerate(held_out(name)) if index % HELD_OUT_PER_LEVEL < per_level]
    rows = []
    for source, policy in SOURCES.items():
        began = time.perf_counter()
        found = [labelled(*told, source) for told in solutions(backends, policy, problems, 0.0, concurrency)]
        _report(source, found, time.perf_counter() - began)
        rows += found
    return rows + _corrupted(problems, random.Random(name))


def _corrupted(problems: Iterable[Problem], rng: random.Random) -> list[Labelled]:
    return [labelled(problem, with_error(problem, rng), "corrupted") for problem in problems]


def _report(what: str, rows: Sequence[Labelled], seconds: float) -> None:
    labels = [label for row in rows for label in row.labels]
    flawless = sum(all(row.labels) for row in rows)
    print(
        f"{what}: {len(rows)} problems, {flawless} without an error; {len(labels)} steps, {labels.count(False)} wrong; "
        f"{seconds:.0f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", choices=["train", *HELD_OUT_SEEDS])
    parser.add_argument("--draft", type=Path, required=True, help="GGUF")
    parser.add_argument("--target", type=Path, required=True, help="GGUF")
    parser.add_argument("--out", type=Path, required=True, help="output file")
    parser.add_argument("--draft-problems", type=int, default=12_000, help="training problems solved by the draft")
    parser.add_argument("--target-problems", type=int, default=1_000)
    parser.add_argument("--mixed-problems", type=int, default=400)
    parser.add_argument("--corrupted-problems", type=int, default=10_000)
    parser.add_argument("--per-level", type=int, default=HELD_OUT_PER_LEVEL, help="held-out problems per level")
    parser.add_argument(
        "--seed",
        type=int,
        default=3_000_000_000,
        help="seed of the training problems; must differ from the seeds of train.py",
    )
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    load = LoadOptions(context_size=CONTEXT_SIZE, threads=options.threads, num_sequences=options.concurrency)
    with LlamaBackend(options.draft, load) as draft, LlamaBackend(options.target, load) as target:
        backends: dict[ModelRole, LlamaBackend] = {"draft": draft, "target": target}
        if options.problems == "train":
            counts = {source: getattr(options, f"{source}_problems") for source in (*SOURCES, "corrupted")}
            rows = training_rows(backends, counts, options.seed, options.concurrency)
        else:
            rows = held_out_rows(backends, options.problems, options.per_level, options.concurrency)
    part = options.out.with_name(options.out.name + ".part")
    part.write_text("".join(row.json() + "\n" for row in rows), encoding="utf-8")
    part.replace(options.out)
    _report(str(options.out), rows, 0.0)


if __name__ == "__main__":
    main()

"""Selects problems from a data set and chooses default names for run folders."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from arbitrage_cli.app.options import ProblemOptions
from arbitrage_cli.app.problem_source import range_of
from arbitrage_cli.errors import UsageError
from arbitrage_cli.numbers import formatting
from arbitrage_cli.problems.datasets import load_dataset
from arbitrage_cli.problems.rows import Dataset, Item, parse_mapping
from arbitrage_cli.problems.tasks import FORMS

MAX_NAME = 60  # characters in each half of a folder name
DIGEST = 8  # characters of the checksum in a shortened name


@dataclass(frozen=True, slots=True)
class Selection:
    """A data set and the problems to solve."""

    dataset: Dataset
    items: Sequence[Item]
    is_sample: bool = False

    @property
    def title(self) -> str:
        if len(self.items) == len(self.dataset.items):
            return self.dataset.name
        return f"{self.dataset.name}, {'a sample of ' * self.is_sample}{len(self.items)} of {len(self.dataset.items)}"


def read_problems(options: ProblemOptions, *, seed: int, offline: bool, needs_answers: bool = True) -> Selection:
    mapping = parse_mapping(options.mapping) if options.mapping else {}
    dataset = load_dataset(options.dataset, offline=offline, mapping=mapping, needs_answers=needs_answers, forms=FORMS)
    return Selection(dataset, _select(dataset.items, options, seed), _is_sample(options.limit))


def _select(items: Sequence[Item], options: ProblemOptions, seed: int) -> list[Item]:
    """Return the problems to solve, in data set order. Raises UsageError if an id is unknown or the selection is empty."""
    chosen = _with_ids(items, options.ids)
    if options.limit is None:
        return chosen
    places = range_of(options.limit)
    selected = draw_sample(chosen, places.stop, seed) if _is_sample(options.limit) else chosen[places]
    if chosen and not selected:
        reason = f"'{options.limit}' selects nothing: there are only {formatting.count(len(chosen), 'problem')}"
        raise UsageError(reason, f"use a range within 1-{len(chosen)}", option="limit")
    return selected


def default_folder(dataset: str, models: Sequence[str], *, prefix: str = "", concurrency: str = "1") -> Path:
    """Return the default run folder: `runs/math500--mine` or, at concurrency 8, `runs/math500--mine--concurrency-8`."""
    names = [PurePath(name).name.removesuffix(".gguf") for name in models]
    suffix = "" if concurrency == "1" else f"--concurrency-{_file_name(concurrency)}"
    return Path("runs") / f"{prefix}{_file_name(PurePath(dataset).stem)}--{_file_name(*names)}{suffix}"


def _is_sample(limit: str | None) -> bool:
    return limit is not None and "-" not in limit


def draw_sample(items: Sequence[Item], count: int, seed: int) -> list[Item]:
    """Draw `count` problems, balanced across levels. For the same seed, a larger sample contains every smaller sample."""
    drawn = sorted(items, key=lambda item: hashlib.sha256(f"{seed} {item.problem.id}".encode()).digest())
    sizes, taken = Counter(item.level for item in items), Counter[str | int | None]()
    places: dict[str, float] = {}
    for item in drawn:
        places[item.problem.id] = (taken[item.level] + 0.5) / sizes[item.level]
        taken[item.level] += 1
    chosen = {item.problem.id for item in sorted(drawn, key=lambda item: places[item.problem.id])[:count]}
    return [item for item in items if item.problem.id in chosen]


def _with_ids(items: Sequence[Item], ids: str | None) -> list[Item]:
    if ids is None:
        return list(items)
    wanted, known = [part.strip() for part in ids.split(",")], {item.problem.id for item in items}
    if missing := [name for name in wanted if name not in known]:
        some = ", ".join(item.problem.id for item in items[:5])
        raise UsageError(
            f"unknown problem id: {', '.join(missing)}", f"use ids in this data set, such as {some}", option="ids"
        )
    return [item for item in items if item.problem.id in wanted]


def _file_name(*names: str) -> str:
    """Join names into a valid file name. A long name is truncated and made unique by a checksum."""
    plain = (re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") for name in names)
    whole = "-".join(filter(None, plain)) or "run"
    digest = hashlib.sha256(whole.encode()).hexdigest()[:DIGEST]
    return whole if len(whole) <= MAX_NAME else f"{whole[: MAX_NAME - DIGEST]}-{digest}"

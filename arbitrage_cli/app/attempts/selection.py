"""Selects the problems of a data set: all, a range, a sample, or those with given ids."""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Sequence
from difflib import get_close_matches

from arbitrage_cli.app.asking.resume import Resumed
from arbitrage_cli.app.options import ProblemOptions
from arbitrage_cli.errors import MAX_SHOWN, UsageError
from arbitrage_cli.numbers import formatting
from arbitrage_cli.problems.datasets import load_dataset
from arbitrage_cli.problems.rows import Dataset, Item, parse_mapping
from arbitrage_cli.problems.tasks import FORMS
from arbitrage_cli.types import frozen


@frozen
class Selection:
    """A data set and the problems to solve, which may be a random sample."""

    dataset: Dataset
    items: Sequence[Item]
    is_sample: bool = False

    @property
    def title(self) -> str:
        selected, count = len(self.items), len(self.dataset.items)
        if selected == count:
            return self.dataset.name
        if self.is_sample:
            return f"{self.dataset.name}, a sample of {selected} of {count}"
        return f"{self.dataset.name}, {selected} of {count}"


def select_problems(
    options: ProblemOptions,
    *,
    seed: int,
    offline: bool,
    needs_answers: bool = True,
    resumed: Resumed | None = None,
) -> Selection:
    """Return the problems that the options select.

    The problems of the run to resume come first in a sample. Otherwise, a data set that has grown would have another sample.
    If the run has a selection and none is typed now, its problems are selected again. Raises UsageError if there are no
    problems, or if the data set is invalid.
    """
    mapping = parse_mapping(options.mapping) if options.mapping else {}
    dataset = load_dataset(options.dataset, offline=offline, mapping=mapping, needs_answers=needs_answers, forms=FORMS)
    of_run: Collection[str] = resumed.run.levels if resumed else ()
    if resumed and resumed.keeps_selection:
        items = [item for item in dataset.items if item.problem.id in of_run]
        return Selection(dataset, items, _is_sample(options.limit))
    if options.ids:
        wanted = [name.strip() for name in options.ids.split(",")]
        return Selection(dataset, _with_ids(dataset.items, wanted))
    return Selection(dataset, _select(dataset.items, options.limit, seed, of_run), _is_sample(options.limit))


def _with_ids(items: Sequence[Item], wanted: Sequence[str]) -> Sequence[Item]:
    """Return the problems with these ids, in data set order. Raises UsageError for an unknown id."""
    known = {item.problem.id: item for item in items}
    for name in wanted:
        if name not in known:
            similar = get_close_matches(name[:MAX_SHOWN], known, n=1)
            hint = f"did you mean {similar[0]}?" if similar else f"the first id is {next(iter(known), 'missing')}"
            raise UsageError(f"no problem has the id '{name[:MAX_SHOWN]}'", hint, option="ids")
    return [item for name, item in known.items() if name in wanted]


def _select(items: Sequence[Item], limit: str | None, seed: int, of_run: Collection[str]) -> Sequence[Item]:
    """Return the problems to solve, in data set order. Raises UsageError if the selection is empty."""
    if limit is None:
        return items
    places = range_of(limit)
    selected = draw_sample(items, places.stop, seed, of_run) if _is_sample(limit) else items[places]
    if items and not selected:
        reason = f"'{limit}' selects nothing: there are only {formatting.count(len(items), 'problem')}"
        raise UsageError(reason, f"use a range within 1-{len(items)}", option="limit")
    return selected


def _is_sample(limit: str | None) -> bool:
    return limit is not None and "-" not in limit


def draw_sample(items: Sequence[Item], count: int, seed: int, first: Collection[str] = ()) -> list[Item]:
    """Draw `count` problems, balanced across levels, and those with the ids in `first` before any other.

    For the same seed, a larger sample contains every smaller sample.
    """
    shuffled = sorted(items, key=lambda item: hashlib.sha256(f"{seed} {item.problem.id}".encode()).digest())
    sizes = Counter(item.level for item in items)
    num_placed = Counter[str | int | None]()
    places: dict[str, float] = {}  # from 0 to 1, evenly spread over each level
    for item in shuffled:
        places[item.problem.id] = (num_placed[item.level] + 0.5) / sizes[item.level]
        num_placed[item.level] += 1
    drawn = sorted(shuffled, key=lambda item: (item.problem.id not in first, places[item.problem.id]))[:count]
    ids = {item.problem.id for item in drawn}
    return [item for item in items if item.problem.id in ids]


def range_of(limit: str) -> slice:
    """Return the slice for a limit such as `10` (the first ten) or `10-20`. Raises UsageError if the limit is invalid."""
    found = re.fullmatch(r"(?:([0-9]{1,9})-)?([0-9]{1,9})", limit.strip())
    first, last = (int(found[1] or 1), int(found[2])) if found else (0, 0)
    if not 1 <= first <= last:
        hint = "use 10 for ten problems, or 10-20 for problems 10 to 20"
        raise UsageError(f"invalid limit '{limit}'", hint, option="limit")
    return slice(first - 1, last)

"""Packs the traces of a report row by row, so that an HTML page can contain 100,000 traces.

The page contains an index for searching and sorting, and compressed blocks of rows. A script unpacks the blocks on demand.
"""

import base64
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from arbitrage_cli.problems.answers import boxed_answer, gold_answer
from arbitrage_cli.routing.route import route_name

if TYPE_CHECKING:  # pydantic is slow to import
    from arbitrage_cli.runs.rows import AttemptRow

BLOCK = 1 << 18  # minimum bytes of JSON in a block
DIGITS = 4  # decimals of numbers, more than the page shows
SHOWN = frozenset(
    ("problem", "gold", "answer", "grade", "error", "stop", "steps", "check")
)  # the fields of a row that the page shows
Json = Mapping[str, Any]


class TracePacker:
    """Packs the rows of a run, which may be in any order. If an attempt has several rows, the last row is used."""

    def __init__(self) -> None:
        self._problems: dict[str, tuple[int, Any]] = {}  # index and level by ID
        self._attempts: dict[tuple[int, int, Any], list[Any]] = {}
        self._blocks: list[tuple[int, str]] = []
        self._parts: list[bytes] = []
        self._num_rows = 0

    def watch(self, rows: "Iterable[AttemptRow]") -> "Iterator[AttemptRow]":
        """Yield the rows unchanged, and pack each row before the next is read."""
        for row in rows:
            yield row
            self._add(row)

    def _add(self, row: "AttemptRow") -> None:
        problem, _ = self._problems.setdefault(row.id, (len(self._problems), row.level))
        self._attempts[problem, row.sample, (row.policy, row.tau)] = _entry(row, self._num_rows)
        right = gold_answer(row.gold) or ""
        content = row.model_dump_json(by_alias=True, exclude_unset=True, include={*SHOWN})
        shown = json.loads(content, parse_float=_rounded) | {"right": boxed_answer(right) or right}
        self._parts.append(to_json(shown))
        self._num_rows += 1
        if sum(map(len, self._parts)) >= BLOCK:
            self._close_block()

    def packed(self, policies: Sequence[Json]) -> dict[str, Any]:
        """Return the data for the page's script. A block has the index of its first attempt, and the packed attempts."""
        if self._parts:
            self._close_block()
        numbers = {(policy["policy"], policy["tau"]): number for number, policy in enumerate(policies)}
        attempts = [[problem, sample, numbers[of], *entry] for (problem, sample, of), entry in self._attempts.items()]
        problems = [[name, level] for name, (_, level) in self._problems.items()]
        named = (route_name(policy["policy"], policy["tau"], policy["tau_name"]) for policy in policies)
        return {
            "policies": [{**one, "name": name} for name, one in zip(named, policies, strict=True)],
            "index": _packed(to_json({"problems": problems, "attempts": attempts})),
            "blocks": self._blocks,
        }

    def _close_block(self) -> None:
        self._blocks.append((self._num_rows - len(self._parts), _packed(b"[" + b",".join(self._parts) + b"]")))
        self._parts = []


def embedded(data: Any) -> str:
    """Return ASCII JSON that cannot end a script element or begin a comment."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 6)).decode()


def _entry(row: "AttemptRow", number: int) -> list[Any]:
    """Return an index entry: verdict, wall-clock seconds, seconds for steps, number of target steps, and attempt index."""
    is_done = row.status == "done"
    written = sum(version.seconds for step in row.steps for version in (step, step.discarded) if version)
    written += sum(step.seconds for step in row.check.discarded) if row.check else 0.0
    calls = sum(step.model == "target" for step in row.steps)
    seconds = round(row.wall_seconds, DIGITS) if is_done else None
    return [row.grade.value if row.grade and is_done else "error", seconds, round(written, DIGITS), calls, number]


def _rounded(number: str) -> float:
    return round(float(number), DIGITS)

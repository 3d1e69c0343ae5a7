"""The traces of a report: packed row by row, so that a page holds a hundred thousand, and unpacked by its script when looked at.

A run has an index with what traces are found and ordered by, and blocks of consecutive attempts with their texts.
"""

import base64
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pydantic_core import to_json

from arbitrage_cli.display.text import safe

BLOCK = 1 << 18  # characters of JSON, and as many more as its last attempt needs
DIGITS = 4  # of seconds and numbers: more than are shown

Json = Mapping[str, Any]


class TracePacker:
    """Packs the rows of one run, in any order. A later row of the same attempt replaces an earlier one."""

    def __init__(self) -> None:
        self._problems: dict[str, tuple[int, Any]] = {}  # number and level, by id
        self._attempts: dict[tuple[int, int, Any], list[Any]] = {}
        self._blocks: list[tuple[int, str]] = []
        self._parts: list[str] = []
        self._size = self._num_rows = 0

    def watch(self, rows: Iterable[Json]) -> Iterator[Json]:
        """The same rows; each is packed when the next one is asked for."""
        for row in rows:
            yield row
            self.add(row)

    def add(self, row: Json) -> None:
        """Pack a row."""
        problem, _ = self._problems.setdefault(row["id"], (len(self._problems), row["level"]))
        self._attempts[problem, row["sample"], (row["policy"], row["tau"])] = _entry(row, self._num_rows)
        self._parts.append(_encoded(_attempt(row)))
        self._num_rows += 1
        self._size += len(self._parts[-1])
        if self._size >= BLOCK:
            self._close_block()

    def packed(self, policies: Sequence[Json]) -> dict[str, Any]:
        """The run for the script: `blocks` are pairs of their first attempt's number and their content."""
        if self._parts:
            self._close_block()
        numbers = {(one["policy"], one["tau"]): number for number, one in enumerate(policies)}
        attempts = [[key[0], key[1], numbers[key[2]], *entry] for key, entry in self._attempts.items()]
        problems = [[name, level] for name, (_, level) in self._problems.items()]
        return {
            "policies": [
                {
                    "label": one["label"],
                    "score_is": one["score_is"],
                    "tau": one["tau"],
                    "is_target": one["policy"] == "target",
                }
                for one in policies
            ],
            "index": _packed(_encoded({"problems": problems, "attempts": attempts})),
            "blocks": self._blocks,
        }

    def _close_block(self) -> None:
        self._blocks.append((self._num_rows - len(self._parts), _packed(f"[{','.join(self._parts)}]")))
        self._parts, self._size = [], 0


def embedded(data: Any) -> str:
    """JSON for a script element: ASCII, and without any character that could end the element or begin a comment."""
    text = json.dumps(_clean(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _encoded(data: Any) -> str:
    """JSON whose texts are all `safe`: as most are, they are looked at one by one only if one is not."""
    with suppress(ValueError):  # a lone surrogate
        text = to_json(data).decode()  # much faster than json
        if text.isprintable() and "\\u" not in text:
            return text
    return to_json(_clean(data)).decode()


def _clean(data: Any) -> Any:
    if isinstance(data, str):
        return safe(data)
    if isinstance(data, Mapping):
        return {_clean(key): _clean(value) for key, value in data.items()}
    return [_clean(value) for value in data] if isinstance(data, list | tuple) else data


def _packed(text: str) -> str:
    """Deflated, in base 64."""
    return base64.b64encode(zlib.compress(text.encode(), 6)).decode()


def _entry(row: Json, number: int) -> list[Any]:
    """An attempt in the index, after problem, sample and policy: verdict, own seconds, seconds of its steps, target steps, number."""
    written = [one["seconds"] for step in row["steps"] for one in (step, step["discarded"]) if one]
    calls = sum(step["model"] == "target" for step in row["steps"])
    return [_verdict(row), _rounded(_seconds(row)), _rounded(sum(written)), calls, number]


def _attempt(row: Json) -> dict[str, Any]:
    grade = row["grade"] or {"answer": None, "explanation": None}
    return {
        "question": row["problem"],
        "gold": row["gold"],
        "answer": row["answer"] if grade["answer"] is None else grade["answer"],
        "explanation": grade["explanation"],
        "error": row["error"],
        "stop": row["stop"],
        "steps": [_step(step) for step in row["steps"]],
    }


def _step(step: Json) -> dict[str, Any]:
    rounded = {name: _rounded(step[name]) for name in ("seconds", "score", "advantage") if name in step}
    return {
        **step,
        **rounded,
        **({"discarded": _step(step["discarded"])} if step.get("discarded") else {}),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")


def _seconds(row: Json) -> float | None:
    """An attempt's own time; None if others were made beside it."""
    return row["wall_seconds"] if row["status"] == "done" and "throughput" not in row else None


def _verdict(row: Json) -> str:
    return str(row["grade"]["value"]) if row["status"] == "done" else "error"

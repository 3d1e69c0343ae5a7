"""The traces of a report: packed, so that a page holds a hundred thousand, and unpacked by its script as they are looked at.

A run has an index with what traces are found and ordered by, and blocks of whole problems with their texts.
"""

import base64
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from arbitrage_cli.display.text import safe

BLOCK = 1 << 18  # characters of JSON, and as many more as its last problem needs
DIGITS = 4  # of seconds and numbers: more than are shown

Json = Mapping[str, Any]


def packed_run(name: str, rows: Iterable[Json], policies: Sequence[Json]) -> dict[str, Any]:
    """The rows of a run for the script: `blocks` are pairs of their first attempt's place and their content."""
    places = {(policy["policy"], policy["tau"]): index for index, policy in enumerate(policies)}
    by_problem: dict[str, list[Json]] = {}
    for row in rows:
        by_problem.setdefault(row["id"], []).append(row)
    ordered = list(itertools.chain(*by_problem.values()))
    numbers = {problem: number for number, problem in enumerate(by_problem)}
    return {
        "name": name,
        "policies": [
            {"label": one["label"], "score_is": one["score_is"], "tau": one["tau"], "is_target": one["policy"] == "target"}
            for one in policies
        ],
        "index": _packed(
            _encoded(
                {
                    "problems": [[problem, own[0]["level"]] for problem, own in by_problem.items()],
                    "attempts": [_entry(row, numbers[row["id"]], places[row["policy"], row["tau"]]) for row in ordered],
                }
            )
        ),
        "blocks": list(_blocks(by_problem.values())),
    }


def embedded(data: Any) -> str:
    """JSON for a script element: ASCII, and without any character that could end the element or begin a comment."""
    text = json.dumps(_clean(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _encoded(data: Any) -> str:
    """JSON whose texts are all `safe`: as most are, they are looked at one by one only if one is not."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if text.isprintable() and "\\u" not in text:
        return text
    return json.dumps(_clean(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _clean(data: Any) -> Any:
    if isinstance(data, str):
        return safe(data)
    if isinstance(data, Mapping):
        return {_clean(key): _clean(value) for key, value in data.items()}
    return [_clean(value) for value in data] if isinstance(data, list | tuple) else data


def _packed(text: str) -> str:
    """Deflated, in base 64."""
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _blocks(problems: Iterable[Sequence[Json]]) -> Iterator[tuple[int, str]]:
    first = end = size = 0
    texts: list[str] = []
    for rows in problems:
        texts.append(_encoded([rows[0]["problem"], rows[0]["gold"], [_attempt(row) for row in rows]]))
        size += len(texts[-1])
        end += len(rows)
        if size >= BLOCK:
            yield first, _packed(f"[{','.join(texts)}]")
            first, size, texts = end, 0, []
    if texts:
        yield first, _packed(f"[{','.join(texts)}]")


def _entry(row: Json, problem: int, policy: int) -> list[Any]:
    """An attempt in the index: problem, sample, policy, verdict, its own seconds, seconds of its steps, steps by the target."""
    written = [one["seconds"] for step in row["steps"] for one in (step, step["discarded"], *step.get("tried", ())) if one]
    calls = sum(step["model"] == "target" for step in row["steps"])
    return [problem, row["sample"], policy, _verdict(row), _rounded(_seconds(row)), _rounded(sum(written)), calls]


def _attempt(row: Json) -> dict[str, Any]:
    grade = row["grade"] or {"answer": None, "explanation": None}
    return {
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
        **({"tried": [_step(other) for other in step["tried"]]} if step.get("tried") else {}),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")


def _seconds(row: Json) -> float | None:
    """An attempt's own time; None if others were made beside it."""
    return row["wall_seconds"] if row["status"] == "done" and "throughput" not in row else None


def _verdict(row: Json) -> str:
    return str(row["grade"]["value"]) if row["status"] == "done" else "error"

"""Data sets from rows, and errors that name the first invalid row."""

import hashlib
import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from arbitrage_cli.errors import UsageError
from arbitrage_cli.problems.datasets import load_dataset
from arbitrage_cli.problems.lines import MAX_LINE_BYTES, read_json_rows
from arbitrage_cli.problems.rows import Dataset, Item, make_dataset, parse_mapping
from arbitrage_cli.types import Problem

GOOD: dict[str, Any] = {"problem": "q", "answer": "4"}


def dataset(*rows: bytes | dict[str, Any], **mapping: str) -> Dataset:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    return make_dataset("some.jsonl", read_json_rows(io.BytesIO(b"\n".join(lines))), mapping=mapping)


def item(row: dict[str, Any], **mapping: str) -> Item:
    (only,) = dataset(row, **mapping).items
    return only


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"id": 1, "question": "\nq ", "final_answer": ["1"], "unit": "cm", "error": None, "is_multiple_answer": False},
            Item(Problem("1", "q"), {"answer": ["1"]}),
        ),
        ({"unique_id": "a/0", **GOOD, "url": None}, Item(Problem("a/0", "q"), {"answer": "4"})),
        ({"question": "q", "answer": 27.0}, Item(Problem("1", "q"), {"answer": 27.0})),
        ({"problem": "q", "answer": 0, "level": "Level 5"}, Item(Problem("1", "q"), {"answer": 0}, "Level 5")),
        ({"problem": "q", "answer": None, "final_answer": [-1]}, Item(Problem("1", "q"), {"answer": [-1]})),
        ({"problem": 7, "question": "q", "answer": "4", "level": ""}, Item(Problem("1", "q"), {"answer": "4"})),
        ({"problem": "a\ud800", "answer": "\ud800", "id": "\ud800"}, Item(Problem("?", "a?"), {"answer": "?"})),
    ],
    ids=["unit", "rest", "number", "zero", "null", "number of a problem", "surrogate"],
)
def test_row(row: dict[str, Any], expected: Item) -> None:
    assert item(row) == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"{", "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b"\xff", "not UTF-8"),
        (b'{"problem": "q", "answer": 9' + b"9" * 5000 + b"}", "a number that is too long"),
        (b"x" * (MAX_LINE_BYTES + 1), "longer than"),
        ({"answer": "4"}, "no text in 'problem' or 'question'; found answer"),
        ({"problem": ["q"], "answer": "4"}, "no text in"),
        ({"problem": " ", "answer": "4"}, "the problem is empty"),
        ({"problem": "a\0b", "answer": "4"}, "NUL"),
        ({"problem": "q"}, "no answer in 'answer' or 'final_answer'; found problem"),
        *(({"problem": "q", "answer": answer}, "no answer") for answer in (" ", math.nan)),
        *(
            ({"problem": "q", "answer": answer}, "the answer is")
            for answer in (math.inf, True, {"a": 4}, [], ["4", ""], [["4"]])
        ),
        *(({**GOOD, "level": level}, "the level is") for level in (2.5, True)),
        ({}, "found no fields"),
    ],
)
def test_bad_row(row: bytes | dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        dataset(GOOD, b"", row, GOOD)
    assert caught.value.message.startswith("some.jsonl: line 3: ")
    assert reason in caught.value.message
    assert "--map" in caught.value.hint
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, b"1", GOOD, b"2", b"3"], r"line 2: not a JSON object \(2 more invalid lines\)$"),
        ([{**GOOD, "id": "a"}, GOOD, {**GOOD, "id": "a"}], "line 3: duplicate id 'a', already used in line 1"),
        ([{**GOOD, "id": 2}, GOOD], "line 2: duplicate id '2', already used in line 1"),
        ([{**GOOD, "id": 7}, {**GOOD, "unique_id": "7"}], "line 2: duplicate id '7', already used in line 1"),
        ([], "no problems"),
        ([b"", b"  ", b""], "no problems"),
        ([b'[{"problem": "q"}]'], "found a JSON list; write one JSON object per line$"),
        ([b"", b"[", GOOD, b"]"], "line 2: found a JSON list; write one JSON object per line$"),
    ],
)
def test_bad_data_set(rows: list[bytes | dict[str, Any]], message: str) -> None:
    """The hint suggests --map only if a row is readable."""
    with pytest.raises(UsageError, match=message) as caught:
        dataset(*rows)
    assert ("--map" in caught.value.hint) == ("line" in message and "JSON list" not in message)


def test_a_file_with_millions_of_rows_is_refused_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arbitrage_cli.problems.rows.MAX_ROWS", 3)
    num_read = itertools.count()
    rows = ((next(num_read), {"question": "q", "answer": "1", "id": number}) for number in range(100))
    with pytest.raises(UsageError, match="more than 3"):
        make_dataset("bomb", rows)
    assert next(num_read) == 4


def test_rows_beyond_those_that_are_needed_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arbitrage_cli.problems.rows.MAX_ROWS", 3)
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\n" + "".join(f"{number} + 1?,5\n" for number in range(9)) + "unequal\n")
    found = load_dataset(str(path), offline=True, max_rows=2)
    assert [item.problem.question for item in found.items] == ["0 + 1?", "1 + 1?"]


def test_sha256() -> None:
    first, second = {**GOOD, "id": "a"}, {**GOOD, "id": "b", "final_answer": "5"}
    known = dataset(first, second).sha256
    assert known == hashlib.sha256(b'[["a","q",{"answer":"4"}],["b","q",{"answer":"4"}]]').hexdigest()
    assert known == dataset({"question": "q", "answer": "4", "unique_id": "a"}, b"", {**second, "level": 3}).sha256
    changes: list[dict[str, Any]] = [
        {"id": "c"}, {"problem": "r"}, {"answer": "5"}, {"answer": ["4"]}, {"answer": 4},
    ]  # fmt: skip
    others = [dataset(second, first), dataset(first), *(dataset(first, {**second, **change}) for change in changes)]
    assert len({known, *(other.sha256 for other in others)}) == len(others) + 1


def test_mapping() -> None:
    row = {"prompt": "q", "gold": "4", "key": "k", "hard": 3, "problem": "another", "answer": "5", "id": "i", "level": 1}
    assert item(row, question="prompt", answer="gold") == Item(Problem("i", "q"), {"answer": "4"}, 1)
    mapped = item(row, id="key", level="hard")
    assert (mapped.problem, mapped.gold, mapped.level) == (Problem("k", "another"), {"answer": "5"}, 3)


@pytest.mark.parametrize(
    "text", ["", "question", "question=", "=prompt", "solution=x", "question=a,question=b", "answer=a,,"]
)
def test_malformed_mapping(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_mapping(text)
    assert "question=prompt,answer=gold" in caught.value.hint

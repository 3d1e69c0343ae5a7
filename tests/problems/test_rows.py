"""Problems from lines, read lazily and in bounded memory, and data sets from rows. Errors name the first invalid row."""

import hashlib
import io
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbitrage_cli.errors import UsageError
from arbitrage_cli.problems.datasets import load_dataset
from arbitrage_cli.problems.rows import (
    MAX_LINE_BYTES,
    BadLine,
    Dataset,
    Item,
    make_dataset,
    make_problem,
    parse_mapping,
    read_json_rows,
    read_problems,
)
from arbitrage_cli.types import Problem

Row = bytes | dict[str, Any]
GOOD: dict[str, Any] = {"problem": "q", "answer": "4"}


def stream_of(*rows: Row) -> io.BytesIO:
    return io.BytesIO(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows))


def read(*rows: Row) -> list[Problem | BadLine]:
    return list(read_problems(stream_of(*rows)))


def questions(rows: list[Problem | BadLine]) -> list[str]:
    return [row.question for row in rows if isinstance(row, Problem)]


def dataset(*rows: Row, **mapping: str) -> Dataset:
    return make_dataset("some.jsonl", read_json_rows(stream_of(*rows)), mapping=mapping)


def item(row: dict[str, Any], **mapping: str) -> Item:
    (only,) = dataset(row, **mapping).items
    return only


# --- lines


def test_plain_lines() -> None:
    assert read(b"one", b"", b"  two  ", b"\t") == [Problem("1", "one"), Problem("3", "two")]


def test_lines_end_at_line_feeds_only() -> None:
    text = "one\u2028still one\x85and on\x0cand on"
    assert questions(read(text.encode(), b"two")) == [text, "two"]


@pytest.mark.parametrize("line", [b"[1, 2, 3] has which mean?", b"[x]", b'"quoted"', b"-5 + 3", b"(1)", b"3", b"{1, 2}"])
def test_plain_problem_that_resembles_json(line: bytes) -> None:
    assert questions(read(line)) == [line.decode()]


def test_first_line_that_is_not_blank_decides_the_format() -> None:
    assert questions(read(b"", b"plain", b'{"problem": "q"}')) == ["plain", '{"problem": "q"}']


@pytest.mark.parametrize("lines", [[b'[{"problem": "q"}]'], [b"[", b'{"problem": "q"}', b"]"], [b"[ {"], [b'["q", "r"]']])
def test_json_list_is_one_bad_line(lines: list[bytes]) -> None:
    (bad,) = read(*lines)
    assert isinstance(bad, BadLine)
    assert "JSON list" in bad.reason


def test_longest_line() -> None:
    longest = b"x" * MAX_LINE_BYTES
    assert questions(read(longest, b"next")) == [longest.decode(), "next"]
    too_long, after = read(longest + b"x", b"next")
    assert isinstance(too_long, BadLine)
    assert (too_long.number, after) == (1, Problem("2", "next"))
    with pytest.raises(ValueError, match="longer than"):  # of other callers
        make_problem("x" * (MAX_LINE_BYTES + 1), "1")


@pytest.mark.parametrize(
    "line", [b"[" * 100_000, b'{"problem": ' + b"[" * 100_000, b'{"id": ' + b"9" * 5000 + b"}", b'{"a":' * 100_000]
)
def test_hostile_line_takes_little_time(line: bytes) -> None:
    began = time.process_time()
    *_, last = read(b'{"problem": "a"}', line, b'{"problem": "b"}')
    assert last == Problem("3", "b")
    assert time.process_time() - began < 10


def test_problems_are_yielded_before_the_next_line_is_there() -> None:
    class Pipe(list[bytes]):
        def readline(self, limit: int, /) -> bytes:
            assert 0 < limit <= MAX_LINE_BYTES + 2  # in bounded memory
            return self.pop()  # fails if nothing was written

    pipe = Pipe()
    rows = read_problems(pipe)
    for number, text in (("1", "one"), ("2", "two")):
        pipe.append(text.encode() + b"\n")
        assert next(rows) == Problem(number, text)


@given(st.lists(st.text(), min_size=1))
def test_any_texts_survive_as_json_lines(texts: list[str]) -> None:
    rows = read(*({"problem": text} for text in texts))
    for text, row in zip(texts, rows, strict=True):
        if isinstance(row, Problem):
            assert row.question == text.strip()
        else:
            assert not text.strip() or "\0" in text


# --- rows


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"id": 1, "question": "\nq ", "final_answer": ["1"], "unit": "cm", "error": None, "is_multiple_answer": False},
            Item(Problem("1", "q"), {"answer": ["1"]}),
        ),
        ({"id": None, "unique_id": "a/0", **GOOD, "url": None}, Item(Problem("a/0", "q"), {"answer": "4"})),
        ({"id": 0, "question": "q", "answer": 27.0}, Item(Problem("0", "q"), {"answer": 27.0})),
        (
            {"id": [1], "unique_id": True, "problem": "q", "answer": 0, "level": "Level 5"},
            Item(Problem("1", "q"), {"answer": 0}, "Level 5"),
        ),
        ({"problem": "q", "answer": None, "final_answer": [-1]}, Item(Problem("1", "q"), {"answer": [-1]})),
        ({"problem": 7, "question": "q", "answer": "4", "level": ""}, Item(Problem("1", "q"), {"answer": "4"})),
        ({"problem": "a\ud800", "answer": "\ud800", "id": "\ud800"}, Item(Problem("?", "a?"), {"answer": "?"})),
    ],
    ids=["unit", "rest", "number", "odd ids", "null", "number of a problem", "surrogate"],
)
def test_row(row: dict[str, Any], expected: Item) -> None:
    assert item(row) == expected
    assert read(row) == [expected.problem]


OF_PROBLEM: list[tuple[Row, str]] = [
    (b"{", "not valid JSON"),
    (b"{'problem': 'q'}", "not valid JSON"),
    (b"[1]", "not a JSON object"),
    (b"\xff", "not UTF-8"),
    (b'{"problem": "q", "answer": 9' + b"9" * 5000 + b"}", "a number that is too long"),
    (b"x" * (MAX_LINE_BYTES + 1), "longer than"),
    ({"answer": "4"}, "no text in 'problem' or 'question'; found answer"),
    ({"problem": ["q"], "answer": "4"}, "no text in"),
    ({"problem": " ", "answer": "4"}, "the problem is empty"),
    ({"problem": "a\0b", "answer": "4"}, "NUL"),
    ({}, "found no fields"),
]
OF_ANSWER: list[tuple[Row, str]] = [
    ({"problem": "q"}, "no answer in 'answer' or 'final_answer'; found problem"),
    *(({"problem": "q", "answer": answer}, "no answer") for answer in (" ", math.nan)),
    *(
        ({"problem": "q", "answer": answer}, "the answer is")
        for answer in (math.inf, True, {"a": 4}, [], ["4", ""], [["4"]])
    ),
    *(({**GOOD, "level": level}, "the level is") for level in (2.5, True)),
]


@pytest.mark.parametrize(("row", "reason"), [*OF_PROBLEM, *OF_ANSWER])
def test_bad_row(row: Row, reason: str) -> None:
    """A data set is refused. Of several problems, only this one is left out."""
    with pytest.raises(UsageError) as caught:
        dataset(GOOD, b"", row, GOOD, b"{")
    assert caught.value.message.startswith("some.jsonl: line 3: ")
    assert reason in caught.value.message
    assert ("--map" in caught.value.hint) == isinstance(row, dict)
    assert len(caught.value.message) < 300
    before, read_row, after = read(GOOD, b"", row, GOOD)
    assert (before, after) == (Problem("1", "q"), Problem("4", "q"))
    if (row, reason) in OF_PROBLEM:
        assert isinstance(read_row, BadLine)
        assert (read_row.number, reason in read_row.reason) == (3, True)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**GOOD, "id": "a"}, GOOD, {**GOOD, "id": "a"}], "line 3: duplicate id 'a', already used in line 1"),
        ([{**GOOD, "id": 2}, GOOD], "line 2: duplicate id '2', already used in line 1"),
        ([{**GOOD, "id": 7}, {**GOOD, "unique_id": "7"}], "line 2: duplicate id '7', already used in line 1"),
        ([], "no problems"),
        ([b"", b"  ", b""], "no problems"),
        ([b"", b"[", GOOD, b"]"], "line 2: found a JSON list; write one JSON object per line$"),
    ],
)
def test_bad_data_set(rows: list[Row], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dataset(*rows)


def test_rows_are_read_only_as_far_as_they_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arbitrage_cli.problems.rows.MAX_DATASET_ROWS", 3)
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\n" + "".join(f"{number} + 1?,5\n" for number in range(9)) + "unequal\n")
    found = load_dataset(str(path), offline=True, max_rows=2)
    assert [item.problem.question for item in found.items] == ["0 + 1?", "1 + 1?"]
    with pytest.raises(UsageError, match="more than 3"):
        load_dataset(str(path), offline=True)


def test_sha256() -> None:
    first, second = {**GOOD, "id": "a"}, {**GOOD, "id": "b", "final_answer": "5"}
    known = dataset(first, second).sha256
    assert known == hashlib.sha256(b'[["a","q",{"answer":"4"}],["b","q",{"answer":"4"}]]').hexdigest()
    assert known == dataset({"question": "q", "answer": "4", "unique_id": "a"}, b"", {**second, "level": 3}).sha256
    assert known != dataset(second, first).sha256


def test_mapping() -> None:
    row = {"prompt": "q", "gold": "4", "key": "k", "hard": 3, "problem": "another", "answer": "5", "id": "i", "level": 1}
    assert item(row, question="prompt", answer="gold") == Item(Problem("i", "q"), {"answer": "4"}, 1)
    assert item(row, id="key", level="hard") == Item(Problem("k", "another"), {"answer": "5"}, 3)


@pytest.mark.parametrize(
    "text", ["", "question", "question=", "=prompt", "solution=x", "question=a,question=b", "answer=a,,"]
)
def test_malformed_mapping(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_mapping(text)
    assert "question=prompt,answer=gold" in caught.value.hint

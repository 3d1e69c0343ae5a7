"""Problems from lines of text, read lazily and in bounded memory."""

import io
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbitrage_cli.problems.lines import MAX_LINE_BYTES, BadLine, make_problem, read_problems
from arbitrage_cli.types import Problem


def read(*lines: bytes) -> list[Problem | BadLine]:
    return list(read_problems(io.BytesIO(b"\n".join(lines))))


def questions(rows: list[Problem | BadLine]) -> list[str]:
    return [row.question for row in rows if isinstance(row, Problem)]


def test_plain_lines() -> None:
    assert read(b"one", b"", b"  two  ", b"\t") == [Problem("1", "one"), Problem("3", "two")]


def test_lines_end_at_line_feeds_only() -> None:
    text = "one\u2028still one\x85and on\x0cand on"
    assert questions(read(text.encode(), b"two")) == [text, "two"]


@pytest.mark.parametrize("line", [b"[1, 2, 3] has which mean?", b"[x]", b'"quoted"', b"-5 + 3", b"(1)", b"3", b"{1, 2}"])
def test_plain_problem_that_resembles_json(line: bytes) -> None:
    assert questions(read(line)) == [line.decode()]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"question": "q"}, Problem("1", "q")),
        ({"problem": "p", "question": "q"}, Problem("1", "p")),
        ({"problem": None, "question": "q"}, Problem("1", "q")),
        ({"problem": " q ", "id": "x"}, Problem("x", "q")),
        ({"problem": "q", "id": 0}, Problem("0", "q")),
        ({"problem": "q", "unique_id": "u"}, Problem("u", "q")),
        ({"problem": "q", "id": None, "unique_id": "u"}, Problem("u", "q")),
        ({"problem": "q", "id": [1], "unique_id": True}, Problem("1", "q")),
    ],
)
def test_json_row(row: dict[str, object], problem: Problem) -> None:
    assert read(json.dumps(row).encode()) == [problem]


@pytest.mark.parametrize(
    "line",
    [
        *(b"{", b"{}", b'{"problem": 1}', b'{"problem": ["q"]}', b'{"problem": ""}', b"{'problem': 'q'}"),
        *(b"[1]", b"null", b'"q"', b"\xff"),
    ],
)
def test_bad_json_row(line: bytes) -> None:
    before, bad, after = read(b'{"problem": "a"}', line, b'{"problem": "b"}')
    assert isinstance(bad, BadLine)
    assert (before, bad.number, after) == (Problem("1", "a"), 2, Problem("3", "b"))
    assert bad.reason


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
            return self.pop()  # fails if nothing was written

    pipe = Pipe()
    rows = read_problems(pipe)
    for number, text in (("1", "one"), ("2", "two")):
        pipe.append(text.encode() + b"\n")
        assert next(rows) == Problem(number, text)


@given(st.binary())
def test_any_bytes(data: bytes) -> None:
    for row in read_problems(io.BytesIO(data)):
        if isinstance(row, Problem):
            assert row.question.strip() == row.question != ""
            row.question.encode()


@given(st.lists(st.text(), min_size=1))
def test_any_texts_survive_as_json_lines(texts: list[str]) -> None:
    rows = read(*(json.dumps({"problem": text}).encode() for text in texts))
    for text, row in zip(texts, rows, strict=True):
        if isinstance(row, Problem):
            assert row.question == text.strip()
        else:
            assert not text.strip() or "\0" in text


@pytest.mark.parametrize("question", ["", "  \n", "a\0b", "x" * (MAX_LINE_BYTES + 1)], ids=["empty", "blank", "NUL", "long"])
def test_text_that_is_no_problem(question: str) -> None:
    with pytest.raises(ValueError, match="problem"):
        make_problem(question, "1")

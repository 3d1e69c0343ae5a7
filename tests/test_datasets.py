"""Problems from text: plain lines or JSON lines, bad ones given back by number, in bounded memory."""

import io
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbitrage_cli.datasets import MAX_LINE_BYTES, BadLine, make_problem, read_problems
from arbitrage_cli.types import Problem


def read(*lines: bytes) -> list[Problem | BadLine]:
    return list(read_problems(io.BytesIO(b"\n".join(lines))))


def questions(rows: list[Problem | BadLine]) -> list[str]:
    return [row.question for row in rows if isinstance(row, Problem)]


class SlowStream(io.RawIOBase):
    """A stream that fails when it is read beyond what was put in so far."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[bytes] = []

    def put(self, line: bytes) -> None:
        self._lines.append(line)

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._lines.pop(0)


# --- plain lines


def test_plain_lines_are_problems_called_after_their_line() -> None:
    """Each line is a problem; blank ones are skipped, but counted."""
    assert read(b"one", b"", b"  two  ", b"\t") == [Problem("1", "one"), Problem("3", "two")]


def test_lines_end_at_line_feeds_only() -> None:
    """Characters that Python's splitlines takes for line ends are part of a problem."""
    text = "one\u2028still one\x85and on\x0cand on"
    assert questions(read(text.encode(), b"two")) == [text, "two"]


def test_byte_order_mark_and_carriage_returns_are_dropped() -> None:
    """What Windows adds to a text is no part of it."""
    assert questions(read(b"\xef\xbb\xbfone\r", b"two\r", b"\r")) == ["one", "two"]


@pytest.mark.parametrize("line", [b"[1, 2, 3] has which mean?", b"[x]", b'"quoted"', b"-5 + 3", b"(1)", b"3"])
def test_plain_problem_may_look_a_little_like_json(line: bytes) -> None:
    """Only a brace makes a text JSON lines, and only what looks like a list of rows is refused as one."""
    assert questions(read(line)) == [line.decode()]


# --- JSON lines


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"problem": "q"}, Problem("1", "q")),
        ({"question": "q"}, Problem("1", "q")),
        ({"problem": "p", "question": "q"}, Problem("1", "p")),
        ({"problem": None, "question": "q"}, Problem("1", "q")),
        ({"problem": " q ", "id": "x"}, Problem("x", "q")),
        ({"problem": "q", "id": 7}, Problem("7", "q")),
        ({"problem": "q", "id": 0}, Problem("0", "q")),
        ({"problem": "q", "unique_id": "u"}, Problem("u", "q")),
        ({"problem": "q", "id": None, "unique_id": "u"}, Problem("u", "q")),
        ({"problem": "q", "id": [1]}, Problem("1", "q")),
        ({"problem": "q", "id": True}, Problem("1", "q")),
        ({"problem": "q", "answer": "4", "level": 3}, Problem("1", "q")),
    ],
)
def test_json_row_gives_its_question_and_its_name(row: dict[str, object], problem: Problem) -> None:
    """The question stands under `problem` or `question`, the name under `id` or `unique_id`, a text or a whole number."""
    assert read(json.dumps(row).encode()) == [problem]


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"{}",
        b'{"problem": 1}',
        b'{"problem": ["q"]}',
        b"[1]",
        b"null",
        b'"q"',
        b"{'problem': 'q'}",
        b'{"problem": ""}',
        b"\xff",
    ],
)
def test_bad_json_row_is_given_back_by_number(line: bytes) -> None:
    """A row that is no problem does not stop the rows around it."""
    before, bad, after = read(b'{"problem": "a"}', line, b'{"problem": "b"}')
    assert isinstance(bad, BadLine)
    assert (before, bad.number, after) == (Problem("1", "a"), 2, Problem("3", "b"))
    assert bad.reason


def test_first_line_that_is_not_blank_decides() -> None:
    """Whether a text is JSON lines is decided once: later lines do not change it."""
    assert questions(read(b"", b"plain", b'{"problem": "q"}')) == ["plain", '{"problem": "q"}']


@pytest.mark.parametrize("lines", [[b'[{"problem": "q"}]'], [b"[", b'{"problem": "q"}', b"]"], [b"[ {"], [b'["q", "r"]']])
def test_json_list_is_refused_once(lines: list[bytes]) -> None:
    """A JSON list is one mistake, not one a line."""
    (bad,) = read(*lines)
    assert isinstance(bad, BadLine)
    assert "JSON list" in bad.reason


# --- bounds


def test_longest_line_is_read_and_a_longer_one_is_not() -> None:
    """The bound is what the message says, to the byte."""
    longest = b"x" * MAX_LINE_BYTES
    assert questions(read(longest, b"next")) == [longest.decode(), "next"]
    too_long, after = read(longest + b"x", b"next")
    assert isinstance(too_long, BadLine)
    assert (too_long.number, after) == (1, Problem("2", "next"))


@pytest.mark.parametrize(
    "line", [b"[" * 100_000, b'{"problem": ' + b"[" * 100_000, b'{"id": ' + b"9" * 5000 + b"}", b'{"a":' * 100_000]
)
def test_hostile_line_is_read_in_no_time(line: bytes) -> None:
    """Deep nesting and huge numbers neither hang nor break the reading."""
    began = time.process_time()
    *_, last = read(b'{"problem": "a"}', line, b'{"problem": "b"}')
    assert last == Problem("3", "b")
    assert time.process_time() - began < 2


def test_problems_are_given_before_the_next_line_is_there() -> None:
    """A pipe is answered while it is still being written."""
    stream = SlowStream()
    rows = read_problems(stream)  # type: ignore[arg-type]
    for text in (b"one\n", b"two\n"):
        stream.put(text)
        assert next(rows).question == text.decode().strip()  # type: ignore[union-attr]


@given(st.binary())
def test_any_bytes_are_read_without_an_error(data: bytes) -> None:
    """Every row has the number of a line that is there, in order, and every problem can be encoded."""
    for row in read_problems(io.BytesIO(data)):
        if isinstance(row, Problem):
            assert row.question.strip() == row.question != ""
            row.question.encode()


@given(st.lists(st.text(), min_size=1))
def test_any_texts_survive_as_json_lines(texts: list[str]) -> None:
    """What was written as JSON lines is read back as it was, but for white space around it."""
    rows = read(*(json.dumps({"problem": text}).encode() for text in texts))
    for text, row in zip(texts, rows, strict=True):
        if isinstance(row, Problem):
            assert row.question == text.strip()
        else:
            assert not text.strip() or "\0" in text


# --- one problem


@pytest.mark.parametrize("question", ["", "  \n", "a\0b", "x" * (MAX_LINE_BYTES + 1)], ids=["empty", "blank", "NUL", "long"])
def test_text_that_is_no_problem(question: str) -> None:
    """Empty, endless or binary text is refused with a reason."""
    with pytest.raises(ValueError, match="problem"):
        make_problem(question, "1")


def test_lone_surrogates_are_replaced() -> None:
    """A problem can always be encoded, whatever its JSON said."""
    assert make_problem("a\ud800b", "1").question == "a?b"

"""Problems from text, bad ones given back by number, in bounded memory; and data sets, which are whole or an error."""

import hashlib
import io
import json
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbitrage_cli.data.rows import (
    MAX_LINE_BYTES,
    BadLine,
    DataSet,
    Item,
    json_rows,
    make_data_set,
    make_problem,
    parse_mapping,
    read_problems,
)
from arbitrage_cli.errors import UsageError
from arbitrage_cli.types import Problem


def read(*lines: bytes) -> list[Problem | BadLine]:
    return list(read_problems(io.BytesIO(b"\n".join(lines))))


def questions(rows: list[Problem | BadLine]) -> list[str]:
    return [row.question for row in rows if isinstance(row, Problem)]


def data_set(*rows: bytes | dict[str, Any], **mapping: str) -> DataSet:
    """A data set of lines: of JSON objects, or as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    return make_data_set("some.jsonl", json_rows(io.BytesIO(b"\n".join(lines))), mapping=mapping)


def item(row: dict[str, Any], **mapping: str) -> Item:
    """The one item of a data set of one row."""
    (only,) = data_set(row, **mapping).items
    return only


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
    rows = read_problems(stream)
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


# --- data sets

GOOD: dict[str, Any] = {"problem": "q", "answer": "4"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"id": "gsm8k/test/0", "question": "How many?", "answer": "9 * 2 = <<9*2=18>>18\n#### 18"},
            Item(Problem("gsm8k/test/0", "How many?"), {"answer": "9 * 2 = <<9*2=18>>18\n#### 18"}),
        ),
        (
            {
                "problem": "Convert.",
                "solution": "So",
                "answer": "\\frac{1}{2}",
                "subject": "Algebra",
                "level": 2,
                "unique_id": "a/1",
            },
            Item(Problem("a/1", "Convert."), {"answer": "\\frac{1}{2}"}, 2, {"solution": "So", "subject": "Algebra"}),
        ),
        (
            {"id": 1606, "question": "\nFind.", "final_answer": ["$2n$", "3"], "answer_type": "Numerical", "unit": None},
            Item(Problem("1606", "Find."), {"answer": ["$2n$", "3"], "answer_type": "Numerical"}),
        ),
        (
            {"id": 1, "question": "q", "final_answer": ["1"], "unit": "cm", "error": "1e-2", "is_multiple_answer": False},
            Item(Problem("1", "q"), {"answer": ["1"], "unit": "cm", "error": "1e-2", "is_multiple_answer": False}),
        ),
        (
            {"id": "asdiv/0", "question": "q ", "answer": "9 (apples)", "solution_type": "Addition"},
            Item(Problem("asdiv/0", "q"), {"answer": "9 (apples)"}, None, {"solution_type": "Addition"}),
        ),
        (
            {"id": 0, "question": "q", "answer": 27.0, "url": None},
            Item(Problem("0", "q"), {"answer": 27.0}, None, {"url": None}),
        ),
        ({"problem": "q", "answer": 0, "level": "Level 5"}, Item(Problem("1", "q"), {"answer": 0}, "Level 5")),
        (
            {"problem": "q", "answer": None, "final_answer": [-1]},
            Item(Problem("1", "q"), {"answer": [-1]}, None, {"answer": None}),
        ),
        (
            {"problem": 7, "question": "q", "answer": "4", "level": ""},
            Item(Problem("1", "q"), {"answer": "4"}, None, {"problem": 7, "level": ""}),
        ),
        ({"problem": "a\ud800", "answer": "\ud800", "id": "\ud800"}, Item(Problem("?", "a?"), {"answer": "?"})),
    ],
    ids=["gsm8k", "math500", "olympiadbench", "unit", "asdiv", "number", "zero", "null", "number of a problem", "surrogate"],
)
def test_row_of_a_data_set(row: dict[str, Any], expected: Item) -> None:
    """Question, answer, id and level are found under the names that published data sets use; the rest is kept beside them."""
    assert item(row) == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"{", "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b"\xff", "not UTF-8"),
        (b'{"problem": "q", "answer": 9' + b"9" * 5000 + b"}", "a number too long"),
        (b"x" * (MAX_LINE_BYTES + 1), "longer than"),
        ({"answer": "4"}, "no text under 'problem' or 'question'; it has answer"),
        ({"problem": ["q"], "answer": "4"}, "no text under"),
        ({"problem": " ", "answer": "4"}, "the problem is empty"),
        ({"problem": "a\0b", "answer": "4"}, "NUL"),
        ({"problem": "q"}, "no answer under 'answer' or 'final_answer'; it has problem"),
        ({"problem": "q", "answer": " "}, "no answer"),
        ({"problem": "q", "answer": math.nan}, "no answer"),
        ({"problem": "q", "answer": math.inf}, "its answer is"),
        ({"problem": "q", "answer": True}, "its answer is"),
        ({"problem": "q", "answer": {"value": 4}}, "its answer is"),
        ({"problem": "q", "answer": []}, "its answer is"),
        ({"problem": "q", "answer": ["4", ""]}, "its answer is"),
        ({"problem": "q", "answer": [["4"]]}, "its answer is"),
        ({"problem": "q", "answer": "4", "unit": ["cm"]}, "its unit is"),
        ({"problem": "q", "answer": "4", "level": 2.5}, "its level is"),
        ({"problem": "q", "answer": "4", "level": True}, "its level is"),
        ({}, "it has no fields"),
    ],
)
def test_row_that_cannot_be_measured_with(row: bytes | dict[str, Any], reason: str) -> None:
    """One bad row makes the whole data set unusable, and is named with its line and what is wrong with it."""
    with pytest.raises(UsageError) as caught:
        data_set(GOOD, b"", row, GOOD)
    assert caught.value.message.startswith("some.jsonl: line 3: ")
    assert reason in caught.value.message
    assert "--map" in caught.value.hint
    assert len(caught.value.message) < 300


def test_number_of_bad_rows() -> None:
    """Of many bad rows the first is named, and the others are counted."""
    with pytest.raises(UsageError, match=r"line 2: not a JSON object \(2 more like this\)$"):
        data_set(GOOD, b"1", GOOD, b"2", b"3")


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        ([{**GOOD, "id": "a"}, GOOD, {**GOOD, "id": "a"}], ("3", "1")),
        ([{**GOOD, "id": 2}, GOOD], ("2", "1")),
        ([{**GOOD, "id": 7}, {**GOOD, "unique_id": "7"}], ("2", "1")),
    ],
)
def test_id_that_comes_twice(rows: list[dict[str, Any]], lines: tuple[str, str]) -> None:
    """Two rows of one id are an error that names both lines; a row without an id has its line's number for one."""
    with pytest.raises(UsageError, match=f"line {lines[0]}: its id .* is that of line {lines[1]} too"):
        data_set(*rows)


@pytest.mark.parametrize("rows", [[], [b""], [b"", b"  ", b""]])
def test_data_set_without_rows(rows: list[bytes]) -> None:
    """A file with nothing in it is no data set."""
    with pytest.raises(UsageError, match="there is no problem in it"):
        data_set(*rows)


@pytest.mark.parametrize("rows", [[b'[{"problem": "q"}]'], [b"", b"[", b'{"problem": "q", "answer": "4"}', b"]"]])
def test_data_set_that_is_a_json_list(rows: list[bytes]) -> None:
    """A JSON list in place of JSON lines is said to be one."""
    with pytest.raises(UsageError, match=r"looks like a JSON list; give one JSON object a line instead$"):
        data_set(*rows)


def test_byte_order_mark_before_a_data_set() -> None:
    """What Windows adds to a text is no part of a row."""
    assert data_set(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r").items == (item(GOOD),)


def test_line_separators_inside_a_row() -> None:
    """Characters that Python's splitlines takes for line ends are part of a row."""
    text = "one\u2028still one\x85and on"
    row = json.dumps({"problem": text, "answer": "4"}, ensure_ascii=False).encode()
    assert [found.problem.question for found in data_set(row, {**GOOD, "id": "b"}).items] == [text, "q"]


# --- which data set it was


def test_sha256_is_of_what_is_measured_with() -> None:
    """Ids, questions, answers and their order make the sha256; how the rows were spelled, and the rest of them, do not."""
    first, second = {**GOOD, "id": "a"}, {**GOOD, "id": "b", "final_answer": "5"}
    known = data_set(first, second).sha256
    assert known == hashlib.sha256(b'[["a","q",{"answer":"4"}],["b","q",{"answer":"4"}]]').hexdigest()
    assert known == data_set({"question": "q", "answer": "4", "unique_id": "a"}, b"", {**second, "level": 3}).sha256
    others = [
        data_set(second, first),
        data_set(first),
        data_set(first, {**second, "id": "c"}),
        data_set(first, {**second, "problem": "r"}),
        data_set(first, {**second, "answer": "5"}),
        data_set(first, {**second, "answer": ["4"]}),
        data_set(first, {**second, "answer": 4}),
        data_set(first, {**second, "unit": "cm"}),
    ]
    assert len({known, *(other.sha256 for other in others)}) == len(others) + 1


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=5))
def test_any_texts_make_a_data_set_or_an_error(texts: list[tuple[str, str]]) -> None:
    """Whatever the texts are, they come back as they were, but for white space around questions, or are refused."""
    try:
        found = data_set(*({"problem": question, "answer": answer} for question, answer in texts))
    except UsageError:
        assert any(not question.strip() or not answer.strip() or "\0" in question for question, answer in texts)
        return
    assert [(one.problem.question, one.gold) for one in found.items] == [
        (question.strip(), {"answer": answer}) for question, answer in texts
    ]


# --- other names for fields


def test_mapping() -> None:
    """Named fields are read, and no others, for what they are named for; the rest is found as always."""
    row = {"prompt": "q", "gold": "4", "key": "k", "hard": 3, "problem": "another", "answer": "5", "id": "i", "level": 1}
    mapped = item(row, question="prompt", answer="gold")
    assert (mapped.problem, mapped.gold, mapped.level) == (Problem("i", "q"), {"answer": "4"}, 1)
    assert mapped.extra == {"key": "k", "hard": 3, "problem": "another", "answer": "5"}
    mapped = item(row, id="key", level="hard")
    assert (mapped.problem, mapped.gold, mapped.level) == (Problem("k", "another"), {"answer": "5"}, 3)


@pytest.mark.parametrize("what", ["question", "answer", "id", "level"])
def test_mapping_to_a_field_that_is_not_there(what: str) -> None:
    """A row without a named field is an error that names it and what there is: nothing else is taken instead."""
    with pytest.raises(UsageError, match="line 1: no field 'other'; it has problem, answer, id"):
        data_set({**GOOD, "id": "a"}, **{what: "other"})


@pytest.mark.parametrize(
    ("text", "mapping"),
    [
        ("question=prompt", {"question": "prompt"}),
        ("question=prompt,answer=gold", {"question": "prompt", "answer": "gold"}),
        (" id = key , level=a=b ", {"id": "key", "level": "a=b"}),
    ],
)
def test_mapping_as_a_user_writes_it(text: str, mapping: dict[str, str]) -> None:
    """Fields are named in pairs, with commas between them."""
    assert parse_mapping(text) == mapping


@pytest.mark.parametrize(
    "text", ["", "question", "question=", "=prompt", "solution=x", "question=a,question=b", "answer=a,,"]
)
def test_mapping_that_is_none(text: str) -> None:
    """Anything else is an error that shows what a mapping looks like."""
    with pytest.raises(UsageError) as caught:
        parse_mapping(text)
    assert "question=prompt,answer=gold" in caught.value.hint

"""The end of a step."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbitrage_cli.inference.step_text import BLANK_LINE, StepEnd, StepText

LINES = StepEnd("\n", 10)


def write(*pieces: bytes, end: StepEnd = BLANK_LINE) -> tuple[str, int | None]:
    step = StepText(end=end)
    for number, piece in enumerate(pieces, start=1):
        step.add(piece)
        if step.ended:
            return step.finish(), number
    return step.finish(), None


@pytest.mark.parametrize(
    ("pieces", "text", "ended_after"),
    [
        ([b"one", b"\n\n", b"two"], "one\n\n", 2),
        ([b"one.", b"\n", b"\n", b"two"], "one.\n\n", 3),
        ([b"one.\n\n"], "one.\n\n", 1),
        ([b"one.\n", b"\ntwo"], "one.\n\ntwo", 2),
        ([b"one\n\n\n\n"], "one\n\n\n\n", 1),
        ([b"one", b"\n", b"two", b"\n"], "one\ntwo\n", None),
        ([b"one\n", b" \n", b"two"], "one\n \ntwo", None),
        ([b"one\r\n\r\n", b"two"], "one\r\n\r\ntwo", None),
        ([], "", None),
        ([b"\n", b"\n", b"x", b"\n", b"\n"], "\n\nx\n\n", 5),
        ([b" ", b"\n\n", b"\t", b"x\n\n"], " \n\n\tx\n\n", 4),
        ([b"\n\n\n\n", b"", b"x", b"\n\n"], "\n\n\n\nx\n\n", 4),
    ],
    ids=[
        "a token of its own", "two tokens", "merged with what is before", "what a token carries past it stays",
        "several at once", "single line feeds", "a blank line with a space", "carriage returns", "nothing", "blank lines first",
        "white space first", "many blank lines first",
    ],
)  # fmt: skip
def test_a_step_ends_at_the_first_blank_line_after_visible_text(
    pieces: list[bytes], text: str, ended_after: int | None
) -> None:
    assert write(*pieces) == (text, ended_after)


def test_split_characters_appear_when_complete() -> None:
    step = StepText()
    assert [step.add(bytes([byte])) for byte in "é∑".encode()] == ["", "é", "", "", "∑"]
    assert step.finish() == "é∑"


def test_incomplete_characters_become_replacement_characters() -> None:
    assert write(b"a\xff", b"b\xe2", b"\n\n") == ("a\ufffdb\ufffd\n\n", 3)
    assert write(b"a", b"\xe2\x88") == ("a\ufffd", None)


@pytest.mark.parametrize(
    ("pieces", "text", "ended_after"),
    [
        ([b"import re\n", b"x = 1\n", b"y"], "import re\nx = 1\n", 2),
        ([b"0123456789", b"\n"], "0123456789\n", 2),
        ([b"012345678", b"\n", b"9"], "012345678\n9", None),
        ([b"\n   ", b"    0123456789", b":\n"], "\n       0123456789:\n", 3),
        ([b"0123\n\n", b"5678\n"], "0123\n\n5678\n", 2),
    ],
    ids=["the first long enough", "just long enough", "too short", "from the first visible character", "blank lines inside"],
)
def test_a_group_of_lines_ends_at_the_first_line_feed_after_enough_text(
    pieces: list[bytes], text: str, ended_after: int | None
) -> None:
    assert write(*pieces, end=LINES) == (text, ended_after)


@pytest.mark.parametrize("rule", [BLANK_LINE, LINES, StepEnd("\n")])
@given(st.text(alphabet="ab \n.é", max_size=30), st.data())
def test_cutting_into_tokens_does_not_move_the_end(rule: StepEnd, text: str, data: st.DataObject) -> None:
    encoded = text.encode()
    by_byte, end = write(*(bytes([byte]) for byte in encoded), end=rule)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(encoded)))) | {0, len(encoded)})
    pieces = [encoded[start:stop] for start, stop in pairwise(cuts)]
    written, ended_after = write(*pieces, end=rule)
    assert (ended_after is None) == (end is None)
    assert written.startswith(by_byte)
    if end is not None and ended_after is not None:
        assert len(b"".join(pieces[: ended_after - 1])) < end <= len(b"".join(pieces[:ended_after]))


@given(st.lists(st.sampled_from([*"ab\n<>/", "end>", "\N{EURO SIGN}", "</end>"]), max_size=12), st.integers(0, 30))
def test_a_copy_continues_apart(parts: list[str], position: int) -> None:
    """Wherever it is made: inside a character, a separator or a marker."""
    data = [bytes([byte]) for byte in "".join(parts).encode()]
    text = StepText(marker="</end>", removed=("<a>",))
    for byte in data[:position]:
        text.add(byte)
    before = (text.so_far, text.ended, text.is_inside_character)
    copied = text.copy()
    added = [copied.add(byte) for byte in data[position:]]
    assert (text.so_far, text.ended, text.is_inside_character) == before
    assert [text.add(byte) for byte in data[position:]] == added
    assert (text.ended, text.has_marker, text.lacks_tokens) == (copied.ended, copied.has_marker, copied.lacks_tokens)
    assert text.finish() == copied.finish()

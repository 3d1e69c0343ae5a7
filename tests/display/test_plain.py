"""Plain lines: one an attempt, notes in one line each, and loading now and then."""

import io

import pytest
from screens import Clock

from arbitrage_cli.app.protocol import AttemptEnded, RunProgress
from arbitrage_cli.display import rounding
from arbitrage_cli.display.plain import PlainDisplay

PROGRESS = RunProgress("bench odd\nset", 4, 6, (), seconds_left=90.0)
ENDED = AttemptEnded("p\u2028\x1b[2J1", "entropy 0.5", "incorrect", "1\n2 \u202e", 12.34, PROGRESS)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min"), (3569, "59 min"), (3599, "1 h 0 min"), (12000, "3 h 20 min")],
)
def test_duration(seconds: float, words: str) -> None:
    assert rounding.duration(seconds) == words


@pytest.mark.parametrize(("seconds", "words"), [(0.123, "0.12 s"), (9.99, "9.99 s"), (12.34, "12.3 s"), (1234.5, "1234 s")])
def test_measured_time(seconds: float, words: str) -> None:
    assert rounding.seconds(seconds) == words


def test_attempt_is_one_line_of_visible_text() -> None:
    stream = io.StringIO()
    display = PlainDisplay(stream, io.StringIO())
    display.begin(PROGRESS)
    display.handle(ENDED)
    display.handle(AttemptEnded("p2", "draft", "correct", "", None, RunProgress("", 6, 6, (), seconds_left=0.0)))
    assert stream.getvalue().splitlines() == [
        "bench odd set: 6 attempts, 4 of them done",
        "4/6 p [2J1, entropy 0.5: incorrect (1 2), 12.3 s; about 2 min left",
        "6/6 p2, draft: correct",
    ]


def test_quiet_display_has_notes_only() -> None:
    stream, clock = io.StringIO(), Clock()
    display = PlainDisplay(stream, io.StringIO(), verbosity=0, clock=clock)
    clock.now += 60
    display.loading("draft", "small.gguf", 0.5)
    display.begin(PROGRESS)
    display.handle(ENDED)
    display.note("a note")
    assert stream.getvalue() == "a note\n"


def test_loading_is_shown_now_and_then() -> None:
    stream, clock = io.StringIO(), Clock()
    display = PlainDisplay(stream, io.StringIO(), clock=clock)
    for _ in range(11):
        clock.now += 1.0
        display.loading("draft", "small.gguf", 0.5)
    assert stream.getvalue() == "loading draft small.gguf: 50%\n" * 2

"""How a benchmark's progress is told: plain lines, and the region of a terminal."""

import contextlib
import fcntl
import io
import os
import pty
import struct
import termios
from collections.abc import Iterator

import pyte
import pytest
from cli import make_step, make_trace

from arbitrage_cli.display.live_progress import LiveProgress
from arbitrage_cli.display.progress import Outcome, PlainProgress, State, duration, short, told
from arbitrage_cli.runs.summary import Standing
from arbitrage_cli.types import Decided, Decision, Writing, Wrote

TARGET = Standing("target", planned=3, tried=2, done=2, correct=1, seconds=9.0, speedup=1.0)
ENTROPY = Standing("entropy 0.5", planned=3, tried=2, done=1, correct=1, seconds=3.0, speedup=1.5)
BEGUN = State(4, 6, (TARGET, ENTROPY), seconds_left=90.0)
OUTCOME = Outcome("p\u2028\x1b[2J1", "entropy 0.5", "incorrect", "1\n2 \u202e", 12.34)


class Clock:
    """A clock that goes on only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min"), (3569, "59 min"), (3599, "1 h 0 min"), (12000, "3 h 20 min")],
)
def test_duration(seconds: float, words: str) -> None:
    """A time that is still to come is told about as exactly as it is known."""
    assert duration(seconds) == words


@pytest.mark.parametrize(("seconds", "words"), [(0.123, "0.12 s"), (9.99, "9.99 s"), (12.34, "12.3 s"), (1234.5, "1234 s")])
def test_measured_time(seconds: float, words: str) -> None:
    """A measured time has three digits or so."""
    assert short(seconds) == words


def test_attempt_is_one_line_of_visible_text() -> None:
    """Ids and answers are cleaned of whatever a terminal could obey."""
    assert told(OUTCOME) == "p [2J1, entropy 0.5: incorrect (1 2 ), 12.3 s"


def test_plain_progress_is_one_line_an_attempt() -> None:
    """A line says how far it is, what came out, and how long it will take; the last one expects nothing more."""
    stream = io.StringIO()
    progress = PlainProgress(stream)
    progress.begin("bench odd\nset", BEGUN)
    progress.finish(OUTCOME, BEGUN)
    progress.finish(OUTCOME, State(6, 6, (), seconds_left=0.0))
    first, second, third = stream.getvalue().splitlines()
    assert first == "bench odd set: 6 attempts, 4 of them done"
    assert second == f"4/6 {told(OUTCOME)}; about 2 min left"
    assert third == f"6/6 {told(OUTCOME)}"


def test_quiet_progress_has_notes_only() -> None:
    """Quiet means notes only."""
    stream, clock = io.StringIO(), Clock()
    progress = PlainProgress(stream, verbosity=0, clock=clock)
    clock.now += 60
    progress.loading("draft", "small.gguf", 0.5)
    progress.begin("bench set", BEGUN)
    progress.finish(OUTCOME, BEGUN)
    progress.note("a note")
    assert stream.getvalue() == "a note\n"


def test_loading_is_told_now_and_then() -> None:
    """A line about loading comes every few seconds at most."""
    stream, clock = io.StringIO(), Clock()
    progress = PlainProgress(stream, clock=clock)
    for _ in range(11):
        clock.now += 1.0
        progress.loading("draft", "small.gguf", 0.5)
    assert stream.getvalue() == "loading draft small.gguf: 50%\n" * 2


class Screen:
    """What a terminal shows of what is written to `stream`."""

    def __init__(self, columns: int = 100) -> None:
        self._reading, writing = pty.openpty()
        fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 20, columns, 0, 0))
        self.stream = os.fdopen(writing, "w")
        self._screen = pyte.Screen(columns, 20)
        self._bytes = pyte.ByteStream(self._screen)

    @property
    def lines(self) -> list[str]:
        self.stream.flush()
        os.set_blocking(self._reading, False)
        try:
            while data := os.read(self._reading, 65536):
                self._bytes.feed(data)
        except BlockingIOError:
            pass
        return [line.rstrip() for line in self._screen.display if line.strip()]

    def close(self) -> None:
        self.stream.close()
        os.close(self._reading)


@pytest.fixture
def screen() -> Iterator[Screen]:
    with contextlib.closing(Screen()) as made:
        yield made


def test_region_shows_how_it_stands(screen: Screen) -> None:
    """The region has a bar with the time left, a line for each policy, what is being written, and the last result."""
    clock = Clock()
    progress = LiveProgress(screen.stream, clock=clock)
    progress.begin("bench set", BEGUN)
    progress.finish(OUTCOME, BEGUN)
    trace = make_trace()
    progress.start("p7", "entropy 0.5")
    progress.handle(Writing(trace, "draft", 9))
    clock.now += 30.0
    progress.handle(Wrote(trace, "draft", "x"))
    head, target, entropy, doing, last = screen.lines
    assert head == "bench set  " + "█" * 16 + "░" * 8 + "  4/6  0:30, about 1 min left"
    assert target == "  target       2/3  correct 1/2 (50%)  4.50 s each"
    assert entropy == "  entropy 0.5  2/3  correct 1/2 (50%)  3.00 s each  1.50x the target's speed  1 failed"
    assert doing[1:] == " p7, entropy 0.5  step 1 draft  1 tokens"
    assert last == f"  last: {told(OUTCOME)}"
    progress.close()
    assert screen.lines == []


@pytest.mark.parametrize(
    ("columns", "head", "target", "entropy"),
    [
        (
            60,
            "bench set  " + "█" * 13 + "░" * 6 + "  4/6  0:00, about 2 min left",
            "  target       2/3  50%  4.50 s",
            "  entropy 0.5  2/3  50%  3.00 s  1.50x  1 failed",
        ),
        (
            48,
            "bench set  █████░░  4/6  0:00, about 2 min left",
            "  target       2  50%  4.50 s",
            "  entropy 0.5  2  50%  3.00 s  1.50x  1 failed",
        ),
        (
            36,
            "bench…  4/6  0:00, about 2 min left",
            "  target    2  50%  4.50 s",
            "  entropy…  2  50%  3.00 s  1.50x …",
        ),
    ],
)
def test_narrow_terminal_still_has_the_figures(columns: int, head: str, target: str, entropy: str) -> None:
    """Where there is no room for all, the bar, the title and the words give way first, then labels, then the end of the line."""
    with contextlib.closing(Screen(columns)) as screen:
        progress = LiveProgress(screen.stream, clock=Clock())
        progress.begin("bench set", BEGUN)
        shown = screen.lines[:3]
        progress.close()
    assert shown == [head, target, entropy]


def test_fifty_columns_have_room_for_the_figures_of_a_head() -> None:
    """Accuracy, seconds and speed-up of a policy with a long label are all there."""
    standings = (
        Standing("target", planned=100, tried=58, done=58, correct=58, seconds=2.9),
        Standing("arbitrage 0.0214", planned=100, tried=57, done=57, correct=57, seconds=1.1, speedup=2.59),
    )
    with contextlib.closing(Screen(50)) as screen:
        progress = LiveProgress(screen.stream, clock=Clock())
        progress.begin("bench set", State(115, 200, standings, 90.0))
        shown = screen.lines[1:3]
        progress.close()
    assert shown == [
        "  target             58/100  100%  0.05 s",
        "  arbitrage 0.0214   57/100  100%  0.02 s  2.59x",
    ]


def test_tokens_begin_anew_with_each_step(screen: Screen) -> None:
    """The count of tokens is that of the step being written, by the model that writes it."""
    clock = Clock()
    progress = LiveProgress(screen.stream, clock=clock)
    progress.begin("bench set", BEGUN)
    trace = make_trace()
    progress.start("p7", "entropy 0.5")
    for model in ("draft", "target"):
        progress.handle(Writing(trace, model, 9))
        for _ in range(3):
            clock.now += 1.0
            progress.handle(Wrote(trace, model, "x"))
        assert screen.lines[-1].endswith(f"step 1 {model}  3 tokens")
    step = make_step("target")
    trace.add(Decision(step, target=step))
    progress.handle(Decided(trace, trace.decisions[0]))
    progress.handle(Writing(trace, "draft", 9))
    assert screen.lines[-1].endswith("step 2 draft  0 tokens")
    progress.close()


def test_notes_and_failures_stay(screen: Screen) -> None:
    """What went wrong scrolls up and stays when the region is gone."""
    progress = LiveProgress(screen.stream, clock=Clock())
    progress.begin("bench set", BEGUN)
    progress.note("a note\x1b[2J")
    progress.finish(Outcome("p1", "target", "error", "hung", 9.0), BEGUN)
    progress.close()
    assert screen.lines == ["a note[2J", "p1, target: error (hung), 9.00 s"]


AT_ONCE = State(
    2, 3, (Standing("target", planned=3, tried=2, done=2, correct=1, seconds=0.5, concurrency=2),), seconds_left=90.0
)


def test_narrow_terminal_still_has_problems_a_second() -> None:
    """Of a throughput run the words give way too, not the figure."""
    with contextlib.closing(Screen(40)) as screen:
        progress = LiveProgress(screen.stream, clock=Clock())
        progress.begin("bench set", AT_ONCE)
        told_target = screen.lines[1]
        progress.close()
    assert told_target == "  target  2/3  correct 50%  4/s"


def test_several_at_once_are_counted(screen: Screen) -> None:
    """Several attempts at once are told as a number, the last of them by its name; policies stand by problems a second."""
    progress = LiveProgress(screen.stream, clock=Clock())
    progress.begin("bench set", AT_ONCE)
    progress.start("p1", "target")
    progress.start("p2", "target")
    assert screen.lines[-1][1:] == " 2 problems at once, target"
    assert screen.lines[1] == "  target  2/3  correct 1/2 (50%)  4 problems/s"
    progress.finish(Outcome("p1", "target", "correct", "7", None), AT_ONCE)
    assert screen.lines[-2][1:] == " p2, target"
    assert screen.lines[-1] == "  last: p1, target: correct (7)"
    progress.close()

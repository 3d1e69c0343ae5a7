"""The live view of a run's attempts, on an emulated screen."""

import io
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from cli import make_trace
from screens import View, make_screen

from arbitrage_cli.app.protocol import AttemptEnded, AttemptStarted, RunProgress, Standing
from arbitrage_cli.display.display import CommandDisplay, PlainScreen, Screen
from arbitrage_cli.display.live import LiveScreen
from arbitrage_cli.types import Writing, Wrote

TARGET = Standing("target", planned=3, tried=2, done=2, correct=1, seconds=9.0)
ENTROPY = Standing("entropy@0.5", planned=3, tried=2, done=1, correct=1, seconds=3.0)
BEGUN = RunProgress("bench set", 4, 6, (TARGET, ENTROPY))
AT_ONCE = RunProgress("bench set", 2, 3, (Standing("target", 3, 2, 2, correct=1, seconds=0.5),))

PATIENCE = 0.05  # seconds for a thread that should wait

MakeView = Callable[..., View]


@pytest.fixture
def make_view(monkeypatch: pytest.MonkeyPatch) -> MakeView:
    return lambda progress, columns=100: View(make_screen(monkeypatch, columns, 20), progress)


def test_region_shows_how_the_run_stands(make_view: MakeView) -> None:
    view = make_view(BEGUN)
    ended = replace(BEGUN, finished=5)
    view.display.handle(AttemptEnded("p\x1b[2J1", "entropy@0.5", "incorrect", "1\n2", 12.34, ended))
    trace = make_trace()
    view.display.handle(AttemptStarted("p7", "entropy@0.5"))
    view.display.handle(Writing(trace, "draft", 9))
    view.clock.now += 30.0
    view.display.handle(Wrote(trace, "draft", "x"))
    before, head, names, _, entropy, attempt, last = view.screen.lines
    assert head == "5/6; about 30 s left  00:30  bench set  " + "█" * 20 + "░" * 4
    assert entropy == "  entropy@0.5   2/3    50%    3.00       1"
    assert names.split() == ["done", "right", "s", "each", "failed"]
    assert attempt[1:].split() == ["p7,", "entropy@0.5", "1", "draft", "1", "token"]
    assert last == "  last: p[2J1, entropy@0.5: incorrect (1 2), 12.34 s"
    view.display.close()
    assert view.screen.lines == [before]


def test_a_narrow_terminal_shows_the_count_and_the_time_left(make_view: MakeView) -> None:
    view = make_view(replace(BEGUN, finished=0, title="bench HuggingFaceH4/MATH-500, a sample of 100 of 500"), columns=40)
    view.clock.now += 10.0
    view.display.handle(AttemptEnded("p1", "target", "correct", "1", 10.0, replace(BEGUN, finished=1)))
    assert "1/6; about 50 s left" in view.screen.text


@pytest.mark.parametrize(("limit", "left"), [(20.0, "about 10 s left"), (600.0, "about 50 s left")])
def test_time_left_is_at_most_the_time_until_the_limit(make_view: MakeView, limit: float, left: str) -> None:
    view = make_view(replace(BEGUN, finished=0))
    view.clock.now += 10.0
    ends = view.clock.now - 10.0 + limit
    ended = replace(BEGUN, finished=1, ends=ends)
    view.display.handle(AttemptEnded("p1", "target", "correct", "1", 10.0, ended))
    assert left in view.screen.text


def test_narrow_terminal_loses_the_bar_before_the_figures(make_view: MakeView) -> None:
    _, head, *_, row = make_view(BEGUN, 50).screen.lines
    assert head.startswith("4/6  00:00  bench set  ██")
    assert row == "  entropy@0.5   2/3    50%    3.00       1"


def test_several_at_once_are_counted(make_view: MakeView) -> None:
    view = make_view(AT_ONCE)
    view.display.handle(AttemptStarted("p1", "target"))
    view.display.handle(AttemptStarted("p2", "target"))
    assert view.screen.lines[-1][1:] == " 2 problems at once, target"
    assert [line.split() for line in view.screen.lines[2:4]] == [
        ["done", "right", "s", "each"],
        ["target", "2/3", "50%", "0.250"],
    ]


PROGRESS = RunProgress("bench odd\nset", 4, 6, ())
ENDED = AttemptEnded("p\u2028\x1b[2J1", "entropy@0.5", "incorrect", "1\n2 \u202e", 12.34, PROGRESS)


def test_attempt_is_one_line_of_visible_text() -> None:
    stream = io.StringIO()
    display = CommandDisplay(PlainScreen(stream), io.StringIO())
    display.begin(PROGRESS)
    display.handle(ENDED)
    display.handle(AttemptEnded("p2", "draft", "correct", "", None, RunProgress("", 6, 6, ())))
    assert stream.getvalue().splitlines() == [
        "bench odd set: 6 attempts, 4 of them done",
        "4/6 p [2J1, entropy@0.5: incorrect (1 2), 12.34 s",
        "6/6 p2, draft: correct",
    ]


class Slow(io.StringIO):
    """A stream for results. While the first is written, another thread tries to show a note."""

    display: CommandDisplay
    other: threading.Thread | None = None
    waits = False

    def write(self, text: str) -> int:
        if self.other is None:
            self.other = threading.Thread(target=self.display.note, args=("note",))
            self.other.start()
            self.other.join(PATIENCE)
            self.waits = self.other.is_alive()
        return super().write(text)


@pytest.mark.parametrize("make_screen", [PlainScreen, LiveScreen])
def test_threads_draw_one_after_another(make_screen: Callable[[io.StringIO], Screen]) -> None:
    stream, results = io.StringIO(), Slow()
    results.display = CommandDisplay(make_screen(stream), results)
    results.display.result("349")
    assert results.other
    results.other.join()
    assert results.waits
    assert (results.getvalue(), "note" in stream.getvalue()) == ("349\n", True)

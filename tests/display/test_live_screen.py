"""The live screen when a signal arrives while it draws. The signals are raised in a process of their own.

In the process of the tests, a signal in the wrong moment would end all tests.
"""

import io
import signal
import subprocess
import sys
from types import FrameType
from typing import Any

from arbitrage_cli.display.live import LiveScreen
from arbitrage_cli.display.text import Line
from arbitrage_cli.system.signals import Interruption, interruptible


def interrupt_call(number: int, screen: LiveScreen) -> bool:
    """Interrupt the call of a Python function while the screen draws. Return false if there are fewer calls."""
    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"
        if calls > number:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)

    before = sys.getprofile()
    try:
        with interruptible():
            sys.setprofile(count)
            screen.draw([Line.of("a line")], [Line.of("a new region")])
            sys.setprofile(None)
    except Interruption:
        return True
    finally:
        sys.setprofile(before)
    return False


def interrupt_each_call() -> None:
    """Print the number of calls after each of which the screen still shows its lines once."""
    number, is_interrupted = 0, True
    while is_interrupted:
        stream = io.StringIO()
        screen = LiveScreen(stream)
        screen.draw([], [Line.of("a region")])
        is_interrupted = interrupt_call(number, screen)
        screen.draw([], [])
        screen.draw([Line.of("3 results saved")], [])
        assert stream.getvalue().count("3 results saved") == 1, f"call {number}"
        number += 1
    print(number)  # noqa: T201 - the result of this process


def test_lines_are_shown_wherever_a_signal_interrupts_the_screen() -> None:
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


if __name__ == "__main__":
    interrupt_each_call()

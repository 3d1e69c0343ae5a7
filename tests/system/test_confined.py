"""A function in a child: its answer, or why there is none."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from arbitrage_cli.system.confined import ConfinedError, confined

MEMORY = 64 << 20


def test_answer_comes_back_whole_and_changes_nothing_here() -> None:
    seen: list[str] = []

    def answer() -> str:
        seen.append("child")
        return "\u20ac" * 500_000

    assert confined(answer, seconds=5.0, memory=MEMORY) == "\u20ac" * 500_000
    assert not seen


def test_child_holds_no_file_of_this_process_open(tmp_path: Path) -> None:
    """Among them would be the lock of a run folder, which must be free as soon as this process is killed."""
    with (tmp_path / "lock").open("w") as stream:
        listed = confined(lambda: " ".join(one.name for one in Path("/proc/self/fd").iterdir()), seconds=5.0, memory=MEMORY)
        assert str(stream.fileno()) not in listed.split()


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda: str(sum([[1]] * 10**6, [])), "not finished after"),  # noqa: RUF017 - one call of C
        (lambda: "x" * (1 << 40), "more than 64 MB"),
        (os.abort, "status -6"),
        (lambda: str(1 // 0), "status 1"),
    ],
    ids=["time", "memory", "signal", "exception"],
)
def test_child_that_fails_says_why(harm: Callable[[], str], reason: str) -> None:
    with pytest.raises(ConfinedError, match=reason):
        confined(harm, seconds=0.3, memory=MEMORY)

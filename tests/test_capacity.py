"""How many problems are solved at once: what is asked for, what fits in memory, and what is refused."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from arbitrage_cli.backends import Options
from arbitrage_cli.commands import capacity
from arbitrage_cli.commands.capacity import MOST, MOST_AUTO, MOST_AUTO_SMALL, Need, choose_concurrency, memory_needed
from arbitrage_cli.errors import ModelFileError, ModelMemoryError, UsageError


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 1000 bytes, whose processor's cache has 50 of them."""
    monkeypatch.setattr(capacity, "available_memory", lambda: 1000)
    monkeypatch.setattr(capacity, "CACHED_BYTES", 50)


def never() -> Need:
    raise AssertionError("nothing has to be known of the models")


def test_one_needs_no_check() -> None:
    """One problem at a time is taken as it is, whatever the models need, and so is what can only be one."""
    assert choose_concurrency("1", never, most=MOST) == 1
    assert choose_concurrency("auto", never, most=1) == 1
    assert choose_concurrency("8", never, most=1) == 1


@pytest.mark.usefixtures("room")
@pytest.mark.parametrize(
    ("need", "most", "found"),
    [
        (Need(100, 100), 64, 4),  # in half of the memory
        (Need(100, 100), 3, 3),
        (Need(100, 1), 64, MOST_AUTO),
        (Need(50, 1), 64, MOST_AUTO_SMALL),
        (Need(0, 0), 64, MOST_AUTO_SMALL),
        (Need(900, 100), 64, 1),
        (Need(100, None), 64, 1),
    ],
)
def test_auto_takes_what_is_worth_it_and_fits(need: Need, most: int, found: int) -> None:
    """auto is as many as there are problems, up to a bound, in a share of the memory; one where a file does not say."""
    assert choose_concurrency("auto", lambda: need, most=most) == found


@pytest.mark.usefixtures("room")
def test_auto_goes_on_as_the_run_began() -> None:
    """A run that goes on has the number that it had, as long as that fits."""
    assert choose_concurrency("auto", lambda: Need(100, 100), most=64, earlier=7) == 7
    assert choose_concurrency("auto", lambda: Need(100, 100), most=2, earlier=7) == 7
    assert choose_concurrency("auto", never, most=64, earlier=1) == 1
    with pytest.raises(ModelMemoryError):
        choose_concurrency("auto", lambda: Need(100, 200), most=64, earlier=7)


@pytest.mark.usefixtures("room")
def test_what_does_not_fit_is_refused_with_what_would() -> None:
    """A number that does not fit is refused before anything is loaded; the message has the number that does."""
    assert choose_concurrency("9", lambda: Need(100, 100), most=64) == 9
    with pytest.raises(ModelMemoryError, match="10 problems at once need") as caught:
        choose_concurrency("10", lambda: Need(100, 100), most=64)
    assert "up to 9 will do" in caught.value.hint


@pytest.mark.parametrize("text", ["0", "-1", "65", "1.5", "many", "", "\u0664"])
def test_other_words_are_refused(text: str) -> None:
    """Anything but a number in bounds and auto is a usage error."""
    with pytest.raises(UsageError, match="no number of problems"):
        choose_concurrency(text, never, most=MOST)


def test_need_is_read_from_the_files(tiny: Mapping[str, Path]) -> None:
    """Weights once, and a cache for each sequence in its number format; demo models need nothing."""
    found = {"draft": str(tiny["draft"]), "target": str(tiny["target"])}
    full = memory_needed(found, Options(256), {"draft": 1, "target": 2})  # type: ignore[arg-type]
    assert full.weights == sum(path.stat().st_size for path in (tiny["draft"], tiny["target"]))
    alone = memory_needed(found, Options(256), {"draft": 1, "target": 1})  # type: ignore[arg-type]
    assert alone.each is not None
    assert full.each is not None
    assert 0 < alone.each < full.each
    assert memory_needed(found, Options(512), {"draft": 1, "target": 1}).each == 2 * alone.each  # type: ignore[arg-type]
    wide = memory_needed(found, Options(256, kv_type="f32"), {"draft": 1, "target": 1})  # type: ignore[arg-type]
    assert wide.each == 2 * alone.each
    assert memory_needed({"draft": "scripted:draft"}, Options(), {"draft": 1}) == Need(0, 0)
    with pytest.raises(ModelFileError):
        memory_needed({"draft": "nowhere.gguf"}, Options(), {"draft": 1})

"""A model whose tokens take far too long for its size."""

import pytest
from cli import make_trace

from arbitrage_cli.app import slow_models
from arbitrage_cli.app.slow_models import Load, SlowModels
from arbitrage_cli.types import ModelRole, Wrote

GIGABYTE = 10**9


@pytest.fixture(autouse=True)
def busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_models, "cores_in_use", lambda: 64.0)


def warnings(load: Load, *writers: tuple[ModelRole, float]) -> list[str]:
    """What is said of a draft while each writer takes so many seconds for its token."""
    now, trace = [0.0], make_trace()
    watch = SlowModels({"draft": load, "target": Load(GIGABYTE, 1)}, lambda: now[0])
    said = []
    for writer, seconds in writers:
        now[0] += seconds
        said.append(watch.warning(Wrote(trace, writer, "x")))
    return [text for text in said if text]


def drafted(seconds: float, count: int) -> list[tuple[ModelRole, float]]:
    return [("draft", seconds)] * count


@pytest.mark.parametrize(("seconds", "threads", "count"), [(4.0, 2, 1), (4.0, 1, 0), (0.2, 2, 0)])
def test_a_collapse_is_noticed_once_and_in_its_first_tokens(seconds: float, threads: int, count: int) -> None:
    assert len(warnings(Load(GIGABYTE, threads), *drafted(seconds, 5))) == count
    assert len(warnings(Load(GIGABYTE, threads), *drafted(seconds, 50))) == count


def test_a_machine_with_nothing_else_to_do_is_only_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_models, "cores_in_use", lambda: 0.1)
    monkeypatch.setattr(slow_models, "logical_processors", lambda: 4)
    assert not warnings(Load(GIGABYTE, 4), *drafted(4.0, 5))
    assert warnings(Load(GIGABYTE, 8), *drafted(4.0, 5))


def test_the_time_of_another_model_does_not_count() -> None:
    turns: list[tuple[ModelRole, float]] = [("draft", 0.1), ("target", 30.0)]
    assert not warnings(Load(GIGABYTE, 2), *turns * 20)


def test_threads_to_try_are_named() -> None:
    assert "--threads 4 " in warnings(Load(GIGABYTE, 8), *drafted(4.0, 5))[0]

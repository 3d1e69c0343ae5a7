"""Marks of test cases that only `.ci/run` runs, and their time budgets."""

import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


def rarely(*cases: Any) -> list[Any]:
    """Mark the cases of a parametrized test as slow. Each is a value, or a tuple with one value per parameter."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]


def within(seconds: float, cases: Iterable[T]) -> Iterator[T]:
    """Yield the cases of a slow test until its time budget is spent, as on a busy machine. The first case is always yielded."""
    end = time.monotonic() + seconds
    for number, case in enumerate(cases):
        if number and time.monotonic() > end:
            return
        yield case

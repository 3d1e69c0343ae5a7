"""Anything else: the models' own manner, and nothing that is graded."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from arbitrage_cli.tasks.task import Task
from arbitrage_cli.types import Grade


class _Grader:
    """Grades nothing."""

    protections = ()

    def grade(self, text: str, gold: Mapping[str, Any]) -> Grade:
        return Grade("unscored", None, "task free has no right answers")


@contextmanager
def _open_grader() -> Iterator[_Grader]:
    yield _Grader()


FREE = Task("free", "", lambda text: None, _open_grader, lambda: "none")

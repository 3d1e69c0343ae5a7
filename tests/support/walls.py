"""The wall that programs run behind, for tests that need it."""

import os

import pytest

from arbitrage_cli.errors import UsageError
from arbitrage_cli.grading.programs import find_wall


def wall_or_skip() -> list[str]:
    """The wall. Without one the test is skipped; where ARBITRAGE_TEST_WALL is set, as in .ci/run, it fails."""
    try:
        return find_wall()
    except UsageError as error:
        if os.environ.get("ARBITRAGE_TEST_WALL"):
            raise
        pytest.skip(error.message)

"""Measurements beside a real program that keeps the processor busy for a share of the time."""

import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arbitrage_cli.costs import measure, probing
from arbitrage_cli.costs.store import Tuned
from arbitrage_cli.inference.backend import LoadOptions
from arbitrage_cli.model_files.pairs import find_files
from arbitrage_cli.numbers.intervals import Z
from arbitrage_cli.system.machine import other_seconds, physical_cores

pytestmark = pytest.mark.slow

PROGRAM = """
import sys, time
duty = float(sys.argv[1])
while True:
    began = time.perf_counter()
    while time.perf_counter() - began < duty:
        pass
    time.sleep(1 - duty)
"""


@contextmanager
def busy(duty: float) -> Iterator[None]:
    """Programs that keep each core busy for this share of each second."""
    programs = [subprocess.Popen([sys.executable, "-c", PROGRAM, str(duty)]) for _ in range(math.ceil(physical_cores()))]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


@pytest.fixture
def _real_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(probing, "other_seconds", other_seconds)
    monkeypatch.setattr(measure, "threads_without_costs", lambda path, load: 2)


def measured() -> Tuned:
    path = str(find_files("builtin:target")[0])
    return measure.measure_and_keep({"target": path}, LoadOptions(512), lambda *given: None, lambda note: None)["target"]


@pytest.mark.usefixtures("_real_load")
def test_costs_beside_a_real_program_hold_the_truth_or_count_as_disturbed() -> None:
    if physical_cores() < 2:
        pytest.skip("two threads need two cores")
    usual = next((found for _ in range(3) if not (found := measured()).is_disturbed), None)
    for duty in (0.5, 1.0):
        with busy(duty):
            found = measured()
        assert found.is_disturbed or duty < 1.0
        if usual and not found.is_disturbed:  # without `usual`, this machine was never idle
            factor = math.exp(Z * math.hypot(found.costs.error, usual.costs.error))
            assert 1 / factor < found.costs.decode / usual.costs.decode < factor

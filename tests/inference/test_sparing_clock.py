"""The clock of a thread's CPU time is right, but for half a millisecond, and read seldom."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from arbitrage_cli.inference.sparing_clock import MAX_AGE, SparingClock


class Machine:
    """A thread whose work and pauses are made up, with the number of readings of its CPU time."""

    def __init__(self) -> None:
        self.cpu, self.wall, self.num_readings = 0.0, 50.0, 0
        self.clock = SparingClock(self._read, lambda: self.wall)

    def _read(self) -> float:
        self.num_readings += 1
        return self.cpu

    def work(self, seconds: float) -> None:
        self.cpu, self.wall = self.cpu + seconds, self.wall + seconds


@given(st.lists(st.tuples(st.floats(0, 2e-3), st.booleans()), max_size=50))
def test_the_clock_is_never_behind_and_hardly_ahead(events: list[tuple[float, bool]]) -> None:
    machine, last = Machine(), 0.0
    for seconds, is_paused in events:
        if is_paused:
            machine.wall += seconds
        else:
            machine.work(seconds)
        now = machine.clock()
        assert machine.cpu - 1e-9 <= now <= machine.cpu + MAX_AGE + 1e-9
        assert now >= last
        last = now


def test_a_batch_costs_one_reading() -> None:
    machine = Machine()
    for _ in range(100):
        began = machine.clock()
        machine.work(0.02)  # a batch
        assert abs(machine.clock() - began - 0.02) < 1e-9
        machine.work(1e-4)  # work between two batches
    assert machine.num_readings <= 101


def test_each_thread_has_its_own_time() -> None:
    machine = Machine()
    machine.cpu = 9.0
    assert machine.clock() == 9.0
    machine.cpu = 1.0  # of another thread
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.append(machine.clock()))
    thread.start()
    thread.join()
    assert found == [1.0]

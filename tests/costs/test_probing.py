"""The costs of models with known speeds, and the number of threads at which they are fastest, on simulated machines."""

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_models import Continuation, ScriptedBackend

from arbitrage_cli.costs.measure import measure
from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.costs.probing import DECODED, ROUNDS, LoadMeter, Probes, probe, thread_counts, try_threads
from arbitrage_cli.inference.backend import Floats, LoadOptions, ModelCard
from arbitrage_cli.inference.llama.backend import LlamaBackend
from arbitrage_cli.inference.unit_costs import COST_ERROR, UnitCosts
from arbitrage_cli.numbers.intervals import Interval
from arbitrage_cli.types import ModelRole

Seconds = Callable[[int], float]  # per token, by number of threads


class Slow(ScriptedBackend):
    def __init__(self, decode: Seconds, read: Seconds, context_size: int = 512) -> None:
        super().__init__("slow", lambda question, solution: Continuation("", 1.0), LoadOptions(context_size))
        self._decode_seconds, self._read_seconds = decode, read
        self.threads = 0
        self.now = 0.0
        self.tried: list[int] = []

    def clock(self) -> float:
        return self.now

    @property
    def meter(self) -> LoadMeter:
        """Of a machine without other programs."""
        return LoadMeter(self.clock, float)

    def use_threads(self, count: int) -> None:
        self.threads = count
        self.tried.append(count)

    def read(self, sequence: int, position: int, tokens: Sequence[int], **options: Any) -> None:
        assert position + len(tokens) <= self.card.context_size
        self.now += self._read_seconds(self.threads) * len(tokens)

    def decode(self, sequences: Sequence[int], positions: Sequence[int], tokens: Sequence[int], **options: Any) -> Floats:
        assert max(positions) < self.card.context_size
        alone = len(tokens) == 1
        self.now += (self._decode_seconds if alone else self._read_seconds)(self.threads) * len(tokens)
        return np.zeros((len(tokens), self.card.vocabulary_size), np.float32)

    def drop(self, sequence: int, position: int) -> None:
        pass


def tune(decode: Seconds, read: Seconds, cores: int = 8) -> tuple[int, Slow]:
    backend = Slow(decode, read)
    try_threads(backend, thread_counts(cores), backend.meter)
    return backend.threads, backend


@pytest.mark.parametrize(
    ("decode", "read", "threads"),
    [
        (lambda n: 0.1 / n, lambda n: 0.01 / n, 8),  # more is better
        (lambda n: 0.001 * n, lambda n: 0.0001, 1),  # a small model
        (lambda n: 0.1 / min(n, 4), lambda n: 0.001 / min(n, 4), 4),  # memory is the bound: the others stay free
        (lambda n: 0.1 / min(n, 4), lambda n: 0.1 / n, 8),  # but reading still gains
        (lambda n: 0.1 / n if n < 8 else 1.0, lambda n: 0.01, 6),  # some of the cores are slow ones
    ],
)
def test_the_least_number_that_is_about_as_fast_as_any(decode: Seconds, read: Seconds, threads: int) -> None:
    assert tune(decode, read)[0] == threads


def test_a_turn_that_was_disturbed_does_not_count() -> None:
    disturbed = itertools.chain([50.0], itertools.repeat(1.0))
    chosen, _ = tune(lambda n: 0.1 / n * (next(disturbed) if n == 8 else 1.0), lambda n: 0.01 / n)
    assert chosen == 8


def test_llama_computes_with_the_threads_it_is_told(tiny: Mapping[str, Path]) -> None:
    with LlamaBackend(tiny["draft"], LoadOptions(256, threads=2)) as backend:
        assert [*try_threads(backend, [1], LoadMeter())] == [1]
        assert backend.card.threads == 1
        backend.read(0, 0, [1, 2, 3])


def test_costs_of_a_model_with_known_speeds() -> None:
    backend = Slow(lambda threads: 1.0, lambda threads: 0.25)
    (probes,) = probe({"target": backend}, backend.meter, clock=backend.clock, limit=60.0).values()
    assert replace(probes.costs, error=0.0) == UnitCosts((1.0, 1.0, 1.0, 2.0, 4.0), 0.25, error=0.0)
    assert 0.8 * COST_ERROR < probes.costs.error < COST_ERROR
    assert len(probes.batches[16]) == ROUNDS


def error_of(*factors: float, rounds: int = 6) -> float:
    """The error of the costs of a model whose speed changes by these factors, each of which lasts for some rounds."""
    return Probes([factor for factor in factors for _ in range(4 * rounds)], {}, {}).error


def test_the_error_of_costs_follows_their_change_during_the_measurement() -> None:
    """Without a change, much of the usual error is left, because changes between runs take longer than a measurement."""
    assert error_of(1.0, rounds=1) == pytest.approx(COST_ERROR)
    assert 0.7 * COST_ERROR < error_of(1.0, 1.0, 1.0, 1.0) < 0.8 * COST_ERROR
    assert error_of(1.0, 1.5) > 2 * COST_ERROR
    assert error_of(1.0, 1.5, 1.0, 1.5) > error_of(1.0, 1.2, 1.0, 1.2) > error_of(1.0, 1.1, 1.0, 1.1)


def test_a_disturbed_round_hardly_changes_the_error_of_costs() -> None:
    quiet, disturbed = (Probes([1.0] * 92 + [last] * 4, {}, {}) for last in (1.0, 50.0))
    assert disturbed.error == pytest.approx(quiet.error)


@pytest.mark.parametrize(("limit", "rounds"), [(0.0, 1), (21.0, 1), (22.0, 2)])
def test_probes_end_at_the_limit_but_each_runs_once(limit: float, rounds: int) -> None:
    """A round takes 21.5 s, and a trial of a number of threads takes 7 s."""
    backend = Slow(lambda threads: 1.0, lambda threads: 0.25)
    (probes,) = probe({"target": backend}, backend.meter, clock=backend.clock, limit=limit).values()
    assert {len(times) for times in probes.batches.values()} == {rounds}
    began = backend.clock()
    assert [*try_threads(backend, [1, 2, 4, 8], backend.meter, limit=limit)][-1] == 8
    assert backend.clock() - began <= limit + 7.0


def test_a_disturbed_probe_changes_no_cost() -> None:
    disturbed = itertools.chain([50.0], itertools.repeat(1.0))
    backend = Slow(lambda threads: next(disturbed), lambda threads: 0.25)
    (probes,) = probe({"target": backend}, backend.meter, clock=backend.clock, limit=100.0).values()
    assert probes.costs.decode == 1.0


def test_models_with_a_short_context_or_without_rollback_are_measured(tiny: Mapping[str, Path]) -> None:
    for name, size in (("draft", 64), ("hybrid", 256)):
        with LlamaBackend(tiny[name], LoadOptions(size, threads=1)) as backend:
            (probes,) = probe({"target": backend}, LoadMeter(), limit=0.0).values()
            assert probes.costs.decode > 0


def is_disturbed(decode: Seconds, batch: float = 1.0, *, is_on_gpu: bool = False) -> bool:
    """Whether a measurement is disturbed in which each token of a batch takes this many seconds."""
    backend = Slow(decode, lambda threads: batch)
    return probe({"target": backend}, backend.meter, clock=backend.clock, limit=1e6)["target"].is_disturbed(
        is_on_gpu=is_on_gpu
    )


def test_costs_that_cannot_be_are_disturbed() -> None:
    """A batch of 16 takes more than one token and less than 16, and the same work takes about the same time."""
    slower = itertools.count(1)
    assert not is_disturbed(lambda threads: 1.0, 0.2)
    assert is_disturbed(lambda threads: 1.0, 0.05)
    assert not is_disturbed(lambda threads: 1.0, 0.05, is_on_gpu=True)
    assert is_disturbed(lambda threads: 1.0, 1.1)
    assert is_disturbed(lambda threads: 1.0 if next(slower) <= ROUNDS // 2 * DECODED else 2.0, 0.2)


# --- beside other programs


class Busy:
    """A machine with two cores. Another program keeps one of them busy for a share `duty` of each `period` in seconds.

    Work on both cores takes twice as long meanwhile. The program then gets half a core, as the system counts it in ticks of
    0.01 s. Each piece of work also takes a few percent more or less time than usual.
    """

    def __init__(self, duty: float, period: float, seed: int) -> None:
        self._duty, self._period, self._random = duty, period, random.Random(seed)
        self._phase = self._random.random() * period
        self.now = 0.0
        self._used = 0.0
        self.meter = LoadMeter(lambda: self.now, lambda: 0.01 * math.floor(100 * self._used), cores=2)

    def work(self, seconds: float, threads: int) -> None:
        left = seconds * math.exp(self._random.gauss(0.0, 0.03))
        while left > 0:
            position = (self.now + self._phase) % self._period
            is_busy = position < self._duty * self._period
            change = (self._duty if is_busy else 1.0) * self._period - position
            is_slow = is_busy and threads > 1
            spent = min(max(change, 1e-6), left * (2.0 if is_slow else 1.0))
            self.now += spent
            left -= spent / (2.0 if is_slow else 1.0)
            self._used += is_busy * spent * (0.5 if is_slow else 1.0)


class Shared(Slow):
    """A model on such a machine. If all its layers are on a GPU, it uses one core."""

    def __init__(self, machine: Busy, seconds: float, gpu_layers: int = 0) -> None:
        super().__init__(lambda threads: seconds / threads**0.9, lambda threads: 0.3 * seconds / threads**0.9)
        self._machine, self._gpu_layers = machine, gpu_layers

    @property
    def card(self) -> ModelCard:
        return replace(super().card, threads=max(1, self.threads), gpu_layers=self._gpu_layers)

    def read(self, sequence: int, position: int, tokens: Sequence[int], **options: Any) -> None:
        self._machine.work(self._read_seconds(self.threads) * len(tokens), self.card.cores)

    def decode(self, sequences: Sequence[int], positions: Sequence[int], tokens: Sequence[int], **options: Any) -> Floats:
        each = self._decode_seconds if len(tokens) == 1 else self._read_seconds
        self._machine.work(each(self.threads) * len(tokens), self.card.cores)
        return np.zeros((len(tokens), self.card.vocabulary_size), np.float32)


TRUTH = 1.9  # the cost of a target token in draft tokens


def measured_beside(machine: Busy, seconds: float) -> tuple[Interval, bool]:
    """The interval of TRUTH, and whether the measurement counts as disturbed. The threads are those of an idle machine."""
    backends: dict[ModelRole, Shared] = {"draft": Shared(machine, seconds), "target": Shared(machine, TRUTH * seconds)}
    for backend in backends.values():
        backend.use_threads(2)
    counts = {role: [1, 2] for role in backends}
    probes, disturbed = measure(backends, dict.fromkeys(backends, ""), counts, lambda *given: None, machine.meter)
    assert {backend.threads for backend in backends.values()} == {2}
    pair = PairCosts.of({role: found.costs for role, found in probes.items()})
    assert pair
    return pair.token_ratio_interval, bool(disturbed)


@pytest.mark.parametrize("seconds", [0.002, 0.05], ids=["fast models", "slow models"])
@pytest.mark.parametrize(
    ("duty", "period", "least", "most"),
    [
        (0.0, 1.0, 0, 0), (0.1, 1.0, 0, 0), (0.5, 0.05, 40, 40), (0.5, 0.4, 40, 40), (0.5, 2.0, 0, 40), (0.5, 7.0, 0, 40),
        (1.0, 1.0, 40, 40),
    ],
)  # fmt: skip
def test_costs_of_a_busy_machine_hold_the_truth_or_count_as_disturbed(
    duty: float, period: float, least: int, most: int, seconds: float
) -> None:
    """In at least 38 of 40 measurements, of which at least `least` and at most `most` count as disturbed."""
    found = [measured_beside(Busy(duty, period, seed), seconds) for seed in range(40)]
    assert sum(is_disturbed or low <= TRUTH <= high for (low, high), is_disturbed in found) >= 38
    assert least <= sum(is_disturbed for _, is_disturbed in found) <= most


def test_most_measurements_of_fast_models_find_the_pauses_of_another_program() -> None:
    found = [measured_beside(Busy(0.5, 2.0, seed), 0.002) for seed in range(40)]
    assert sum(is_disturbed for _, is_disturbed in found) < 20


def test_a_model_on_a_gpu_or_with_one_thread_is_measured_beside_another_program() -> None:
    for threads, gpu_layers in ((1, 0), (2, -1)):
        machine = Busy(1.0, 1.0, 0)
        backend = Shared(machine, 0.002, gpu_layers)
        backend.use_threads(threads)
        counts: Mapping[ModelRole, list[int]] = {"target": [1, 2][:threads]}
        _, disturbed = measure({"target": backend}, {"target": ""}, counts, lambda *activity: None, machine.meter)
        assert (disturbed, backend.threads) == (set(), threads)

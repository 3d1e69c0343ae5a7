"""Measures the unit costs of models on this machine.

Each model is measured with the number of threads at which it is fastest.

Probes alternate between kinds and between models. The lower quartile of each kind's times is used, because other work on the
machine can only add time. A probe follows a probe of another size or model, as during routing. The extra cost of a long
context is not measured, because it is the same for all policies.
"""

import math
import time
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import Protocol, cast

import numpy as np

from arbitrage_cli.costs.memory import check_memory, memory_needed
from arbitrage_cli.costs.store import Tuned, keep_tuned, loading_of, machine_here, threads_without_costs, tuned_file
from arbitrage_cli.errors import OutputError
from arbitrage_cli.inference.backend import Backend, Clock, LoadOptions, clock_for
from arbitrage_cli.inference.chat_template import Plain
from arbitrage_cli.inference.kv_cache import prompt_ids
from arbitrage_cli.inference.open import display_name, open_model
from arbitrage_cli.inference.unit_costs import COST_ERROR, ROWS, UnitCosts
from arbitrage_cli.model_files.checksums import sha256_seen
from arbitrage_cli.model_files.pairs import local_files
from arbitrage_cli.numbers import formatting
from arbitrage_cli.numbers.intervals import Numbers
from arbitrage_cli.system.machine import free_cores
from arbitrage_cli.types import ByRole, ModelRole, Note, frozen

TEXT = "Tom has 12 apples and buys 7 more. Then he gives 5 of them away: 12 + 7 - 5 = 14.\n\n"
LONG, SHORT = 32, 4  # tokens of the two probes of prefill
DECODED = 5  # tokens in a row; the first is left out, because it follows a batch of another size
ROUNDS, MAX_ROUNDS, SECONDS = 2, 24, 1.5  # rounds of all probes: at least ROUNDS, then until SECONDS have passed
PROBE_SECONDS = 20.0  # the limit for all probes; half of it is for the numbers of threads
THREAD_PREFILL, THREAD_DECODED = 16, 3  # tokens of the probes for a number of threads
THREAD_ROUNDS, THREAD_SECONDS = 3, 2.0  # rounds of all numbers of threads: one, then more until THREAD_SECONDS have passed
AS_FAST = 1.05  # a smaller number of threads within this factor of the fastest is preferred, to leave cores to others
TOO_SLOW = 1.5  # beyond this factor of the fastest, fewer threads are not tried
MAX_CHANGE = 1.3  # of the time of a token during a measurement that is kept
BLOCKS, PRIOR_BLOCKS = 4, 4  # parts of a measurement whose costs are compared


class ShowActivity(Protocol):
    """Shows an activity, the name of its model, and the completed part (0 to 1) if it is known."""

    def __call__(self, activity: str, name: str, fraction: float | None = None) -> None: ...


class Threaded(Backend, Protocol):
    """A backend whose number of threads can be changed."""

    def use_threads(self, count: int) -> None: ...


@frozen
class Probes:
    """The seconds of a model's probes, in the order of the rounds."""

    decode: list[float]
    batches: Mapping[int, list[float]]  # by number of rows
    prefill: Mapping[int, list[float]]  # by number of tokens

    @property
    def costs(self) -> UnitCosts:
        usual = [low_quartile(self.decode), *(low_quartile(self.batches[rows]) for rows in ROWS[1:])]
        (short, fast), (long, slow) = sorted((count, low_quartile(times)) for count, times in self.prefill.items())
        token = min(max(0.0, slow - fast) / (long - short), slow / long)
        batches = tuple(map(float, np.maximum.accumulate(usual)))
        return UnitCosts(batches, token, max(0.0, slow - long * token), self.error)

    def is_disturbed(self, *, is_on_gpu: bool) -> bool:
        """Return whether these times must be wrong. A GPU may compute a batch in the time of one token."""
        one, many = low_quartile(self.decode), low_quartile(self.batches[ROWS[-1]])
        halves = [low_quartile(half) for half in np.array_split(self.decode, 2)]
        is_possible = (is_on_gpu or one < many) and many < ROWS[-1] * one
        return not is_possible or max(halves) > MAX_CHANGE * min(halves)

    @property
    def error(self) -> float:
        """Return the standard deviation of the logarithm of the costs between blocks of rounds.

        A measurement is too short for changes that take minutes, so the usual error counts as much as PRIOR_BLOCKS blocks.
        """
        num_rounds = len(self.decode) // (DECODED - 1)
        costs = np.log([low_quartile(block) for block in np.array_split(self.decode, min(BLOCKS, num_rounds))])
        squares = PRIOR_BLOCKS * COST_ERROR**2 + len(costs) * costs.var()
        return math.sqrt(squares / (PRIOR_BLOCKS + len(costs) - 1))


def measure_and_keep(
    paths: ByRole[str],
    load: LoadOptions,
    show: ShowActivity,
    note: Note,
    limit: float | None = None,
) -> dict[ModelRole, Tuned]:
    """Measure models together, store their costs and return them.

    Each activity is shown while it lasts. A note is shown if the measurement was disturbed or cannot be stored. The probes end
    after `limit` seconds, but each runs at least once.

    Raises any error from loading or running a model.
    """
    check_memory(memory_needed(paths, load))
    most = {role: threads_without_costs(path, load) for role, path in paths.items()}
    free = free_cores() if max(most.values()) > 1 and not load.threads else max(most.values())
    counts = {role: [count] if load.threads else thread_counts(min(count, free)) for role, count in most.items()}
    with ExitStack() as stack:
        backends = _open(paths, load, most, show, stack)
        names = {role: display_name(path) for role, path in paths.items()}
        probes, disturbed = _measure(backends, names, counts, show, limit or PROBE_SECONDS)
        cards = {role: backend.card for role, backend in backends.items()}
    disturbed |= {role for role, threads in most.items() if free < threads}
    created = formatting.timestamp()
    models = {
        role: Tuned(
            machine=machine_here(),
            sha256=sha256_seen(local_files(path)),
            loading=loading_of(load),
            name=names[role],
            threads=cards[role].threads,
            costs=probes[role].costs,
            created=created,
            is_disturbed=role in disturbed,
        )
        for role, path in paths.items()
    }
    if roles := [role for role in models if role in disturbed]:
        costs = f"the token costs of {' and '.join(roles)} are approximate"
        note(f"other programs disturbed the measurement, so {costs}; a single thread is least affected: use --threads 1")
    try:
        keep_tuned(tuned_file(), [*models.values()])
    except OutputError as error:
        note(f"the token costs are used only by this command, because they cannot be stored: {error.message}")
    return models


def _open(
    paths: ByRole[str], load: LoadOptions, threads: ByRole[int], show: ShowActivity, stack: ExitStack
) -> dict[ModelRole, Threaded]:
    """Load the models, which the stack closes."""
    backends: dict[ModelRole, Threaded] = {}
    for role, path in paths.items():
        options = replace(load, threads=threads[role])
        backend = open_model(path, options, partial(show, f"loading {role}", display_name(path)))
        backends[role] = cast("Threaded", stack.enter_context(closing(backend)))
    return backends


def _measure(
    backends: ByRole[Threaded], names: ByRole[str], counts: ByRole[Sequence[int]], show: ShowActivity, limit: float
) -> tuple[dict[ModelRole, Probes], set[ModelRole]]:
    """Set each model to the best of its numbers of threads, then measure all models in turns.

    Return the probes, and the models whose measurement was disturbed.
    """
    on_gpu = {role: backend for role, backend in backends.items() if backend.card.gpu_layers}
    probe(on_gpu, rounds=1)  # GPU drivers compile when a number of tokens is first computed
    share = limit / 2 / len(backends)
    for role, backend in backends.items():
        show(f"measuring {role}, up to {math.ceil(share)} s", names[role])
        try_threads(backend, counts[role], limit=share)
    show(f"measuring {' and '.join(backends)}, up to {math.ceil(limit / 2)} s", " and ".join(names.values()))
    probes = probe(backends, limit=limit * 3 / 8)
    if _disturbed(probes, on_gpu):  # once more, because a disturbance may be short
        probes = probe(backends, limit=limit / 8)
    return probes, _disturbed(probes, on_gpu)


def _disturbed(probes: ByRole[Probes], on_gpu: Container[ModelRole]) -> set[ModelRole]:
    return {role for role, found in probes.items() if found.is_disturbed(is_on_gpu=role in on_gpu)}


def thread_counts(cores: int) -> list[int]:
    """Return the thread counts to try: 1, 2, 3, 4, 6, 8, 12, 16 and so on, up to and including the number of cores."""
    powers = [1 << exponent for exponent in range(cores.bit_length())]
    counts = {*powers, *(3 * power for power in powers), cores}
    return sorted(count for count in counts if count <= cores)


def try_threads(
    backend: Threaded, counts: Sequence[int], *, clock: Clock = time.perf_counter, limit: float = PROBE_SECONDS
) -> dict[int, float]:
    """Measure a model's tokens per second with each number of threads, highest first, until it becomes much slower.

    The highest number is always measured, other numbers only before `limit` seconds have passed.

    Both decoding and prefill are measured, because each model of a pair also prefills the other model's tokens. The model is
    then set to the lowest thread count whose speed is close to the highest speed. The time is measured with a wall clock, so
    that it includes threads that wait for a processor.
    """
    best: dict[int, float] = {}
    tokens = _tokens(backend)
    began = clock()
    for number in range(THREAD_ROUNDS if len(counts) > 1 else 1):
        if number and clock() - began > min(THREAD_SECONDS, limit):
            break
        for count in sorted(counts, reverse=True):
            backend.use_threads(count)
            probes = Probes([], {}, {THREAD_PREFILL: []})
            _take_turn(backend, tokens, probes, THREAD_DECODED, clock)
            seconds = min(probes.decode) + probes.prefill[THREAD_PREFILL][0] / THREAD_PREFILL
            best[count] = min(seconds, best.get(count, seconds))
            if seconds > TOO_SLOW * min(best.values()) or clock() - began > limit:
                break
    fastest = min(best.values())
    backend.use_threads(min(count for count, seconds in best.items() if seconds <= AS_FAST * fastest))
    return {count: 1 / best[count] for count in sorted(best)}


def probe(
    backends: ByRole[Backend],
    *,
    clock: Clock | None = None,
    rounds: int = MAX_ROUNDS,
    limit: float = PROBE_SECONDS,
) -> dict[ModelRole, Probes]:
    """Measure models in turns until SECONDS have passed, with at least ROUNDS rounds unless `limit` seconds have passed.

    If `clock` is set, all models use it.
    """
    found = {role: Probes([], {rows: [] for rows in ROWS[1:]}, {LONG: [], SHORT: []}) for role in backends}
    tokens = {role: _tokens(backend) for role, backend in backends.items()}
    wall_clock = clock or time.perf_counter
    clock = clock or clock_for(backend.card for backend in backends.values())
    began = wall_clock()
    for number in range(rounds):
        for role, backend in backends.items():
            _take_turn(backend, tokens[role], found[role], DECODED, clock)
        if wall_clock() - began > (min(SECONDS, limit) if number + 1 >= ROUNDS else limit):
            break
    return found


def _take_turn(backend: Backend, tokens: Sequence[int], probes: Probes, decoded: int, clock: Clock) -> None:
    """Run each probe once in an empty sequence, then empty the sequence."""
    position = 0

    def timed(work: Callable[[int, Sequence[int]], object], count: int) -> float:
        nonlocal position
        if position + count > backend.card.context_size:
            backend.drop(0, 0)
            position = 0
        began = clock()
        work(position, tokens[:count])
        position += count
        return clock() - began

    def decode(start: int, batch: Sequence[int]) -> None:
        backend.decode([0] * len(batch), range(start, start + len(batch)), batch)

    for count, times in probes.prefill.items():
        times.append(timed(partial(backend.read, 0), count))
    for count, times in probes.batches.items():
        times.append(timed(decode, count))
    probes.decode.extend([timed(decode, 1) for _ in range(decoded)][1:])
    backend.drop(0, 0)


def _tokens(backend: Backend) -> list[int]:
    once = prompt_ids(backend, [Plain(TEXT)])
    return (once * (LONG // len(once) + 1))[:LONG]


def low_quartile(times: Sequence[float] | Numbers) -> float:
    return float(np.quantile(times, 0.25))

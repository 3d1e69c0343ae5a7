"""Times short pieces of work of loaded models, with which number of threads a model is fastest, and whether other programs
used the processor meanwhile.

Probes alternate between kinds and between models, so that each follows a probe of another size or model, as during routing.
The extra cost of a long context is not measured, because it is the same for all policies.

Probes during which other programs needed the same cores are left out (`LoadMeter`). Of the rest, the lower quartile of each
kind's times is used, because a disturbance can only add time.
"""

import itertools
import math
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from arbitrage_cli.inference.backend import Backend, Clock, clock_for
from arbitrage_cli.inference.chat_template import Plain
from arbitrage_cli.inference.kv_cache import prompt_ids
from arbitrage_cli.inference.unit_costs import COST_ERROR, ROWS, UnitCosts
from arbitrage_cli.numbers.intervals import Numbers
from arbitrage_cli.system.machine import other_seconds, physical_cores
from arbitrage_cli.types import ByRole, ModelRole, frozen

TEXT = "Tom has 12 apples and buys 7 more. Then he gives 5 of them away: 12 + 7 - 5 = 14.\n\n"
LONG, SHORT = 32, 4  # tokens of the two probes of prefill
DECODED = 5  # tokens in a row; the first is left out, because it follows a batch of another size
ROUNDS, MAX_ROUNDS, SECONDS = 2, 24, 1.5  # rounds of all probes: at least ROUNDS, then until SECONDS have passed
PATIENCE = 4.0  # seconds after which probes end if none was quiet
PROBE_SECONDS = 20.0  # the limit for all probes; half of it is for the numbers of threads
THREAD_PREFILL, THREAD_DECODED = 16, 3  # tokens of the probes for a number of threads
THREAD_ROUNDS, THREAD_SECONDS = 3, 2.0  # rounds of all numbers of threads: one, then more until THREAD_SECONDS have passed
AS_FAST = 1.05  # a smaller number of threads within this factor of the fastest is preferred, to leave cores to others
TOO_SLOW = 1.5  # beyond this factor of the fastest, fewer threads are not tried
MAX_CHANGE = 1.3  # of the time of a token during a measurement that is kept
BLOCKS, PRIOR_BLOCKS = 4, 4  # parts of a measurement whose costs are compared
LOAD_WINDOW = 0.5  # seconds, at least, for which a load is known: systems count processor time in ticks of 0.01 s
READING_SECONDS = 0.05  # at least, between two readings of the load
SPARE = 0.1  # of a core: how much more than the free cores other programs may use while a model is measured


DECODE, BATCH, PREFILL = "decode", "batch", "prefill"
UNUSED = "unused"  # the first token after a batch


class Threaded(Backend, Protocol):
    """A backend whose number of threads can be changed."""

    def use_threads(self, count: int) -> None: ...


class LoadMeter:
    """Tells how many cores other programs used at any time of a measurement.

    `others` returns the processor time of other programs in seconds, and `clock` the time. `cores` is the number of cores
    that the models and other programs share.
    """

    def __init__(self, clock: Clock = time.perf_counter, others: Clock | None = None, cores: float | None = None) -> None:
        self.clock = clock
        self._others = others or other_seconds
        self._cores = physical_cores() if cores is None else cores
        self._times, self._used = [clock()], [self._others()]

    def read(self) -> float:
        """Read the load, unless the last reading is recent. Return the time."""
        now = self.clock()
        if now - self._times[-1] >= READING_SECONDS:
            self._times.append(now)
            self._used.append(self._others())
        return now

    def is_quiet(self, timing: "Timing", cores: int) -> bool:
        """Return whether other programs left this many cores idle during a probe, and shortly before and after it.

        The load is measured for at least LOAD_WINDOW seconds, unless it was read for a shorter time. Work on 0 cores is always
        quiet.
        """
        if not cores:
            return True
        beyond = max(0.0, LOAD_WINDOW - (timing.ended - timing.began)) / 2
        first = max(0, bisect_right(self._times, timing.began - beyond) - 1)
        last = min(len(self._times) - 1, bisect_left(self._times, timing.ended + beyond))
        seconds, used = self._times[last] - self._times[first], self._used[last] - self._used[first]
        return not seconds or used / seconds <= max(0.0, self._cores - cores) + SPARE


class Timing(NamedTuple):
    """The time of one probe on the clock of the work, and when the probe began and ended on the clock of the load."""

    kind: str
    size: int
    seconds: float
    began: float
    ended: float


@frozen
class Probes:
    """The seconds of a model's probes, in the order of the rounds.

    If `is_quiet` is false, other programs used the same cores nearly all the time.
    """

    decode: list[float]
    batches: Mapping[int, list[float]]  # by number of rows
    prefill: Mapping[int, list[float]]  # by number of tokens
    is_quiet: bool = True

    @classmethod
    def of(cls, timings: Sequence[Timing], are_quiet: Sequence[bool]) -> "Probes":
        """Return the quiet probes or, if these have too few of a kind, all probes."""
        every = _by_work(timings)
        quiet = _by_work(itertools.compress(timings, are_quiet))
        is_enough = all(len(quiet.get(work, ())) >= min(ROUNDS, len(times)) for work, times in every.items())
        found = quiet if is_enough else every
        decode = found[DECODE, 1]
        batches, prefill = ({size: times for (of, size), times in found.items() if of == kind} for kind in (BATCH, PREFILL))
        return cls(decode, batches, prefill, is_enough)

    @property
    def costs(self) -> UnitCosts:
        usual = [low_quartile(self.decode), *(low_quartile(self.batches[rows]) for rows in ROWS[1:])]
        (short, fast), (long, slow) = sorted((count, low_quartile(times)) for count, times in self.prefill.items())
        token = min(max(0.0, slow - fast) / (long - short), slow / long)
        batches = tuple(map(float, np.maximum.accumulate(usual)))
        return UnitCosts(batches, token, max(0.0, slow - long * token), self.error)

    def is_disturbed(self, *, is_on_gpu: bool) -> bool:
        """Return whether these times may be wrong. A GPU may compute a batch in the time of one token."""
        one, many = low_quartile(self.decode), low_quartile(self.batches[ROWS[-1]])
        halves = [low_quartile(half) for half in np.array_split(self.decode, 2)]
        is_possible = (is_on_gpu or one < many) and many < ROWS[-1] * one
        return not self.is_quiet or not is_possible or max(halves) > MAX_CHANGE * min(halves)

    @property
    def error(self) -> float:
        """Return the standard deviation of the logarithm of the costs between blocks of rounds.

        A measurement is too short for changes that take minutes, so the usual error counts as much as PRIOR_BLOCKS blocks.
        """
        num_rounds = max(1, len(self.decode) // (DECODED - 1))
        costs = np.log([low_quartile(block) for block in np.array_split(self.decode, min(BLOCKS, num_rounds))])
        squares = PRIOR_BLOCKS * COST_ERROR**2 + len(costs) * costs.var()
        return math.sqrt(squares / (PRIOR_BLOCKS + len(costs) - 1))


def _by_work(timings: Iterable[Timing]) -> dict[tuple[str, int], list[float]]:
    """Return the seconds of each kind and size of work."""
    found: dict[tuple[str, int], list[float]] = {}
    for timing in timings:
        found.setdefault((timing.kind, timing.size), []).append(timing.seconds)
    return found


def thread_counts(cores: int) -> list[int]:
    """Return the thread counts to try: 1, 2, 3, 4, 6, 8, 12, 16 and so on, up to and including the number of cores."""
    powers = [1 << exponent for exponent in range(cores.bit_length())]
    counts = {*powers, *(3 * power for power in powers), cores}
    return sorted(count for count in counts if count <= cores)


def try_threads(
    backend: Threaded, counts: Sequence[int], meter: LoadMeter, *, limit: float = PROBE_SECONDS
) -> dict[int, float]:
    """Measure a model's tokens per second with each number of threads, highest first, until it becomes much slower.

    A trial counts only if other programs left enough cores idle. Trials end after `limit` seconds, but the highest number is
    always tried.

    Both decoding and prefill are measured, because each model of a pair also prefills the other model's tokens. The model is
    then set to the lowest thread count whose speed is close to the highest speed. If no trial of the highest number counts,
    the model is set to this number, because a few seconds of load must not decide for later commands. The time is measured
    with a wall clock, so that it includes threads that wait for a processor.
    """
    trials: dict[int, list[Timing]] = {count: [] for count in counts}
    tokens = _tokens(backend)
    began = meter.clock()
    for number in range(MAX_ROUNDS if len(counts) > 1 else 1):
        spent = meter.clock() - began
        is_enough = number >= THREAD_ROUNDS or spent > THREAD_SECONDS
        if number and (spent > limit or (is_enough and max(counts) in _quiet_trials(trials, meter))):
            break
        for count in sorted(counts, reverse=True):
            backend.use_threads(count)
            trials[count].append(trial := _try(backend, tokens, meter))
            best = _quiet_trials(trials, meter)
            is_slow = best and trial.seconds > TOO_SLOW * min(best.values())
            if is_slow or meter.clock() - began > limit:
                break
    best = _quiet_trials(trials, meter)
    if max(counts) not in best:
        backend.use_threads(max(counts))
        return {}
    fastest = min(best.values())
    backend.use_threads(min(count for count, seconds in best.items() if seconds <= AS_FAST * fastest))
    return {count: 1 / best[count] for count in sorted(best)}


def _try(backend: Backend, tokens: Sequence[int], meter: LoadMeter) -> Timing:
    """Return the seconds per token of decoding and prefill together."""
    began = meter.read()
    found = _by_work(_take_turn(backend, tokens, THREAD_DECODED, (), (THREAD_PREFILL,), meter.clock, meter))
    seconds = min(found[DECODE, 1]) + found[PREFILL, THREAD_PREFILL][0] / THREAD_PREFILL
    return Timing(DECODE, 1, seconds, began, meter.read())


def _quiet_trials(trials: Mapping[int, Sequence[Timing]], meter: LoadMeter) -> dict[int, float]:
    """Return the least seconds of each number of threads, without trials during which other programs used its cores."""
    quiet = {count: [one.seconds for one in found if meter.is_quiet(one, count)] for count, found in trials.items()}
    return {count: min(seconds) for count, seconds in quiet.items() if seconds}


def probe(
    backends: ByRole[Backend],
    meter: LoadMeter,
    *,
    clock: Clock | None = None,
    limit: float = PROBE_SECONDS,
) -> dict[ModelRole, Probes]:
    """Measure models in turns until SECONDS have passed, with at least ROUNDS rounds unless `limit` seconds have passed.

    The load is measured for at least LOAD_WINDOW. The time in which other programs use the same cores counts only towards
    `limit`. If `clock` is set, it measures all models.
    """
    if clock is None:
        clock = clock_for(backend.card for backend in backends.values())
        clock = clock if clock is time.thread_time else meter.clock
    turns = {role: _Turns(backend, clock, meter) for role, backend in backends.items()}
    least = LOAD_WINDOW if any(one.cores for one in turns.values()) else 0.0
    began = meter.clock()
    for number in itertools.count(1):
        for one in turns.values():
            one.take()
        spent = meter.read() - began
        if spent < least or (spent <= limit and number < ROUNDS):
            continue
        quiet = {role: one.are_quiet for role, one in turns.items()}
        lost = sum(one.seconds_without(quiet[role]) for role, one in turns.items())
        probes = {role: Probes.of(one.timings, quiet[role]) for role, one in turns.items()}
        is_enough = (number >= MAX_ROUNDS or spent - lost > SECONDS) and all(found.is_quiet for found in probes.values())
        is_hopeless = spent > PATIENCE and not any(map(any, quiet.values()))
        if spent > limit or is_enough or is_hopeless:
            break
    return probes


class _Turns:
    """The probes of one model."""

    def __init__(self, backend: Backend, clock: Clock, meter: LoadMeter) -> None:
        self._backend, self._tokens, self._clock, self._meter = backend, _tokens(backend), clock, meter
        # CPU time does not include the time in which another program has the core.
        self.cores = 0 if clock is time.thread_time else backend.card.cores
        self.timings: list[Timing] = []

    def take(self) -> None:
        self.timings += _take_turn(self._backend, self._tokens, DECODED, ROWS[1:], (LONG, SHORT), self._clock, self._meter)

    @property
    def are_quiet(self) -> list[bool]:
        return [self._meter.is_quiet(timing, self.cores) for timing in self.timings]

    def seconds_without(self, are_quiet: Sequence[bool]) -> float:
        """Return the duration of the probes that were not quiet."""
        return sum(one.ended - one.began for one, is_quiet in zip(self.timings, are_quiet, strict=True) if not is_quiet)


def _take_turn(
    backend: Backend,
    tokens: Sequence[int],
    decoded: int,
    batches: Iterable[int],
    prefill: Iterable[int],
    clock: Clock,
    meter: LoadMeter,
) -> list[Timing]:
    """Run each probe once in an empty sequence, then empty the sequence. Return the times."""
    position = 0
    timings: list[Timing] = []

    def run(kind: str, work: Callable[[int, Sequence[int]], object], count: int) -> None:
        nonlocal position
        if position + count > backend.card.context_size:
            backend.drop(0, 0)
            position = 0
        start, began = meter.read(), clock()
        work(position, tokens[:count])
        seconds = clock() - began
        position += count
        timings.append(Timing(kind, count, seconds, start, meter.read()))

    def decode(start: int, batch: Sequence[int]) -> None:
        backend.decode([0] * len(batch), range(start, start + len(batch)), batch)

    for count in prefill:
        run(PREFILL, partial(backend.read, 0), count)
    for count in batches:
        run(BATCH, decode, count)
    for index in range(decoded):
        run(DECODE if index else UNUSED, decode, 1)
    backend.drop(0, 0)
    return timings


def _tokens(backend: Backend) -> list[int]:
    once = prompt_ids(backend, [Plain(TEXT)])
    return (once * (LONG // len(once) + 1))[:LONG]


def low_quartile(times: Sequence[float] | Numbers) -> float:
    return float(np.quantile(times, 0.25))

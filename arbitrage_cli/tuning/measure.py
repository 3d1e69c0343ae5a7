"""Measures which number of threads suits a model on this machine, and what its tokens cost with that.

Other work on the machine can only add time: so counts take turns, each several times, and its best turn counts. What is
written meanwhile means nothing. Knows no file, no role and no terminal, and nothing of how speed depends on the length of
a text or on other models that run at the same time.
"""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from arbitrage_cli.inference.backend import Backend
from arbitrage_cli.tuning.store import Speeds

TEXT = "Tom has 12 apples and buys 7 more. Then he gives 5 of them away: 12 + 7 - 5 = 14.\n\n"
READ_TOKENS = 64  # about a short problem; decoding goes on behind it
VERIFIED_TOKENS = 12  # in one batch, with output for each
MOST_DECODED = 32  # tokens in a row
LEAST_SECONDS = 0.05  # of each measurement: a fast model's tokens are measured many at a time
LONG_SECONDS = 0.5
TURNS = 3

AS_FAST = 1.05  # within this factor of the fastest the smaller number of threads is taken: it leaves cores to others
TOO_SLOW = 1.5  # times the fastest: with still fewer threads it would be slower still

Clock = Callable[[], float]


class Threaded(Backend, Protocol):
    """A backend that computes with as many threads as it is told."""

    def use_threads(self, count: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Trials:
    """The speeds of a model with each number of threads that was tried, and the number that suits it."""

    speeds: Mapping[int, Speeds]
    threads: int

    @property
    def chosen(self) -> Speeds:
        """The speeds with that number."""
        return self.speeds[self.threads]


def thread_counts(cores: int) -> list[int]:
    """The numbers of threads to try on so many cores: 1, 2, 3, 4, 6, 8, 12, 16 ... and all."""
    powers = [1 << exponent for exponent in range(cores.bit_length())]
    counts = {*powers, *(3 * power for power in powers), cores}
    return sorted(count for count in counts if count <= cores)


def try_threads(backend: Threaded, counts: Sequence[int], *, clock: Clock = time.perf_counter) -> Trials:
    """Measure a model with these numbers of threads, from the most down, as long as fewer do not make it much slower.

    It is left with the number that suits it: the least of those that are about as fast as the fastest. ComputeError.
    """
    found: dict[int, Speeds] = {}
    for _ in range(TURNS):
        for count in sorted(counts, reverse=True):
            backend.use_threads(count)
            now = measure(backend, clock=clock)
            found[count] = _best(found[count], now) if count in found else now
            if _mixed(found[count]) > TOO_SLOW * min(map(_mixed, found.values())):
                break
    fastest = min(map(_mixed, found.values()))
    threads = min(count for count, speeds in found.items() if _mixed(speeds) <= AS_FAST * fastest)
    backend.use_threads(threads)
    return Trials(dict(sorted(found.items())), threads)


def try_loaded(backend: Backend, *, clock: Clock = time.perf_counter) -> Speeds:
    """The best of several measurements of a model as it is."""
    best = measure(backend, clock=clock)
    for _ in range(TURNS - 1):
        best = _best(best, measure(backend, clock=clock))
    return best


def measure(backend: Backend, *, clock: Clock = time.perf_counter) -> Speeds:
    """The speeds of a model, on a sequence that holds nothing. Leaves it so."""
    room = backend.card.context_size
    depth = min(READ_TOKENS, room // 2)
    num_verified = min(VERIFIED_TOKENS, room - depth)
    num_decoded = min(MOST_DECODED, room - depth)
    tokens = _tokens(backend, depth + num_verified)
    prompt, proposal = tokens[:depth], tokens[depth:]

    def read() -> None:
        backend.drop(0, 0)
        backend.read(0, 0, prompt)

    def verify() -> None:
        backend.drop(0, depth)
        backend.decode([0] * num_verified, range(depth, depth + num_verified), proposal)

    positions = itertools.cycle(range(depth, depth + num_decoded))

    def decode() -> None:
        position = next(positions)
        if position == depth:
            backend.drop(0, depth)
        backend.decode([0], [position], proposal[:1])

    read_seconds = _seconds(read, clock) / depth
    verify_seconds = _seconds(verify, clock) / num_verified
    decode_seconds = _seconds(decode, clock)
    backend.drop(0, 0)
    return Speeds(decode_seconds, read_seconds, verify_seconds)


def _tokens(backend: Backend, count: int) -> list[int]:
    """Ids of a text of so many tokens."""
    once = backend.tokenizer.tokenize(TEXT, continues=False)
    return (once * (count // len(once) + 1))[:count]


def _seconds(work: Callable[[], None], clock: Clock) -> float:
    """What the work takes: once to get warm, then often enough to be measured. What takes long need not get warm."""
    began = clock()
    work()
    first = clock() - began
    if first >= LONG_SECONDS:
        return first
    times, began = 0, clock()
    while True:
        work()
        times += 1
        seconds = clock() - began
        if seconds >= LEAST_SECONDS:
            return seconds / times


def _best(first: Speeds, second: Speeds) -> Speeds:
    return Speeds(min(first.decode, second.decode), min(first.read, second.read), min(first.verify, second.verify))


def _mixed(speeds: Speeds) -> float:
    """What a model of a pair mostly does: for each token that it writes it reads about one that the other wrote."""
    return speeds.decode + speeds.read

"""Finds a model's best number of threads on this machine and measures its time per token.

Each number of threads is measured in several rounds, and the best time is used, because other work can only add time. The
effects of the context length and of other models are not measured.
"""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple, Protocol

from arbitrage_cli.inference.backend import Backend, Options
from arbitrage_cli.inference.open import load_llama, try_model
from arbitrage_cli.inference.speculation import FEW, MANY
from arbitrage_cli.model_files.pairs import local_files
from arbitrage_cli.system.files import sha256_of
from arbitrage_cli.system.machine import default_threads, is_disturbing, watch_others
from arbitrage_cli.tuning.memory import check_memory, memory_needed
from arbitrage_cli.tuning.placement import loading_of, machine_here, tuned_file
from arbitrage_cli.tuning.store import Speeds, Tuned, keep_tuned
from arbitrage_cli.types import ModelRole

TEXT = "Tom has 12 apples and buys 7 more. Then he gives 5 of them away: 12 + 7 - 5 = 14.\n\n"
PROMPT_TOKENS = 64  # about the length of a short problem
MAX_DECODED = 32  # consecutive tokens
MIN_SECONDS = 0.05  # per measurement: short work is repeated
LONG_SECONDS = 0.5  # longer work is measured once, without a warm-up
TURNS, MAX_TURNS = 3, 15
STEADY = 1.25  # a second turn within this factor confirms the best turn

AS_FAST = 1.05  # a smaller number of threads within this factor of the fastest is preferred, to leave cores to others
TOO_SLOW = 1.5  # beyond this factor of the fastest, fewer threads are not tried

Clock = Callable[[], float]
OnLoading = Callable[[ModelRole, str, float], None]


class Threaded(Backend, Protocol):
    """A backend whose number of threads can be changed."""

    def use_threads(self, count: int) -> None: ...


class Trials(NamedTuple):
    """A model's speeds by number of threads, the chosen number, and whether its two best turns agree."""

    speeds: Mapping[int, Speeds]
    threads: int
    is_steady: bool


@dataclass(frozen=True, slots=True)
class ModelCosts:
    """A model's measurement, which is stored if it is steady, and its speeds with each number of threads."""

    tuned: Tuned
    speeds: Mapping[int, Speeds]
    is_steady: bool


def measure_and_keep(
    paths: Mapping[ModelRole, str], load: Options, on_loading: OnLoading, note: Callable[[str], None]
) -> dict[ModelRole, ModelCosts]:
    """Measure models and store the measurements. A measurement that other work disturbed is noted instead of stored.

    Raises OutputError or UsageError if measurements cannot be stored, and any error from loading or running a model.
    """
    keep_tuned(tuned_file(), [])  # fail before measuring if the file cannot be read or written
    found: dict[ModelRole, ModelCosts] = {}
    for role, path in paths.items():
        found[role] = measure_model(role, path, load, on_loading)
        if found[role].is_steady:
            keep_tuned(tuned_file(), [found[role].tuned])
        else:
            note(
                f"the {role}'s token costs were not saved, because other programs were running; stop them, then run arbitrage advise --costs"
            )
    return found


def measure_model(role: ModelRole, path: str, load: Options, on_loading: OnLoading) -> ModelCosts:
    check_memory(memory_needed({role: path}, load, {role: load.num_sequences}))
    files = local_files(path)
    sha256 = sha256_of(files, lambda fraction: on_loading(role, f"checking {files[0].name}", fraction))
    try_model(path, load)
    with load_llama().LlamaBackend(files[0], load, progress=partial(on_loading, role, path)) as backend:
        others = watch_others()
        tried = try_threads(backend, thread_counts(default_threads()))
        is_steady = tried.is_steady and not is_disturbing(others())
        name = backend.card.name
    created = datetime.now(UTC).isoformat(timespec="seconds")
    tuned = Tuned(machine_here(), sha256, loading_of(load), name, tried.threads, tried.speeds[tried.threads], created)
    return ModelCosts(tuned, tried.speeds, is_steady)


def thread_counts(cores: int) -> list[int]:
    """Return the numbers of threads to try: 1, 2, 3, 4, 6, 8, 12, 16 and so on, and the number of cores."""
    powers = [1 << exponent for exponent in range(cores.bit_length())]
    counts = {*powers, *(3 * power for power in powers), cores}
    return sorted(count for count in counts if count <= cores)


def try_threads(backend: Threaded, counts: Sequence[int], *, clock: Clock = time.perf_counter) -> Trials:
    """Measure a model with each number of threads, highest first, until the model becomes much slower.

    The model is then set to the lowest number of threads that is about as fast as the fastest. If its two best turns
    disagree, that number is measured again.
    """
    turns: dict[int, list[Speeds]] = {}

    def take_turn(count: int) -> Speeds:
        backend.use_threads(count)
        turns.setdefault(count, []).append(measure(backend, clock=clock))
        return _best(turns[count])

    for _ in range(TURNS):
        for count in sorted(counts, reverse=True):
            if _mixed(take_turn(count)) > TOO_SLOW * min(_mixed(_best(taken)) for taken in turns.values()):
                break
    speeds = {count: _best(turns[count]) for count in sorted(turns)}
    fastest = min(map(_mixed, speeds.values()))
    threads = min(count for count, found in speeds.items() if _mixed(found) <= AS_FAST * fastest)
    while not _steady(turns[threads]) and len(turns[threads]) < MAX_TURNS:
        speeds[threads] = take_turn(threads)
    backend.use_threads(threads)
    return Trials(speeds, threads, _steady(turns[threads]))


def _steady(turns: Sequence[Speeds]) -> bool:
    """Return whether the two best turns agree. Other work rarely slows down two turns by the same amount."""
    best, *others = sorted(map(_mixed, turns))
    return bool(others) and others[0] <= STEADY * best


def measure(backend: Backend, *, clock: Clock = time.perf_counter) -> Speeds:
    """Measure a model's speeds in an empty sequence, then clear the sequence."""
    room = backend.card.context_size
    depth = min(PROMPT_TOKENS, room // 2)
    num_decoded = min(MAX_DECODED, room - depth)
    tokens = _tokens(backend, depth + MANY)
    prompt, proposal = tokens[:depth], tokens[depth:]

    def read() -> None:
        backend.drop(0, 0)
        backend.read(0, 0, prompt)

    def verify(count: int) -> None:
        backend.drop(0, depth)
        backend.decode([0] * count, range(depth, depth + count), proposal[:count])

    positions = itertools.cycle(range(depth, depth + num_decoded))

    def decode() -> None:
        position = next(positions)
        if position == depth:
            backend.drop(0, depth)
        backend.decode([0], [position], proposal[:1])

    read_seconds = _seconds(read, clock) / depth
    many, few = (_seconds(partial(verify, count), clock) / count for count in (min(MANY, room - depth), FEW))
    decode_seconds = _seconds(decode, clock)
    backend.drop(0, 0)
    return Speeds(decode_seconds, read_seconds, many, few)


def _tokens(backend: Backend, count: int) -> list[int]:
    once = backend.tokenizer.tokenize(TEXT, continues=False)
    return (once * (count // len(once) + 1))[:count]


def _seconds(work: Callable[[], None], clock: Clock) -> float:
    """Return the mean time of a call, measured for MIN_SECONDS after a warm-up, or of the first call if it is long."""
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
        if seconds >= MIN_SECONDS:
            return seconds / times


def _best(turns: Sequence[Speeds]) -> Speeds:
    return Speeds(*map(min, zip(*map(astuple, turns), strict=True)))


def _mixed(speeds: Speeds) -> float:
    """Return the time to write one token and prefill another, because each model of a pair also reads the other's tokens."""
    return speeds.decode + speeds.read

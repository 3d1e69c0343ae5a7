"""Routers: scores, and valid and invalid files."""

import gc
import json
import math
import os
import pickle
import random
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from altered_gguf import alter, entries
from numpy.typing import NDArray
from safetensors.numpy import save as encode

from arbitrage_cli.errors import ComputeError, RouterError, UsageError
from arbitrage_cli.inference.backend import Floats
from arbitrage_cli.inference.step_text import BLANK_LINE
from arbitrage_cli.learning.file import FILE_SCHEMA, MAX_FILE_BYTES, digest_of
from arbitrage_cli.learning.network import Network
from arbitrage_cli.model_files.pairs import router_file, shipped_routers
from arbitrage_cli.routing.features import FEATURES, FEATURES_VERSION, EarlierSteps
from arbitrage_cli.routing.router import Match, Router, RouterCard, TrainedModel, included_router, load, save
from arbitrage_cli.system.files import models_folder
from arbitrage_cli.types import ByRole, Cost, Decision, Limits, ModelRole, Problem, Step, TokenStats, Trace

DRAFT, TARGET = TrainedModel("Tiny draft", "d" * 64), TrainedModel("Tiny target", "e" * 64)


def make_card(**changes: Any) -> RouterCard:
    card = RouterCard(
        name="tiny",
        features_version=FEATURES_VERSION,
        features=FEATURES,
        pairs=({"draft": DRAFT, "target": TARGET},),
        reward={"kind": "prm"},
        data={"step_end": asdict(BLANK_LINE)},
        metrics={"auc": 0.9},
        taus={},
        command=("arbitrage", "train"),
        version="0",
        created="2026-01-01T00:00:00+00:00",
    )
    return replace(card, **changes)


def make_router(*, units: int = 0, **changes: Any) -> Router:
    card = make_card(**changes)
    size = len(card.features)
    rng = np.random.default_rng(size + units)

    def draw(*shape: int) -> Floats:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    layer = (draw(size, units), draw(units)) if units else None
    return Router(Network(draw(size), np.abs(draw(size)) + 1, draw(units or size), 0.25, layer), card)


ROUTERS: Mapping[str, Callable[[], Router]] = {
    "logistic": make_router,
    "network": lambda: make_router(units=5),
    "some features": lambda: make_router(features=("tokens", "logprob_min")),
}
every_router = pytest.mark.parametrize("make", ROUTERS.values(), ids=ROUTERS.keys())


def make_draft(log_probability: float = -1.0, entropy: float = 0.2) -> Step:
    token_stats = TokenStats((-0.1, log_probability), (entropy, 0.7), (1.0, 0.5), pieces=("1", "2"))
    return Step("draft", "12", 2, Cost(), "separator", token_stats)


def new_trace() -> Trace:
    return Trace(Problem("p", "1 + 2"), Limits(max_steps=2))


@every_router
def test_score_is_what_the_arrays_say(make: Callable[[], Router]) -> None:
    router, trace, draft = make(), new_trace(), make_draft()
    chosen = [FEATURES.index(name) for name in router.card.features]
    inputs = EarlierSteps(trace.problem).features([], draft)[chosen].astype(np.float64)
    network = router.network
    values = np.clip((inputs - network.mean) / network.scale, -8, 8)
    if network.layer:
        values = np.maximum(values @ network.layer[0] + network.layer[1], 0)
    log_odds = float(values @ network.output + network.output_bias)
    assert router.probability(trace, draft) == pytest.approx(1 / (1 + math.exp(-log_odds)), rel=1e-4)


class Visited(list[Decision]):
    """Decisions that count how often they are read."""

    num_read = 0

    def __iter__(self) -> Iterator[Decision]:
        self.num_read += len(self)
        return super().__iter__()

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        self.num_read += len(found) if isinstance(key, slice) else 1
        return found


def test_each_step_of_a_solution_is_read_once() -> None:
    """The time of a score must not grow with the solution, because unfinished steps are scored many times."""
    router, decisions = make_router(), Visited()
    trace = Trace(Problem("p", "1 + 2"), Limits(), decisions)
    early_stop = (router.scorer().early_stop or pytest.fail("it never stops"))(0.5)
    for number in range(40):
        draft = make_draft(-0.01 * number)
        for _ in range(5):
            early_stop.should_stop(trace, draft)
        other = Trace(trace.problem, trace.limits, [*list.__iter__(decisions)])
        assert router.probability(trace, draft) == make_router().probability(other, draft)
        trace.add(Decision(draft, draft))
    assert decisions.num_read == len(decisions) - 1  # no score follows the last step


def test_finished_solutions_are_forgotten() -> None:
    router, trace = make_router(), new_trace()
    router.probability(trace, make_draft())
    is_alive = weakref.ref(trace)
    del trace
    gc.collect()
    assert is_alive() is None


@every_router
def test_one_and_many_are_the_same(make: Callable[[], Router]) -> None:
    router, trace = make(), new_trace()
    drafts = [make_draft(-0.3 * number) for number in range(6)]
    rows = np.stack([EarlierSteps(trace.problem).features([], draft) for draft in drafts])
    single = [router.probability(trace, draft) for draft in drafts]
    np.testing.assert_allclose(router.probabilities(rows), single, rtol=1e-5)


@pytest.mark.parametrize(
    ("tau", "stopping"),
    [(0.2, 3 / 11), (0.5, 0.6), (1e-9, 1.5e-9), (0.0, 0.0), (-1.0, -1.0), (1.0, 1.0), (math.inf, math.inf)],
)
def test_a_step_is_stopped_at_clearly_more_than_tau(tau: float, stopping: float) -> None:
    """The router's score is checked every two tokens and stops a step at 1.5 times the odds of tau. Taus that escalate
    everything or nothing do so early too.
    """
    router, draft = make_router(), make_draft()
    early_stop = (router.scorer().early_stop or pytest.fail("it never stops"))(tau)
    assert early_stop.tau == pytest.approx(stopping)
    assert [number for number in range(1, 8) if early_stop.is_due(number)] == [2, 4, 6]
    assert early_stop.should_stop(new_trace(), draft) == (router.probability(new_trace(), draft) > stopping)


@every_router
@pytest.mark.parametrize("slope", [1e-3, 1.0, 1e6])
def test_probabilities_rise_with_the_log_odds_and_stay_between_the_ends(make: Callable[[], Router], slope: float) -> None:
    router = make()
    moved = Router(router.network.moved(slope, -0.5), router.card)
    rows = np.random.default_rng(0).normal(0, 2, (50, len(FEATURES))).astype(np.float32)
    inputs = rows[:, [FEATURES.index(name) for name in router.card.features]]
    np.testing.assert_allclose(
        moved.network.log_odds(inputs), slope * router.network.log_odds(inputs) - 0.5, rtol=1e-4, atol=1e-4
    )
    found = moved.probabilities(rows)[np.argsort(moved.network.log_odds(inputs))]
    assert (np.diff(found) >= 0).all()
    assert ((found > 0) & (found < 1)).all()


def test_no_number_is_an_error() -> None:
    """A NaN exceeds no tau, so it would silently accept everything."""
    draft = make_draft(entropy=math.nan)
    with pytest.raises(ComputeError):
        make_router().probability(new_trace(), draft)


@every_router
def test_saved_router_gives_the_same_numbers(make: Callable[[], Router], tmp_path: Path) -> None:
    router, path = make(), tmp_path / "router.safetensors"
    save(router, path)
    found = load(path)
    assert found.card == router.card
    assert found.sha256 == router.sha256
    for log_probability in (-0.001, -1.0, -9.0):
        draft = make_draft(log_probability)
        assert found.probability(new_trace(), draft) == router.probability(new_trace(), draft)


def test_router_that_cannot_be_replaced_is_still_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, router = tmp_path / "router.safetensors", make_router()
    save(router, path)
    monkeypatch.setattr(os, "replace", lambda *paths: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(router, path)
    assert load(path).sha256 == router.sha256


def rewritten(router: Router, path: Path, arrays: Mapping[str, NDArray[Any]] | None = None, **changes: Any) -> Path:
    """Write the router's file with other arrays or card fields and a matching sha256, as an attacker would."""
    card = router.card.to_json() | changes
    text = json.dumps({name: value for name, value in card.items() if value is not ...})
    chosen: Mapping[str, NDArray[Any]] = router.network.arrays() if arrays is None else arrays
    about = {"schema": FILE_SCHEMA, "card": text, "sha256": digest_of(text, chosen)}
    path.write_bytes(encode(dict(chosen), {"arbitrage": json.dumps(about)}))
    return path


def refused(path: Path) -> str:
    with pytest.raises(RouterError) as caught:
        load(path)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value.message


class Dangerous:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_is_not_opened(tmp_path: Path, protocol: int) -> None:
    path, canary = tmp_path / "router.safetensors", tmp_path / "canary"
    path.write_bytes(pickle.dumps(Dangerous(canary), protocol))
    assert "safetensors" in refused(path)
    assert not canary.exists()


def test_flipped_bit_and_cut_are_found(tmp_path: Path) -> None:
    path = tmp_path / "router.safetensors"
    save(make_router(features=("tokens", "logprob_min")), path)
    data = path.read_bytes()
    rng = random.Random(0)
    for cut in (*(data[:length] for length in range(0, len(data), 37)), data[:-1], data + b"\0"):
        path.write_bytes(cut)
        refused(path)
    for place in {0, 1, 7, 8, len(data) - 1, *rng.sample(range(len(data)), 300)}:
        damaged = bytearray(data)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        refused(path)


@pytest.mark.parametrize(
    "data",
    [
        b"<!doctype html><html>Not found</html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        (1 << 63).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (1 << 20).to_bytes(8, "little") + b"[" * (1 << 20),
        encode({"mean": np.zeros(3, np.float32)}),
        encode({"mean": np.zeros(3, np.float32)}, {"arbitrage": "NaN"}),
        encode({"mean": np.zeros(3, np.float32)}, {"arbitrage": '{"schema": 99}'}),
        encode({"mean": np.zeros(3, np.float32)}, {"arbitrage": '{"schema": 1, "card": 7, "sha256": 7}'}),
    ],
)
def test_other_files_are_no_routers(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "router.safetensors"
    path.write_bytes(data)
    assert str(path) in refused(path)


def test_only_files_of_a_sane_size_are_read(tmp_path: Path) -> None:
    huge, pipe = tmp_path / "huge", tmp_path / "pipe"
    with huge.open("wb") as stream:
        stream.truncate(MAX_FILE_BYTES + 1)
    os.mkfifo(pipe)
    for path in (huge, pipe, Path("/dev/zero"), tmp_path, tmp_path / "none", Path("a\0b")):
        with pytest.raises(UsageError):
            load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": np.zeros(3, np.float32)}, {"units": np.zeros((5, 5), np.float32)}, {"unit_bias": np.zeros(4, np.float32)},
        {"output": np.zeros((), np.float32)}, {"scale": np.zeros(len(FEATURES), np.float32)},
        {"mean": np.zeros(len(FEATURES), np.float64)}, {"extra": np.zeros(1, np.float32)}, {"unit_bias": None},
        {"output": np.full(5, np.nan, np.float32)}, {"unit_bias": np.full(5, np.inf, np.float32)},
    ],
)  # fmt: skip
def test_arrays_of_another_shape_or_content_are_refused(tmp_path: Path, changes: Mapping[str, NDArray[Any] | None]) -> None:
    router = make_router(units=5)
    arrays = {name: array for name, array in {**router.network.arrays(), **changes}.items() if array is not None}
    refused(rewritten(router, tmp_path / "router", arrays))


@pytest.mark.parametrize(
    "changes",
    [
        {"features": [*FEATURES[:-1], "horoscope"]}, {"features": [*FEATURES[:-1], FEATURES[0]]},
        {"features": "tokens"}, {"hidden_size": 6}, {"pairs": [{"draft": asdict(DRAFT)}]},
        {"pairs": [{"draft": asdict(DRAFT), "target": {"name": "Tiny target", "layers": 2}}]}, {"metrics": ...}, {"data": {}},
        {"data": {"step_end": {"separator": 7}}},
    ],
)  # fmt: skip
def test_card_that_makes_no_sense_is_refused(tmp_path: Path, changes: Mapping[str, Any]) -> None:
    refused(rewritten(make_router(), tmp_path / "router", **changes))


@pytest.mark.parametrize("version", [FEATURES_VERSION + 1, FEATURES_VERSION - 1, str(FEATURES_VERSION), True, None, ...])
def test_router_of_other_features_is_refused(tmp_path: Path, version: object) -> None:
    """A router computes nonsense if a feature means something else than in its training."""
    router = make_router()
    assert router.card.features_version == FEATURES_VERSION
    path = rewritten(router, tmp_path / "router", features_version=version)
    with pytest.raises(RouterError) as caught:
        load(path)
    assert caught.value.exit_code == 3
    assert "arbitrage train" in caught.value.hint


@pytest.mark.parametrize("source", shipped_routers())
def test_shipped_routers_use_the_features_of_today(source: str) -> None:
    assert load(router_file(source)).card.features_version == FEATURES_VERSION


def test_the_router_of_models_is_found_by_the_checksums_of_their_files(tmp_path: Path) -> None:
    draft, target = (models_folder() / name for name in ("draft.gguf", "target.gguf"))
    copied = tmp_path / "copy.gguf"
    copied.write_bytes(draft.read_bytes())
    assert included_router({"draft": (copied,), "target": (target,)}) == "builtin:builtin"
    assert included_router({"draft": (target,), "target": (draft,)}) is None
    assert included_router({"draft": (draft,)}) is None
    renamed = alter(target, tmp_path / "target.gguf", {"general.name": entries(draft)["general.name"]})
    assert included_router({"draft": (renamed,), "target": (target,)}) is None
    copied.write_bytes(b"GGUF" + b"\xff" * 100)
    assert included_router({"draft": (copied,), "target": (target,)}) is None


QWEN = load(router_file("builtin:qwen2.5-coder")).card.pairs[0]


@pytest.mark.parametrize(
    ("role", "changes", "match"),
    [
        ("draft", {}, "files"),
        ("draft", {"name": "another name in the same file"}, "files"),
        ("target", {"sha256": "0" * 64}, "names"),
        ("target", {"sha256": "0" * 64, "name": "Llama"}, None),
        ("draft", {"sha256": "0" * 64, "architecture": "llama"}, None),
        ("draft", {"sha256": "0" * 64, "num_parameters": 1}, None),
        ("draft", {"sha256": "0" * 64, "vocabulary_size": 1}, None),
        ("draft", {"sha256": None, "architecture": None, "num_parameters": None, "vocabulary_size": None}, None),
    ],
)
def test_another_quantization_is_recognized_by_all_that_its_file_says(
    role: ModelRole, changes: dict[str, Any], match: Match | None
) -> None:
    card = make_card(pairs=(QWEN,))
    assert card.match({**QWEN, role: replace(QWEN[role], **changes)}) == match


def test_models_without_files_are_recognized_by_their_names() -> None:
    served: ByRole[TrainedModel] = {"draft": TrainedModel("small"), "target": TrainedModel("large")}
    assert make_card(pairs=(served,)).match(served) == "files"
    assert make_card(pairs=(served,)).match({**served, "target": TrainedModel("large", "0" * 64)}) is None


def test_facts_that_a_card_does_not_have_are_not_equal() -> None:
    others: ByRole[TrainedModel] = {"draft": replace(DRAFT, sha256="0" * 64), "target": TARGET}
    assert make_card().match({"draft": DRAFT, "target": TARGET}) == "files"
    assert make_card().match(others) is None

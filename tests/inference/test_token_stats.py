"""The statistics of a step's tokens, compared with plain NumPy in double precision."""

import numpy as np
import pytest

from arbitrage_cli.inference.backend import Floats
from arbitrage_cli.inference.token_stats import Recorder, RowMeter
from arbitrage_cli.types import TokenStats


def record(logits: Floats, tokens: list[int]) -> TokenStats:
    recorder = Recorder(RowMeter(logits.shape[1]))
    for index, token in enumerate(tokens):
        recorder.add(logits[index], token, is_top=False)
    return recorder.so_far()


def expected(logits: Floats, tokens: list[int]) -> tuple[list[float], list[float], list[float]]:
    log_p = logits.astype(np.float64)
    log_p = log_p - np.log(np.exp(log_p - log_p.max(1, keepdims=True)).sum(1, keepdims=True)) - log_p.max(1, keepdims=True)
    entropies = -(np.exp(log_p) * log_p).sum(1)
    ordered = np.sort(log_p, axis=1)
    return log_p[range(len(tokens)), tokens].tolist(), entropies.tolist(), (ordered[:, -1] - ordered[:, -2]).tolist()


@pytest.mark.parametrize("size", [2, 300, 50_000])
def test_values_are_those_of_the_definitions(size: int) -> None:
    rng = np.random.default_rng(size)
    logits = rng.normal(0, 5, (7, size)).astype(np.float32) + np.float32(20)
    tokens = rng.integers(0, size, 7).tolist()
    found = record(logits, tokens)
    for values, wanted in zip(
        (found.log_probabilities, found.entropies, found.margins), expected(logits, tokens), strict=True
    ):
        np.testing.assert_allclose(values, wanted, rtol=1e-4, atol=1e-5)


def test_powers_of_2_and_of_e_give_the_same_values(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (8, 50_000)).astype(np.float32)
    tokens = logits.argmax(axis=1).tolist()
    found = []
    for kind in ("X86_V4", "baseline(X86_V2)"):
        info = {"exp2": {"ff": {"current": kind, "available": kind}}}
        monkeypatch.setattr(np.lib.introspect, "opt_func_info", lambda info=info, **options: info)
        stats = record(logits, tokens)
        found.append([*stats.log_probabilities, *stats.entropies, *stats.margins])
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-5)


def test_certainty_has_no_entropy_and_equals_have_no_margin() -> None:
    found = record(np.array([[200, 0, 0], [1, 1, 1]], np.float32), [0, 2])
    assert found.log_probabilities[0] == 0.0
    assert found.entropies == pytest.approx((0.0, np.log(3)))
    assert found.margins == pytest.approx((200.0, 0.0))


def test_an_impossible_token_counts_for_nothing() -> None:
    found = record(np.array([[1, 1, -np.inf]], np.float32), [0])
    assert found.entropies == pytest.approx((np.log(2),))

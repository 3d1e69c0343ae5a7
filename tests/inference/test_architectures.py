"""Every architecture that llama.cpp and the tests can write solves problems, as draft and as target. Slow: `pytest -m slow`."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hash_language import CHEAP_BATCHES, CHEAP_DRAFT, ForgetfulEngine, always_draft, planner, solve, texts
from tiny_architectures import HINTS, RECURRENT, build_apart

from arbitrage_cli.inference.backend import Floats, LoadOptions
from arbitrage_cli.inference.engine import Engine
from arbitrage_cli.inference.kv_cache import KvCache
from arbitrage_cli.inference.llama.backend import LlamaBackend
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.speculation import Drafting, Planner, Speculation
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.model_files.gguf import read_facts
from arbitrage_cli.types import Cost, Limits, ModelRole, Problem, Trace

pytestmark = pytest.mark.slow

PROBLEMS = [Problem(str(number), f"question {number}" * (1 + number)) for number in range(3)]
LIMITS = Limits(max_steps=4, max_tokens=60, max_step_tokens=20)
ROLLBACK = 8
READ, REJECTED = (5, 9, 12, 7, 30, 22, 41, 8, 15, 3), (11, 17, 25, 33)
SAME_LOGITS = 1e-3  # batches of other sizes differ by up to 4e-7 on a CPU, and by 1e-4 on a GPU
UNSTEADY = 0.2  # temperature of a draft that is usually, but not always, right
ROLL_BACK = {"qwen35", "qwen35moe", "lfm2", "lfm2moe", "nemotron_h"}  # with the tested version of llama-cpp-python


speculate_as_the_target = Engine.speculate


def speculate_unsteadily(
    engine: Engine, slot: int, trace: Trace, prefix: str, drafting: Drafting, sampler: Sampler, *, until_end: bool = False
) -> Speculation:
    """Draw tokens in another way than the target, which therefore rejects some of them."""
    return speculate_as_the_target(engine, slot, trace, prefix, drafting, Sampler(UNSTEADY), until_end=until_end)


@pytest.fixture(scope="module", params=HINTS)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def path(architecture: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_apart(tmp_path_factory.mktemp(architecture), architecture)


def solved(
    path: Path, policy: str, *, rollback: int = 0, concurrency: int = 1, engine: type[Engine] = Engine
) -> tuple[dict[str, Trace], int | None]:
    """Solve the problems with a draft that samples. Return the traces and the number of tokens that the target can drop."""
    options = LoadOptions(512, threads=1, num_sequences=concurrency, kv_type="f32", flash_attention=False)
    with ExitStack() as stack:
        engines: dict[ModelRole, Engine] = {}
        roles: list[tuple[ModelRole, float, UnitCosts, int]] = [
            ("draft", UNSTEADY, CHEAP_DRAFT, 0),
            ("target", 0.0, CHEAP_BATCHES, rollback),
        ]
        for role, temperature, costs, most in roles:
            backend = stack.enter_context(LlamaBackend(path, replace(options, rollback=most)))
            proposing = planner(costs if rollback else None)
            engines[role] = engine(role, KvCache(backend), Sampler(temperature), planner=proposing)
        found = solve(
            engines,
            PROBLEMS,
            policy,
            0.3 if policy == "random" else None,
            limits=LIMITS,
            concurrency=concurrency,
            speculates=rollback > 0,
        )
        states = engines["target"].cache.backend.states
        return found, states.max_dropped if states else None


@pytest.mark.parametrize(("policy", "concurrency"), [("random", 3), ("speculative", 1)])
def test_the_laws_hold(
    architecture: str, path: Path, policy: str, concurrency: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Laws 1, 4 and 5: neither the cache nor draft tokens nor other problems in flight change a text."""
    monkeypatch.setattr(Planner, "plan_speculation", always_draft)
    monkeypatch.setattr(Engine, "speculate", speculate_unsteadily)
    alone, _ = solved(path, policy)
    forgetting, _ = solved(path, policy, rollback=ROLLBACK, engine=ForgetfulEngine)
    together, max_dropped = solved(path, policy, rollback=ROLLBACK, concurrency=concurrency)
    assert texts(forgetting) == texts(alone)
    assert texts(together) == texts(alone)
    assert max_dropped == (None if architecture not in RECURRENT else ROLLBACK if architecture in ROLL_BACK else 0)
    assert (read_facts([path]).state_bytes > 0) == (architecture in RECURRENT)
    cost = sum((d.target.cost for trace in together.values() for d in trace.decisions if d.target), Cost())
    assert (cost.verify_tokens > cost.verify_kept > 0) == (max_dropped != 0)


@pytest.mark.parametrize("architecture", sorted(ROLL_BACK), indirect=True)
def test_rejected_tokens_leave_no_trace(path: Path) -> None:
    """Without the first token of the batch, llama.cpp keeps a wrong state (its issue 26695)."""
    with LlamaBackend(path, LoadOptions(64, threads=1, kv_type="f32", flash_attention=False, rollback=ROLLBACK)) as backend:
        states, length = backend.states, len(READ)
        assert states is not None

        def verify() -> None:
            backend.drop(0, 0)
            backend.read(0, 0, READ)
            backend.decode([0] * 5, range(length, length + 5), [44, *REJECTED])

        def then(position: int, token: int) -> Floats:
            return backend.decode([0], [position], [token]).copy()

        backend.read(0, 0, READ)
        first, second = then(length, 44), then(length + 1, 7)
        verify()
        assert states.can_drop(0, length + 1)
        assert not states.can_drop(0, length)
        backend.drop(0, length + 1)
        assert not states.can_drop(0, length + 1)
        saved = states.save(0)
        assert np.allclose(then(length + 1, 7), second, rtol=0, atol=SAME_LOGITS)
        states.restore(0, length + 1, saved)
        assert np.allclose(then(length + 1, 7), second, rtol=0, atol=SAME_LOGITS)
        verify()
        backend.drop(0, length)
        assert np.abs(then(length, 44) - first).max() > 0.05

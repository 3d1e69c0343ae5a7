"""Checks of the GPU path: `python -m pytest tests/inference/on_gpu.py`, with a llama-cpp-python that offloads layers.

The same process computes the expected values on the CPU, with gpu-layers = 0. `test_gpu.py` starts this file.
"""

import json
import logging
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from cli import Result, run
from hash_language import solve
from writing import make_engine

from arbitrage_cli.errors import ModelMemoryError
from arbitrage_cli.inference.backend import Floats, LoadOptions
from arbitrage_cli.inference.llama.backend import LlamaBackend, gpus
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.model_files.pairs import find_files
from arbitrage_cli.system.files import models_folder
from arbitrage_cli.types import Limits, ModelRole, Problem

CPU, ALL = 0, -1
NUM_LAYERS = 8  # of the built-in target
QUESTION, ANSWER = "What is 23 * 47 - 88?", "993"
COUNT, FEW = 100, 8  # problems whose texts and scores are compared
NEAR_TIE = 0.7  # nats between the top two tokens; logits differ by up to 0.35, because CPUs round activations to 8 bits
NOISE = 0.1  # of scores, and of logits relative to their standard deviation
EXIT_MODEL = 3
SECONDS = 600  # for one command, since a software device compiles shaders
IS_VULKAN = any((Path(llama_cpp.__file__).parent / "lib").glob("*ggml-vulkan*"))


@pytest.fixture(autouse=True, scope="module")
def _gpu() -> None:
    if not gpus():
        pytest.fail("llama.cpp finds no GPU; for a software device of Vulkan, set GGML_VK_VISIBLE_DEVICES=0")


def patiently(*arguments: str, **options: Any) -> Result:
    return run(*arguments, kill_after=SECONDS, **options)


def built_in(role: ModelRole) -> Path:
    return find_files(f"builtin:{role}")[0]


def logits(options: LoadOptions, length: int = 40) -> Floats:
    """Return the built-in target's logits after each of eight tokens in a batch, and after one more token."""
    with LlamaBackend(built_in("target"), replace(options, context_size=256, threads=1)) as backend:
        tokens = [(7 * number) % backend.tokenizer.size for number in range(length + 9)]
        backend.read(0, 0, tokens[:length])
        batch = backend.decode([0] * 8, range(length, length + 8), tokens[length:-1]).copy()
        return np.concatenate([batch, backend.decode([0], [length + 8], tokens[-1:])])


# --- the device


def test_doctor_shows_the_device_and_its_memory() -> None:
    (gpu, *_) = gpus()
    assert 0 < gpu.free <= gpu.total
    lines = [line for line in run("doctor").out.splitlines() if line.startswith("GPU")]
    assert len(lines) == len(gpus())
    assert gpu.name in lines[0]
    assert "free" in lines[0]


# --- layers


@pytest.mark.parametrize("layers", [None, ALL, 99, NUM_LAYERS, 1, CPU])
def test_any_number_of_layers(layers: int | None) -> None:
    settings = {} if layers is None else {"ARBITRAGE_GPU_LAYERS": str(layers)}
    done = patiently("solve", QUESTION, env=settings)
    assert (done.code, done.out.strip()) == (0, ANSWER), done.err
    with LlamaBackend(built_in("target"), LoadOptions(256, gpu_layers=layers)) as backend:
        assert backend.card.gpu_layers == (layers if layers in (NUM_LAYERS, 1, CPU) else ALL)


def buffers(layers: int, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return llama.cpp's messages about the buffers that hold the weights, the KV cache and intermediate results."""
    caplog.clear()
    with (
        caplog.at_level(logging.DEBUG, "arbitrage.llama"),
        LlamaBackend(built_in("target"), LoadOptions(256, gpu_layers=layers)),
    ):
        return [message for message in caplog.messages if "buffer size" in message]


def test_without_layers_nothing_is_computed_on_the_gpu(caplog: pytest.LogCaptureFixture) -> None:
    def on_processor(layers: int) -> list[bool]:
        return ["CPU" in message or "AMX" in message for message in buffers(layers, caplog)]

    assert on_processor(CPU)
    assert all(on_processor(CPU))
    assert not all(on_processor(1))


def test_prefill_is_finished_when_read_returns() -> None:
    """Otherwise its time would count as that of the next token."""
    with LlamaBackend(built_in("target"), LoadOptions(1024)) as backend:
        token, seconds = backend.tokenizer.any_token, []
        for _ in range(5):
            backend.drop(0, 0)
            backend.read(0, 0, [token] * 500)
            began = time.perf_counter()
            backend.decode([0], [500], [token])
            after_many = time.perf_counter() - began
            began = time.perf_counter()
            backend.decode([0], [501], [token])
            seconds.append((after_many, time.perf_counter() - began))
    first, second = np.median(seconds[1:], axis=0)
    assert first < 2 * second


# --- memory


@pytest.mark.skipif(not IS_VULKAN, reason="only the Vulkan backend can be given less memory")
@pytest.mark.parametrize(("limit", "kind"), [(6_500_000, "auto"), (7_500_000, "f32")], ids=["weights", "cache"])
def test_all_but_too_many_layers(limit: int, kind: str) -> None:
    """The target's weights take 7 MB, and its cache of 512 tokens in f32 takes 8.4 MB."""
    small = {"GGML_VK_FORCE_MAX_BUFFER_SIZE": str(limit), "ARBITRAGE_KV_TYPE": kind}
    refused = patiently("solve", QUESTION, env=small)
    assert (refused.code, refused.out) == (EXIT_MODEL, "")
    assert "gpu-layers" in refused.err  # after two lines that the Vulkan backend itself writes
    done = patiently("solve", QUESTION, env={**small, "ARBITRAGE_GPU_LAYERS": "1"})
    assert (done.code, done.out.strip()) == (0, ANSWER), done.err


# --- attention


@pytest.mark.parametrize("flash", [None, True, False])
@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "q4_0"])
def test_kv_types(kind: str, flash: bool | None) -> None:
    options = LoadOptions(kv_type=kind, flash_attention=flash)
    if flash is False and kind.startswith("q"):
        with pytest.raises(ModelMemoryError):
            logits(replace(options, gpu_layers=ALL))
        return
    on_cpu, on_gpu = (logits(replace(options, gpu_layers=layers)) for layers in (CPU, ALL))
    assert (on_cpu - on_gpu).std() < NOISE * on_cpu.std()


# --- texts


def problems(count: int) -> list[Problem]:
    lines = (models_folder() / "builtin.jsonl").read_text(encoding="utf-8").splitlines()
    return [Problem(row["id"], row["problem"]) for row in map(json.loads, lines[:count])]


def tokens_of(role: ModelRole, layers: int) -> dict[str, list[tuple[str, float]]]:
    """Return the tokens that a built-in model writes for each problem, and the margin of each token."""
    options = LoadOptions(512, threads=1, gpu_layers=layers, kv_type="f16", num_sequences=FEW)
    with LlamaBackend(built_in(role), options) as backend:
        engine = make_engine(role, backend, Sampler(), keep_token_stats=True, proposals="none")
        traces = solve({role: engine}, problems(COUNT), role, limits=Limits(), concurrency=FEW)
    found = {}
    for name, trace in traces.items():
        steps = [decision.kept.known_token_stats for decision in trace.decisions]
        found[name] = [token for stats in steps for token in zip(stats.pieces, stats.margins, strict=True)]
    return found


@pytest.mark.parametrize("role", ["draft", "target"])
def test_texts_differ_only_at_near_ties(role: ModelRole) -> None:
    on_cpu, on_gpu = (tokens_of(role, layers) for layers in (CPU, ALL))
    margins = []
    for name, tokens in on_cpu.items():
        pairs = zip(tokens, on_gpu[name], strict=False)
        margins += list(islice((margin for (piece, margin), (other, _) in pairs if piece != other), 1))
    print(f"{role}: {len(margins)} of {COUNT} texts differ, at margins of {sorted(margins)} nats")  # noqa: T201
    assert max(margins, default=0.0) < NEAR_TIE


def test_all_models_share_a_device() -> None:
    """Scores come from the draft's statistics, and with policy rsd from the reward model."""
    given = "\n".join(problem.question for problem in problems(FEW)).encode()
    for policy in ("arbitrage", "rsd"):
        found = [
            patiently(
                "solve", "--policy", policy, "--tau", "0.3", "--json", stdin=given, env={"ARBITRAGE_GPU_LAYERS": layers}
            )
            for layers in ("0", "-1")
        ]
        assert [done.code for done in found] == [0, 0], found[1].err
        first, second = ([step["score"] for record in done.records for step in record["steps"][:1]] for done in found)
        assert len(first) == FEW
        assert np.allclose(first, second, rtol=0, atol=NOISE)


def test_several_problems_at_once() -> None:
    given = "\n".join(problem.question for problem in problems(FEW)).encode()
    alone, together = (patiently("solve", "--json", "--concurrency", count, stdin=given) for count in ("1", "4"))
    assert (alone.code, together.code) == (0, 0), together.err
    differ = [one["id"] for one, other in zip(alone.records, together.records, strict=True) if one["text"] != other["text"]]
    assert len(differ) <= 1  # a near-tie

"""A model file that is new on the machine is first tried by another process, which may die of it."""

import logging
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from altered_gguf import Entry, alter, entries
from cli import assert_refused, run
from gguf import GGUFValueType as Kind

from arbitrage_cli.errors import ModelError, ModelFileError
from arbitrage_cli.inference import open as opening
from arbitrage_cli.inference.backend import LoadOptions
from arbitrage_cli.inference.open import display_name, try_model
from arbitrage_cli.system.files import models_folder

DRAFT = ("solve", "--policy", "draft", "--threads", "1", "--max-tokens", "4", "--draft")
TOKENS, MODEL, SCORES = "tokenizer.ggml.tokens", "tokenizer.ggml.model", "tokenizer.ggml.scores"


def test_a_file_is_shown_by_its_name_and_quantization(tiny: Mapping[str, Path], tmp_path: Path) -> None:
    q4_k_m = {"general.file_type": (Kind.UINT32, 15), "general.name": (Kind.STRING, "A Model AWQ")}
    shown = {"small.gguf": "small.gguf Q4_K_M", "small-q4_k_m.gguf": "small-q4_k_m.gguf"}
    for name, expected in shown.items():
        alter(tiny["draft"], tmp_path / name, q4_k_m)
        assert display_name(str(tmp_path / name)) == expected
    assert display_name("user/repo:Q4_K_M") == "user/repo:Q4_K_M"
    assert display_name("builtin:draft") == "arbitrage built-in draft"


def sentencepiece(tokens: list[str]) -> Mapping[str, Entry]:
    return {MODEL: (Kind.STRING, "llama"), SCORES: (Kind.ARRAY, (Kind.FLOAT32, [0.0] * len(tokens)))}


def without(byte: str) -> Callable[[list[str]], Mapping[str, Entry]]:
    return lambda tokens: {TOKENS: (Kind.ARRAY, (Kind.STRING, [token if token != byte else "another" for token in tokens]))}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return str(tmp_path / "cache")


def is_tried(caplog: pytest.LogCaptureFixture, path: Path) -> bool:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "arbitrage.models"):
        try_model(str(path), LoadOptions())
    return bool(caplog.records)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("draft", {"llama.attention.layer_norm_rms_epsilon": (Kind.FLOAT32, math.nan)}, "GGML_ASSERT"),
        ("draft", {"llama.expert_count": (Kind.UINT32, 2**31)}, "GGML_ASSERT"),
        ("draft", {"llama.attention.head_count_kv": (Kind.ARRAY, (Kind.INT32, [2, 0]))}, "GGML_ASSERT"),
        ("draft", sentencepiece, "unordered_map"),
        ("spm", without("<0x70>"), "unordered_map"),
        ("spm", without("<0xE2>"), "unordered_map"),
    ],
    ids=["epsilon", "experts", "layer without heads", "no bytes", "no p", "no e2"],
)
def test_file_that_ends_a_process_is_an_error(
    name: str, change: Any, reason: str, tiny: Mapping[str, Path], tmp_path: Path, cache: str
) -> None:
    changes = change(entries(tiny[name])[TOKENS][1][1]) if callable(change) else change
    path = alter(tiny[name], tmp_path / "bad.gguf", changes)
    result = run(*DRAFT, path, "1 + 1", env={"XDG_CACHE_HOME": cache})
    assert_refused(result, 3, str(path), "SIGABRT", reason)


def test_a_first_token_that_the_file_lacks_is_left_out(tmp_path: Path, cache: str) -> None:
    """llama.cpp adds the first token of a tokenizer of this name, but the file has no such token."""
    path = alter(models_folder() / "draft.gguf", tmp_path / "odd.gguf", {MODEL: (Kind.STRING, "gemma4")})
    result = run(*DRAFT, path, "1 + 1", env={"XDG_CACHE_HOME": cache})
    assert (result.code, result.err.count("report this")) == (0, 0), result.err


def test_file_is_tried_once_whatever_its_name(
    tiny: Mapping[str, Path], tmp_path: Path, cache: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(shutil.copy(tiny["draft"], tmp_path / "one.gguf"))
    copy = Path(shutil.copy(path, tmp_path / "two.gguf"))
    assert [is_tried(caplog, one) for one in (path, path, copy)] == [True, False, False]
    alter(path, path, {"general.name": (Kind.STRING, "another")})
    assert [is_tried(caplog, one) for one in (path, copy)] == [True, False]


def test_refused_file_is_tried_again(tiny: Mapping[str, Path], cache: str, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        with pytest.raises(ModelError, match="decoder-only"):
            is_tried(caplog, tiny["embedding"])
        assert caplog.records


@pytest.mark.usefixtures("cache")
def test_what_a_driver_prints_is_no_verdict(
    tiny: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import ctypes; ctypes.CDLL(None).puts(b'noise')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # so that C writes when the process ends
    try_model(str(tiny["draft"]), LoadOptions())


@pytest.mark.parametrize("model", ["builtin:draft", "scripted:draft"])
def test_what_ships_with_the_program_is_not_tried(model: str, caplog: pytest.LogCaptureFixture, cache: str) -> None:
    assert not is_tried(caplog, Path(model))


@pytest.mark.parametrize(
    ("program", "reason"), [("import time; time.sleep(100)", "not finished after"), ("import antigravity.no", "exit status")]
)
def test_child_that_gives_no_verdict_is_an_error(
    program: str, reason: str, tiny: Mapping[str, Path], cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replacements: dict[str, Any] = {"TRIAL": program, "MAX_SECONDS": 0.5}
    for name, value in replacements.items():
        monkeypatch.setattr(opening, name, value)
    with pytest.raises(ModelFileError, match=reason):
        try_model(str(tiny["draft"]), LoadOptions())

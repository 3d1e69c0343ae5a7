"""Roles whose models have the same files share the weights of one model, and write what two copies would write."""

from collections.abc import Mapping
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
from altered_gguf import alter
from gguf import GGUFValueType as Kind

from arbitrage_cli import open_pair
from arbitrage_cli.costs.measure import measure_and_keep
from arbitrage_cli.costs.memory import memory_needed
from arbitrage_cli.inference.backend import LoadOptions
from arbitrage_cli.inference.llama import binding, weights
from arbitrage_cli.inference.llama.backend import LlamaBackend
from arbitrage_cli.inference.llama.binding import c
from arbitrage_cli.types import ModelRole

QUESTIONS = ("1 + 1", "2 + 2", "3 + 3")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that llama.cpp loads."""
    found: list[Path] = []
    load = binding.load_model

    def counted(path: Path, *arguments: Any) -> Any:
        found.append(path)
        return load(path, *arguments)

    monkeypatch.setattr(weights, "load_model", counted)
    return found


@pytest.fixture
def copies(tiny: Mapping[str, Path], tmp_path: Path) -> dict[str, Path]:
    """A file, a copy with another path, and one with the same weights and another checksum."""
    original = tiny["draft"]
    copied = Path(copyfile(original, tmp_path / "copied.gguf"))
    renamed = alter(original, tmp_path / "renamed.gguf", {"general.name": (Kind.STRING, "renamed")})
    return {"original": original, "copied": copied, "renamed": renamed}


def texts(draft: Path, target: Path, policy: str) -> list[str]:
    with open_pair(draft, target, policy=policy, max_tokens=40, threads=1, concurrency=2) as pair:
        return [solution.text for solution in pair.solve_many(QUESTIONS)]


@pytest.mark.parametrize("policy", ["target", "entropy", "speculative", "agree"])
def test_one_file_in_two_roles_writes_what_two_copies_write(
    copies: Mapping[str, Path], loads: list[Path], policy: str
) -> None:
    original = copies["original"]
    expected = texts(original, copies["renamed"], policy)
    for name, count in (("original", 1), ("copied", 1), ("renamed", 2)):
        assert texts(original, copies[name], policy) == expected
        loads.clear()  # the first time, the token costs were measured
        assert (texts(original, copies[name], policy), len(loads)) == (expected, count)


def test_shared_weights_are_counted_and_measured_once(copies: Mapping[str, Path], loads: list[Path]) -> None:
    original = str(copies["original"])
    size = copies["original"].stat().st_size
    for name, count in (("original", 1), ("copied", 1), ("renamed", 2)):
        found: dict[ModelRole, str] = {"draft": original, "target": str(copies[name])}
        need, alone = memory_needed(found, LoadOptions(256)), memory_needed({"draft": original}, LoadOptions(256))
        assert (need.host.weights // size, need.host.each // alone.host.each) == (count, 2)
        loads.clear()
        measured = measure_and_keep(found, LoadOptions(256, threads=1), lambda *activity: None, pytest.fail, 0.1)
        assert (len(loads), set(measured)) == (count, set(found))


def test_the_last_context_frees_the_weights(copies: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[Any] = []
    free = c.llama_model_free

    def noted(model: Any) -> None:
        freed.append(model)
        free(model)

    monkeypatch.setattr(c, "llama_model_free", noted)
    options = LoadOptions(256, threads=1)
    first = LlamaBackend(copies["original"], options)
    second = LlamaBackend(copies["original"], options, shared=first.weights)
    before = second.decode([0], [0], [1]).copy()
    second.drop(0, 0)
    first.close()
    assert not freed
    assert (second.decode([0], [0], [1]) == before).all()
    second.close()
    assert len(freed) == 1

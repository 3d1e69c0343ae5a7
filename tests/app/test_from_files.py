"""Defaults from model files and pairs: thinking that a chat template starts by itself, sampling settings, template variables."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from altered_gguf import Entry, alter, entries
from commands import MATH, refused, typed
from gguf import GGUFValueType as Kind
from pairs_file import add_pair

from arbitrage_cli import open_pair
from arbitrage_cli.app.asking.request import Request, Use, ask, ask_to_collect
from arbitrage_cli.app.commands.model_info import describe_models
from arbitrage_cli.app.deciding.decide import THINK_CONTEXT_SIZE, decide
from arbitrage_cli.app.deciding.gather import gather
from arbitrage_cli.app.options import Options
from arbitrage_cli.display.model_facts import file_facts
from arbitrage_cli.model_files.gguf import DEFAULT_CONTEXT_SIZE
from arbitrage_cli.model_files.pairs import ModelEntry, PairEntry
from arbitrage_cli.runs.run import Setup
from arbitrage_cli.types import Thinking

ADVICE: dict[str, Entry | None] = {
    "general.sampling.temp": (Kind.FLOAT32, 0.6),
    "general.sampling.top_k": (Kind.INT32, 20),
    "general.sampling.top_p": (Kind.FLOAT32, 0.95),
    "general.sampling.penalty_repeat": (Kind.FLOAT32, 1.05),
}
ENDS = "{# until </think> #}"


@pytest.fixture
def advised(tiny: Mapping[str, Path], tmp_path: Path) -> str:
    return str(alter(tiny["target"], tmp_path / "advised.gguf", ADVICE))


def with_template(path: Path, target: Path, more: str) -> str:
    template = str(entries(path)["tokenizer.chat_template"][1]) + more
    return str(alter(path, target, {"tokenizer.chat_template": (Kind.STRING, template)}))


@pytest.fixture
def thinker(tiny: Mapping[str, Path], tmp_path: Path) -> str:
    begins = "{% if enable_thinking | default(true) %}<think>\n{% endif %}"
    return with_template(tiny["draft"], tmp_path / "thinker.gguf", begins + ENDS)


def without_models(request: Request) -> Setup:
    return decide(request, gather(request, {}))


def test_info_shows_thoughts_and_sampling(advised: str, thinker: str) -> None:
    """They are shown only: no command samples like this by default."""
    of_advised, of_thinker = describe_models([advised, thinker])["models"]
    assert of_advised["sampling"] == {"temp": 0.6, "top_k": 20, "top_p": 0.95, "penalty_repeat": 1.05}
    assert (of_advised["think_format"], of_advised["thinks_by_itself"]) == (None, False)
    assert (of_thinker["think_format"], of_thinker["thinks_by_itself"], of_thinker["sampling"]) == ("think", True, {})
    assert "temp 0.6, top_k 20, top_p 0.95, penalty_repeat 1.05" in dict(file_facts(of_advised))["sampling"]


def test_a_model_that_thinks_by_itself_thinks_in_each_command(advised: str, thinker: str) -> None:
    models = Options(draft=thinker, target=advised, policy="entropy")
    for think, thinking in ((None, Thinking(True)), ("off", Thinking(False))):
        asked = replace(models, think=think)
        for request in (ask(asked, MATH), ask_to_collect(asked, MATH, "rollout")):
            settings = without_models(request).settings
            assert (settings.limits.target.thinking, settings.sampler.temperature) == (thinking, 0.0)


@pytest.mark.parametrize(("use", "has_room"), [("run", False), ("calls", True), ("serve", True)])
def test_models_have_room_for_thinking_that_is_turned_on_later(
    tiny: Mapping[str, Path], tmp_path: Path, use: Use, has_room: bool
) -> None:
    """A call or a request may turn it on, but not if the models cannot think."""
    trained: dict[str, Entry | None] = {"llama.context_length": (Kind.UINT32, 32768)}
    plain = str(alter(tiny["draft"], tmp_path / "plain.gguf", trained))
    thinks = with_template(Path(plain), tmp_path / "thinks.gguf", "{% if enable_thinking %}<think>\n{% endif %}" + ENDS)
    for model, is_larger in ((plain, False), (thinks, has_room)):
        setup = without_models(ask(typed(draft=model, target=model, policy="entropy", think="off"), MATH, use=use))
        assert {one.context_size for one in setup.models.values()} == {
            THINK_CONTEXT_SIZE if is_larger else DEFAULT_CONTEXT_SIZE
        }


def test_a_template_that_only_strips_thoughts_proves_none(tiny: Mapping[str, Path], tmp_path: Path) -> None:
    path = with_template(tiny["draft"], tmp_path / "strips.gguf", ENDS)
    for think, noted in ((None, ["strips.gguf"]), ("off", [])):
        made = without_models(ask(typed(draft=path, target=str(tiny["target"]), policy="entropy", think=think), MATH))
        found = [note.partition(": cannot tell")[0] for note in made.notes if "chat template" in note]
        assert (made.settings.limits.target.thinking.is_on, found) == (False, noted)


def test_settings_of_a_pair_are_not_used_for_other_models(
    tiny: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although its target is the same. Both models were named, or its draft is another one."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    both: dict[str, Any] = {role: str(tiny[role]) for role in ("draft", "target")}
    target = ModelEntry(both["target"])
    pair = PairEntry(
        "mine", ModelEntry("scripted:draft"), target, system="Hm.", chat_template_kwargs={"enable_thinking": True}
    )
    add_pair(tmp_path / "arbitrage" / "pairs.toml", pair)

    def text(**models: Any) -> str:
        with open_pair(policy="target", max_tokens=24, threads=1, **models) as opened:
            return opened.solve("1 + 1").text

    usual = text(**both)
    assert [text(pair="mine", **models) == usual for models in ({}, both)] == [False, True]
    assert ask(Options(pair="mine", **both), MATH).system == MATH.instructions  # the pair is in a settings file


def test_a_model_that_does_not_write_may_always_think(tiny: Mapping[str, Path], tmp_path: Path) -> None:
    always = with_template(tiny["draft"], tmp_path / "always.gguf", "<think>\n" + ENDS)
    with open_pair(always, str(tiny["target"]), think=True, max_tokens=8, threads=1, policy="target") as pair:
        assert pair.solve("1 + 1", think=False).text
        for policy in ("draft", "entropy"):
            assert refused(pair.solve, "1 + 1", think=False, policy=policy).option == "think"

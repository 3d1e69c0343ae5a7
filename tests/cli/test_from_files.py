"""Defaults from model files: thinking that a chat template starts by itself, and recommended sampling settings."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from altered_gguf import Entry, alter, entries
from cli import Result, assert_refused, flat, pair_named_mine, run
from gguf import GGUFValueType as Kind

from arbitrage_cli.app.decide import decide
from arbitrage_cli.app.gather import gather
from arbitrage_cli.app.options import Options
from arbitrage_cli.app.request import ask, ask_to_collect
from arbitrage_cli.problems.tasks import MATH

SHORT = ("--max-tokens", "16", "--threads", "1")
ADVICE: dict[str, Entry | None] = {
    "general.sampling.temp": (Kind.FLOAT32, 0.6),
    "general.sampling.top_k": (Kind.INT32, 20),
    "general.sampling.top_p": (Kind.FLOAT32, 0.95),
    "general.sampling.penalty_repeat": (Kind.FLOAT32, 1.05),
}


@pytest.fixture
def advised(tiny: Mapping[str, Path], tmp_path: Path) -> Path:
    return alter(tiny["target"], tmp_path / "advised.gguf", ADVICE)


@pytest.fixture
def thinker(tiny: Mapping[str, Path], tmp_path: Path) -> Path:
    template = str(entries(tiny["draft"])["tokenizer.chat_template"][1])
    template += "{% if enable_thinking | default(true) %}<think>\n{% endif %}{# until </think> #}"
    return alter(tiny["draft"], tmp_path / "thinker.gguf", {"tokenizer.chat_template": (Kind.STRING, template)})


def solve(draft: Path, target: Path, *arguments: str, policy: str = "entropy", **options: Any) -> Result:
    models = ("--draft", str(draft), "--target", str(target), "--policy", policy)
    return run("solve", "1 + 1", *models, *SHORT, *arguments, **options)


def test_info_shows_thoughts_and_sampling(tiny: Mapping[str, Path], advised: Path, thinker: Path) -> None:
    record = run("models", "info", advised, thinker, "--json").record
    of_advised, of_thinker = record["models"]
    assert of_advised["sampling"] == {"temp": 0.6, "top_k": 20, "top_p": 0.95, "penalty_repeat": 1.05}
    assert (of_advised["think_format"], of_advised["thinks_by_itself"]) == (None, False)
    assert (of_thinker["think_format"], of_thinker["thinks_by_itself"], of_thinker["sampling"]) == ("think", True, {})
    shown = run("models", "info", advised, thinker).out
    assert "temp 0.6, top_k 20, top_p 0.95, penalty_repeat 1.05" in shown


@pytest.mark.parametrize(("think", "is_noted"), [((), True), (("--think", "off"), False)])
def test_a_template_that_only_strips_thoughts_proves_none(
    tiny: Mapping[str, Path], tmp_path: Path, think: tuple[str, ...], is_noted: bool
) -> None:
    template = str(entries(tiny["draft"])["tokenizer.chat_template"][1]) + "{# until </think> #}"
    path = alter(tiny["draft"], tmp_path / "strips.gguf", {"tokenizer.chat_template": (Kind.STRING, template)})
    result = solve(path, tiny["target"], "--json", *think)
    assert result.record["settings"]["think_tokens"] == 0
    assert (f"{path}: cannot tell from the chat template" in flat(result.err)) is is_noted


def test_a_model_that_thinks_by_itself_thinks_in_each_command(advised: Path, thinker: Path) -> None:
    """The sampling settings that a file recommends are shown only."""
    models = Options(draft=str(thinker), target=str(advised), policy="entropy")
    for think, tokens in ((None, None), ("off", 0)):
        asked = replace(models, think=think)
        for request in (ask(asked, MATH), ask_to_collect(asked, MATH, "rollout")):
            settings = decide(request, gather(request, {})).settings
            assert (settings.think_tokens, settings.temperature) == (tokens, 0.0)


THINK = {"enable_thinking": True}


def write(tiny: Mapping[str, Path], folder: Path, variables: Any, *arguments: str, **more: object) -> Result:
    """A solution of the tiny target as that of a pair with these variables; None: none."""
    lines = [f"{name} = {str(value).lower()}" for name, value in (variables or {}).items()]
    env = pair_named_mine(folder, **{"draft": tiny["draft"], "target": tiny["target"]} | more)
    if variables is not None:
        with (folder / "arbitrage" / "pairs.toml").open("a") as file:
            file.write(f"chat_template_kwargs = {{ {', '.join(lines)} }}\n")
    command = ("solve", "1 + 1", "--policy", "target", "--max-tokens", "24", "--threads", "1", "--json")
    return run(*command, *(arguments or ("--pair", "mine")), env=env)


def text(result: Result) -> str:
    return str(result.record["text"])


@pytest.mark.parametrize("named", [(), ("--pair", "mine")])
def test_settings_of_a_pair_are_not_used_for_other_models(
    tiny: Mapping[str, Path], tmp_path: Path, named: tuple[str, ...]
) -> None:
    (tmp_path / "arbitrage").mkdir()
    (tmp_path / "arbitrage" / "config.toml").write_text('pair = "mine"\n')
    both = ("--draft", str(tiny["draft"]), "--target", str(tiny["target"]))
    result = write(tiny, tmp_path, THINK, *named, *both, draft="scripted:draft", system="Hm.")
    assert text(result) == text(write(tiny, tmp_path, None))
    assert text(result) != text(write(tiny, tmp_path, THINK, system="Hm."))


@pytest.mark.parametrize("name", ["messages", "bos_token"])
def test_variables_of_the_program_are_refused_before_a_model_is_loaded(
    name: str, tiny: Mapping[str, Path], tmp_path: Path
) -> None:
    assert_refused(write(tiny, tmp_path, {name: "1"}), 2, "", name)

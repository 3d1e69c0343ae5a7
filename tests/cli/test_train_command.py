"""`arbitrage train`: from run folders to a router that can be used, and what is refused."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from cli import ESCAPE, Result, assert_refused, flat, run
from collected import TARGET, TARGET_SECONDS, World, questions, write_run
from small_routers import write_router

from arbitrage_cli.display.card import write_card
from arbitrage_cli.routing.presets import PRESETS, TauTable
from arbitrage_cli.routing.router import Router, digest_of_problem, load, save

SIGNAL = World(bias=0.0, weights=(("logprob_min", -2.0), ("numbers", 1.0)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    write_run(folder / "run", questions(120), SIGNAL)
    (folder / "loop").symlink_to("loop")
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> Result:
    return run("train", "run", "-o", "router.safetensors", cwd=folder)


def test_router_has_a_name_its_command_and_taus(folder: Path, trained: Result) -> None:
    assert trained.code == 0, trained.err
    router = load(folder / "router.safetensors")
    assert router.card.name == "router"
    assert router.card.command == ("arbitrage", "train", "run", "-o", "router.safetensors")
    assert TauTable.from_json(router.card.taus).costs is not None


def test_a_router_is_replaced_by_force_only(folder: Path, trained: Result) -> None:
    before = (folder / "router.safetensors").read_bytes()
    assert_refused(run("train", "run", "-o", "router.safetensors", cwd=folder), 2, "router.safetensors ", "--force")
    assert (folder / "router.safetensors").read_bytes() == before


def test_leads_have_the_baselines_that_the_router_outperforms(folder: Path, trained: Result) -> None:
    leads = load(folder / "router.safetensors").card.metrics["leads"]
    assert leads.keys() == {"lowest logprob", "mean logprob", "equations", "entropy", "random"}
    value, low, high = leads["random"]
    assert 0 < low < value < high
    assert "logprob-min" in trained.out  # the router is no better than this policy, which needs no router


def test_card_of_a_router_has_models_data_and_figures(folder: Path, trained: Result) -> None:
    assert trained.code == 0
    card = run("models", "info", "router.safetensors", cwd=folder)
    assert (card.code, card.err) == (0, "")
    assert max(map(len, card.out.splitlines())) < 80
    baselines = ("entropy", "lowest logprob", "mean logprob", "rsd", "random")
    models = (f"Tiny draft, sha256 {'d' * 12}", f"Tiny target, sha256 {'e' * 12}", "made-up: 120 problems, 600 states")
    for word in ("AUC", "calibration error", *baselines, *models, "careful", "balanced", "fast", "wasted"):
        assert word in flat(card.out)
    assert card.out == trained.out


def test_shipped_routers_and_several_show_their_cards(folder: Path, trained: Result) -> None:
    assert trained.code == 0
    for name in ("universal", "builtin:builtin"):
        card = run("models", "info", name).out
        assert card.startswith(f"{name.removeprefix('builtin:')}\n")
        assert ("the router was measured on" in flat(card)) is (name == "universal")  # the other has enough solutions
    both = run("models", "info", "router.safetensors", "universal", "--json", cwd=folder)
    assert [record["name"] for record in both.records] == ["router", "universal"]
    assert_refused(run("models", "info", "router.safetensors", "builtin:draft", cwd=folder), 2, "")
    write_router(folder / "bare.safetensors", data={"parts": None})
    assert_refused(run("models", "info", "bare.safetensors", cwd=folder), 3, "router ", "incomplete card")


def test_texts_of_a_card_cannot_drive_the_terminal(folder: Path, trained: Result) -> None:
    assert trained.code == 0
    card = load(folder / "router.safetensors").card.to_json()
    hostile = "\x1b]0;pwned\x07[/INST]\n\x1b[2K"
    models = {role: {"name": hostile, "sha256": None} for role in ("draft", "target")}
    stream = io.StringIO()
    write_card(card | {"name": hostile, "pairs": [models], "reward": {"kind": hostile}}, stream, sha256="")
    assert ESCAPE.decode() not in stream.getvalue()
    assert "[/INST]" in stream.getvalue()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["nowhere"], "contains no run"), (["loop"], "contains no run"), (["run", "-o", "router.pkl"], ".safetensors"),
        (["run", "./run/."], "twice"), ([], "RUN"),
    ],
)  # fmt: skip
def test_unusable_arguments_are_refused_and_no_file_is_made(folder: Path, arguments: list[str], word: str) -> None:
    assert_refused(run("train", "-o", "none.safetensors", *arguments, cwd=folder), 2, "", word)
    assert not (folder / "none.safetensors").exists()


def test_missing_scikit_learn_is_an_error_that_says_what_to_install(folder: Path) -> None:
    found = run("train", "run", "-o", "none.safetensors", cwd=folder, without=["sklearn"])
    assert_refused(found, 2, "", "pip install", "scikit-learn")


WORLD = World(bias=-1.0, weights=(("entropy_first", 1.5),))
OTHER = {"draft": {"name": "Other draft", "sha256": "a" * 64, "source": "o.gguf"}, "target": {**TARGET, "source": "t.gguf"}}


@pytest.fixture
def here(quick_path: Path) -> Path:
    write_run(quick_path / "run", questions(60), WORLD)
    write_router(quick_path / "small.safetensors")
    return quick_path


def make_presets(here: Path, *arguments: str) -> Result:
    command = ("train", "--from", "small.safetensors", "-o", "new.safetensors", "--force", *arguments)
    return run(*command, cwd=here, env={"XDG_CONFIG_HOME": str(here)})


def table_of(path: Path) -> TauTable:
    return TauTable.from_json(load(path).card.taus)


def test_table_becomes_that_of_the_run_and_the_network_stays(here: Path) -> None:
    result = make_presets(here, "run")
    assert result.code == 0, result.err
    old, new = load(here / "small.safetensors"), load(here / "new.safetensors")
    assert new.network.output.tolist() == old.network.output.tolist()
    table = table_of(here / "new.safetensors")
    assert (table.steps, table.num_solutions, {*table.named}) == (5.0, 60, {*PRESETS})
    assert table.costs is not None
    assert table.costs.target.decode == TARGET_SECONDS  # no model is measured here
    assert new.card.data["taus_of"]["runs"][0]["name"] == "run"
    assert [name for name in PRESETS if name not in result.out] == []


def test_problems_that_the_router_was_trained_on_are_left_out(here: Path) -> None:
    old = load(here / "small.safetensors")
    learned = " ".join(map(digest_of_problem, questions(7)))
    save(Router(old.network, replace(old.card, data={**old.card.data, "learned": learned})), here / "small.safetensors")
    result = make_presets(here, "run", "--json", "-q")
    assert table_of(here / "new.safetensors").num_solutions == 53
    card = load(here / "new.safetensors").card.to_json()
    assert (result.record, result.err) == (json.loads(json.dumps(card)), "")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["run", "other"], "different pairs"), (["few"], "too few states"), (["run", "--seed", "1"], "--seed"),
    ],
)  # fmt: skip
def test_unusable_arguments_make_no_presets(here: Path, arguments: list[str], reason: str) -> None:
    write_run(here / "other", questions(5), WORLD, changes={"models": OTHER})
    write_run(here / "few", questions(60), World(bias=-99.0, weights=()))
    assert_refused(make_presets(here, *arguments), 2, "", reason)
    assert not (here / "new.safetensors").exists()

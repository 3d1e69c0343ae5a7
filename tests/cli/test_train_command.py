"""`arbitrage train`: from a run folder to a router that can be used, and its card."""

import json
from pathlib import Path

import pytest
from cli import Result, assert_refused, flat, run
from collected import World, questions, write_run

from arbitrage_cli.routing.presets import TauTable
from arbitrage_cli.routing.router import load


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    write_run(folder / "run", questions(120), World(bias=0.0, weights=(("logprob_min", -2.0), ("numbers", 1.0))))
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> Result:
    return run("train", "run", "-o", "router.safetensors", cwd=folder)


def test_a_router_has_its_name_command_and_taus_and_what_it_outperforms(folder: Path, trained: Result) -> None:
    assert trained.code == 0, trained.err
    card = load(folder / "router.safetensors").card
    assert (card.name, card.command) == ("router", ("arbitrage", "train", "run", "-o", "router.safetensors"))
    assert TauTable.from_json(card.taus).costs is not None
    leads = card.metrics["leads"]
    assert leads.keys() == {"lowest logprob", "mean logprob", "entropy", "random"}
    value, low, high = leads["random"]
    assert 0 < low < value < high
    assert "logprob-min" in trained.out  # the router is no better than this policy, which needs no router


def test_card_of_a_router_has_models_data_and_figures(folder: Path, trained: Result) -> None:
    card = run("models", "info", "router.safetensors", cwd=folder)
    assert (card.code, card.err, card.out) == (0, "", trained.out)
    assert max(map(len, card.out.splitlines())) < 80
    baselines = ("entropy", "lowest logprob", "mean logprob", "rsd", "random")
    models = (f"Tiny draft, sha256 {'d' * 12}", f"Tiny target, sha256 {'e' * 12}", "made-up: 120 problems, 600 states")
    for word in ("AUC", "calibration error", *baselines, *models, "careful", "balanced", "fast", "wasted"):
        assert word in flat(card.out)
    both = run("models", "info", "router.safetensors", "universal", "--json", cwd=folder)
    assert [record["name"] for record in both.records] == ["router", "universal"]
    assert_refused(run("models", "info", "router.safetensors", "builtin:draft", cwd=folder), 2, "")


def test_a_router_is_replaced_by_force_only(folder: Path, trained: Result) -> None:
    before = (folder / "router.safetensors").read_bytes()
    command = ("train", "--from", "builtin:universal", "run", "-o", "router.safetensors", "--json", "-q")
    assert_refused(run(*command, cwd=folder), 2, "router.safetensors ", "--force")
    assert_refused(run(*command, "--force", "--seed", "1", cwd=folder), 2, "", "--seed")
    assert trained.code == 0
    assert (folder / "router.safetensors").read_bytes() == before
    result = run(*command[:5], "new.safetensors", *command[6:], cwd=folder)
    assert (result.record, result.err) == (json.loads(json.dumps(load(folder / "new.safetensors").card.to_json())), "")


def test_missing_scikit_learn_is_an_error_that_says_what_to_install(folder: Path) -> None:
    found = run("train", "run", "-o", "none.safetensors", cwd=folder, without=["sklearn"])
    assert_refused(found, 2, "", "pip install", "scikit-learn")
    assert not (folder / "none.safetensors").exists()

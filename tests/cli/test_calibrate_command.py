"""`arbitrage calibrate`: a head with the taus of other states and another machine, and what is refused."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from cli import ESCAPE, Result, assert_refused, flat, run
from collected import COSTS, DRAFT, TARGET, World, questions, write_run
from made_up_tuning import make_tuned
from small_heads import make_table, write_head

from arbitrage_cli.display.card import write_taus
from arbitrage_cli.routing.head import Head, digest_of_problem
from arbitrage_cli.routing.head_file import load, save
from arbitrage_cli.routing.thresholds import NAMES, TauTable, usual_rows
from arbitrage_cli.tuning.placement import machine_here
from arbitrage_cli.tuning.store import Speeds, keep_tuned

WORLD = World(bias=-1.0, weights=(("entropy_first", 1.5),))
OTHER = {"draft": {"name": "Other draft", "sha256": "a" * 64, "source": "o.gguf"}, "target": {**TARGET, "source": "t.gguf"}}


@pytest.fixture
def here(quick_path: Path) -> Path:
    """A folder with the run `run`, and the head `small.safetensors`, whose taus are of other states."""
    write_run(quick_path / "run", questions(60), WORLD)
    write_head(quick_path / "small.safetensors")
    return quick_path


def calibrate(here: Path, *arguments: str) -> Result:
    command = ("calibrate", "--head", "small.safetensors", "-o", "new.safetensors", "--force", *arguments)
    return run(*command, cwd=here, env={"XDG_CONFIG_HOME": str(here)})


def table_of(path: Path) -> TauTable:
    return TauTable.from_json(load(path).card.taus)


def test_table_becomes_that_of_the_run_and_the_network_stays(here: Path) -> None:
    result = calibrate(here, "run")
    assert result.code == 0, result.err
    old, new = load(here / "small.safetensors"), load(here / "new.safetensors")
    assert new.network.output.tolist() == old.network.output.tolist()
    table = table_of(here / "new.safetensors")
    assert (table.steps, len(table.rows) > 10) == (5.0, True)
    assert table.named.keys() == NAMES.keys()
    assert table.costs is not None
    assert table.costs.target_seconds_per_token == COSTS["target_seconds_per_token"]  # no model is measured here
    assert new.card.data["taus_of"]["runs"][0]["name"] == "run"
    lines = result.out.splitlines()
    assert "60 solutions of run" in lines[0]
    assert all(any(name in line for line in lines) for name in NAMES)
    assert max(map(len, lines)) < 80
    assert ESCAPE not in result.stdout
    assert "wrote new.safetensors" in result.err


def test_head_is_named_after_a_flag_its_file_or_its_run(here: Path) -> None:
    for flags, name in [([], "new"), (["--name", "mine"], "mine"), (["-o", "head.safetensors"], "run")]:
        assert calibrate(here, "run", *flags).code == 0
        assert load(here / (flags[1] if "-o" in flags else "new.safetensors")).card.name == name


def test_every_name_is_shown_beside_its_tau() -> None:
    stream, taus = io.StringIO(), make_table().to_json()
    write_taus(taus, usual_rows(taus), stream, on="run", costs_of="this machine")
    _, headings, *lines = stream.getvalue().splitlines()
    left = [line[: headings.index("calls")].split() for line in lines[:6]]
    assert left == [["0"], ["0.3", "exact"], ["balanced"], ["fast"], ["0.6"], ["1"]]


def test_costs_of_measured_models_are_those_of_this_machine(here: Path) -> None:
    measured = ((DRAFT, Speeds(0.5, 0.1, 0.2, 0.2)), (TARGET, Speeds(4.0, 0.1, 0.2, 0.2)))
    known = [make_tuned(machine_here(), model["sha256"], speeds=speeds) for model, speeds in measured]
    keep_tuned(here / "arbitrage" / "tuned.json", known)
    result = calibrate(here, "run", "--json", "-q")
    (card,) = result.records
    assert (result.code, result.err) == (0, "")
    costs = card["taus"]["costs"]
    assert (costs["draft_seconds_per_token"], costs["target_seconds_per_token"]) == (0.5, 4.0)
    assert costs["target_verify_seconds_per_token"] == 0.2
    assert card["data"]["taus_of"]["costs"] == "the machine that calibrated"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "RUN"),
        (["nowhere"], "has no run"),
        (["run", "other"], "different pairs"),
        (["run", "./run/"], "run is given twice"),
        (["bench"], "run of arbitrage bench"),
        (["run", "-o", "new.pkl"], ".safetensors"),
        (["few"], "too few states"),
    ],
)
def test_unusable_arguments_are_refused_and_no_file_is_made(here: Path, arguments: list[str], reason: str) -> None:
    write_run(here / "other", questions(5), WORLD, changes={"models": OTHER})
    write_run(here / "bench", questions(5), WORLD, changes={"kind": "bench"})
    write_run(here / "few", questions(60), World(bias=-99.0, weights=()))
    assert_refused(calibrate(here, *arguments), 2, "", reason)
    assert not (here / "new.safetensors").exists()


def test_states_that_the_head_was_trained_on_are_noted(here: Path) -> None:
    old = load(here / "small.safetensors")
    learned = " ".join(map(digest_of_problem, questions(7)))
    save(Head(old.network, old.knots, replace(old.card, data={"learned": learned})), here / "small.safetensors")
    result = calibrate(here, "run")
    assert result.code == 0, result.err
    assert "trained on 7 of these 60 problems" in flat(result.err)


def test_default_head_is_that_of_the_models_of_the_run(here: Path) -> None:
    result = run("calibrate", "run", "-o", "new.safetensors", cwd=here, env={"XDG_CONFIG_HOME": str(here)})
    assert result.code == 0, result.err
    assert "made from universal" in flat(result.err)

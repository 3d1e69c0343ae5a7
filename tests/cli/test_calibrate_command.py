"""`arbitrage calibrate`: a head with the taus of other states and another machine, and what does not go together."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli import ESCAPE, Result, flat
from collected import COSTS, DRAFT, HIDDEN_SIZE, TARGET, World, questions, write_run
from made_up_tuning import make_tuned
from small_heads import make_table, write_head

from arbitrage_cli.display.card import write_taus
from arbitrage_cli.routing.head import Head
from arbitrage_cli.routing.head_file import load, save
from arbitrage_cli.routing.thresholds import NAMES, TauTable
from arbitrage_cli.tuning.placement import machine_here
from arbitrage_cli.tuning.store import Speeds, keep_tuned

WORLD = World(bias=-1.0, weights=(("entropy_first", 1.5),))
OTHER = {"draft": {"name": "Other draft", "sha256": "a" * 64}, "target": TARGET}


@pytest.fixture
def here(quick_path: Path) -> Path:
    """A folder with the run `run`, and the head `small.safetensors`, whose taus are those of other states."""
    write_run(quick_path / "run", questions(60), WORLD, hidden=True)
    write_head(quick_path / "small.safetensors")
    return quick_path


def calibrate(here: Path, *arguments: str) -> Result:
    """Run it with that head, and settings of its own."""
    command = ("calibrate", "--head", "small.safetensors", "-o", "new.safetensors", *arguments)
    return run(*command, cwd=here, env={"XDG_CONFIG_HOME": str(here)})


def table_of(path: Path) -> TauTable:
    return TauTable.from_json(load(path).card.taus)


def test_the_taus_become_those_of_the_run(here: Path) -> None:
    result = calibrate(program, here, "run")
    assert result.code == 0, result.err
    old, new = load(here / "small.safetensors"), load(here / "new.safetensors")
    assert new.network.output.tolist() == old.network.output.tolist()
    table = table_of(here / "new.safetensors")
    assert (table.steps, len(table.rows) > 10) == (5.0, True)
    assert table.named.keys() == NAMES.keys()
    assert new.card.data["taus_of"]["runs"][0]["name"] == "run"
    lines = result.out.splitlines()
    assert lines[0] == "what a tau does, on 60 solutions of run"
    assert "on 60 solutions, too few to be sure" in flat(result.out)
    assert "the head learned from" not in result.err
    assert all(any(name in line for line in lines) for name in NAMES)
    assert max(map(len, lines)) < 80
    assert ESCAPE not in result.stdout
    assert "wrote new.safetensors" in result.err


def test_the_head_is_called_as_its_new_file(here: Path) -> None:
    for flags, name in [([], "new"), (["--name", "mine"], "mine"), (["-o", "head.safetensors"], "run")]:
        result = calibrate(program, here, "run", *flags)
        assert result.code == 0, result.err
        assert f": head {name}, made from small, with the costs of" in result.err
    assert load(here / "new.safetensors").card.name == "mine"
    assert load(here / "head.safetensors").card.name == "run"


def test_every_name_is_shown_beside_its_tau() -> None:
    stream = io.StringIO()
    write_taus(make_table().to_json(), {}, stream, on="run", costs_of="this machine")
    _, headings, *lines = stream.getvalue().splitlines()
    left = [line[: headings.index("calls")].split() for line in lines[:6]]
    assert left == [["0.0000"], ["0.3000", "exact"], ["balanced"], ["fast"], ["0.6000"], ["1.0000"]]


def test_models_that_are_not_here_cost_what_they_did(here: Path) -> None:
    result = calibrate(program, here, "run")
    table = table_of(here / "new.safetensors")
    assert table.costs is not None
    assert table.costs.target_seconds_per_token == COSTS["target_seconds_per_token"]
    assert "at the costs of the machine that collected" in flat(result.out)


def test_measured_models_cost_what_was_measured(here: Path) -> None:
    measured = ((DRAFT, Speeds(0.5, 0.1, 0.2)), (TARGET, Speeds(4.0, 0.1, 0.2)))
    known = [
        make_tuned(here / "small.safetensors", machine_here(), model["sha256"], speeds=speeds) for model, speeds in measured
    ]
    keep_tuned(here / "arbitrage" / "tuned.json", known)
    result = calibrate(program, here, "run", "--json", "-q")
    (card,) = result.records
    assert (result.code, result.err) == (0, "")
    costs = card["taus"]["costs"]
    assert (costs["draft_seconds_per_token"], costs["target_seconds_per_token"]) == (0.5, 4.0)
    assert costs["target_verify_seconds_per_token"] == 0.2
    assert card["data"]["taus_of"]["costs"] == "the machine that calibrated"


def test_a_data_set_is_collected_on_first(here: Path) -> None:
    rows = [{"question": f"{number} * 12 + 6", "answer": str(number * 12 + 6)} for number in range(11, 23)]
    (here / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("--dataset", "sums.jsonl", "--reward", "rollout", "--pair", "scripted", "-q")
    result = calibrate(program, here, *arguments)
    assert result.code == 0, result.err
    folder = here / "runs" / "calibrate-sums--scripted"
    run: dict[str, Any] = json.loads((folder / "run.json").read_text())
    assert (run["kind"], run["roll_in"], run["planned"]) == ("collect", "head", 12)
    assert "what a tau does, on 12 solutions of calibrate-sums--scripted" in result.out
    assert "at the costs of this machine" in flat(result.out)
    before = (folder / "results.jsonl").read_bytes()
    assert calibrate(program, here, *arguments).code == 0
    assert (folder / "results.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "nothing to calibrate on"),
        (["run", "--dataset", "builtin"], "both runs and a data set"),
        (["nowhere"], "no run in this folder"),
        (["run", "other"], "different pairs"),
        (["run", "./run/"], "run is given twice"),
        (["bench"], "run of arbitrage bench, not of arbitrage collect"),
        (["run", "-o", "new.pkl"], ".safetensors"),
        (["few"], "too few states to calibrate on: 0 with an advantage in these runs, of 300 states in all"),
        (["--dataset", "builtin", "--pair", "scripted"], "needs a process reward model"),
    ],
)
def test_what_does_not_go_together_is_said(here: Path, arguments: list[str], reason: str) -> None:
    write_run(here / "other", questions(5), WORLD, changes={"models": OTHER})
    write_run(here / "bench", questions(5), WORLD, changes={"kind": "bench"})
    write_run(here / "few", questions(60), World(bias=-99.0, weights=()), hidden=True)
    result = calibrate(program, here, *arguments)
    assert (result.code, reason in flat(result.err)) == (2, True), result.err
    assert not (here / "new.safetensors").exists()


def test_a_head_of_another_draft_is_refused(here: Path) -> None:
    write_head(here / "small.safetensors", hidden_size=HIDDEN_SIZE)
    result = calibrate(program, here, "run")
    assert (result.code, "reads the hidden states of d" in flat(result.err)) == (3, True), result.err
    assert not (here / "new.safetensors").exists()


def test_states_that_the_head_learned_from_are_told(here: Path) -> None:
    old = load(here / "small.safetensors")
    runs = [{"name": "run", "dataset": "made up", "dataset_sha256": "f" * 64, "states": 300, "is_test": False}]
    save(Head(old.network, old.knots, replace(old.card, data={"runs": runs})), here / "small.safetensors")
    result = calibrate(program, here, "run")
    assert result.code == 0, result.err
    assert "the head was trained on made up too" in flat(result.err)


def test_without_a_head_it_is_that_of_the_models_of_the_run(here: Path) -> None:
    result = run("calibrate", "run", "-o", "new.safetensors", cwd=here, env={"XDG_CONFIG_HOME": str(here)})
    assert result.code == 0, result.err
    assert "wrote new.safetensors: head new, made from universal" in flat(result.err)

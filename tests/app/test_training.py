"""Routers with new presets, where a router may be written to, and how a card is shown."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from cli import ESCAPE, flat
from collected import TARGET, TARGET_SECONDS, World, questions, write_run
from commands import refused
from small_routers import write_router

from arbitrage_cli.app.commands.model_info import describe_router
from arbitrage_cli.display.card import write_card
from arbitrage_cli.errors import OutputError
from arbitrage_cli.routing.presets import PRESETS, TauTable
from arbitrage_cli.routing.router import Router, TrainedModel, digest_of_problem, load, save
from arbitrage_cli.training.routers import check_destination, with_new_presets

OTHER = {"draft": TrainedModel("Other draft", "a" * 64), "target": TARGET}


@pytest.fixture
def here(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(quick_path)
    write_run(quick_path / "run", questions(60), World(bias=-1.0, weights=(("entropy_first", 1.5),)))
    write_router(quick_path / "small.safetensors")
    return quick_path


def new_presets(*runs: str) -> tuple[Router, list[str]]:
    said = list[str]()
    return with_new_presets("small.safetensors", [*map(Path, runs)], name="new", on_progress=said.append), said


def card_of(source: str) -> str:
    shown, card = io.StringIO(), describe_router(source)
    write_card(card, shown, sha256=card["sha256"])
    return shown.getvalue()


@pytest.mark.usefixtures("here")
def test_the_table_becomes_that_of_the_run_and_the_network_stays() -> None:
    """No model is measured here."""
    old, (new, said) = load(Path("small.safetensors")), new_presets("run")
    assert new.network.output.tolist() == old.network.output.tolist()
    table = TauTable.from_json(new.card.taus)
    assert (table.steps, table.num_solutions, {*table.named}, said) == (5.0, 60, {*PRESETS}, [])
    assert table.costs is not None
    assert table.costs.target.decode == TARGET_SECONDS
    assert new.card.data["taus_of"]["runs"][0]["name"] == "run"


@pytest.mark.usefixtures("here")
def test_problems_that_the_router_was_trained_on_are_left_out() -> None:
    old = load(Path("small.safetensors"))
    learned = " ".join(map(digest_of_problem, questions(7)))
    save(Router(old.network, replace(old.card, data={**old.card.data, "learned": learned})), Path("small.safetensors"))
    new, (said,) = new_presets("run")
    assert (TauTable.from_json(new.card.taus).num_solutions, "7 of 60 problems" in said) == (53, True)


def test_runs_and_files_that_cannot_be_used_are_refused(here: Path) -> None:
    write_run(here / "other", questions(5), World(), changes={"models": OTHER})
    write_run(here / "few", questions(60), World(bias=-99.0, weights=()))
    (here / "loop").symlink_to("loop")
    for runs, words in (
        ("run other", "different pairs"), ("few", "too few states"), ("run ./run/.", "twice"),
        *((name, "contains no run") for name in ("nowhere", "loop")),
    ):  # fmt: skip
        error = refused(new_presets, *runs.split())
        assert words in f"{error.message} {error.hint}"
    assert refused(check_destination, Path("run.pkl"), force=True).option == "output_file"
    error = refused(check_destination, Path("small.safetensors"), force=False)
    assert (error.message.startswith("small.safetensors "), "--force" in error.hint) == (True, True)
    assert isinstance(refused(check_destination, Path("no/small.safetensors"), force=False), OutputError)
    check_destination(Path("small.safetensors"), force=True)


# --- cards


def test_shipped_routers_show_their_cards(here: Path) -> None:
    for name in ("builtin:universal", "builtin:builtin"):
        card = card_of(name)
        assert card.startswith(f"{name.removeprefix('builtin:')}\n")
        assert "the router was measured on" not in flat(card)
    write_router(here / "bare.safetensors", data={"parts": None})
    error = refused(card_of, "bare.safetensors")
    assert (error.exit_code, "incomplete card" in error.message) == (3, True)


def test_card_says_if_more_solutions_would_help() -> None:
    card = describe_router("builtin:universal")
    for row in card["taus"]["rows"]:
        row["change_interval"] = [row["change"] - 30, row["change"] + 30]
    shown = io.StringIO()
    write_card(card, shown, sha256=card["sha256"])
    assert f"the router was measured on {card['taus']['num_solutions']} solutions" in flat(shown.getvalue())


def test_texts_of_a_card_cannot_drive_the_terminal() -> None:
    hostile, stream = "\x1b]0;pwned\x07[/INST]\n\x1b[2K", io.StringIO()
    models = {role: {"name": hostile, "sha256": None} for role in ("draft", "target")}
    changed = {"name": hostile, "pairs": [models], "reward": {"kind": hostile}}
    write_card(describe_router("builtin:builtin") | changed, stream, sha256="")
    assert ESCAPE.decode() not in stream.getvalue()
    assert "[/INST]" in stream.getvalue()

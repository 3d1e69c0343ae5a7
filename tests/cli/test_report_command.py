"""`arbitrage report` and `arbitrage compare`: what goes where, and what is refused."""

import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cli import ESCAPE, MODELS, assert_refused, flat, run
from faults import essence, rows_of, write_problems
from made_up_runs import Column, figures, make_run, write_run_folder

from arbitrage_cli.costs.pair import parse_prices
from arbitrage_cli.evaluation.figures import shown_figures

MADE = make_run(6, columns=[("target", None), ("draft", None), ("entropy", 0.5)])


def traces(page: Path) -> list[dict[str, Any]]:
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = json.loads(data)["traces"]
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run_folder(tmp_path / "run", MADE)
    return tmp_path / "run"


def test_report_shows_the_table_alone(folder: Path) -> None:
    shown = run("report", folder)
    assert (shown.code, shown.stderr) == (0, b"")
    assert shown.out.startswith("made-up: 6 problems\n")
    assert "entropy@0.5" in shown.out
    assert ESCAPE not in shown.stdout


def test_columns_of_the_table_are_defined_on_request(folder: Path) -> None:
    shown = run("report", folder, "--explain")
    assert shown.code == 0, shown.err
    table, definitions = (flat(text) for text in shown.out.rsplit("\n\n", 1))
    for heading, name in {"accuracy": "accuracy", "speed-up": "speedup", "accepted": "acceptance_rate"}.items():
        assert heading in table
        assert f"{heading} {shown_figures()[name].definition}" in definitions
    for arguments in (["-o", "page.html"], ["--json"]):
        assert_refused(run("report", folder, "--explain", *arguments), 2, "--explain ")


PRICES = "draft=0.02/0.10,target=0.60/2.40"


def test_json_has_all_figures_in_one_line(folder: Path) -> None:
    shown = run("report", folder, "--json", "--price", PRICES)
    assert shown.code == 0
    assert shown.records == [json.loads(json.dumps(figures(MADE.run, MADE.rows, prices=parse_prices(PRICES))))]
    assert shown.stdout.count(b"\n") == 1


def test_page_replaces_an_older_one_and_has_every_trace(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("an older one")
    shown = run("report", folder, "-o", page)
    assert (shown.code, shown.stdout) == (0, b"")
    assert str(page) in shown.err
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert len(traces(page)) == 18
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "run"]


def test_damaged_rows_are_named_and_left_out(folder: Path) -> None:
    path = folder / "results.jsonl"
    data = path.read_bytes().replace(b'"sample":0', b'"sample":"x"', 1)
    path.write_bytes(data.replace(b'"id":"made-up-0001"', b'"id":"p7"', 1))
    shown = run("report", folder, "--json")
    assert (shown.code, shown.err.count("line ")) == (0, 2)
    assert all(part in shown.err for part in (f"{path}: line 1: ", "line 4: "))
    assert sum(policy["missing"] for policy in json.loads(shown.out)["policies"]) == 2


def test_page_has_the_solutions_that_agree_did_not_keep(tmp_path: Path) -> None:
    write_problems(tmp_path / "sums.jsonl", ("2 * 3 + 4", "37 * 12 - 95"))
    models = (*MODELS, "--check", "scripted:target", "--policy", "agree")
    assert run("bench", *models, "--dataset", "sums.jsonl", "-q", "-o", "run", cwd=tmp_path).code == 0
    assert run("report", "run", "-o", "page.html", cwd=tmp_path).code == 0
    shown, rows = traces(tmp_path / "page.html"), rows_of(tmp_path / "run")
    assert [essence(one["check"]) for one in shown] == [essence(row["check"]) for row in rows]
    assert [one["check"]["agrees"] for one in shown] == [True, False]


def test_page_that_cannot_be_written_is_an_error_and_nothing_is_left(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.html").mkdir()
    for page in (tmp_path / "nowhere" / "report.html", tmp_path / "folder.html"):
        assert_refused(run("report", folder, "-o", page), 1, "", str(page), "cannot be written")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.html", "run"]


def test_file_that_is_no_page_is_refused(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "link.html").symlink_to("results.jsonl")
    for name in ("results.jsonl", "report", "link.html"):
        assert_refused(run("report", folder, "-o", folder / name), 2, f"{folder / name}: ", ".html")
    (folder / "link.html").unlink()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_page_is_opened_in_the_browser(folder: Path, tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    shown = run("report", folder, "--open", env={"BROWSER": f"{browser} %s"})
    assert (shown.code, shown.stdout) == (0, b"")
    assert (tmp_path / "opened").read_text() == f"file://{folder}/report.html\n"
    assert (folder / "report.html").read_bytes().startswith(b"<!DOCTYPE html>")
    shown = run("report", folder, "--open", "-o", tmp_path / "page.html", env={"BROWSER": f"{tmp_path}/none", "PATH": ""})
    assert shown.code == 0
    assert f"open {tmp_path}/page.html" in shown.err


def test_compare_shows_both_runs_as_a_table_or_a_line(folder: Path, tmp_path: Path) -> None:
    write_run_folder(tmp_path / "other", make_run(6, columns=[("entropy", 0.5)], drift=0.3))
    shown = run("compare", folder, tmp_path / "other")
    assert (shown.code, shown.stderr) == (0, b"")
    assert "entropy@0.5" in shown.out
    record = run("compare", folder, tmp_path / "other", "--json").record
    assert [entry["first"] for entry in record["policies"]] == ["entropy@0.5"]
    assert record["policies"][0]["accuracy_difference"] == 0.0


@pytest.mark.parametrize(
    ("columns", "others", "compared", "num_left_out"),
    [
        ((("entropy", 0.5), ("entropy", 2.0)), (("entropy", 2.0), ("target", None)), ("entropy@2", "entropy@2"), 2),
        ((("entropy", 0.5),), (("entropy", 2.0),), ("entropy@0.5", "entropy@2"), 0),
        ((("target", None),), (("entropy", 2.0),), ("target", "entropy@2"), 0),
    ],
)
def test_compare_pairs_a_policy_by_tau_or_the_only_two_policies(
    tmp_path: Path, columns: Sequence[Column], others: Sequence[Column], compared: tuple[str, str], num_left_out: int
) -> None:
    for name, own in (("before", columns), ("after", others)):
        write_run_folder(tmp_path / name, make_run(6, columns=own))
    record = run("compare", tmp_path / "before", tmp_path / "after", "--json").record
    (entry,) = record["policies"]
    assert (entry["first"], entry["second"], entry["n"]) == (*compared, 6)
    assert (entry["only_first"], entry["only_second"]) == (0, 0)
    assert entry["accuracy_difference"] == pytest.approx((entry["correct"][1] - entry["correct"][0]) / 6)
    left_out = [route for route in ("entropy@0.5", "target") if any(route in note for note in record["notes"])]
    assert len(left_out) == num_left_out
    shown = run("compare", tmp_path / "before", tmp_path / "after")
    assert (shown.code, shown.stderr) == (0, b"")
    assert all(route in shown.out for route in compared)


AGE = 3.2 * 24 * 3600  # seconds


@pytest.fixture
def here(tmp_path: Path) -> Path:
    write_run_folder(tmp_path / "runs" / "one", make_run(3, columns=[("target", None), ("entropy", 0.5)]))
    write_run_folder(tmp_path / "runs" / "bad", make_run(1))
    advice = make_run(1)
    advice.run["skips_attempts"] = True
    write_run_folder(tmp_path / "runs" / "advice", advice)
    (tmp_path / "runs" / "bad" / "run.json").write_text("{}")
    (tmp_path / "runs" / "no run").mkdir()
    for path in (tmp_path / "runs").rglob("*"):
        os.utime(path, (time.time() - AGE,) * 2)
    return tmp_path


def test_runs_are_listed(here: Path) -> None:
    shown = run("report", cwd=here)
    assert (shown.code, shown.err) == (0, "")
    assert run("report", "runs", cwd=here).out == shown.out
    assert "runs/one\n  6/6 done, 3 days ago; made-up: target, entropy@0.5; " in shown.out
    assert "runs/bad\n  3 days ago; runs/bad/run.json: schema " in shown.out
    assert "no run" not in shown.out
    assert "advice" not in shown.out
    records = {record["folder"]: record for record in json.loads(run("report", "--json", cwd=here).out)}
    assert (records["runs/one"]["done"], records["runs/one"]["planned"]) == (6, 6)
    assert run("report", cwd=here / "runs").code == 0
    assert_refused(run("report", "elsewhere", cwd=here), 2, "elsewhere: does not exist")


@pytest.mark.parametrize(
    "option",
    [["-o", "page.html"], ["--open"], ["--explain"], ["--regrade"], ["--price", "target=1/1"]],
    ids=" ".join,
)
def test_an_option_that_needs_a_run_is_refused_without_one(here: Path, option: list[str]) -> None:
    for folder in ([], ["runs"]):
        refused = run("report", *folder, *option, cwd=here)
        assert_refused(refused, 2, {"-o": "--html"}.get(option[0], option[0]))
    assert_refused(run("report", "elsewhere", *option, cwd=here), 2, "elsewhere: does not exist")

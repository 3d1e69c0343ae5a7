"""`arbitrage collect` as a process: what is left of a run that is broken off, and how it goes on."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from cli import TIMEOUT, flat, run, start

from arbitrage_cli.runs.folder import encode, latest, read_run_folder
from arbitrage_cli.training.examples import read_states, recorded

TERMINATED, INTERRUPTED, FAILED = 143, 130, 4
COLLECT = ("collect", "--pair", "scripted", "--dataset", "problems.jsonl", "--reward", "rollout", "-o", "run", "-q")


def write_problems(path: Path, number: int) -> None:
    """Sums of products: eight steps each."""
    with path.open("w") as stream:
        for index in range(11, 11 + number):
            products = " + ".join(f"{index} * {factor}" for factor in (12, 23, 34, 45))
            answer = index * (12 + 23 + 34 + 45) - 5
            stream.write(json.dumps({"id": str(index), "question": f"{products} - 5", "answer": str(answer)}) + "\n")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [dict(row) for row in latest(read_run_folder(folder, "collect").rows)]


def wait_for_rows(folder: Path, number: int) -> None:
    results, deadline = folder / "results.jsonl", time.monotonic() + TIMEOUT
    while not (results.exists() and results.read_bytes().count(b"\n") >= number):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_states_of_problems_in_flight_are_kept(tmp_path: Path) -> None:
    write_problems(tmp_path / "problems.jsonl", 80)
    command = ("collect", "--pair", "scripted", "--dataset", "problems.jsonl", "--reward", "rollout", "-o", "run")
    with start(*command, "--fresh", stdin=subprocess.DEVNULL, cwd=tmp_path) as process:
        wait_for_rows(tmp_path / "run", 3)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=TIMEOUT)
    assert process.returncode == TERMINATED
    assert f"problems are done and safe in run; to resume: arbitrage {' '.join(command)}\n" in told.decode()
    rows = rows_of(tmp_path / "run")
    broken = [row for row in rows if row["status"] == "error"]
    assert 0 < len(broken) <= 8
    assert len(rows) < 80
    assert {row["error"] for row in broken} == {"broken off"}
    partial = [row for row in broken if row["states"]]
    assert partial
    assert len(read_states([tmp_path / "run"]).features) == sum(len(row["states"]) for row in rows)
    assert {row["id"] for row in partial} <= {problem.id for problem, _ in recorded(tmp_path / "run")[1]}

    again = run(*command, cwd=tmp_path)
    assert again.code == 0, again.err
    done = {row["id"]: row for row in rows_of(tmp_path / "run")}
    assert len(done) == 80
    assert {row["status"] for row in done.values()} == {"done"}
    for row in partial:
        whole = done[row["id"]]["states"]
        assert len(row["states"]) < len(whole)
        assert [state["draft_text"] for state in row["states"]] == [state["draft_text"] for state in whole][
            : len(row["states"])
        ]


def test_more_rollouts_at_once_than_llama_has_sequences_for(tmp_path: Path) -> None:
    write_problems(tmp_path / "problems.jsonl", 16)
    command = ("collect", "--pair", "builtin", "--dataset", "problems.jsonl", "--reward", "rollout", "-o", "run")
    result = run(*command, "--rollouts", "16", "--concurrency", "16", cwd=tmp_path)
    assert (result.code, result.out) == (2, "")
    assert "--concurrency, up to 15; or fewer --rollouts" in flat(result.err)


def test_other_rewards_are_refused(tmp_path: Path) -> None:
    (tmp_path / "problems.jsonl").write_text(
        '{"question": "5 + 6", "answer": "11"}\n{"question": "5 + 7", "answer": "12"}\n'
    )
    command = ("collect", "--dataset", "problems.jsonl", "--threads", "1", "--max-tokens", "8", "-q", "-o", "run")
    assert run(*command, "--limit", "1", cwd=tmp_path).code == 0
    for flags, words in (
        (("--prm-style", "turns"), "another prm style: steps, not turns"),
        (("--reward", "rollout"), """another reward: {"kind": "prm"}, not {"kind": "rollout\""""),
    ):
        refused = run(*command, *flags, cwd=tmp_path)
        assert (refused.code, words in flat(refused.err)) == (2, True), refused.err
    assert run(*command, cwd=tmp_path).code == 0
    assert len(rows_of(tmp_path / "run")) == 2


@pytest.mark.parametrize(
    ("flags", "rows", "is_kept"),
    [((), False, True), (("--draft", "scripted:target"), False, False), ((), True, True)],
    ids=["the same models", "other models", "a run with rows"],
)
def test_costs_are_those_of_the_models(tmp_path: Path, flags: tuple[str, ...], rows: bool, is_kept: bool) -> None:
    write_problems(tmp_path / "problems.jsonl", 2)
    command = ("collect", "--pair", "scripted", "--dataset", "problems.jsonl", "--reward", "rollout", "-o", "run", "-q")
    assert run(*command, "--limit", "1", cwd=tmp_path).code == 0
    path = tmp_path / "run" / "run.json"
    made = json.loads(path.read_text())
    costs = made["costs"] = dict.fromkeys(made["costs"], 1234.5)
    del made["checksum"]
    path.write_bytes(encode(made))
    if not rows:
        (tmp_path / "run" / "results.jsonl").write_bytes(b"")
    assert run(*command, *flags, cwd=tmp_path).code == 0
    assert (json.loads(path.read_text())["costs"] == costs) == is_kept


def counts_of(folder: Path) -> dict[str, int]:
    return {row["id"]: len(row["states"]) for row in rows_of(folder)}


def test_an_end_while_a_row_is_made_loses_no_problem(tmp_path: Path) -> None:
    write_problems(tmp_path / "problems.jsonl", 20)
    result = run(*COLLECT, cwd=tmp_path, interrupt_in="arbitrage_cli.cli.collect_run._row")
    assert result.code == INTERRUPTED
    status = [row["status"] for row in rows_of(tmp_path / "run")]
    assert status == ["done", *("error" for _ in range(7))]
    assert all(counts_of(tmp_path / "run").values())


@pytest.mark.parametrize("how", ["interrupt_in", "fail_in"])
def test_a_second_end_takes_nothing_back(tmp_path: Path, how: str) -> None:
    write_problems(tmp_path / "problems.jsonl", 20)
    run(*COLLECT, cwd=tmp_path, interrupt_in="arbitrage_cli.cli.collect_run._row")
    first = counts_of(tmp_path / "run")
    assert len(first) > 1
    ended = run(*COLLECT, cwd=tmp_path, **{how: "arbitrage_cli.training.collect.better"})
    assert ended.code == (INTERRUPTED if how == "interrupt_in" else FAILED)
    second = counts_of(tmp_path / "run")
    assert all(second[name] >= number for name, number in first.items())


def test_only_problems_that_were_asked_for_have_to_be_solved(tmp_path: Path) -> None:
    write_problems(tmp_path / "problems.jsonl", 20)
    run(*COLLECT, cwd=tmp_path, interrupt_in="arbitrage_cli.cli.collect_run._row")
    solved, failed = (
        [row["id"] for row in rows_of(tmp_path / "run") if row["status"] == status] for status in ("done", "error")
    )
    assert failed
    result = run(*COLLECT, "--ids", solved[0], cwd=tmp_path)
    assert result.code == 0, result.err
    assert {row["id"] for row in rows_of(tmp_path / "run") if row["status"] == "error"} == set(failed)

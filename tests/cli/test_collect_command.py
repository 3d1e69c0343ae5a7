"""`arbitrage collect`: what an interrupted run keeps, and how it is resumed."""

import json
import re
import signal
from pathlib import Path
from typing import Any

from cli import assert_refused, run
from fake_server import HashServer, on_loopback
from faults import run_json, write_rows

from arbitrage_cli.runs.folder import read_run_folder
from arbitrage_cli.training.collected import read_run, read_states

ROW = "arbitrage_cli.app.commands.collect.Collection._row"
TERMINATED = 143
COLLECT = ("collect", "--pair", "scripted", "--dataset", "problems.jsonl", "--reward", "rollout", "-o", "run", "-q")


def write_problems(path: Path, number: int) -> None:
    write_rows(
        path,
        (
            {"id": str(n), "question": f"{n} * 12 + {n} * 23 + {n} * 34 - 5", "answer": str(n * (12 + 23 + 34) - 5)}
            for n in range(11, 11 + number)
        ),
    )


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [*{row.id: row.to_dict() for row in read_run_folder(folder, "collect").rows}.values()]


def test_a_run_of_states_is_not_graded_again(tmp_path: Path) -> None:
    write_problems(tmp_path / "problems.jsonl", 1)
    assert run(*COLLECT, cwd=tmp_path).code == 0
    (tmp_path / "run" / "run.json").write_text(json.dumps(run_json(tmp_path / "run") | {"grader": "older"}))
    refused = run(*COLLECT, cwd=tmp_path)
    assert_refused(refused, 2, "run: grader changed from older")
    assert "--regrade" not in refused.err


def test_states_of_problems_in_flight_are_kept_and_trained_on(tmp_path: Path) -> None:
    """After SIGTERM in the fourth row; the command that is shown resumes the run, without --fresh."""
    write_problems(tmp_path / "problems.jsonl", 14)
    ended = run(*COLLECT, "--fresh", cwd=tmp_path, interrupt_in=ROW, call=4, signals=[signal.SIGTERM])
    assert (ended.code, ended.out) == (TERMINATED, "")
    assert ended.err.splitlines()[-2].endswith(f"to resume: arbitrage {' '.join(COLLECT)}")
    rows = rows_of(tmp_path / "run")
    broken = [row for row in rows if row["status"] == "error"]
    assert 0 < len(broken) <= 8
    assert len(rows) < 14
    partial = [row for row in broken if row["states"]]
    assert partial
    assert len(read_states([tmp_path / "run"]).features) == sum(len(row["states"]) for row in rows)
    assert {row["id"] for row in partial} <= {solution.id for solution in read_run(tmp_path / "run").solutions}

    assert run(*COLLECT, cwd=tmp_path).code == 0
    done = {row["id"]: row for row in rows_of(tmp_path / "run")}
    assert len(done) == 14
    assert {row["status"] for row in done.values()} == {"done"}
    for row in partial:
        kept, whole = ([state["draft_text"] for state in one["states"]] for one in (row, done[row["id"]]))
        assert kept == whole[: len(kept)]
        assert len(kept) < len(whole)


def test_a_target_without_answers_is_the_reason(tmp_path: Path) -> None:
    """If no answer is known, the target's own answer counts as right. These servers write words without numbers."""
    write_rows(tmp_path / "problems.jsonl", [{"question": "Write a poem."}])
    with on_loopback(HashServer("vllm")) as draft, on_loopback(HashServer("vllm")) as target:
        models = ("--draft", draft, "--target", target, "--max-tokens", "40")
        ended = run(*COLLECT[:1], *models, *COLLECT[3:], cwd=tmp_path)
    assert ended.code == 1
    ((status, reason),) = [(row["status"], row["error"]) for row in rows_of(tmp_path / "run")]
    assert (status, reason) == ("error", "the target's solution has no answer, so its steps cannot be rated")


def test_progress_names_both_models_and_the_end_says_what_a_router_needs(tmp_path: Path) -> None:
    write_problems(tmp_path / "problems.jsonl", 2)
    ended = run(*COLLECT[:-1], cwd=tmp_path)
    assert ended.code == 0
    assert "both models: done" in ended.err
    assert "oracle" not in ended.err
    assert "at least 30" in ended.err.splitlines()[0]
    assert re.search(r"collect about \d+ problems$", ended.err.splitlines()[-1])

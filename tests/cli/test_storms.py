"""Storms: a command is killed and interrupted at random, and repeated until it ends by itself, as if nothing had happened.

The commands run as processes. Whatever happened, each attempt has one row, and its texts are those of an undisturbed run.
"""

import json
import random
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from altered_gguf import alter, entries
from cli import MODELS, TIMEOUT, Result, read_line, run, start
from fake_server import HashServer, on_loopback, storm
from faults import essence, results, rows_of, write_problems, write_rows
from gguf import GGUFValueType
from made_up_tuning import FAST_READER, pretend
from marks import rarely, within

from arbitrage_cli.system.files import models_folder

QUESTIONS = [f"{number} * 12 + {number} * 23 - 5" for number in range(11, 17)]
MAX_REPEATED = 60
ENDS = (0, 130, -signal.SIGKILL, -signal.SIGINT)  # done, interrupted, killed, and interrupted twice

BENCH = ("bench", *MODELS, "--dataset", "problems.jsonl", "-o", "run", "--policy", "target,entropy,random", "--samples", "2")
SOLVE = ("solve", *MODELS, "-i", "problems.jsonl", "-o", "run/results.jsonl", "--policy", "entropy")
COLLECT = ("collect", *MODELS, "--dataset", "problems.jsonl", "-o", "run", "--reward", "rollout")
AGREE = (*BENCH[:-4], "--policy", "agree,target,speculative", "--check", "scripted:target")
SAMPLED = ("--temperature", "0.8", "--seed", "1")  # seed 0 draws a line that the scripted models do not understand
FREE = (("--concurrency", "1"), ("--concurrency", "3"), ("--concurrency", "8"))
"""What may differ whenever a command is repeated that decides it anew."""


CIRCUMSTANCES = ("conditions", "concurrency", "target_prefill_tokens")
"""Fields that say what a process did: a new one reads the prefix of all prompts again."""


def latest(rows: Sequence[dict[str, Any]]) -> dict[tuple[Any, ...], Any]:
    """The rows by their attempts, without their circumstances. No row follows one that is done."""
    made: dict[tuple[Any, ...], Any] = {}
    for row in rows:
        key = row["id"], row.get("sample"), row["policy"], row["tau"]
        assert made.get(key, {}).get("status") != "done", f"{key} twice"
        made[key] = essence(row, CIRCUMSTANCES)
    return made


def whole_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


def weather(draw: random.Random) -> dict[str, Any]:
    """What happens to a process: it is killed before, in or after a change of a file, or it is interrupted."""
    action, calls = draw.choice(
        [("kill", None), ("half and killed", ["write"]), ("after", ["replace", "fsync"]), ("interrupt", None)]
    )
    return {"fault": {"number": draw.randint(1, 14), "action": action, "calls": calls}}


def through_a_storm(
    command: Sequence[str],
    folder: Path,
    seed: int,
    free: Sequence[Sequence[str]] = ((),),
    failed: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
) -> Result:
    """Repeat a command that is disturbed at random until it succeeds. Return the result of another repetition.

    `free` has the options that may differ, and `failed` the exit codes of attempts that failed and are tried again.
    """
    draw, found = random.Random(seed), set[int]()
    for _ in within(60.0, range(MAX_REPEATED)):
        ended = run(*command, *draw.choice(free), "-q", cwd=folder, env=env, **weather(draw))
        assert ended.code in (*ENDS, *failed), ended.err
        assert "Traceback" not in ended.err
        latest(whole_rows(folder / "run" / "results.jsonl"))
        found.add(ended.code)
        if ended.code == 0:
            break
    assert len(found) > 1, "nothing happened"
    return run(*command, "-q", cwd=folder, env=env)


@pytest.mark.parametrize(
    ("command", "free", "seed"),
    [
        ((*BENCH, *SAMPLED), ((),), 0),
        (SOLVE, FREE, 1),
        (COLLECT, FREE, 2),
        *rarely(
            *(((*BENCH, "--concurrency", "4"), ((),), seed) for seed in (3, 4)),
            (AGREE, ((),), 9),
            *(((*SOLVE, *SAMPLED), FREE, seed) for seed in (5, 6)),
            *((COLLECT, FREE, seed) for seed in (7, 8)),
        ),
    ],
)
def test_a_storm_changes_no_row(
    quick_path: Path, command: tuple[str, ...], free: tuple[tuple[str, ...], ...], seed: int
) -> None:
    folders = [quick_path / name for name in ("golden", "storm")]
    for folder in folders:
        (folder / "run").mkdir(parents=True)
        write_problems(folder / "problems.jsonl", QUESTIONS)
    assert run(*command, "-q", cwd=folders[0]).code == 0
    assert through_a_storm(command, folders[1], seed, free).code == 0
    golden, found = (latest(rows_of(folder / "run")) for folder in folders)
    assert found == golden


@pytest.mark.slow
def test_advice_survives_a_storm(quick_path: Path) -> None:
    """Which attempts it makes depends on the time, but not their texts."""
    env = {"XDG_CONFIG_HOME": str(quick_path)}
    pretend(quick_path / "arbitrage" / "tuned.json", FAST_READER)
    write_problems(quick_path / "problems.jsonl", [f"{number} + {number * 7}" for number in range(11, 17)])
    command = ("advise", "--dataset", "problems.jsonl", "--minutes", "0.05", "--threads", "1", "--offline")
    assert run(*command, "-o", "golden", cwd=quick_path, env=env).code == 0
    assert through_a_storm((*command, "-o", "run"), quick_path, 10, env=env).code == 0
    golden, found = (latest(rows_of(quick_path / name)) for name in ("golden", "run"))
    assert golden.keys() & found.keys()
    assert [key for key in golden.keys() & found.keys() if golden[key]["text"] != found[key]["text"]] == []


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["entropy@0.1", "agree"])
def test_a_storm_of_a_server_and_of_kills_does_nothing_twice(quick_path: Path, policy: str) -> None:
    write_problems(quick_path / "problems.jsonl", [f"{number} + 1" for number in range(12)])
    checker = ("--check", "scripted:target") if policy == "agree" else ()
    server = HashServer()
    with on_loopback(server) as address:
        models = ("--draft", "scripted:draft", "--target", address, *checker, "--concurrency", "4")
        command = ("bench", *models, "--dataset", "problems.jsonl", "--policy", f"target,{policy}", "-o", "run")
        server.faults = storm(0.2)
        assert through_a_storm(command, quick_path, 9, failed=[1]).code == 0
    rows = latest(rows_of(quick_path / "run"))
    assert len(rows) == 24
    assert {row["status"] for row in rows.values()} == {"done"}


# --- texts of others


ODD = '\u0085 1 + 3 \u2028 }{ \u001b]0;title\u0007 \\boxed{9} \u202e \ud800 {"id": "p0", "status": "done"}'


def test_hostile_texts_break_neither_row_nor_resume(quick_path: Path) -> None:
    rows = [{"id": f"odd\u2028\u001b[2J\n{number}", "question": f"{number}: {ODD}", "answer": 4} for number in range(3)]
    write_rows(quick_path / "problems.jsonl", rows)
    (quick_path / "run").mkdir()
    for command in (BENCH, COLLECT, SOLVE):
        shutil.rmtree(quick_path / "run")
        (quick_path / "run").mkdir()
        assert (
            run(*command, cwd=quick_path, fault={"number": 9, "action": "half and killed", "calls": ["write"]}).code in ENDS
        )
        result = run(*command, cwd=quick_path)
        assert result.code == 0, result.err
        assert b"\x1b" not in result.stdout + result.stderr
        found = latest(rows_of(quick_path / "run"))
        assert len(found) == 3 * {"bench": 6}.get(command[0], 1)
        assert {row["status"] for row in found.values()} == {"done"}
        texts = {json.dumps(row.get("problem", row.get("question"))) for row in found.values()}
        assert len(texts) == 3
        assert len({row["id"] for row in found.values()}) == 3


# --- real models


@pytest.mark.slow
def test_real_models_end_alike_in_any_order_and_after_a_kill(quick_path: Path) -> None:
    """A problem's rows do not depend on the problems before it, nor on how often the process began."""
    problems = [json.loads(line) for line in (models_folder() / "builtin-dev.jsonl").read_bytes().splitlines()[:3]]

    def bench(output: str, asked: Sequence[dict[str, Any]], **order: Any) -> int:
        write_rows(quick_path / f"{output}.jsonl", asked)
        policies = ("--policy", "target,entropy@0.1,random,speculative", "--threads", "1")
        command = ("bench", "--dataset", f"{output}.jsonl", *policies, "-q", "-o", output)
        return run(*command, cwd=quick_path, env={"XDG_CONFIG_HOME": str(quick_path)}, **order).code

    assert bench("whole", problems) == 0
    undisturbed = results(rows_of(quick_path / "whole"))
    assert len(undisturbed) == 12
    torn = {"fault": {"number": 8, "action": "half and killed", "calls": ["write"]}}
    assert bench("torn", problems, **torn) == -signal.SIGKILL
    assert 0 < len(whole_rows(quick_path / "torn" / "results.jsonl")) < 12
    assert bench("torn", problems) == 0
    for count in (1, 2, 3):
        assert bench("backwards", problems[::-1][:count]) == 0
    for other in ("torn", "backwards"):
        assert results(rows_of(quick_path / other)) == undisturbed


def test_a_file_of_results_resumes_with_what_the_models_files_say(quick_path: Path, tiny: Mapping[str, Path]) -> None:
    """The draft thinks by itself, and its template asks for it."""
    template = str(entries(tiny["draft"])["tokenizer.chat_template"][1])
    thinks = template + "{% if enable_thinking | default(true) %}<think>\n{% endif %}{# until </think> #}"
    thinker = alter(tiny["draft"], quick_path / "thinker.gguf", {"tokenizer.chat_template": (GGUFValueType.STRING, thinks)})
    write_problems(quick_path / "problems.jsonl", QUESTIONS[:3])
    models = ("--draft", str(thinker), "--target", str(tiny["target"]), "--policy", "entropy", "--ctx", "1024")
    command = ("solve", *models, "--threads", "1", "--max-tokens", "40", "-i", "problems.jsonl", "-o", "out.jsonl")
    assert run(*command, cwd=quick_path).code == 0
    whole = rows_of(quick_path, "out.jsonl")
    assert run(*command[:-1], "torn.jsonl", "--limit", "1", cwd=quick_path).code == 0
    assert run(*command[:-1], "torn.jsonl", cwd=quick_path).code == 0
    assert latest(rows_of(quick_path, "torn.jsonl")) == latest(whole)
    assert {row["settings"]["think_tokens"] for row in whole} == {None}
    assert {step["phase"] for row in whole for step in row["steps"]} >= {"think"}


# --- at a bad moment


def test_interrupt_while_an_answer_is_graded_costs_that_attempt_only(quick_path: Path) -> None:
    write_problems(quick_path / "problems.jsonl", QUESTIONS[:2])
    grading = "arbitrage_cli.problems.math_grader.MathGrader.grade"
    stopped = run(*BENCH, "-q", cwd=quick_path, interrupt_in=grading, call=5)
    assert (stopped.code, stopped.out) == (130, "")
    kept = latest(rows_of(quick_path / "run"))
    assert len(kept) == 4
    assert run(*BENCH, "-q", cwd=quick_path).code == 0
    found = latest(rows_of(quick_path / "run"))
    assert len(found) == 12
    assert kept.items() <= found.items()


def test_a_file_moved_while_it_is_written_gets_all_results(tmp_path: Path) -> None:
    with start("solve", *MODELS, "-o", "out.jsonl", "--format", "json", cwd=tmp_path) as process:
        process.stdin.write(b"1 + 1\n")
        process.stdin.flush()
        assert json.loads(read_line(process))["answer"] == "2"
        (tmp_path / "out.jsonl").rename(tmp_path / "moved.jsonl")
        process.stdin.write(b"2 + 2\n")
        process.stdin.close()
        assert process.wait(TIMEOUT) == 0
    assert [row["answer"] for row in rows_of(tmp_path, "moved.jsonl")] == ["2", "4"]
    assert not (tmp_path / "out.jsonl").exists()

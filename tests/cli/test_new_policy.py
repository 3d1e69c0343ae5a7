"""A new policy is a row of the table and a flow: every command can use it, and nothing else has to know it."""

import json
import sys
from pathlib import Path
from typing import Any

from cli import HERE, MODELS, QUESTION, Result, run, served
from made_up_policy import BEGIN

WITH_IT = (sys.executable, str(HERE / "made_up_policy.py"))


def with_it(*arguments: str, **options: Any) -> Result:
    return run(*arguments, has_made_up_policy=True, **options)


def problems_in(folder: Path) -> str:
    path = folder / "problems.jsonl"
    rows = [{"question": f"{n} * 12 - 95", "answer": str(n * 12 - 95)} for n in range(31, 37)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def models_of(record: dict[str, Any]) -> list[str]:
    return [step["model"] for step in record["steps"]]


def test_solve_follows_it() -> None:
    assert run("solve", *MODELS, "--policy", "begin", QUESTION).code == 2
    record = with_it("solve", *MODELS, "--policy", "begin", "--json", QUESTION).record
    assert (record["policy"], record["tau"]) == ("begin", None)
    assert models_of(record) == ["target", *["draft"] * (len(record["steps"]) - 1)]


def test_bench_compares_it_and_the_page_shows_it(tmp_path: Path) -> None:
    folder, page = tmp_path / "run", tmp_path / "page.html"
    compared = ("--policy", "target,begin", "--dataset", problems_in(tmp_path))
    made = with_it("bench", *MODELS, *compared, "-o", str(folder), "--json", "-q").record
    target, begin = made["policies"]
    assert (begin["route"], begin["n"], begin["errors"], begin["missing"]) == ("begin", 6, 0, 0)
    assert target["speedup"] == 1.0
    assert begin["speedup"] > 0
    assert [one["route"] for one in made["verdict"]["candidates"]] == ["begin"]
    assert with_it("report", str(folder), "-o", str(page), "-q").code == 0
    assert "begin" in page.read_text()


def test_advise_tries_it(tmp_path: Path) -> None:
    run_of = ("--dataset", problems_in(tmp_path), "-o", str(tmp_path / "run"))
    env = {"XDG_CONFIG_HOME": str(tmp_path)}  # other tests do not follow this advice
    made = with_it("advise", *MODELS, "--minutes", "0.5", *run_of, "--json", "-q", env=env).record
    begin = next(one for one in made["policies"] if one["policy"] == "begin")
    assert begin["correct"] + begin["incorrect"] > 0


def test_serve_offers_it() -> None:
    asked = {"model": BEGIN.name, "messages": [{"role": "user", "content": QUESTION}]}
    with served(program=WITH_IT) as (_, client):
        assert BEGIN.name in {model["id"] for model in client.get("/models").json()["data"]}
        usage = client.post("/chat/completions", json=asked).json()["usage"]
        assert usage["draft_tokens"] > usage["target_tokens"] > 0

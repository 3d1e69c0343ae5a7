"""Any file, model or server response is read, or raises one of the program's own errors, in bounded time.

The default run takes a few seconds. `ARBITRAGE_FUZZ=600 python -m pytest tests/fuzz` takes 600 seconds. Inputs that once failed
are among the examples of the corpus, or have a test beside the code.
"""

import io
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import fake_hub
import pytest
from cli import run
from commands import asked_to_bench, bench, typed
from damage import DAMAGES, TEMPLATES
from faults import run_json, write_problems
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up_runs import make_run, write_run_folder

from arbitrage_cli.app.asking.locate import card_of_run
from arbitrage_cli.app.commands.preview import preview
from arbitrage_cli.app.deciding.plan import plan_without_models
from arbitrage_cli.display.page import Traces, render
from arbitrage_cli.errors import DamagedRunError, DefectError, HubError, ModelError, RouterError, TemplateError, UsageError
from arbitrage_cli.evaluation.metrics import figures
from arbitrage_cli.inference.chat_template import ChatPrompt
from arbitrage_cli.inference.servers.dialects import LlamaServer, Vllm
from arbitrage_cli.inference.servers.responses import ServerFacts
from arbitrage_cli.model_files import hub
from arbitrage_cli.model_files.gguf import read_facts
from arbitrage_cli.model_files.hub import HubName
from arbitrage_cli.model_files.pairs import read_pairs
from arbitrage_cli.problems.answers import compare, final_answer, gold_answer
from arbitrage_cli.problems.math_grader import MathGrader
from arbitrage_cli.problems.rows import make_dataset, read_json_rows, read_problems
from arbitrage_cli.routing.equations import check_equations
from arbitrage_cli.routing.router import load
from arbitrage_cli.runs.folder import list_runs, read_run_folder
from arbitrage_cli.system.files import models_folder
from arbitrage_cli.types import Problem

SECONDS = float(os.environ.get("ARBITRAGE_FUZZ", "0"))
NUM_TARGETS = 10
SLOW = 30.0  # seconds that no example may take
Check = Callable[[Any], None]


def fuzz(strategy: st.SearchStrategy[Any], check: Check, *, corpus: Sequence[Any] = (), examples: int = 20) -> None:
    """Check the corpus, then examples, repeatedly until this target's time is up."""
    end = time.monotonic() + SECONDS / NUM_TARGETS

    @settings(max_examples=examples, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def one_round(example: Any) -> None:
        timed(check, example)

    for example in corpus:
        timed(check, example)
    one_round()
    while time.monotonic() < end:
        one_round()


def timed(check: Check, example: Any) -> None:
    began = time.monotonic()
    check(example)
    assert time.monotonic() - began < SLOW


def changed(data: bytes) -> st.SearchStrategy[bytes]:
    place = st.integers(0, len(data))
    edits = st.tuples(
        place, st.integers(0, 9), st.one_of(st.binary(max_size=8), st.sampled_from([b"\n", b'"', b"1e999", b"[" * 999]))
    )

    def apply(changes: list[tuple[int, int, bytes]]) -> bytes:
        made = bytearray(data)
        for start, length, new in changes:
            made[start : start + length] = new
        return bytes(made)

    return st.lists(edits, min_size=1, max_size=4).map(apply)


def words(*parts: str) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(parts) | st.text(max_size=3) | st.integers().map(str), max_size=30).map("".join)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)


def altered(answer: Any) -> st.SearchStrategy[Any]:
    if isinstance(answer, dict):
        inner = {name: altered(value) for name, value in answer.items()}
        return st.one_of(st.fixed_dictionaries({}, optional=inner), *[st.fixed_dictionaries(inner)] * 4, json_values)
    if isinstance(answer, list):
        return st.one_of(st.lists(altered(answer[0]), max_size=3), json_values) if answer else json_values
    return st.one_of(st.just(answer), json_values)


def test_model_files(tiny: Mapping[str, Path], quick_path: Path) -> None:
    cache = {"XDG_CACHE_HOME": str(quick_path / "cache")}
    command = ("solve", "--policy", "draft", "--threads", "1", "--max-tokens", "4", "-q", "--draft")

    def check(case: tuple[str, str, int]) -> None:
        source, kind, seed = case
        path = quick_path / "damaged.gguf"
        DAMAGES[kind](random.Random(seed), tiny[source], path)
        with suppress(ModelError):
            read_facts([path])
        result = run(*command, path, "1 + 1 = \u20ac", cwd=quick_path, env=cache)
        assert 0 <= result.code < DefectError.exit_code, result.err
        assert [one.name for one in quick_path.iterdir() if one.name == "CANARY"] == []

    cases = st.tuples(st.sampled_from(["draft", "target", "spm"]), st.sampled_from(sorted(DAMAGES)), st.integers(0, 2**32))
    fuzz(cases, check, examples=3)


def test_templates() -> None:
    def check(template: str) -> None:
        with suppress(TemplateError):
            ChatPrompt(template, ["<|im_start|>"]).for_problem(Problem("", "q"))

    parts = ("{{", "}}", "{%", "%}", "m.content", "messages", "|", " sum(start=[]) ", "*", "[[1]]")
    hostile = TEMPLATES if SECONDS else TEMPLATES[:1]
    blocks = (" for m in messages ", " endfor ", " raise_exception('x') ", "('A' * 99999999)", " set x = ", "range(99999)")
    fuzz(words(*parts, *blocks), check, corpus=hostile)


def test_routers(tmp_path: Path) -> None:
    path = tmp_path / "router.safetensors"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        with suppress(RouterError):
            load(path)

    fuzz(changed((models_folder() / "universal.safetensors").read_bytes()), check)


@pytest.fixture
def here(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(quick_path))
    monkeypatch.chdir(quick_path)
    return quick_path


@pytest.fixture
def finished_run(quick_path: Path) -> Path:
    write_problems(quick_path / "problems.jsonl", ["1 + 1", "2 + 2"])
    command = ("bench", "--pair", "scripted", "--dataset", "problems.jsonl", "-o", "run", "-q")
    assert run(*command, cwd=quick_path).code == 0
    return quick_path / "run"


def test_rows_of_runs(finished_run: Path) -> None:
    paths = [finished_run / name for name in ("results.jsonl", "run.json")]
    results, about = (path.read_bytes() for path in paths)
    first, rest = results.split(b"\n", 1)

    def check(results: bytes, about: bytes = about) -> None:
        for path, data in zip(paths, (results, about), strict=True):
            path.write_bytes(data)
        with suppress(UsageError, DamagedRunError):
            contents = read_run_folder(finished_run)
            json.dumps(figures(contents.run, contents.results, card_of_run(contents.run)).to_json(), allow_nan=False)

    fuzz(changed(results), check)
    fuzz(altered(json.loads(first)), lambda row: check(json.dumps(row).encode() + b"\n" + rest))
    fuzz(altered(json.loads(about)), lambda run: check(results, json.dumps(run).encode()))


ODD: Sequence[Any] = (None, True, -1, 0, 10**30, 1e30, "", "x\x1b]0;title\x07", [], {}, "inf")


def leaves(content: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if not isinstance(content, dict | list):
        yield place
        return
    for name, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield (*place, name)
        yield from leaves(value, (*place, name))


def test_each_value_of_run_json(here: Path) -> None:
    """An odd value is refused when it is read, or it changes nothing: no later part of the program stumbles over it."""
    write_problems(here / "problems.jsonl", ["1 + 1", "2 + 2"])
    bench(here, typed(pair="builtin", policy="target,arbitrage@0.5,draft", max_tokens=8))
    path = here / "run" / "run.json"
    whole = path.read_bytes()
    show(here)
    resume(here)
    draw = random.Random(0)
    for place in dict.fromkeys(leaves(json.loads(whole))):
        for value in ODD if SECONDS else draw.sample(ODD, 1):
            path.write_text(json.dumps(with_value(json.loads(whole), place, value)))
            for use in (show, resume):
                with suppress(UsageError, DamagedRunError):
                    use(here)


def with_value(content: Any, place: Sequence[Any], value: Any) -> Any:
    inner = content
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    return content


def show(folder: Path) -> None:
    """All that `report` shows of a run."""
    contents = read_run_folder(folder / "run")
    found = figures(contents.run, contents.results, card_of_run(contents.run))
    json.dumps(found.to_json(), allow_nan=False)
    traces = Traces()
    list(traces.watch(contents.rows))
    render(contents.run, found, traces)
    list_runs(folder)


def resume(folder: Path) -> None:
    """The decisions of a command that resumes a run, up to the first attempt."""
    asked, _ = asked_to_bench(folder, typed())
    preview(plan_without_models(asked.request), asked.selected, asked.path, asked.samples)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("decided.machine.cpu", {}),
        ("decided.machine.cpu", -1),
        ("decided.machine.cpu", None),
        ("decided.router", {"name": "builtin", "sha256": 7}),
        *(("decided.settings.sampler.temperature", value) for value in (1e30, -0.1)),
        ("decided.settings.sampler.top_p", 1.5),
        *(("decided.settings.limits.target.max_steps", value) for value in (0, -1)),
        ("decided.settings.limits.draft.thinking.max_tokens", -1),
        ("decided.concurrency", 10**9),
        *(("decided.models.draft.threads", value) for value in (0, 10**6)),
        ("samples", 0),
    ],
)
def test_values_of_run_json_out_of_range_are_damage(here: Path, place: str, value: Any) -> None:
    write_run_folder(here / "run", make_run(2))
    changed = with_value(run_json(here / "run"), place.split("."), value)
    (here / "run" / "run.json").write_text(json.dumps(changed))
    with pytest.raises(DamagedRunError, match=place.rpartition(".")[2]):
        read_run_folder(here / "run")


def test_settings_and_pairs(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"

    def check(text: str) -> None:
        path.write_text(text, encoding="utf-8", errors="replace")
        with suppress(UsageError):
            read_pairs(path)
        result = run("models", "list", "--config", str(path))
        assert result.code in (0, 2), result.err

    corpus = ["a = " + "[" * 500 + "]" * 500, "a = " + "9" * 5000, "[models]\nlist = 1"]
    parts = '[mine] draft.source target.source "x" ctx [ ] pair max-tokens true { } 1e999'
    fuzz(words("\n", " = ", *parts.split()), check, corpus=corpus, examples=5)


def test_problems_and_data_sets() -> None:
    def check(data: bytes) -> None:
        list(read_problems(io.BytesIO(data)))
        with suppress(UsageError):
            make_dataset("fuzzed", read_json_rows(io.BytesIO(data)))

    good = b'{"id": "a", "question": "1 + 1", "answer": "2", "level": 1}\n{"question": "2 + 2", "answer": [4, 0.5]}\n'
    fuzz(
        changed(good),
        check,
        corpus=[b"\xef\xbb\xbf" + good, b"[" * 100_000, b"\xff\n", b"\0\n", good.replace(b"2", b"9" * 5000)],
    )


def test_answers_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = {"rfilename": "model-Q4_0.gguf", "size": 1, "lfs": {"size": 1, "sha256": "a" * 64, "pointerSize": 130}}
    answer = {"id": "user/repo", "sha": "b" * 40, "siblings": [file]}

    with fake_hub.running() as served:
        fake_hub.use(served, monkeypatch, tmp_path)
        served.repos["user/repo"] = {"model-Q4_0.gguf": b"x"}

        def check(made: Any) -> None:
            served.failure = fake_hub.Failure(200, body=json.dumps(made), path="/api/")
            with suppress(HubError):
                assert [path.stat().st_size for path in hub.fetch(HubName("user/repo", "Q4_0"))] == [1]

        files = [1, {"rfilename": 7}, {**file, "lfs": [1]}]
        wrong = [[answer], None, {**answer, "sha": 7}, *({**answer, "siblings": one} for one in (5, files))]
        fuzz(altered(answer), check, corpus=[answer, *wrong])


def test_answers_of_servers() -> None:
    choice = {"text": "x\n\n", "finish_reason": "stop", "stop_reason": None, "token_ids": [1], "logprobs": None}
    logprobs = {"tokens": ["x"], "token_logprobs": [-0.1], "top_logprobs": [{"x": -0.1}], "text_offset": [0]}
    timings = {"prompt_n": 1, "prompt_ms": 1.0, "predicted_n": 1, "predicted_ms": 1.0, "cache_n": 0}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 1}}
    llama = {"content": "x", "stop": True, "stop_type": "word", "tokens": [1], "timings": timings}
    answer = {"choices": [{**choice, "logprobs": logprobs}], "usage": usage, **llama}

    def check(made: Any) -> None:
        for dialect in (Vllm(), LlamaServer()):
            with suppress(ValueError):  # of a field of the wrong type
                dialect.read(made)
        with suppress(ValueError):  # of a field of the wrong type
            ServerFacts.model_validate(made)

    fuzz(altered(answer), check, corpus=[answer])


MATHS = "\\boxed{|}|\\frac{|{|^|9^{9^{9^9}}|(10^8)!|\\sqrt{|=| + |*|/|(|)|,|.|\\pi|x"


@pytest.fixture
def grader(monkeypatch: pytest.MonkeyPatch) -> Iterator[MathGrader]:
    monkeypatch.setattr("arbitrage_cli.system.child.WALL_FACTOR", 200)  # for busy machines
    with MathGrader(seconds=0.5) as grader:
        yield grader


def test_answers_to_grade(grader: MathGrader) -> None:
    """Only math-verify may fail, in its child process, and then the answer is unscored."""

    def check(texts: tuple[str, str]) -> None:
        row, text = {"answer": texts[0]}, f"\\boxed{{{texts[1]}}}"
        gold, answer = gold_answer(row), final_answer(text)
        if gold is not None and answer.answer is not None:
            compare(gold, answer.answer)
        assert grader.grade(text, row).value in ("correct", "incorrect", "unscored")

    maths = words(*MATHS.split("|"))
    corpus = [
        ("1", "9^{9^{9^9}}"),
        ("x", "(10^8)!"),
        ("2", "\\boxed{__import__('os').system('touch CANARY')}"),
        ("1", "1" * 9999),
    ]
    fuzz(st.tuples(maths, maths), check, corpus=corpus if SECONDS else corpus[2:], examples=8)


def test_equations() -> None:
    def check(text: str) -> None:
        check_equations(text)

    fuzz(words(*MATHS.split("|"), "%", "$", "\u00d7", "1e999", "3 1/2", "10^99"), check)

"""What ships with the program: two language models of grade-school arithmetic, run by llama.cpp, and problems to try them on."""

import hashlib
import importlib.util
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import llama_cpp.llama_cpp as c
import pytest
from cli import Result, run
from small_heads import write_head
from writing import make_engine

from arbitrage_cli.arbitrage import ScoreSteps
from arbitrage_cli.inference.backend import Options
from arbitrage_cli.inference.llama import backend as llama
from arbitrage_cli.inference.llama.backend import LlamaBackend
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Scheduler
from arbitrage_cli.inference.step_text import SEPARATOR
from arbitrage_cli.model_files.pairs import UNIVERSAL_HEAD, find_files, head_file, models_folder, read_pairs
from arbitrage_cli.rewards.prm import ProcessReward
from arbitrage_cli.routing.head_file import load
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.types import Cost, Decision, Finished, Limits, ModelRole, Problem, Step, Trace

MODELS = models_folder()
ROLES: tuple[ModelRole, ...] = ("draft", "target")
SLOTS = 4


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (MODELS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def solve(*arguments: str, stdin: bytes = b"") -> Result:
    return run("solve", *arguments, stdin=stdin)


@pytest.fixture(scope="module")
def generate() -> Iterator[ModuleType]:
    """The generator of the problems, which is no part of the package."""
    path = MODELS / "recipe" / "generate.py"
    if not path.exists():
        pytest.skip("the recipe is not here")
    spec = importlib.util.spec_from_file_location("generate", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["generate"]


@pytest.fixture(scope="module")
def backends() -> Iterator[dict[ModelRole, LlamaBackend]]:
    """Both models, loaded once."""
    options = Options(threads=1, num_sequences=SLOTS)
    opened = {role: LlamaBackend(find_files(f"builtin:{role}")[0], options) for role in ROLES}
    yield opened
    for backend in opened.values():
        backend.close()


def texts(
    backends: dict[ModelRole, LlamaBackend],
    problems: list[Problem],
    policy: str,
    tau: float | None = None,
    *,
    concurrency: int = 1,
    use_proposals: bool = True,
) -> dict[str, str]:
    """The text of each problem's solution."""
    engines = {
        role: make_engine(
            role, backends[role], Sampler(), instructions="", keep_token_stats=role == "draft", use_proposals=use_proposals
        )
        for role in ROLES
    }
    chosen = POLICIES[policy]
    scheduler = Scheduler(engines, lambda trace: chosen.flow(trace, tau, 0), Limits(), concurrency=concurrency)
    return {event.trace.problem.id: event.trace.text for event in scheduler.run(problems) if isinstance(event, Finished)}


def some_problems(each: int = 3) -> list[Problem]:
    """Some of every level."""
    by_level = itertools.groupby(rows("builtin-dev"), key=lambda row: row["level"])
    return [Problem(row["id"], row["problem"]) for _, level in by_level for row in itertools.islice(level, each)]


def test_it_works_at_once() -> None:
    """Without a model being named, an arithmetic problem is solved, and what the models are is said once."""
    result = solve("What is 37 * 12 - 95?")
    assert (result.code, result.out.strip()) == (0, "349")
    assert result.err.count("know only grade-school arithmetic") == 1
    assert "arbitrage models pull" in result.err


def test_the_warning_comes_with_any_answer() -> None:
    """A problem that they know nothing of: no confidence without the warning."""
    result = solve("Who wrote Faust?", "--max-tokens", "60")
    assert "know only grade-school arithmetic" in result.err


def test_an_odd_pair_is_noted(tmp_path: Path) -> None:
    """One file for both, by whatever name, and a target that is smaller than its draft: by solve and by bench."""
    small, large = (find_files(f"builtin:{role}")[0] for role in ROLES)
    link = tmp_path / "link.gguf"
    link.symlink_to(small)
    same, swapped = "draft and target are the same file", "is smaller than the draft's"
    bench = ("bench", "--dataset", "builtin", "--limit", "1", "--policy", "target,entropy", "-o", str(tmp_path / "run"))
    for command in (("solve", "1 + 1", "--policy", "entropy"), bench):
        for draft, target, words in [(small, link, same), (large, small, swapped), (small, large, None)]:
            pair = ("--draft", str(draft), "--target", str(target))
            told = run(*command, *pair, "--max-tokens", "1", *(["--fresh"] if command is bench else [])).err
            assert [told.count(one) for one in (same, swapped)] == [words == same, words == swapped], told
    alone = solve("1 + 1", "--policy", "target", "--draft", str(large), "--target", str(small), "--max-tokens", "1").err
    assert swapped not in alone


def test_more_threads_than_processors_are_noted() -> None:
    """In one line; as many as there are say nothing."""
    num_processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    short = ("1 + 1", "--policy", "draft", "--max-tokens", "1", "--threads")
    told = solve(*short, str(num_processors + 1)).err
    assert told.count(f"{num_processors + 1} threads on {num_processors} logical processors") == 1
    assert "logical processors" not in solve(*short, str(num_processors)).err


def test_the_record_names_the_models() -> None:
    """Who reads the JSON only is told too."""
    (record,) = solve("5 + 6", "--json").records
    assert (record["draft"], record["target"]) == ("builtin:draft", "builtin:target")
    assert "built-in draft" in record["models"]["draft"]
    assert record["settings"]["system"] == ""


def test_naming_one_model_is_not_naming_the_built_in_pair() -> None:
    """A target that was forgotten is not replaced by a toy."""
    result = solve("5 + 6", "--draft", "builtin:draft", "--policy", "target")
    assert result.code == 2
    assert "needs a target model" in result.err


def test_ways_to_ask() -> None:
    """What people type in that spirit is understood."""
    questions = {
        "12 + 30": "42",
        "what's 8 times 7?": "56",
        "Tom has 5 apples and buys 3 more. How many apples does he have now?": "8",
        "Ben buys 4 books at $6 each. What is the total cost?": "24",
        "What is 25% of 80?": "20",
        "How many minutes are 3 hours?": "180",
    }
    records = solve("--policy", "target", stdin="\n".join(questions).encode()).records
    answers = {record["problem"]: record["answer"] for record in records}
    right = [question for question, answer in questions.items() if answers[question] == answer]
    assert len(right) >= len(questions) - 1, answers


def test_extreme_taus_are_the_models_alone(backends: dict[ModelRole, LlamaBackend]) -> None:
    """An infinite tau is the draft alone, a negative one the target alone."""
    problems = some_problems()
    assert texts(backends, problems, "entropy", float("inf")) == texts(backends, problems, "draft")
    alone = texts(backends, problems, "target")
    assert texts(backends, problems, "entropy", -1.0, use_proposals=False) == alone


def test_proposals_change_no_text_but_at_near_ties(backends: dict[ModelRole, LlamaBackend]) -> None:
    """Kernels for several tokens differ from those for one in the last bits: hardly ever in a token."""
    problems = some_problems()
    with_them = texts(backends, problems, "random", 0.5)
    without = texts(backends, problems, "random", 0.5, use_proposals=False)
    same = sum(with_them[problem.id] == without[problem.id] for problem in problems)
    assert same >= len(problems) - 1


def test_many_at_once_are_solved_as_one(backends: dict[ModelRole, LlamaBackend]) -> None:
    """But for near-ties."""
    problems = some_problems()
    alone = texts(backends, problems, "target")
    together = texts(backends, problems, "target", concurrency=SLOTS)
    assert sum(alone[problem.id] == together[problem.id] for problem in problems) >= len(problems) - 1


def test_large_models_solve_many_at_once_too(
    monkeypatch: pytest.MonkeyPatch, backends: dict[ModelRole, LlamaBackend]
) -> None:
    """All sequences of a model that is too large for the processor's cache share one KV cache: the same texts."""
    problems = some_problems(2)
    expected = texts(backends, problems, "entropy", 1.0)
    monkeypatch.setattr(llama, "CACHED_BYTES", 0)
    options = Options(threads=1, num_sequences=SLOTS, kv_type="f16")
    with ExitStack() as stack:
        shared = {role: stack.enter_context(LlamaBackend(find_files(f"builtin:{role}")[0], options)) for role in ROLES}
        sizes = [c.llama_n_ctx_seq(backend._context) for backend in shared.values()]
        assert sizes == [SLOTS * backend.card.context_size for backend in shared.values()]  # llama.cpp's word for one cache
        together = texts(shared, problems, "entropy", 1.0, concurrency=SLOTS)
        (plain,) = find_files("builtin:draft")
        without = stack.enter_context(LlamaBackend(plain, replace(options, flash_attention=False)))
        assert c.llama_n_ctx_seq(without._context) == without.card.context_size  # it would take much memory
    assert sum(expected[problem.id] == together[problem.id] for problem in problems) >= len(problems) - 1


def test_their_narrow_heads_have_an_attention_of_their_own(backends: dict[ModelRole, LlamaBackend]) -> None:
    """Which is faster and writes the same texts, but for near-ties; and whoever asks for something else gets that."""
    problems = some_problems()
    expected = texts(backends, problems, "entropy", 1.0)
    assert {backend.card.kv_cache for backend in backends.values()} == {"q8_0/f16"}
    with ExitStack() as stack:
        plain = {
            role: stack.enter_context(
                LlamaBackend(find_files(f"builtin:{role}")[0], Options(threads=1, kv_type="f16", num_sequences=SLOTS))
            )
            for role in ROLES
        }
        assert {backend.card.kv_cache for backend in plain.values()} == {"f16"}
        same = sum(text == expected[name] for name, text in texts(plain, problems, "entropy", 1.0).items())
        asked = stack.enter_context(LlamaBackend(find_files("builtin:draft")[0], Options(flash_attention=True)))
        assert asked.card.kv_cache == "f16"
    assert same >= len(problems) - 1


@pytest.mark.parametrize(("num_sequences", "share"), [(SLOTS, True), (16, False)])
def test_few_of_them_share_a_cache(num_sequences: int, *, share: bool) -> None:
    """As long as it is small; with many, each sequence would skip over too many tokens of the others."""
    with LlamaBackend(find_files("builtin:draft")[0], Options(threads=1, num_sequences=num_sequences)) as backend:
        cells = c.llama_n_ctx_seq(backend._context)  # of all of them, if they share
        assert cells == backend.card.context_size * (num_sequences if share else 1)


def test_all_of_it_is_small() -> None:
    """Models, heads and data sets are at most 24 MB."""
    assert sum(path.stat().st_size for path in MODELS.iterdir() if path.is_file()) <= 24e6


@pytest.mark.parametrize("name", ["builtin", "builtin-dev"])
def test_data_sets_are_whole(name: str) -> None:
    """100 problems a level, whose solutions end with their answers, and whose ids and questions are different."""
    found = rows(name)
    assert Counter(row["level"] for row in found) == dict.fromkeys((1, 2, 3, 4, 5), 100)
    assert len({row["id"] for row in found}) == len({row["problem"] for row in found}) == 500
    for row in found:
        assert row["solution"].endswith(f"The answer is \\boxed{{{row['answer']}}}.")


def test_the_data_sets_come_from_the_recipe(generate: ModuleType) -> None:
    """What ships is what the generator makes."""
    for name, shipped in (("test", "builtin"), ("dev", "builtin-dev")):
        made = [(problem.question, problem.answer, problem.solution) for problem in generate.held_out(name)]
        assert made == [(row["problem"], row["answer"], row["solution"]) for row in rows(shipped)]


def test_no_held_out_problem_is_trained_on(generate: ModuleType) -> None:
    """Not even with other names and things in it; nor do the two sets share one."""
    held_out = {name: {problem.key for problem in generate.held_out(name)} for name in ("test", "dev")}
    assert not held_out["test"] & held_out["dev"]
    for seed in (1, 2, 3):
        trained_on = {problem.key for problem in itertools.islice(generate.training_problems(seed), 4000)}
        assert not trained_on & (held_out["test"] | held_out["dev"])


def test_the_generator_is_right(generate: ModuleType) -> None:
    """Both sides of every equation in a working are equal."""
    for problem in itertools.islice(generate.training_problems(7), 500):
        for line in problem.steps[:-1]:
            sides = [total(side) for side in line.split(": ")[-1].split(" = ")]
            assert max(sides) == pytest.approx(min(sides)), line


def total(side: str) -> float:
    """The value of sums and differences of products and quotients of two numbers."""
    value, sign = 0.0, 1.0
    for part in side.replace(" + ", " +|").replace(" - ", " -|").split("|"):
        term = part.removesuffix(" +").removesuffix(" -")
        left, operator, right = (*term.split(" "), "*", "1")[:3]
        product = float(left) * float(right) if operator == "*" else float(left) / float(right)
        value += sign * product
        sign = -1.0 if part.endswith(" -") else 1.0
    return value


def test_the_card_tells_the_truth() -> None:
    """Sizes and checksums of models/README.md are those of the files."""
    card = (MODELS / "README.md").read_text(encoding="utf-8")
    pair = read_pairs()["builtin"]
    assert pair.head
    shipped = [find_files(source)[0] for source in (pair.draft, pair.target, pair.prm) if source]
    heads = sorted(MODELS.glob("*.safetensors"))
    assert {head_file(pair.head), head_file(UNIVERSAL_HEAD)} <= set(heads)
    for path in (*shipped, *heads, MODELS / "builtin.jsonl", MODELS / "builtin-dev.jsonl"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in card, path.name
        assert f"{path.stat().st_size:,}" in card


def test_the_head_is_of_this_pair() -> None:
    """It was trained on the very files that ship, and is what decides where nothing else is asked for."""
    pair = read_pairs()["builtin"]
    assert pair.head
    head = load(head_file(pair.head))
    (models,) = head.card.pairs
    for role, source in (("draft", pair.draft), ("target", pair.target)):
        (path,) = find_files(source)
        assert models[role]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    (record,) = solve("5 + 6", "--json").records
    assert (record["policy"], record["settings"]["head"]) == ("arbitrage", "builtin")


def test_heads_of_pairs_ship() -> None:
    """Each is called as its pair, of one draft and target, has taus with names, and says where no path of a machine is."""
    with_heads = [pair for pair in read_pairs().values() if pair.head]
    assert {pair.name for pair in with_heads} == {"builtin", "qwen2.5-coder"}
    for pair in with_heads:
        assert pair.head
        card = load(head_file(pair.head)).card
        assert card.name == pair.name
        assert len(card.pairs) == 1
        assert set(card.taus["named"]) == {"exact", "balanced", "fast"}
        assert sum(part["states"] for part in card.data["parts"].values()) >= 1000
        assert not any("/" in word for word in card.command if not word.startswith("../"))


def test_models_without_a_head_of_their_own_have_the_universal_one() -> None:
    """It reads nothing that only one draft has; that it decides is said, in the record too."""
    head = load(head_file(UNIVERSAL_HEAD))
    assert head.card.hidden_size == 0
    files = {role: str(find_files(f"builtin:{role}")[0]) for role in ROLES}
    result = solve("5 + 6", "--json", "--system", "", "--draft", files["draft"], "--target", files["target"])
    (record,) = result.records
    assert (record["policy"], record["settings"]["head"]) == ("arbitrage", "universal")
    assert result.err.count("the universal one decides") == 1
    assert "policy arbitrage (head universal)" in result.err


def test_rating_steps_is_part_of_the_time() -> None:
    """A reward model that is larger than the target takes most of it."""
    (record,) = solve("5 + 6", "--json", "--policy", "rsd").records
    timing = record["timing"]
    spent = {role: timing[role]["prefill_seconds"] + timing[role]["decode_seconds"] for role in ("draft", "target")}
    assert timing["reward"]["seconds"] > 0
    assert record["seconds"] >= sum(spent.values()) + timing["reward"]["seconds"] - 1e-9


def test_a_head_that_reads_hidden_states_is_given_them(quick_path: Path) -> None:
    """By `solve` and by `bench`, where for the other heads the models put none out."""
    digest = hashlib.sha256((MODELS / "draft.gguf").read_bytes()).hexdigest()
    pair = {"draft": {"name": "draft", "sha256": digest}, "target": {"name": "target", "sha256": None}}
    head = str(write_head(quick_path / "hidden.safetensors", hidden_size=2 * 128, pair=pair))
    result = solve("5 + 6", "--json", "--head", head)
    assert result.code == 0, result.err
    assert result.records[0]["settings"]["head"] == "small"
    folder = str(quick_path / "run")
    measured = run("bench", "--dataset", "builtin", "--limit", "1", "--policy", "arbitrage", "--head", head, "-o", folder)
    assert measured.code == 0, measured.err


def test_a_bad_draft_is_stopped_where_that_is_asked_for() -> None:
    """A tau below every probability stops each step at the first look. On this pair a draft spares the target more than it costs."""
    (record,) = solve("What is 37 * 12 - 95?", "--json", "--tau", "-1", "--early-stop").records
    (usual,) = solve("What is 37 * 12 - 95?", "--json", "--tau", "-1").records
    assert record["text"] == usual["text"]
    assert (record["settings"]["early_stop"], usual["settings"]["early_stop"]) == (True, False)
    stopped = [step["discarded"] for step in record["steps"] if step["discarded"]["stop"] == "early"]
    assert {step["tokens"] for step in stopped} == {2}
    assert all(step["discarded"]["stop"] != "early" for step in usual["steps"])
    told = solve("What is 37 * 12 - 95?", "--tau", "-1", "--early-stop").err
    assert told.count("stopped early") == len(stopped) > 1


def test_a_pairs_head_goes_with_its_own_models_only() -> None:
    """With another draft in its place the universal head decides; where no head is asked for, none is talked of."""
    other = str(find_files("builtin:target")[0])
    result = solve("5 + 6", "--json", "--pair", "builtin", "--draft", other)
    assert result.records[0]["settings"]["head"] == "universal"
    unasked = solve("5 + 6", "--json", "--pair", "builtin", "--draft", other, "--policy", "entropy")
    assert "universal" not in unasked.err


def test_the_reward_model_tells_right_steps_from_wrong_ones() -> None:
    """A true solution keeps a high reward at every step; with a slip in one, that and all after it have a low one."""
    pair = read_pairs()["builtin"]
    assert pair.prm
    row = rows("builtin-dev")[250]
    steps = [step + SEPARATOR for step in row["solution"].split(SEPARATOR)]
    digit = max(index for index, character in enumerate(steps[0]) if character.isdigit())
    slip = steps[0][:digit] + str((int(steps[0][digit]) + 1) % 10) + steps[0][digit + 1 :]
    with LlamaBackend(find_files(pair.prm)[0], Options(threads=1)) as backend:
        found = {
            name: rewards_of(backend, row["problem"], way) for name, way in (("true", steps), ("wrong", [slip, *steps[1:]]))
        }
    assert min(found["true"]) > 0.5, found
    assert max(found["wrong"]) < 0.5, found


@pytest.mark.parametrize("style", ["turns", "steps"])
def test_a_model_that_is_no_reward_model_is_refused_before_it_is_used(tmp_path: Path, style: str) -> None:
    """Not after some results, or never: none of its numbers becomes a reward."""
    no_prm = ("--prm", str(MODELS / "draft.gguf"), "--prm-style", style)
    solved = solve("What is 5 + 6?", "--policy", "rsd", *no_prm)
    bench = ("bench", "--dataset", "builtin", "--limit", "2", "--policy", "target,rsd", "-o", str(tmp_path / "run"))
    measured = run(*bench, *no_prm)
    for result in (solved, measured):
        assert (result.code, result.out) == (3, "")
        assert "draft does not score steps: it says + or - with a probability of" in result.err
    assert not (tmp_path / "run").exists()


def rewards_of(backend: LlamaBackend, question: str, steps: list[str]) -> list[float]:
    rater = ProcessReward(backend, "steps")
    trace = Trace(Problem("p", question), Limits())
    rater.open(0, trace.problem)
    rewards: list[float] = []
    for text in steps:
        step = Step("draft", text, 1, Cost(), "separator")
        rater.start(0, ScoreSteps(trace, (step,)))
        (rated,) = rater.tick()
        assert rated.rewards
        rewards += rated.rewards.values
        trace.add(Decision(step))
    rater.close(0)
    return rewards

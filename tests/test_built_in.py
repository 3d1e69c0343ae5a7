"""Files that ship with the program: a pair for grade-school arithmetic, a reward model, routers, and problems."""

import hashlib
import importlib
import itertools
import json
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cli import Result, pair_named_mine, run
from faults import rows_of, write_rows
from hash_language import Proposals, finished_of
from small_routers import write_router
from writing import make_engine

import arbitrage_cli
from arbitrage_cli import open_pair
from arbitrage_cli.arbitrage import RateSteps
from arbitrage_cli.errors import UsageError
from arbitrage_cli.inference.backend import LoadOptions
from arbitrage_cli.inference.llama import backend as llama
from arbitrage_cli.inference.llama.backend import LlamaBackend
from arbitrage_cli.inference.llama.binding import c
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Job, Scheduler
from arbitrage_cli.inference.step_text import BLANK_LINE
from arbitrage_cli.model_files.checksums import sha256_of
from arbitrage_cli.model_files.gguf import read_facts
from arbitrage_cli.model_files.pairs import UNIVERSAL_ROUTER, find_files, read_pairs, router_file
from arbitrage_cli.problems.datasets import load_dataset
from arbitrage_cli.problems.exercises import WORDINGS
from arbitrage_cli.rewards import PrmRater
from arbitrage_cli.routing.equations import check_equations
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.presets import PRESETS
from arbitrage_cli.routing.route import Route
from arbitrage_cli.routing.router import TrainedModel, digest_of_problem, load
from arbitrage_cli.system.files import models_folder
from arbitrage_cli.training.collected import read_states
from arbitrage_cli.types import Cost, Decision, Limits, ModelRole, Problem, Step, Trace

MODELS = models_folder()
ROLES: tuple[ModelRole, ...] = ("draft", "target")
SLOTS = 4


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (MODELS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def solve(*arguments: str, stdin: bytes = b"") -> Result:
    return run("solve", *arguments, stdin=stdin)


@pytest.fixture(scope="module")
def recipe() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a module of the recipe."""
    folder = MODELS / "recipe"
    if not folder.exists():
        pytest.skip("the recipe is not here")
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield importlib.import_module
    for name in ("generate", "lines", "thoughts"):
        if name not in before:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def generate(recipe: Callable[[str], ModuleType]) -> ModuleType:
    return recipe("generate")


@pytest.fixture(scope="module")
def backends() -> Iterator[dict[ModelRole, LlamaBackend]]:
    options = LoadOptions(threads=1, num_sequences=SLOTS)
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
    proposals: Proposals = "drafted",
) -> dict[str, str]:
    engines = {
        role: make_engine(
            role, backends[role], Sampler(), instructions="", keep_token_stats=role == "draft", proposals=proposals
        )
        for role in ROLES
    }
    chosen = POLICIES[policy]
    jobs = (Job(problem, partial(Route(chosen, tau).flow, seed=0), Limits()) for problem in problems)
    finished = finished_of(Scheduler(engines, concurrency=concurrency).run(jobs))
    return {event.trace.problem.id: event.trace.text for event in finished}


def some_problems(each: int = 2) -> list[Problem]:
    by_level = itertools.groupby(rows("builtin-dev"), key=lambda row: row["level"])
    return [Problem(row["id"], row["problem"]) for _, level in by_level for row in itertools.islice(level, each)]


def assert_nearly_same(one: dict[str, str], other: dict[str, str]) -> None:
    """Check that all texts are the same, except for one that may differ at a near-tie."""
    assert one.keys() == other.keys()
    assert sum(one[name] != other[name] for name in one) <= 1


def test_it_works_at_once() -> None:
    result = solve("What is 37 * 12 - 95?")
    assert (result.code, result.out.strip()) == (0, "349")
    assert solve("Who wrote Faust?", "--max-tokens", "60").code == 0


@pytest.mark.parametrize(
    "options", [(), ("--draft", "builtin:draft", "--target", "builtin:target"), ("--system", "Be brief.")]
)
def test_records_warn_of_questions_that_the_models_never_learned(options: tuple[str, ...]) -> None:
    records = solve(*options, "--json", stdin=b"What is 37 * 12 - 95?\n5!\n9.99 + 1\n").records
    extra = "--system" in options
    assert [len(record["warnings"]) for record in records] == [extra, extra + 1, extra + 1]


@pytest.mark.parametrize("name", ["builtin:{}", "{}.gguf"], ids=["by name", "copied"])
def test_its_models_solve_problems_without_the_pair(tmp_path: Path, name: str) -> None:
    for role in ("draft", "target"):
        (tmp_path / f"{role}.gguf").symlink_to(MODELS / f"{role}.gguf")
    models = ("--draft", name.format("draft"), "--target", name.format("target"))
    result = run("solve", *models, "What is 5 + 6?", "-q", cwd=tmp_path)
    assert (result.code, result.out) == (0, "11\n")


def test_swapped_models_are_a_warning() -> None:
    small, large = (str(find_files(f"builtin:{role}")[0]) for role in ROLES)
    for draft, target, policy, count in [
        (large, small, "entropy", 1),
        (small, large, "entropy", 0),
        (large, small, "target", 0),
    ]:
        models = ("--draft", draft, "--target", target, "--policy", policy)
        assert run("solve", "1 + 1", *models, "--max-tokens", "1").err.count("larger than the target's") == count


def test_proposals_and_batches_change_no_text(backends: dict[ModelRole, LlamaBackend]) -> None:
    """Kernels for batches and for single tokens differ in the last bits, which rarely changes a token."""
    problems = some_problems()
    without = texts(backends, problems, "random", 0.5, proposals="none")
    assert_nearly_same(texts(backends, problems, "random", 0.5), without)
    assert_nearly_same(
        texts(backends, problems, "target"), texts(backends, problems, "target", concurrency=SLOTS, proposals="none")
    )


def test_large_models_solve_many_at_once_too(
    monkeypatch: pytest.MonkeyPatch, backends: dict[ModelRole, LlamaBackend]
) -> None:
    problems = some_problems()
    monkeypatch.setattr(llama, "CACHED_BYTES", 0)
    options = LoadOptions(threads=1, num_sequences=SLOTS, kv_type="f16")
    with ExitStack() as stack:
        shared = {role: stack.enter_context(LlamaBackend(find_files(f"builtin:{role}")[0], options)) for role in ROLES}
        sizes = [c.llama_n_ctx_seq(backend._context) for backend in shared.values()]
        assert sizes == [SLOTS * backend.card.context_size for backend in shared.values()]  # as one cache for all
        together = texts(shared, problems, "entropy", 1.0, concurrency=SLOTS)
        (plain,) = find_files("builtin:draft")
        without = stack.enter_context(LlamaBackend(plain, replace(options, flash_attention=False)))
        assert c.llama_n_ctx_seq(without._context) == without.card.context_size  # sharing would take much memory
    assert_nearly_same(texts(backends, problems, "entropy", 1.0), together)


def test_the_data_sets_come_from_the_recipe(generate: ModuleType) -> None:
    for name, shipped in (("test", "builtin"), ("dev", "builtin-dev")):
        made = [(problem.question, problem.answer, problem.solution) for problem in generate.held_out(name)]
        assert made == [(row["problem"], row["answer"], row["solution"]) for row in rows(shipped)]


def test_no_held_out_problem_is_trained_on(generate: ModuleType) -> None:
    held_out = {name: {problem.key for problem in generate.held_out(name)} for name in ("test", "dev")}
    assert not held_out["test"] & held_out["dev"]
    trained_on = {problem.key for problem in itertools.islice(generate.training_problems(1), 4000)}
    assert not trained_on & (held_out["test"] | held_out["dev"])


def test_the_readme_of_the_models_is_true() -> None:
    card = (MODELS / "README.md").read_text(encoding="utf-8")
    pair, thinking = (read_pairs()[name] for name in ("builtin", "builtin-thinking"))
    assert pair.router
    sources = (*pair.sources.values(), thinking.draft.source, thinking.target.source)
    shipped = [find_files(source)[0] for source in dict.fromkeys(sources) if source]
    routers = sorted(MODELS.glob("*.safetensors"))
    assert {router_file(pair.router), router_file(UNIVERSAL_ROUTER)} <= set(routers)
    lines = (MODELS / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    sums = {name: sha256 for sha256, name in map(str.split, lines)}
    for path in (*shipped, *routers, MODELS / "builtin.jsonl", MODELS / "builtin-dev.jsonl", MODELS / WORDINGS):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sums.pop(path.name), path.name
        assert f"{path.stat().st_size:,}" in card
    assert not sums


def test_the_router_is_of_this_pair() -> None:
    pair = read_pairs()["builtin"]
    assert pair.router
    router = load(router_file(pair.router))
    (models,) = router.card.pairs
    for role in ROLES:
        (path,) = find_files(pair.sources[role])
        assert models[role].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    record = solve("5 + 6", "--json").record
    assert (record["draft"], record["target"]) == ("builtin:draft", "builtin:target")
    assert (record["policy"], record["settings"]["router"], record["settings"]["system"]) == ("arbitrage", "builtin", "")


def test_collected_states_know_the_files_of_their_models(quick_path: Path) -> None:
    folder = quick_path / "states"
    assert run("collect", "--dataset", "builtin", "--limit", "1", "--reward", "rollout", "-o", str(folder), "-q").code == 0
    (pair,) = read_states([folder]).pairs
    assert load(router_file("builtin:builtin")).card.match(pair) == "files"
    for role in ROLES:
        facts = read_facts(find_files(f"builtin:{role}"))
        known = (pair[role].name, pair[role].architecture, pair[role].num_parameters, pair[role].vocabulary_size)
        assert known == (facts.name, facts.architecture, facts.num_parameters, facts.vocabulary_size)


@pytest.mark.parametrize(
    ("changes", "noted"),
    [({}, None), ({"sha256": "0" * 64}, "by name"), ({"sha256": "0" * 64, "num_parameters": 1}, "other models")],
    ids=["the same files", "another quantization", "other models"],
)
def test_a_note_says_how_a_router_fits_the_models(quick_path: Path, changes: dict[str, Any], noted: str | None) -> None:
    pair = dict[ModelRole, TrainedModel]()
    for role in ROLES:
        files = find_files(f"builtin:{role}")
        facts = read_facts(files)
        pair[role] = TrainedModel(
            facts.name, sha256_of(files), facts.architecture, facts.num_parameters, facts.vocabulary_size
        )
    trained = {**pair, "draft": replace(pair["draft"], **changes)}
    router = str(write_router(quick_path / "fits.safetensors", pair=trained))
    shown = solve("5 + 6", "--draft", "builtin:draft", "--target", "builtin:target", "--router", router).err
    notes = [words for words in ("by name", "other models") if words in shown]
    assert notes == ([noted] if noted else [])


@pytest.mark.parametrize("options", [("--think", "on"), ("--pair", "builtin-thinking")])
def test_thinking_uses_the_pair_that_thinks(options: tuple[str, ...]) -> None:
    record = solve("What is 23 * 47 - 88?", *options, "--json").record
    assert (record["draft"], record["target"]) == ("builtin:thinking-draft", "builtin:thinking-target")
    assert record["answer"] == "993"
    assert [step["phase"] for step in record["steps"]].count("think") >= 2


def test_without_thinking_the_pair_that_does_not_think_is_used() -> None:
    record = solve("What is 23 * 47 - 88?", "--pair", "builtin-thinking", "--think", "off", "--json").record
    assert (record["draft"], record["target"]) == ("builtin:draft", "builtin:target")
    assert record["answer"] == "993"
    assert not [step for step in record["steps"] if "think" in (step["phase"], *step["text"].split("</"))]


def test_models_that_cannot_do_without_thinking_are_refused() -> None:
    named = ("--draft", "builtin:thinking-draft", "--target", "builtin:thinking-target")
    assert solve("5 + 6", *named, "--think", "off").code == 2
    with open_pair(pair="builtin-thinking", threads=1, ctx=512) as pair, pytest.raises(UsageError) as caught:
        pair.solve("5 + 6", think=False)
    assert caught.value.option == "think"


def test_heads_of_pairs_ship() -> None:
    with_routers = [pair for pair in read_pairs().values() if pair.router]
    assert {pair.name for pair in with_routers} == {"builtin", "builtin-thinking", "qwen2.5-coder"}
    for pair in with_routers:
        assert pair.router
        card = load(router_file(pair.router)).card
        assert card.name == pair.name
        assert len(card.pairs) == 1
        assert set(card.taus["named"]) == {"careful", "balanced", "fast"}
        assert sum(part["states"] for part in card.data["parts"].values()) >= 500
        assert not any("/" in word for word in card.command if not word.startswith(("../", "states/")))


def test_figures_of_routers_are_those_of_their_cards() -> None:
    guide = (Path(arbitrage_cli.__file__).parent / "guides" / "training.md").read_text(encoding="utf-8")
    readme = (MODELS / "README.md").read_text(encoding="utf-8")
    names = ("builtin", "qwen2.5-coder", "universal")
    cards = {name: load(router_file(f"builtin:{name}")).card for name in names}
    for name in names[:2]:
        problems, states = (sum(run[what] for run in cards[name].data["runs"]) for what in ("problems", "states"))
        assert f"| `{name}` | {problems:,} | {states:,} |" in guide
    rows = [line.split(" | ") for line in readme.splitlines() if line.startswith("| ")]
    tests = [[*cards[name].data["parts"].values()][-1] for name in names]
    for title, expected in (
        ("| the router", [f"{cards[name].metrics['test']['arbitrage']['auc'][0]:.3f}" for name in names]),
        ("| calibration error", [f"{cards[name].metrics['test']['arbitrage']['ece'][0]:.3f}" for name in names]),
        ("| unseen problems and states", [f"{test['problems']:,}; {test['states']:,}" for test in tests]),
    ):
        cells = next(row[1:] for row in rows if row[0] == title)
        assert [cell.split(" [")[0].rstrip(" |") for cell in cells] == expected
    for card in cards.values():
        assert all(f"`{tau}` ({card.taus['named'][tau]:.3g})" in readme for tau in PRESETS)


@pytest.mark.parametrize(("task", "has_equations"), [("math", True), ("choice", False), ("free", False)])
def test_wrong_equations_are_for_mathematics(task: str, has_equations: bool) -> None:
    record = solve("What is 98765 * 4321?", "--policy", "draft", "--task", task, "--json").record
    assert "=" in record["text"]
    assert bool(record["wrong_equations"]) is has_equations


QWEN = ("qwen2.5-coder-gsm8k", "qwen2.5-coder-asdiv")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "states"), [("qwen2.5-coder", QWEN), ("universal", ("builtin", *QWEN))])
def test_shipped_states_produce_the_shipped_routers(quick_path: Path, name: str, states: Sequence[str]) -> None:
    """If this test fails after a change of features or of training, train these routers again: models/README.md."""
    made_file = quick_path / f"{name}.safetensors"
    paths = [str(MODELS / "states" / f"{part}.jsonl.xz") for part in states]
    assert run("train", *paths, "-o", str(made_file), "-q").code == 0
    made, shipped = load(made_file), load(router_file(f"builtin:{name}"))
    assert made.network.arrays().keys() == shipped.network.arrays().keys()
    for array, values in shipped.network.arrays().items():
        assert made.network.arrays()[array] == pytest.approx(values, abs=1e-5)
    assert made.card.taus["named"] == pytest.approx(shipped.card.taus["named"], rel=1e-5)
    assert made.card.data == shipped.card.data


def test_states_of_the_built_in_pair_are_a_sample() -> None:
    packed = MODELS / "states" / "builtin.jsonl.xz"
    assert packed.stat().st_size <= 1_000_000
    (pair,) = read_states([packed]).pairs
    assert pair == load(router_file("builtin:universal")).card.pairs[0]


def test_models_without_a_router_have_the_universal_one() -> None:
    target = str(find_files("builtin:target")[0])
    result = solve("5 + 6", "--json", "--policy", "arbitrage", "--system", "", "--draft", target, "--target", target)
    record = result.record
    assert (record["policy"], record["settings"]["router"]) == ("arbitrage", "universal")
    assert result.err.count("the universal router is used") == 1


def test_a_benchmark_on_what_the_router_was_trained_on_says_so(quick_path: Path) -> None:
    first, other = (item.problem.question for item in load_dataset("builtin", offline=True).items[:2])
    router = str(write_router(quick_path / "seen.safetensors", data={"learned": digest_of_problem(first)}))
    rows = ({"question": one, "answer": "1"} for one in (first, other))
    write_rows(quick_path / "two.jsonl", rows)
    bench = ("bench", "--dataset", str(quick_path / "two.jsonl"), "--policy", "arbitrage,draft", "-q", "--json")
    seen = run(*bench, "--router", router, "-o", str(quick_path / "seen"))
    usual = run(*bench, "-o", str(quick_path / "usual"))
    assert ["on 1 of these 2 problems" in str(result.record["notes"]) for result in (seen, usual)] == [True, False]


def test_the_reward_model_separates_right_steps_from_wrong_ones() -> None:
    pair = read_pairs()["builtin"]
    assert pair.prm
    row = rows("builtin-dev")[250]
    steps = [step + BLANK_LINE.separator for step in row["solution"].split(BLANK_LINE.separator)]
    digit = max(index for index, character in enumerate(steps[0]) if character.isdigit())
    slip = steps[0][:digit] + str((int(steps[0][digit]) + 1) % 10) + steps[0][digit + 1 :]
    with LlamaBackend(find_files(pair.prm)[0], LoadOptions(threads=1)) as backend:
        found = {
            name: rewards_of(backend, row["problem"], way) for name, way in (("true", steps), ("wrong", [slip, *steps[1:]]))
        }
    assert min(found["true"]) > 0.5, found
    assert max(found["wrong"]) < 0.5, found


def test_another_model_is_refused_as_reward_model(tmp_path: Path) -> None:
    models = {"draft": "builtin:draft", "target": "builtin:target", "prm": MODELS / "draft.gguf"}
    env = pair_named_mine(tmp_path, **models)
    solved = run("solve", "What is 5 + 6?", "--policy", "rsd", "--pair", "mine", "-q", env=env)
    bench = ("bench", "--dataset", "builtin", "--limit", "2", "--policy", "target,rsd", "-o", str(tmp_path / "run"))
    measured = run(*bench, "--pair", "mine", env=env)
    for result in (solved, measured):
        assert (result.code, result.out) == (3, "")
        assert "draft does not rate steps" in result.err
    assert not (tmp_path / "run").exists()


def rewards_of(backend: LlamaBackend, question: str, steps: list[str]) -> list[float]:
    rater = PrmRater(backend, "steps")
    trace = Trace(Problem("p", question), Limits())
    rater.open(0, trace.problem)
    rewards: list[float] = []
    for text in steps:
        step = Step("draft", text, 1, Cost(), "separator")
        rater.start(0, RateSteps(trace, (step,)))
        (update,) = rater.tick()
        assert update.rewards
        rewards += update.rewards
        trace.add(Decision(step))
    rater.close(0)
    return rewards


@pytest.mark.slow
def test_computed_times_agree_with_the_time_that_was_spent(quick_path: Path) -> None:
    """The time spent is the processor time of the models, the router and the program, so a busy machine changes it little."""
    bench = (
        "bench", "--dataset", "builtin", "--limit", "20", "--policy", "target,draft,arbitrage", "-o", "run", "-q", "--json",
    )  # fmt: skip
    result = run(*bench, cwd=quick_path)
    made = result.record
    for policy in made["policies"]:
        rows = [row for row in rows_of(quick_path / "run") if row["policy"] == policy["policy"]]
        parts = [
            [row["seconds"], *(row["timing"].get(name, {}).get("seconds", 0.0) for name in ("router", "program"))]
            for row in rows
        ]
        assert policy["seconds_mean"] == pytest.approx(sum(map(sum, parts)) / len(parts), rel=0.15)


def test_their_narrow_heads_have_an_attention_of_their_own(backends: dict[ModelRole, LlamaBackend]) -> None:
    problems = some_problems()
    assert {backend.card.kv_cache for backend in backends.values()} == {"q8_0/f16"}
    options = LoadOptions(threads=1, kv_type="f16", num_sequences=SLOTS)
    with ExitStack() as stack:
        plain = {role: stack.enter_context(LlamaBackend(find_files(f"builtin:{role}")[0], options)) for role in ROLES}
        flash = stack.enter_context(LlamaBackend(find_files("builtin:draft")[0], LoadOptions(flash_attention=True)))
        assert {backend.card.kv_cache for backend in (*plain.values(), flash)} == {"f16"}
        found = texts(plain, problems, "entropy", 1.0)
    assert_nearly_same(found, texts(backends, problems, "entropy", 1.0))


def test_the_generator_is_right(generate: ModuleType) -> None:
    for problem in itertools.islice(generate.training_problems(7), 500):
        for line in problem.steps[:-1]:
            sides = [float(eval(side)) for side in line.split(": ")[-1].split(" = ")]  # noqa: S307 - of our own generator
            assert max(sides) == pytest.approx(min(sides)), line


def test_thoughts_find_the_slips_in_them(generate: ModuleType, recipe: Callable[[str], ModuleType]) -> None:
    """Every learned piece follows from the text before it, and slips are not learned."""
    thoughts, rng, wrong = recipe("thoughts"), random.Random(0), 0
    for problem in itertools.islice(generate.training_problems(8), 300):
        pieces = thoughts.thinking_solution(problem, rng)
        text = "".join(piece.text for piece in pieces)
        thinking, answer = text.split(thoughts.CLOSES)
        slips = sum(not piece.learnt for piece in pieces)
        if not slips:
            assert answer == problem.steps[-1]
            assert all(line in thinking for line in problem.steps[:-1])
            assert all(equation.is_right for equation in check_equations(text))
            assert len(check_equations(text)) >= 2 * (len(problem.steps) - 1)
        verdicts = re.findall(r"(\S+), was (\S+): .*?\. (Same|Wrong)\.", thinking)
        assert all((found == before) == (verdict == "Same") for found, before, verdict in verdicts), text
        wrong += sum(verdict == "Wrong" for _, _, verdict in verdicts)
        assert thinking.count("Wrong. Again:") <= slips
    assert wrong > 50

"""Thoughts: the formats of chat templates, and the phases of solutions by models that mark them differently."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from chat_templates import TEMPLATES
from fake_server import Answer, HashServer, Kind, opened_model
from hash_language import (
    CHEAP_BATCHES,
    ForgetfulEngine,
    HashBackend,
    Recording,
    Rollback,
    events_of,
    finished_of,
    planner,
    solve,
)
from marks import rarely
from scripted_models import CONTROLS, TEMPLATE, ByteTokenizer, ScriptedBackend
from tiny_gguf import CHATML
from writing import recite

from arbitrage_cli.arbitrage import Flow, by_token_stats
from arbitrage_cli.errors import ServerRequestError
from arbitrage_cli.inference.backend import Floats, LoadOptions
from arbitrage_cli.inference.chat_template import ChatPrompt, PromptStyle
from arbitrage_cli.inference.engine import Engine
from arbitrage_cli.inference.kv_cache import KvCache
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Job, Scheduler, Writer
from arbitrage_cli.inference.servers.writer import ServedWriter
from arbitrage_cli.inference.step_text import THOUGHT_END, StepText
from arbitrage_cli.inference.thinking import CLOSING, FORMATS, find_format
from arbitrage_cli.rewards import Continuations
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.route import Route
from arbitrage_cli.routing.thoughts import BUDGET, probe_tau
from arbitrage_cli.training.states import State, by_continuing, collect
from arbitrage_cli.types import (
    Limits,
    ModelRole,
    Phase,
    Problem,
    Thinking,
    Trace,
)


def test_the_vocabulary_tells_the_format_if_the_template_does_not() -> None:
    assert find_format("", ["</seed:think>"]).name == "seed"
    assert find_format("", ["<|end|>"]).name == "think"  # many models end their turns so
    assert not ChatPrompt(CHATML, [], ["</think>"]).thinks_by_itself


class Thinker(HashBackend):
    """A toy language model that thinks and writes its end marker, as a control token or as plain text."""

    def __init__(self, template: str, name: str = "hash", *, marked: bool = True, ends_turns: bool = False) -> None:
        super().__init__(name, merges=(".\n\n",), context_size=8192)
        self.chat_template = template
        form = find_format(template, ())
        controls = [form.end] if marked else []
        others = [text for text in ("<|channel|>", "<|message|>", "<|start|>") if text in form.closes]
        merges = [".\n\n"] if marked else [".\n\n", form.end]
        self.tokenizer = ByteTokenizer(merges, (*others, *controls, "<|eos|>"))
        self._size = self.tokenizer.size
        mark = self.tokenizer.control_tokens[form.end] if marked else 257
        self._written = np.append(self._written[:-1], [mark, self.tokenizer.end])
        self._favour = np.append(self._favour[:-1], [0.0, 0.0])
        self._ends = [mark, self.tokenizer.end]
        self._in_thoughts = [25.0, 3.5] if ends_turns else [3.5, 25.0]
        self._in_answers = [3.5 if marked else 25.0, 2.0]

    def _compute(self, sequence: int) -> Floats:
        logits = super()._compute(sequence)
        logits[self._ends] -= self._in_answers if self._ends[0] in self.cells[sequence] else self._in_thoughts
        return logits


def long(think_tokens: int | None) -> Limits:
    """Limits with this limit on thinking: none if it is None. 0 turns nothing on."""
    thinking = Thinking() if think_tokens == 0 else Thinking(True, think_tokens)
    return Limits(max_steps=400, max_tokens=900, max_step_tokens=600, thinking=thinking)


SWITCHED, GEMMA = TEMPLATES["switched"], TEMPLATES["gemma-4"]
MARKERS = [marker for form in FORMATS.values() for marker in (form.start, form.end, form.closes.strip())]


def engines(draft: str, target: str, *, marked: bool = True, forgetful: bool = False) -> dict[ModelRole, Engine]:
    made: dict[ModelRole, Engine] = {}
    names: dict[ModelRole, str] = {"draft": draft, "target": target}
    kind = ForgetfulEngine if forgetful else Engine
    for role, name in names.items():
        backend = Thinker(TEMPLATES[name], name=role, marked=marked)
        made[role] = kind(role, KvCache(backend), Sampler(), keep_token_stats=True)
    return made


def solved(
    draft: str = "switched", target: str = "switched", *, think_tokens: int | None = None, tau: float = 1.5, **options: bool
) -> list[Trace]:
    problems = [Problem(str(number), f"question {number}") for number in range(2)]
    return [*solve(engines(draft, target, **options), problems, "entropy", tau, limits=long(think_tokens)).values()]


def phases(trace: Trace) -> list[Phase]:
    return [decision.kept.phase for decision in trace.decisions]


class Formatted(ScriptedBackend):
    """Writes the same thoughts and answer in its own format. It is unsure at the start of the `unsure` texts."""

    def __init__(self, name: str, unsure: tuple[str, ...] = ()) -> None:
        super().__init__(name, recite(""), LoadOptions(4096))
        form = FORMATS[name]
        others = [form.end] if form.end not in CONTROLS else []
        self.tokenizer = ByteTokenizer((), (*others, *CONTROLS))
        self.chat_template = f"{TEMPLATE}{{% if false %}}{form.opens}{form.end}{{% endif %}}"
        self.questions: set[str] = set()
        self._names = {token: text for text, token in self.tokenizer.control_tokens.items()}
        self._whole = form.opens + "".join(THOUGHTS) + form.closes + "".join(ANSWER)
        self._end, self._unsure = form.end, unsure

    def _compute(self, sequence: int) -> Floats:
        cells, controls = self.cells[sequence], self.tokenizer.control_tokens
        asked, begins = cells.index(controls["<|user|>"]), cells.index(controls["<|assistant|>"])
        before_answer = cells[asked + 1 : begins]
        self.questions.add(self._text(before_answer[: before_answer.index(controls["<|end|>"])])[0])
        written = b"".join(self._names.get(one, "").encode() or self.tokenizer.piece(one) for one in cells[begins + 1 :])
        rest = self._whole.removeprefix(written.decode())
        assert len(rest) + len(written) == len(self._whole)
        marks = rest.startswith(self._end)
        token = controls[self._end] if marks else self.tokenizer.first_token(rest.encode()) if rest else self.tokenizer.end
        logits = np.zeros(self.tokenizer.size, np.float32)
        logits[token] = 2.0 if rest.startswith(self._unsure) else 20.0
        return logits


LONG = " ".join(map(str, range(40)))
THOUGHTS = (f"Two and three are asked for: {LONG}\n\n", f"On five fingers: {LONG}\n\n", "So it is five.")
ANSWER = ("2 + 3 = 5.\n\n", "The answer is \\boxed{5}.")


@pytest.mark.parametrize(("draft", "target"), [*zip(FORMATS, [*list(FORMATS)[1:], "harmony"], strict=True)])
def test_models_of_different_formats_share_thoughts(draft: str, target: str) -> None:
    problem = Problem("p", f"What is 2 + 3? {' '.join(MARKERS)}")
    backends: dict[ModelRole, Formatted] = {"draft": Formatted(draft, (THOUGHTS[1], ANSWER[0])), "target": Formatted(target)}
    writers: dict[ModelRole, Writer] = {
        role: Engine(role, KvCache(made), Sampler(), keep_token_stats=True) for role, made in backends.items()
    }
    (trace,) = solve(writers, [problem], "entropy", 1.0, limits=long(None)).values()
    assert [(one.kept.model, one.kept.phase, one.kept.stop, one.kept.text) for one in trace.decisions] == [
        ("draft", "think", "separator", THOUGHTS[0]),
        ("target", "think", "separator", THOUGHTS[1]),
        ("draft", "think", "thought", THOUGHTS[2]),
        ("target", "answer", "separator", ANSWER[0]),
        ("draft", "answer", "end", ANSWER[1]),
    ]
    assert all(one.draft and one.draft.phase == one.kept.phase for one in trace.decisions)
    assert (trace.thoughts, trace.text) == ("".join(THOUGHTS), "".join(ANSWER))
    assert [made.questions for made in backends.values()] == [{problem.question}] * 2


@pytest.mark.parametrize("marked", [True, False], ids=["token", "text"])
def test_a_forced_end_comes_at_exactly_the_budget(marked: bool) -> None:
    """The cache changes nothing."""
    stops: set[str] = set()
    for budget, target in ((1, "seed"), (37, "seed"), (300, "switched")):
        found, again = (solved("switched", target, think_tokens=budget, marked=marked, forgetful=n) for n in (False, True))
        assert [steps(trace) for trace in found] == [steps(trace) for trace in again]
        for trace in found:
            thoughts = [decision.kept for decision in trace.decisions if decision.kept.phase == "think"]
            used = sum(step.num_tokens for step in thoughts)
            assert used == budget if thoughts[-1].stop == "think_budget" else used <= budget
            assert thoughts[-1].ends_thoughts
            stops.add(thoughts[-1].stop)
    assert stops == {"thought", "think_budget"}


def test_a_forced_end_is_read_by_the_model_that_goes_on() -> None:
    backend = Recording(Thinker(SWITCHED))
    engine = Engine("target", KvCache(backend), Sampler())
    solve({"target": engine}, [Problem("p", "1 + 1")], "target", limits=long(5))
    tokens = [token for call in backend.calls if call.name in ("read", "decode") for token in call.tokens]
    end = backend.tokenizer.control_tokens["</think>"]
    before = tokens[: tokens.index(end)]
    assert b"".join(map(backend.tokenizer.piece, before)).decode().endswith(f"\n\n{CLOSING}\n")


@pytest.mark.parametrize("kind", [None, "vllm", "llamacpp"])
def test_a_model_that_ends_its_turn_in_its_thoughts_answers_then(kind: Kind | None) -> None:
    problems = [Problem(f"p{number}", f"{number} + 1") for number in range(4)]
    made = Thinker(SWITCHED, "target", ends_turns=True)
    writers: dict[ModelRole, Writer] = {"target": Engine("target", KvCache(made), Sampler())}
    alone = solve(writers, problems, "target", limits=long(None)).values()
    assert {trace.decisions[-1].kept.phase for trace in alone} == {"answer"}
    assert {step.stop for trace in alone for step in (one.kept for one in trace.decisions) if step.ends_thoughts} == {
        "thought"
    }
    if kind:
        with served(HashServer(kind, made)) as writer:
            found = solve({"target": writer}, problems, "target", limits=long(None)).values()
        assert [steps(trace) for trace in found] == [steps(trace) for trace in alone]


def test_thoughts_end_with_long_paragraphs_only() -> None:
    text = StepText(end=THOUGHT_END, marker="</think>")
    for piece in (b"Wait.\n\n", b"x" * 90, b"\n\n"):
        text.add(piece)
        assert not text.ended
    text.add(b"So it is 4.\n\n")
    assert text.ended
    assert not text.has_marker


def test_a_marker_in_pieces_is_no_part_of_the_text() -> None:
    text = StepText(end=THOUGHT_END, marker="</think>")
    given = [text.add(piece) for piece in (b"4 < 5", b" <", b"/th", b"ink", b">\n\nFour")]
    assert (given, text.ended, text.has_marker, text.finish()) == (["4 < 5", " ", "", "", ""], True, True, "4 < 5 ")


class Straying(Thinker):
    """Also writes the markers, as plain text, within its thoughts and answers."""

    def __init__(self, name: str) -> None:
        super().__init__(SWITCHED, name, marked=False)
        self.tokenizer = ByteTokenizer((".\n\n", "</think>", "<think>"), ("<|eos|>",))
        self._size = self.tokenizer.size
        self._written = np.append(self._written[:-1], [258, self.tokenizer.end])
        self._favour = np.append(self._favour, [0.0])
        self._ends, self._in_answers = [257, self.tokenizer.end], [0.0, 2.0]
        self.cells = [[], []]  # two sequences


class StrayingHybrid(Straying, Rollback):
    """A model with recurrent layers, which is rolled back to a checkpoint."""


@pytest.mark.parametrize(
    ("think_tokens", "make"),
    [(37, StrayingHybrid), (0, Straying), *rarely((None, Straying), (None, StrayingHybrid), (37, Straying))],
)
def test_markers_within_thoughts_and_answers_are_no_part_of_the_text(think_tokens: int | None, make: type[Straying]) -> None:
    """Greedy text depends on neither the cache, other problems nor draft tokens, nor, if both models are the same, on tau."""
    problems, limits = [Problem(str(number), f"question {number}") for number in range(3)], long(think_tokens)

    def written(
        target: str, tau: float, kind: type[Engine] = Engine, concurrency: int = 1, *, proposes: bool = False
    ) -> list[tuple[str, str]]:
        names: dict[ModelRole, str] = {"draft": "draft", "target": target}
        backends = {role: Recording(make(name)) for role, name in names.items()}
        plan = planner(CHEAP_BATCHES) if proposes else None
        made: dict[ModelRole, Engine] = {
            role: kind(role, KvCache(backend), Sampler(), keep_token_stats=True, planner=plan)
            for role, backend in backends.items()
        }
        traces = solve(made, problems, "entropy", tau, limits=limits, concurrency=concurrency, speculates=proposes)
        found = [trace for _, trace in sorted(traces.items())]
        tokens = [call.tokens for backend in backends.values() for call in backend.calls if call.name == "decode"]
        assert {257, 258} <= {token for batch in tokens for token in batch}
        return [(trace.thoughts, trace.text) for trace in found]

    mixed = written("target", 1.5)
    assert "".join(text for _, text in mixed)
    assert not [one for pair in mixed for one in pair if "think" in one]
    assert written("target", 1.5, ForgetfulEngine) == written("target", 1.5, concurrency=2) == mixed
    assert written("target", 1.5, proposes=True) == mixed
    assert written("draft", -1.0) == written("draft", 1.5) == written("draft", float("inf"))


@pytest.mark.parametrize(
    ("kind", "think_tokens"),
    [("vllm", 0), ("llamacpp", None), *rarely(("vllm", None), ("llamacpp", 0))],
)
def test_markers_from_a_server_are_no_part_of_the_text(kind: Kind, think_tokens: int | None) -> None:
    """A target that writes alone continues within one response, in which the server still sees its markers."""
    problems, limits = [Problem(str(number), f"question {number}") for number in range(3)], long(think_tokens)

    def written(target: Writer, policy: str) -> list[tuple[str, str]]:
        draft = Engine("draft", KvCache(Straying("draft")), Sampler(), keep_token_stats=True)
        found = solve({"draft": draft, "target": target}, problems, policy, 1.5, limits=limits).values()
        return [(trace.thoughts, trace.text) for trace in found]

    expected = written(Engine("target", KvCache(Straying("target")), Sampler()), "entropy")
    with served(HashServer(kind, Straying("target"))) as writer:
        assert written(writer, "entropy") == expected
        assert not [one for pair in written(writer, "target") for one in pair if "think" in one]


@pytest.mark.parametrize("think_tokens", [37, *rarely(None)])
@pytest.mark.parametrize(("kind", "target"), [("vllm", "switched"), ("sglang", "gemma-4"), ("llamacpp", "gemma-4")])
def test_a_served_target_thinks_as_an_engine_does(kind: Kind, target: str, think_tokens: int | None) -> None:
    """Alone, it needs one request per phase."""
    limits = long(think_tokens)
    problems, unlimited = (
        [Problem(str(number), f"question {number}") for number in range(4)],
        replace(limits, max_steps=None),
    )
    expected = solve(engines("seed", target), problems[:2], "entropy", 1.5, limits=limits)
    alone = solve(engines("seed", target), problems, "target", limits=unlimited)
    server = HashServer(kind, Thinker(TEMPLATES[target], "target"))
    with served(server) as writer:
        writers: dict[ModelRole, Writer] = {**engines("seed", target), "target": writer}
        found = solve(writers, problems[:2], "entropy", 1.5, limits=limits)
        server.bodies.clear()
        found_alone = solve(writers, problems, "target", limits=unlimited)
    assert [*map(steps, found.values())] == [*map(steps, expected.values())]
    kept = [decision.kept for trace in found.values() for decision in trace.decisions]
    assert {(step.model, step.phase) for step in kept} >= {("target", "think"), ("target", "answer"), ("draft", "answer")}
    assert {step.stop for step in kept} & {"thought", "think_budget"}
    for name, trace in alone.items():
        assert steps(found_alone[name]) == steps(trace)
    num_phases = sum(len({*phases(trace)}) for trace in alone.values())
    assert sum("max_tokens" in body or "n_predict" in body for body in server.bodies) == num_phases > len(problems)


@pytest.mark.parametrize(("kind", "field"), [("vllm", "skip_special_tokens"), ("llamacpp", "preserved_tokens")])
def test_a_server_that_hides_where_thoughts_end_is_refused(kind: Kind, field: str) -> None:
    server = HashServer(kind, Thinker(GEMMA, "target"))
    answer = server.handle

    def ignore(path: str, body: dict[str, Any] | None, headers: Mapping[str, str]) -> Answer:
        return answer(path, body and {name: value for name, value in body.items() if name != field}, headers)

    server.handle = ignore  # type: ignore[method-assign]
    with served(server) as writer:
        events = events_of({"target": writer}, [Problem("p", "1 + 1")], "target", limits=long(None))
        assert [type(event.error) for event in finished_of(events)] == [ServerRequestError]
        assert solve({"target": writer}, [Problem("p", "1 + 1")], "target", limits=long(0))["p"].text


@contextmanager
def served(server: HashServer) -> Iterator[ServedWriter]:
    with opened_model(server) as model:
        yield ServedWriter("target", model, Sampler(), PromptStyle())


def steps(trace: Trace) -> list[tuple[object, ...]]:
    kept = [decision.kept for decision in trace.decisions]
    return [(step.model, step.phase, step.stop, step.text, step.num_tokens) for step in kept]


def router_route(tau: float, *, knows_thoughts: bool = False) -> list[Trace]:
    scorer = replace(by_token_stats(lambda trace, draft: 0.5), routes_thoughts=knows_thoughts)
    problems = [Problem(str(number), f"question {number}") for number in range(8)]
    return [*solve(engines("seed", "switched"), problems, "arbitrage", tau, limits=long(None), scorer=scorer).values()]


def test_a_router_decides_about_answers_and_a_rule_about_thoughts() -> None:
    decided = [one for trace in router_route(0.4) for one in trace.decisions]
    assert {one.choice for one in decided if one.kept.phase == "answer"} == {"escalate"}
    thoughts = [one for one in decided if one.draft and one.draft.phase == "think"]
    assert {one.choice for one in thoughts} == {"accept", "escalate"}
    assert all((one.choice == "escalate") == ((one.score or 0.0) > probe_tau(BUDGET)) for one in thoughts)


def test_a_router_that_learned_from_thoughts_decides_about_them() -> None:
    decided = [one for trace in router_route(0.4, knows_thoughts=True) for one in trace.decisions]
    assert {one.score for one in decided} == {0.5}
    assert {one.draft.phase for one in decided if one.draft} == {"think", "answer"}


@pytest.mark.parametrize(("tau_name", "tau"), [("60%", 0.8), ("careful", probe_tau(BUDGET)), (None, probe_tau(BUDGET))])
def test_a_budget_holds_for_thoughts_too(tau_name: str | None, tau: float) -> None:
    scorer = replace(by_token_stats(lambda trace, draft: 0.5), routes_thoughts=False)
    route = Route(POLICIES["arbitrage"], 0.2, tau_name)
    assert route.thoughts_tau(scorer) == pytest.approx(tau)
    assert route.thoughts_tau(replace(scorer, routes_thoughts=True)) == 0.2
    assert Route(POLICIES["entropy"], 0.2).thoughts_tau(None) == 0.2


@pytest.mark.parametrize(("tau", "model"), [(-1.0, "target"), (float("inf"), "draft")])
def test_taus_that_leave_one_model_alone_hold_for_thoughts(tau: float, model: ModelRole) -> None:
    assert {one.kept.model for trace in router_route(tau) for one in trace.decisions} == {model}


def test_states_of_thoughts_are_what_both_models_write_there() -> None:
    found: list[State] = []

    def flow(trace: Trace) -> Flow:
        return collect(trace, by_continuing(Continuations(lambda answer: len(answer) % 2 == 0)), found.append)

    limits = replace(long(120), max_tokens=240)
    jobs = [Job(Problem(str(number), f"question {number}"), flow, limits) for number in range(2)]
    events = list(Scheduler(engines("switched", "switched")).run(jobs))
    kept = [one.kept.phase for event in finished_of(events) for one in event.trace.decisions]
    assert kept == [state.draft.phase for state in found]
    assert kept.count("think") > 2


@pytest.mark.parametrize("thinks", [False, True])
def test_the_beginning_of_prompts_is_shared_with_thoughts_too(*, thinks: bool) -> None:
    instructions = "Think in small steps, and then say it."
    cache = KvCache(Thinker(GEMMA), PromptStyle(instructions), keep="prefix")
    cached = cache.open(0, Problem("1", "question 1", thinks=thinks))
    assert len(instructions) < cached.num_shared < len(cached.prompt) - len("question 1")

"""Models on servers write what engines write here: each kind of server, with and without faults, against the toy language."""

import contextlib
import gc
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from itertools import product
from typing import Any

import httpx2
import numpy as np
import pytest
from cli import TIMEOUT
from fake_server import CONTINUES, KINDS, REFUSED, SILENT, Answer, Body, HashServer, Kind, on_loopback, opened_model, storm
from hash_language import SHORT, HashBackend, events_of, finished_of, solve, texts
from hurry import module_of
from processes import awaited
from writing import make_engine

from arbitrage_cli.agreement import agree
from arbitrage_cli.arbitrage import Flow, StopWriting, WriteStep, single
from arbitrage_cli.errors import (
    ArbitrageError,
    ContextFullError,
    ConversationError,
    ServerError,
    ServerRequestError,
)
from arbitrage_cli.inference.chat_template import Control, Plain, PromptStyle
from arbitrage_cli.inference.engine import Engine, SlotUpdate
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import MAX_REFUSED, Job, Refusals, Scheduler, Writer
from arbitrage_cli.inference.servers.address import Address, ServedSource
from arbitrage_cli.inference.servers.connection import Connection
from arbitrage_cli.inference.servers.controls import Controls
from arbitrage_cli.inference.servers.model import ServedModel
from arbitrage_cli.inference.servers.patience import CHUNK_SECONDS, MAX_FAILED, MAX_SERVING_TRIES, ServePatience
from arbitrage_cli.inference.servers.probing import PROBE_TOKENS, open_served
from arbitrage_cli.inference.servers.writer import ServedWriter
from arbitrage_cli.inference.step_text import LOOP_TOKENS, StepEnd
from arbitrage_cli.rewards import Continuations
from arbitrage_cli.training.states import State, by_continuing, collect
from arbitrage_cli.types import (
    Check,
    CheckedSolution,
    Event,
    Finished,
    Limits,
    Message,
    ModelRole,
    Problem,
    Step,
    Trace,
    Writing,
    Wrote,
)

DEFAULT_STYLE = PromptStyle()
PROBLEMS = [Problem(str(number), f"question {number}" * (1 + number % 3)) for number in range(5)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch, FIRST_DELAY=0.001)


def set_limits(monkeypatch: pytest.MonkeyPatch, **limits: float) -> None:
    for name, value in limits.items():
        monkeypatch.setattr(module_of(name), name, value)


def served(role: ModelRole, model: ServedModel, style: PromptStyle = DEFAULT_STYLE, **options: Any) -> ServedWriter:
    return ServedWriter(role, model, Sampler(), style, keep_token_stats=role == "draft", **options)


def rendered(role: ModelRole, model: ServedModel) -> ServedWriter:
    """A writer that has asked the server to render its prompt format."""
    writer = served(role, model)
    solve({role: writer}, PROBLEMS[:1], role)
    return writer


def finished_by(
    server: HashServer,
    problems: list[Problem] = PROBLEMS[:1],
    *,
    faults: Callable[[], Answer | None] = lambda: None,
    key: str | None = None,
    serving_silence: float | None = None,
    **options: Any,
) -> list[Finished]:
    """Solve problems with a target on a server, whose faults begin after the probe."""
    with opened_model(server, key=key, serving_silence=serving_silence) as model:
        server.bodies.clear()
        server.counts.clear()
        server.faults = faults
        return finished_of(events_of({"target": served("target", model)}, problems, "target", **options))


def here(concurrency: int = 1, tokenizer: str = "bytes", **more: Any) -> dict[ModelRole, Engine]:
    roles: tuple[ModelRole, ...] = ("draft", "target")
    backends = {role: HashBackend(role, num_sequences=concurrency, tokenizer=tokenizer) for role in roles}
    return {
        role: make_engine(role, made, Sampler(), keep_token_stats=role == "draft", **more) for role, made in backends.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_served_step_goes_on_behind_a_separator_that_comes_too_early(kind: Kind) -> None:
    words = StepEnd(" ", 20)
    expected = solve(here(step_end=words), PROBLEMS, "entropy", 1.0)
    with opened_model(HashServer(kind)) as model:
        target = served("target", model, PromptStyle(step_end=words))
        found = solve({**here(step_end=words), "target": target}, PROBLEMS, "entropy", 1.0)
    assert texts(found) == texts(expected)
    kept = [decision.kept for trace in found.values() for decision in trace.decisions]
    assert any(step.model == "target" and step.stop == "separator" and step.text.count(" ") > 1 for step in kept)


@pytest.mark.parametrize(("kind", "tokens_per_chunk"), [*((kind, 1) for kind in KINDS), ("vllm", 2), ("vllm", 8)])
def test_a_served_draft_writes_and_measures_what_an_engine_does(kind: Kind, tokens_per_chunk: int) -> None:
    expected = solve(here(), PROBLEMS, "logprob-min", 2.5)
    server = HashServer(kind, HashBackend("draft"))
    with opened_model(server) as model:
        server.tokens_per_chunk = tokens_per_chunk
        found = solve({**here(), "draft": served("draft", model)}, PROBLEMS, "logprob-min", 2.5)
    assert texts(found) == texts(expected)
    for name, trace in expected.items():
        for decision, other in zip(trace.decisions, found[name].decisions, strict=True):
            assert decision.draft
            assert other.draft
            own, sent = decision.draft.known_token_stats, other.draft.known_token_stats
            np.testing.assert_allclose(sent.log_probabilities, own.log_probabilities, atol=1e-4)
            np.testing.assert_allclose(sent.margins, own.margins, atol=1e-4)
            assert sent.pieces == own.pieces
            np.testing.assert_allclose(sent.entropies, own.entropies, atol=1e-3)
            assert other.draft.num_tokens == decision.draft.num_tokens


@pytest.mark.parametrize(
    ("kind", "tokenizer"), [*((kind, "bytes") for kind in KINDS), *product(("vllm", "llamacpp"), ("spaces", "words"))]
)
def test_served_models_write_what_engines_write_and_the_laws_hold(kind: Kind, tokenizer: str) -> None:
    own = partial(here, tokenizer=tokenizer)
    expected = texts(solve(own(), PROBLEMS, "logprob", 1.0))
    assert {model for solved in expected.values() for model, _ in solved} == {"draft", "target"}
    with (
        opened_model(HashServer(kind, HashBackend("draft", tokenizer=tokenizer))) as draft,
        opened_model(HashServer(kind, HashBackend("target", tokenizer=tokenizer))) as target,
    ):
        both: dict[ModelRole, Any] = {"draft": served("draft", draft), "target": served("target", target)}
        assert texts(solve({**own(), "target": both["target"]}, PROBLEMS, "logprob", 1.0)) == expected
        assert texts(solve(both, PROBLEMS, "logprob", 1.0)) == expected
        assert texts(solve(both, PROBLEMS, "logprob", 1.0, concurrency=4)) == expected
        assert texts(solve(both, PROBLEMS, "logprob", float("inf"))) == texts(solve(own(), PROBLEMS, "draft"))
        assert texts(solve(both, PROBLEMS, "logprob", -1.0)) == texts(solve(own(), PROBLEMS, "target"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_served_target_continues_both_steps_of_a_state(kind: Kind) -> None:
    def rewards(target: Mapping[ModelRole, Writer]) -> list[tuple[str, str, float, float]]:
        found = list[State]()

        def flow(trace: Trace) -> Flow:
            return collect(trace, by_continuing(Continuations(lambda text: len(text) % 2 == 0)), found.append)

        solve({**here(), **target}, PROBLEMS, "oracle", make_flow=flow)
        return [(one.draft_text, one.target_text, one.draft_reward, one.target_reward) for one in found]

    with opened_model(HashServer(kind)) as model:
        assert rewards({"target": served("target", model)}) == rewards({})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", ["logprob-min", "draft"])
def test_a_storm_of_faults_changes_no_text(policy: str, kind: Kind) -> None:
    expected = solve(here(), PROBLEMS, policy, float("inf"))
    server = HashServer(kind, HashBackend("draft"))
    with opened_model(server) as model:
        writer = rendered("draft", model)
        server.faulty_paths, server.faults = (*server.faulty_paths, "/tokenize"), storm(0.5)
        found = solve({**here(3), "draft": writer}, PROBLEMS, policy, float("inf"), concurrency=3)
    assert texts(found) == texts(expected)
    if policy == "draft":
        return
    for name, trace in expected.items():
        assert [one.kept.num_tokens for one in found[name].decisions] == [one.kept.num_tokens for one in trace.decisions]
        for one, other in zip(trace.decisions, found[name].decisions, strict=True):
            own, sent = one.kept.known_token_stats, other.kept.known_token_stats
            np.testing.assert_allclose(sent.log_probabilities, own.log_probabilities, atol=1e-4)


def test_a_pause_that_a_server_asks_for_is_reported_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_limits(monkeypatch, FIRST_DELAY=0.5, NOTE_SECONDS=0.4)
    server, faults = HashServer(), iter([Answer([{}], 429, {"Retry-After": "1"})] * 2)
    with opened_model(server) as model:
        server.faults = lambda: next(faults, None)
        began = time.monotonic()
        solve({"target": served("target", model)}, PROBLEMS[:2], "target", concurrency=2)
    assert time.monotonic() - began >= 1.25  # with jitter, so that requests do not all return at once
    assert caplog.text.count("HTTP 429") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_samples_as_it_is_asked_to(kind: Kind) -> None:
    server = HashServer(kind)
    with opened_model(server) as model:
        writer = ServedWriter("target", model, Sampler(0.5, 0.9, top_k=7, min_p=0.1), DEFAULT_STYLE)
        solve({"target": writer}, PROBLEMS[:1], "target")
    body = server.bodies[-1]
    assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"]) == (0.5, 0.9, 7, 0.1)
    if kind == "llamacpp":  # whose own order differs
        assert body["samplers"] == ["temperature", "top_k", "top_p", "min_p"]


def kept(trace: Trace) -> list[Step]:
    return [decision.kept for decision in trace.decisions]


@pytest.mark.parametrize(("kind", "tokens_per_chunk"), [*((kind, 1) for kind in KINDS), ("vllm", 7)])
@pytest.mark.parametrize("role", ["draft", "target"])
@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_single_model_writes_a_solution_in_one_response(
    concurrency: int, role: ModelRole, kind: Kind, tokens_per_chunk: int
) -> None:
    limits = replace(SHORT, max_steps=None)
    expected = solve(here(), PROBLEMS, role, limits=limits)
    server = HashServer(kind, HashBackend(role))
    with opened_model(server) as model:
        writer, server.tokens_per_chunk = rendered(role, model), tokens_per_chunk
        server.bodies.clear()
        found = solve({role: writer}, PROBLEMS, role, limits=limits, concurrency=concurrency)
    requests = [body for body in server.bodies if "max_tokens" in body or "n_predict" in body]
    assert (len(requests), [body.get("stop") for body in requests if body.get("stop")]) == (len(PROBLEMS), [])
    assert sum(len(trace.decisions) for trace in expected.values()) > 2 * len(PROBLEMS)
    for name, trace in expected.items():
        steps, other = kept(trace), kept(found[name])
        assert "".join(step.text for step in other) == trace.text
        assert found[name].num_tokens == trace.num_tokens
        assert sum(step.cost.decode_tokens for step in other) == trace.num_tokens
        assert sum(step.cost.prefill_tokens for step in other) > 0
        assert found[name].stop == trace.stop
        if tokens_per_chunk == 1:
            assert [(step.text, step.stop, step.num_tokens) for step in other] == [
                (step.text, step.stop, step.num_tokens) for step in steps
            ]


def test_a_step_limit_ends_a_response() -> None:
    expected = solve(here(), PROBLEMS, "target")
    assert "max_steps" in {trace.stop for trace in expected.values()}
    for kind in KINDS:
        found = {event.trace.problem.id: event.trace for event in finished_by(HashServer(kind), PROBLEMS)}
        assert texts(found) == texts(expected)


def test_a_limit_that_may_exceed_the_context_is_lowered() -> None:
    """Some servers reject a prompt and a limit that exceed the context together."""
    server = HashServer()
    with opened_model(server) as model:
        small = replace(model, card=replace(model.card, context_size=400))
        limits = Limits(max_tokens=390, max_step_tokens=40)
        solve({"target": served("target", small)}, PROBLEMS[:2], "target", limits=limits)
    asked = [(len(body["prompt"]), body["max_tokens"]) for body in server.bodies if body.get("max_tokens", 32) != 32]
    assert max(size + most for size, most in asked) <= 400
    assert 40 < max(most for _, most in asked) < 390


class Broken(HashServer):
    """Breaks the first streams after some chunks."""

    cuts = (0, 3, 30, 50, *[20] * 9)

    def _completions(self, body: Body) -> Answer:
        answer, number = super()._completions(body), self.counts["/v1/completions"] - 1
        if body["max_tokens"] == PROBE_TOKENS:
            return answer
        return replace(answer, cut=self.cuts[number]) if number in range(len(self.cuts)) else answer


def test_a_response_that_is_interrupted_continues_after_its_finished_steps() -> None:
    limits = replace(SHORT, max_steps=None)
    server = Broken()
    (finished,) = finished_by(server, limits=limits)
    assert texts({"0": finished.trace}) == texts(solve(here(), PROBLEMS[:1], "target", limits=limits))
    begun = [body["prompt"] for body in server.bodies if "max_tokens" in body]
    assert len(begun) == 1 + len(Broken.cuts)
    assert len(begun[0]) == len(begun[2]) < len(begun[-1])  # an unfinished step is written again
    billed = sum(step.cost.prefill_tokens + step.cost.cached_tokens for step in kept(finished.trace))
    assert billed == sum(map(len, begun[1:]))  # the first response had no text


def test_a_finished_step_is_reported_while_the_response_continues() -> None:
    server, faults = HashServer(), iter([STALLED_LATER])
    with opened_model(server) as model:
        writer = served("target", model)
        server.faults = lambda: next(faults, None)
        trace, steps = Trace(PROBLEMS[1], SHORT), list[Step]()
        writer.open(0, PROBLEMS[1])
        writer.start(0, WriteStep("target", trace, until_end=True))

        def is_reported() -> bool:
            steps.extend(update.step for update in writer.tick() if update.step)
            return bool(steps)

        awaited(is_reported)
        writer.close(0)
    assert [(step.text, step.stop) for step in steps] == [("a.\n\n", "separator")]


def test_the_time_of_a_step_includes_the_tokenization_of_its_prompt() -> None:
    server = HashServer()
    answer, delay = server.handle, 0.05

    def slow(path: str, body: Body | None, headers: Mapping[str, str]) -> Answer:
        if path == "/tokenize":
            time.sleep(delay)
        return answer(path, body, headers)

    with opened_model(server) as model:
        server.handle = slow  # type: ignore[method-assign]
        (trace,) = solve({"target": served("target", model)}, PROBLEMS[:1], "target").values()
    assert kept(trace)[0].cost.prefill_seconds > delay


class Looping(HashBackend):
    def _compute(self, sequence: int) -> Any:
        logits = super()._compute(sequence)
        logits[ord("a") + len(self.cells[sequence]) % 20] = 100.0
        return logits


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_ends_a_step_as_it_does_here(kind: Kind) -> None:
    limits = Limits(max_steps=1, max_tokens=200, max_step_tokens=200)
    expected = solve({"target": make_engine("target", Looping("target"), Sampler())}, PROBLEMS[:1], "target", limits=limits)
    with opened_model(HashServer(kind, Looping("target"))) as model:
        found = solve({"target": served("target", model)}, PROBLEMS[:1], "target", limits=limits)
    steps = [solved["0"].decisions[0].kept for solved in (expected, found)]
    assert [(step.text, step.stop, step.num_tokens) for step in steps] == [(steps[0].text, "loop", 60)] * 2


def test_a_problem_that_the_server_cannot_answer_ends_alone() -> None:
    finished = finished_by(HashServer(), [Problem("bad", "x" * 3000), *PROBLEMS[:2]], concurrency=3)
    errors = {event.trace.problem.id: event.error for event in finished}
    assert isinstance(errors.pop("bad"), ContextFullError)
    assert errors == {"0": None, "1": None}


LONG_WAITS = {429: "301", 503: "10000000.5"}
REFUSALS = [
    Answer([{"error": {"message": "sk-secret (sk-\nsecret) may not ask this"}}], status, {"Retry-After": wait})
    for status, wait in (dict.fromkeys((400, 402, 403, 404, 405, 413, 422), "3600") | LONG_WAITS).items()
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=[str(answer.status) for answer in REFUSALS])
@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_refused_problem_ends_alone_with_the_reason_of_the_server(refusal: Answer, concurrency: int) -> None:
    expected = solve(here(), [PROBLEMS[0], *PROBLEMS[2:]], "target")
    server = HashServer(key="sk-secret")

    def faults() -> Answer | None:
        return refusal if PROBLEMS[1].question in server.text_of(server.bodies[-1]["prompt"]) else None

    finished = finished_by(server, PROBLEMS, faults=faults, key="sk-secret", concurrency=concurrency)
    (refused,) = [event for event in finished if event.error]
    assert isinstance(refused.error, ServerRequestError)
    assert (refused.trace.problem, refused.error.status) == (PROBLEMS[1], refusal.status)
    assert "*** (***) may not ask this" in refused.error.message
    assert "sk-secret" not in refused.error.message
    assert "KEY" not in refused.error.hint
    assert texts({event.trace.problem.id: event.trace for event in finished if not event.error}) == texts(expected)


MANY = [Problem(str(number), f"question {number}") for number in range(30)]


@pytest.mark.parametrize("between", [None, 403], ids=["an answer", "another reason"])
def test_refusals_that_are_not_in_a_row_end_no_run(between: int | None) -> None:
    server = HashServer()
    jobs = (Job(problem, partial(single, model="target"), SHORT) for problem in MANY)
    with opened_model(server) as model:

        def fault() -> Answer | None:
            is_other = MANY[15].question in server.text_of(server.bodies[-1]["prompt"])
            status = between if is_other else 402
            return Answer([{"error": {"message": "no"}}], status) if status else None

        server.faults = fault
        scheduler = Scheduler({"target": served("target", model)})
        ended = finished_of(scheduler.run(jobs, refusals=Refusals(MAX_REFUSED)))
    assert [event.error.status for event in ended if isinstance(event.error, ServerRequestError)].count(402) == 29
    assert len(ended) == 30


@pytest.mark.parametrize(
    ("status", "text", "has_hint"),
    [(401, "no such user", True), (403, "", True), (403, "not in your country", False), (402, "no credit left", False),
     (404, "Not Found", True), (404, "The model `toy` does not exist.", False), (429, "busy", False)],
)  # fmt: skip
def test_a_hint_does_not_guess_if_a_server_gives_a_reason(status: int, text: str, has_hint: bool) -> None:
    server = HashServer()
    server.faults = lambda: Answer([{"error": {"message": text}} if text else {}], status)
    with pytest.raises(ServerError) as raised, opened_model(server):
        pass
    assert (text in raised.value.message, bool(raised.value.hint)) == (True, has_hint)


@pytest.mark.parametrize("order", ["+-+", "-++", "++-", "--+"])
def test_a_failure_loses_no_step_of_another_slot(order: str) -> None:
    server, num_steps, num_errors = HashServer(), 0, 0
    bad = [PROBLEMS[slot].question for slot, sign in enumerate(order) if sign == "-"]
    with opened_model(server) as model:
        writer = rendered("target", model)
        wrong_key = Answer([{"error": {"message": "no"}}], 401)

        def fault() -> Answer | None:
            prompt = server.text_of(server.bodies[-1]["prompt"])
            return wrong_key if any(question in prompt for question in bad) else None

        server.faults = fault
        for slot in range(len(order)):
            writer.open(slot, PROBLEMS[slot])
            writer.start(slot, WriteStep("target", Trace(PROBLEMS[slot], SHORT)))
        while writer.busy:
            for update in writer.tick():
                num_steps += update.step is not None
                num_errors += isinstance(update.error, ServerError)
    assert (num_steps, num_errors) == (order.count("+"), order.count("-"))


def test_no_proxy_sees_requests_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    server, proxy = HashServer(key="sk-SENTINEL"), HashServer()
    with on_loopback(server) as address, on_loopback(proxy) as elsewhere:
        for name in ("http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, elsewhere.removesuffix("/v1"))
        source = ServedSource(Address.parse(address), "sk-SENTINEL")
        with contextlib.closing(Connection()) as connection:
            assert open_served(connection, source).num_alternatives
    assert (server.num_connections > 0, proxy.num_connections) == (True, 0)


def test_a_web_page_explains_nothing() -> None:
    """A proxy responds with a page when its server is down."""
    page = httpx2.MockTransport(lambda request: httpx2.Response(502, text="\n<html>Bad Gateway</html>"))
    with contextlib.closing(Connection(page)) as connection, pytest.raises(ServerError) as raised:
        open_served(connection, ServedSource(Address.parse("http://server/v1")))
    assert ("502" in raised.value.message, "html" in raised.value.message) == (True, False)


@pytest.mark.parametrize("limit", [("ERROR_SECONDS", 0.01), ("MAX_ERROR_BYTES", 50)], ids=["time", "size"])
def test_an_endless_error_is_not_read_to_its_end(limit: tuple[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch, **{"ERROR_SECONDS": 600.0, "WHOLE_SECONDS": 30.0, **dict([limit])})
    server = HashServer()
    (finished,) = finished_by(server, faults=lambda: Answer([], 503, is_streamed=True, stalls=True))
    assert server.num_stalling == 0
    assert isinstance(finished.error, ServerRequestError)
    assert server.counts["/v1/completions"] == 8


def test_the_reason_for_which_a_server_does_not_render_a_conversation_is_shown() -> None:
    server = HashServer()
    with opened_model(server) as model:
        writer = rendered("target", model)
        server.faulty_paths = ("/tokenize",)
        refusal = Answer([{"error": {"message": "roles must alternate"}}], 500)
        server.faults = lambda: refusal if len(server.bodies[-1].get("messages", ())) > 1 else None
        conversation = Problem("turns", "question", (Message("user", "a"), Message("assistant", "b")) * 2)
        (finished,) = finished_of(events_of({"target": writer}, [conversation], "target"))
        assert isinstance(finished.error, ConversationError)
        assert "roles must alternate" in finished.error.message


STALLED = Answer([{"choices": [{"index": 0, "text": "a", "finish_reason": None}]}], is_streamed=True, stalls=True)
ONLY_COMMENTS = replace(STALLED, objects=[])
SILENT_LATER = replace(STALLED, stalls=False, falls_silent=True)


def stalled_after(*texts: str) -> Answer:
    return replace(STALLED, objects=[{"choices": [{"index": 0, "text": text, "finish_reason": None}]} for text in texts])


STALLED_LATER = stalled_after("a", ".\n\n", "b")


def test_an_answer_that_is_no_longer_wanted_is_hung_up_on() -> None:
    server = HashServer()
    with opened_model(server) as model:
        expected = events_of({"target": served("target", model)}, PROBLEMS[:1], "target")
        writer, faults = served("target", model), iter([STALLED])
        server.faults = lambda: next(faults, None)
        trace = Trace(PROBLEMS[1], SHORT)
        writer.open(0, PROBLEMS[1])
        writer.start(0, WriteStep("target", trace))
        awaited(lambda: any(update.text for update in writer.tick()))
        writer.close(0)
        found = events_of({"target": writer}, PROBLEMS[:1], "target")
        assert (server.num_stalling, writer.busy) == (0, False)
    assert texts_of(found) == texts_of(expected)


def test_an_answer_that_the_others_have_decided_is_stopped_and_billed() -> None:
    server = HashServer()

    class Waiting(HashBackend):
        def decode(self, *arguments: Any, **options: Any) -> Any:
            awaited(lambda: server.num_stalling)
            return super().decode(*arguments, **options)

    def flow(trace: Trace) -> Flow:
        own = {role: Trace(trace.problem, trace.limits) for role in ("draft", "check")}
        yield (WriteStep("check", own["check"], until_end=True),)
        yield tuple(WriteStep(role, one, until_end=True) for role, one in own.items())  # type: ignore[arg-type]
        stopped = yield StopWriting()
        trace.check = Check([CheckedSolution("check", None, stopped)], agrees=False)
        yield from single(trace, "target")

    with opened_model(server) as model:
        faults = iter([STALLED_LATER])
        server.faults = lambda: next(faults, None)
        writers: dict[ModelRole, Any] = {
            **here(),
            "draft": make_engine("draft", Waiting("draft"), Sampler(), keep_token_stats=False),
            "check": served("check", model),
        }
        (finished,) = finished_of(Scheduler(writers).run([Job(PROBLEMS[1], flow, SHORT)]))
        awaited(lambda: server.num_stalling == 0)
    assert finished.trace.check
    (stopped,) = finished.trace.check.discarded
    assert (finished.error, stopped.model, stopped.text, stopped.stop) == (None, "check", "b", "early")
    assert (stopped.cost.prefill_tokens > 0, stopped.cost.decode_tokens) == (True, 1)


@contextlib.contextmanager
def ahead_of_its_steps(role: ModelRole, *texts: str) -> Iterator[tuple[ServedWriter, HashServer]]:
    """A writer whose server writes these texts, then stalls, before the first step is returned."""
    server, faults = HashServer(), iter([stalled_after(*texts)])

    class Ahead(ServedWriter):
        def tick(self) -> list[SlotUpdate]:
            awaited(lambda: server.num_stalling)
            return super().tick()

    with opened_model(server) as model:
        server.faults = lambda: next(faults, None)
        yield Ahead(role, model, Sampler(), DEFAULT_STYLE), server


WRITTEN_AHEAD = [("b.\n\n", "separator", 2), ("c", "early", 1)]


def test_steps_that_a_server_writes_after_the_last_one_are_billed() -> None:
    with ahead_of_its_steps("target", "a", ".\n\n", "b", ".\n\n", "c") as (target, server):
        (finished,) = finished_of(events_of({"target": target}, PROBLEMS[:1], "target", limits=replace(SHORT, max_steps=1)))
        awaited(lambda: server.num_stalling == 0)
    assert (finished.error, finished.trace.text) == (None, "a.\n\n")
    assert [(step.text, step.stop, step.cost.decode_tokens) for step in finished.abandoned] == WRITTEN_AHEAD
    assert finished.abandoned[-1].cost.prefill_tokens > 0


def test_steps_that_a_server_writes_after_a_loop_are_billed() -> None:
    """In policy `agree`, a solution also ends if the model repeats itself, which its server does not know."""
    limits = Limits(max_tokens=400)

    def flow(trace: Trace) -> Flow:
        drafted = WriteStep("draft", Trace(trace.problem, limits), until_end=True)
        return agree(trace, [drafted], lambda trace: "1", lambda trace, answer: True, at_once=False)

    with ahead_of_its_steps("draft", *"a" * LOOP_TOKENS, "b", ".\n\n", "c") as (draft, server):
        writers: dict[ModelRole, Writer] = {"draft": draft, "target": here()["target"]}
        (finished,) = finished_of(Scheduler(writers).run([Job(PROBLEMS[0], flow, limits)]))
        awaited(lambda: server.num_stalling == 0)
    check = finished.trace.check
    assert check
    assert (finished.error, finished.abandoned, check.answers) == (None, [], {"draft": None})
    loop, *ahead = [(step.text, step.stop, step.cost.decode_tokens) for step in check.discarded]
    assert (loop, ahead) == (("a" * LOOP_TOKENS, "loop", LOOP_TOKENS), WRITTEN_AHEAD)


def test_a_step_that_its_server_fails_is_billed_once() -> None:
    """Also if `tick` has returned all updates before the step is stopped."""
    objects = [{"choices": [{"index": 0, "text": "a", "finish_reason": reason}]} for reason in (None, "content_filter")]
    server, errors = HashServer(), list[object]()
    with opened_model(server) as model:
        writer = rendered("target", model)
        server.faults = lambda: Answer(objects, is_streamed=True)
        writer.open(0, PROBLEMS[0])
        writer.start(0, WriteStep("target", Trace(PROBLEMS[0], SHORT)))
        while writer.busy:
            errors += [type(update.error) for update in writer.tick() if update.error]
        stopped = [*writer.stop(0), *writer.stop(0)]
    assert errors == [ServerRequestError]
    assert [(step.stop, step.cost.decode_tokens, step.cost.prefill_tokens > 0) for step in stopped] == [("early", 1, True)]


def test_what_a_response_without_end_wrote_is_retracted_and_billed(monkeypatch: pytest.MonkeyPatch) -> None:
    server, faults = HashServer(), iter([stalled_after("a", ".\n\n", "b", "b")])
    with opened_model(server) as model:
        writer = rendered("target", model)
        set_limits(monkeypatch, WHOLE_SECONDS=0.2)
        server.faults = lambda: next(faults, None)
        server.bodies.clear()
        events = events_of({"target": writer}, PROBLEMS[:1], "target")
    first, second, *_ = steps = kept(finished_of(events)[0].trace)
    prompts = [len(body["prompt"]) for body in server.bodies if "max_tokens" in body]
    assert (first.text, len(prompts)) == ("a.\n\n", 2)
    assert second.cost.decode_tokens == second.num_tokens + 2
    assert sum(step.cost.prefill_tokens for step in steps) == sum(prompts)
    shown = [event.text if isinstance(event, Wrote) else "-" for event in events if isinstance(event, Wrote | Writing)]
    assert "".join(shown).startswith(f"-a.\n\n-bb-{second.text}")


def test_a_model_that_rejects_a_conversation_ends_no_problem_of_the_other_model() -> None:
    class Rejecting(Engine):
        def open(self, *arguments: Any) -> None:
            raise ConversationError("rejected")

    target = make_engine("target", HashBackend("target"), Sampler(), keep_token_stats=False)
    target.__class__ = Rejecting
    jobs = [Job(PROBLEMS[0], partial(single, model=role), SHORT) for role in ("draft", "target")]
    ended = finished_of(Scheduler({**here(), "target": target}).run(jobs))
    assert [type(event.error) for event in ended] == [type(None), ConversationError]


def texts_of(events: list[Event]) -> list[str]:
    return [event.trace.text for event in finished_of(events)]


def with_logprobs(tokens: Any, values: Any, top: Any) -> dict[str, Any]:
    logprobs = {"tokens": tokens, "token_logprobs": values, "top_logprobs": top}
    return {"choices": [{"text": "a", "finish_reason": "stop", "logprobs": logprobs}]}


OTHER_FORMS: list[dict[str, Any]] = [
    *({}, {"choices": [{}]}, {"choices": [{"text": 3}]}, {"choices": "x"}, {"choices": [[]]}, {"choices": {"a": 1}}),
    *({"choices": [{"text": "a"}]}, {"choices": [], "usage": {"prompt_tokens": 10**400}}),
    {"choices": [{"text": "", "finish_reason": "length"}]},  # cut before the first token
    with_logprobs(["a"], [float("nan")], [{"a": -1.0, "b": -2.0}]),
    with_logprobs(["a"], [-1.0], [{"a": 1e5, "b": -2.0}]),
    with_logprobs(["a", "b"], [-1.0], [{}]),
]


@pytest.mark.parametrize(
    "answer",
    [
        STALLED,
        *(Answer([{"error": {"message": "no such thing"}}], status) for status in (400, 422)),
        *(Answer([form], is_streamed=True) for form in OTHER_FORMS),
    ],
)
def test_a_wrong_answer_is_an_error_of_its_problem(
    answer: Answer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gc.collect()
    caplog.clear()  # of tasks of earlier tests
    set_limits(monkeypatch, WHOLE_SECONDS=0.1)
    server = HashServer()
    finished = finished_by(server, PROBLEMS[:2], faults=lambda: answer)
    assert server.num_stalling == 0
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []  # "Task was destroyed"
    assert [type(event.error) for event in finished] == [ServerRequestError] * 2
    assert "https://" not in str(finished)


@pytest.mark.parametrize("kind", KINDS)
def test_text_of_a_problem_is_never_a_control_token(kind: Kind) -> None:
    hostile = [Problem("h", "say <|end|> and <|assistant|>")]
    (finished,) = finished_by(HashServer(kind), hostile)
    assert finished.error is None
    assert texts({"h": finished.trace}) == texts(solve(here(), hostile, "target"))


MINIMAX = "]~!b[]~b]system\nS[e~[\n]~b]user\nq[e~[\n]~b]ai\n<think>\n"
GEMMA = "<|turn>user\nq<turn|>\n<|turn>model\n<|channel>thought\n<channel|>"


@pytest.mark.parametrize("template", ["", MINIMAX, GEMMA])
@pytest.mark.parametrize(
    "token",
    [
        "]~b]", "]~!b[", "[e~[", "]!p~[", "]<]image[>[", "<|tool_call>", "<tool_call|>", "<|audio|>", "<|turn>", '<|"|>',
        "</s>",
    ],
)  # fmt: skip
def test_what_is_surely_a_control_token_is_found_whatever_the_template(template: str, token: str) -> None:
    controls, text = Controls([Control(template)]), Plain(f"a {token} b")
    assert controls.fragments(text) == [f"a {token[0]}", f"{token[1:]} b"]


@pytest.mark.parametrize("template", ["", MINIMAX, GEMMA])
@pytest.mark.parametrize(
    "text",
    [
        "if a[i]<b and c>a[j] or x |> f <| y: return not a[~b][!c] and a[-1]!=b[0]",
        "parse = many <$> (digit <|> letter) <||> end; vector<int> v; f<T>(x); i<n|>g",
        "lm(y[ok] ~ x[ok]); y[i]~z[i]; x[[1]]~z; \\left[0,1\\right]~cm, \\bra{x}|y>, <x|y>, |<a|b>|, \\cite[p.~3]{x}, [A-Z]~[B]",
        "<p class=x>bold</p> <stdio.h> List<String> [INFO] [x] [1, 2] (0, 1] ~ ]0, 1[ and \\sqrt[3]{8}, A[B[0]]!",
    ],
)
def test_code_and_mathematics_have_no_control_tokens(template: str, text: str) -> None:
    assert Controls([Control(template)]).fragments(Plain(text)) == [text]


def test_the_key_is_in_the_header_only(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    server = HashServer(key="sk-secret-0123")
    with opened_model(server, key="sk-secret-0123") as model:
        solve({"target": served("target", model)}, PROBLEMS[:1], "target")
        assert "sk-secret" not in repr(model)
    with pytest.raises(ServerError) as refused, opened_model(server, key="sk-secret-9999"):
        pass
    assert "sk-secret" not in f"{refused.value!r} {refused.value.__cause__!r} {refused.value.hint} {caplog.text}"
    assert not any("sk-secret" in str(body) for body in server.bodies)


def test_a_model_is_chosen_by_name_or_is_the_only_one() -> None:
    server = HashServer("llamacpp")
    with opened_model(server) as model:
        assert (model.name, model.num_alternatives, model.card.context_size) == ("toy", 20, 2048)
    server.names, server.key = ["one", "key sk-secret", "two"], "sk-secret"
    with pytest.raises(ServerError) as raised, opened_model(server, key="sk-secret"):
        pass
    assert "one, key ***, two" in raised.value.hint
    server.key = None
    with opened_model(server, name="two") as model:
        assert model.name == "two"


def test_a_server_that_does_not_stream_is_reported_as_such_without_the_key() -> None:
    server = HashServer(key="sk-secret")
    repeated = {"Content-Type": "text/sk-secret"}
    server.faults = lambda: Answer([{"choices": [{"text": "a", "finish_reason": "stop"}]}], headers=repeated)
    with pytest.raises(ServerError, match=r"does not stream .* text/\*\*\*"), opened_model(server, key="sk-secret"):
        pass


ENDLESS = Answer([{"choices": [{"text": "a", "finish_reason": None}]}] * 1000, is_streamed=True)


@pytest.mark.parametrize(("answer", "num_requests"), [(STALLED, 1), (ENDLESS, 3)])
def test_a_server_that_never_ends_is_given_up(answer: Answer, num_requests: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A response is read for a time, or up to a number of tokens; then, fewer and no log-probabilities are requested."""
    set_limits(monkeypatch, SHORT_SECONDS=0.2)
    server = HashServer()
    server.faults = lambda: answer
    with pytest.raises(ServerError), opened_model(server):
        pass
    assert server.counts["/v1/completions"] <= num_requests  # fewer on a busy machine


@pytest.mark.parametrize(
    "faults", [[REFUSED] * 12, [SILENT], [REFUSED] * 3 + [503] * 30], ids=["refuses", "hangs", "starts slowly"]
)
def test_a_server_that_is_gone_for_a_while_is_waited_for(
    faults: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_limits(monkeypatch, MAX_DELAY=0.01, NOTE_SECONDS=0.0)
    server, left = HashServer(), iter([Answer([{}], status) for status in faults])
    with opened_model(server) as model:
        writer = rendered("target", model)
        server.faulty_paths, server.faults = ("",), lambda: next(left, None)
        found = solve({"target": writer}, PROBLEMS, "target", concurrency=2)
    assert texts(found) == texts(solve(here(), PROBLEMS, "target"))
    assert len(caplog.records) == 2  # it is gone, it is back


@pytest.mark.parametrize(
    "fault", [Answer([], REFUSED), Answer([], SILENT), ONLY_COMMENTS, Answer([{}], 503, {"Retry-After": "0.05"})]
)
def test_a_server_that_stays_away_ends_the_run(fault: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch, MAX_DELAY=0.01, GONE_SECONDS=0.1, CHUNK_SECONDS=0.05, WHOLE_SECONDS=5.0)
    server = HashServer()
    server.seconds = 0.05 if fault.status == SILENT else 0.0
    with pytest.raises(ServerError):
        finished_by(server, PROBLEMS, faults=lambda: fault, concurrency=2)


# --- the patience of `serve`


def asked_by_serve(
    server: HashServer, *faults: Answer | None, silence: float = CHUNK_SECONDS
) -> list[ArbitrageError | None]:
    """Ask for one problem after another, each of which meets its fault at every try. Return how each of them ended."""
    errors: list[ArbitrageError | None] = []
    server.faults = lambda: None
    with opened_model(server, serving_silence=silence) as model:
        writer = rendered("target", model)
        server.counts.clear()
        for fault in faults:
            server.faults = lambda answer=fault: answer  # type: ignore[misc]
            jobs = [Job(PROBLEMS[0], partial(single, model="target"), SHORT)]
            (ended,) = finished_of(Scheduler({"target": writer}).run(jobs, refusals=Refusals(math.inf)))
            errors.append(ended.error)
    return errors


@pytest.mark.parametrize(
    "fault",
    [Answer([], REFUSED), Answer([], SILENT), SILENT_LATER, STALLED, ONLY_COMMENTS],
    ids=["gone", "silent", "stalls", "comments later", "comments"],
)
def test_serve_gives_up_a_server_that_is_unreachable_or_silent(fault: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch, SERVING_SECONDS=0.1, WHOLE_SECONDS=5.0)
    began = time.monotonic()
    (error,) = asked_by_serve(HashServer(), fault, silence=0.1)
    assert isinstance(error, ServerError)
    assert time.monotonic() - began < 10


def test_a_response_that_is_only_announced_is_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch, CONNECT_SECONDS=0.1, WHOLE_SECONDS=5.0)
    server = HashServer()
    with on_loopback(server) as address, contextlib.closing(Connection(serving_silence=0.1)) as connection:
        writer = rendered("target", open_served(connection, ServedSource(Address.parse(address))))
        server.faults = lambda: Answer([], CONTINUES)
        began = time.monotonic()
        with pytest.raises(ServerError):
            solve({"target": writer}, PROBLEMS[:1], "target")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("concurrency", [1, 2])
def test_fewer_problems_at_once_are_advised_only_if_there_were_several(concurrency: int) -> None:
    failed = Answer([{"choices": []}], is_streamed=True, cut=0)
    server = HashServer()
    server.seconds = 0.02  # so that requests overlap
    for finished in finished_by(server, PROBLEMS[:2], faults=lambda: failed, concurrency=concurrency):
        assert isinstance(finished.error, ServerRequestError)
        assert ("--concurrency" in finished.error.hint) == (concurrency == 2)


@pytest.mark.parametrize(
    "kind", ["Text/Event-Stream", "text/event-stream ; charset=utf-8", "text/event-stream;charset=latin-1"]
)
def test_an_event_stream_is_recognised_however_its_type_is_written(kind: str) -> None:
    server = HashServer()
    server.content_type = kind
    written = Answer([{"choices": [{"text": "é", "finish_reason": "stop"}]}], is_streamed=True)
    (finished,) = finished_by(server, faults=lambda: written)
    assert (finished.error, finished.trace.text) == (None, "é")


def test_serve_waits_for_a_server_that_reads_a_long_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may send nothing meanwhile, for longer than it may be unreachable."""
    set_limits(monkeypatch, SERVING_SECONDS=0.05)
    has_read = threading.Event()
    server = HashServer()

    def read_prompt() -> None:
        assert has_read.wait(TIMEOUT)

    with (
        on_loopback(server) as address,
        contextlib.closing(Connection(serving_silence=CHUNK_SECONDS)) as connection,
        ThreadPoolExecutor(1) as pool,
    ):
        writer = rendered("target", open_served(connection, ServedSource(Address.parse(address))))
        server.faults = read_prompt
        began = time.monotonic()
        solving = pool.submit(solve, {"target": writer}, PROBLEMS[:1], "target")
        awaited(lambda: time.monotonic() > began + 0.5)
        has_read.set()
        assert texts(solving.result()) == texts(solve(here(), PROBLEMS[:1], "target"))


@pytest.mark.parametrize(
    ("status", "wait", "seconds"),
    [
        *((429, "120", 120), (503, "0.5", 0.5), (503, "", 0), (503, "soon", 0), (429, "9" * 400, 1e9)),
        *((429, timedelta(hours=1), 3600), (503, timedelta(hours=-1), 0)),
    ],
    ids=["seconds", "fraction", "none", "word", "long", "date", "past"],
)
def test_serve_does_not_wait_for_an_overloaded_server(status: int, wait: str | timedelta, seconds: float) -> None:
    """Nor does such a server count as failed: it says when to ask again."""
    if isinstance(wait, timedelta):
        wait = format_datetime(datetime.now(UTC) + wait, usegmt=True)
    server = HashServer()
    errors = asked_by_serve(server, *[Answer([{}], status, {"Retry-After": wait} if wait else {})] * 4, None)
    assert errors.pop() is None
    for error in errors:
        assert isinstance(error, ServerRequestError)
        assert error.status == status
        assert error.retry_after == pytest.approx(seconds, abs=TIMEOUT)
    assert server.counts["/v1/completions"] == 4 + 1


def test_serve_leaves_a_server_alone_that_failed_three_requests_in_a_row() -> None:
    failed, works = Answer([{}], 500), None
    errors = asked_by_serve(server := HashServer(), failed, failed, works, failed, failed)
    assert [bool(error) for error in errors] == [True, True, False, True, True]
    before = server.counts["/v1/completions"]
    assert [bool(error) for error in asked_by_serve(server, *[failed] * 3, works, works)] == [True] * 5
    assert server.counts["/v1/completions"] == 3 * MAX_SERVING_TRIES < before


def test_one_request_tries_whether_a_server_works_again(monkeypatch: pytest.MonkeyPatch) -> None:
    failed, works = Answer([{}], 500), None
    set_limits(monkeypatch, BREAK_SECONDS=0.0)
    errors = asked_by_serve(HashServer(), *[failed] * 4, works, failed, works)
    assert [bool(error) for error in errors] == [True] * 4 + [False, True, False]
    patience = ServePatience("server", CHUNK_SECONDS, num_failed=MAX_FAILED)
    set_limits(monkeypatch, BREAK_SECONDS=1000.0)
    patience.check()
    with pytest.raises(ServerError):
        patience.check()
    patience.note_end()
    patience.check()


def test_requests_of_a_problem_name_it_to_routers() -> None:
    server = HashServer()
    with opened_model(server) as model:
        writer = rendered("target", model)
        server.headers.clear()
        solve({"target": writer}, PROBLEMS[:3], "target")
    names = [headers.get("x-session-id") for headers in server.headers]
    assert len(set(names)) == 3
    assert None not in names
    assert names == [headers.get("x-smg-routing-key") for headers in server.headers]


def test_a_problem_keeps_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch, IDLE_SECONDS=60.0)
    server = HashServer()
    with on_loopback(server) as address, contextlib.closing(Connection()) as connection:
        writer = served("target", open_served(connection, ServedSource(Address.parse(address))))
        solve({"target": writer}, PROBLEMS[:2], "target")
    assert sum(server.counts.values()) > 20
    assert server.num_connections <= 3  # of the probes and of each problem


def test_policies_of_a_benchmark_do_not_warm_each_others_prompts() -> None:
    for kind in ("vllm", "llamacpp"):
        server = HashServer(kind)
        with opened_model(server) as model:
            solve({"target": served("target", model, shares_prompts=False)}, PROBLEMS[:2], "target")
        written = [body for body in server.bodies if "max_tokens" in body or "n_predict" in body][1:]
        if kind == "vllm":
            assert len({body["cache_salt"] for body in written}) == 2
        else:
            assert [body["cache_prompt"] for body in written].count(False) == 2


def test_retries_of_a_request_are_bounded() -> None:
    server, answer = HashServer(key="sk-secret"), Answer([{"error": {"message": "no quota left for sk-secret"}}], 429)
    (finished,) = finished_by(server, faults=lambda: answer, key="sk-secret")
    assert isinstance(finished.error, ServerRequestError)
    assert (finished.error.status, "no quota left for ***" in finished.error.message) == (429, True)
    assert server.counts["/v1/completions"] == 8


class NegativeContext(HashServer):
    def _models(self, body: Any) -> Answer:
        return Answer([{"data": [{"id": "toy", "owned_by": "vllm", "max_model_len": -5}]}])


def test_an_impossible_context_size_is_ignored() -> None:
    with opened_model(NegativeContext()) as model:
        assert model.card.context_size > 0


def test_a_server_that_is_not_there_is_reported_at_once() -> None:
    server = HashServer()
    server.handle = lambda *arguments: Answer([], 0)  # type: ignore[method-assign]
    with pytest.raises(ServerError), opened_model(server):
        pass


@pytest.mark.parametrize(
    ("missing", "asked", "version"),
    [
        ((), ["/server_info"], "SGLang 0.5.23"),
        (("/server_info",), ["/server_info", "/get_server_info"], "SGLang 0.5.23"),
        (("server_info",), ["/server_info", "/get_server_info"], "SGLang"),
    ],
)
def test_what_a_server_says_of_itself_may_have_moved(missing: tuple[str, ...], asked: list[str], version: str) -> None:
    server = HashServer("sglang")
    server.faulty_paths, server.faults = missing, lambda: Answer([{"error": {"message": "Not Found"}}], 404)
    with opened_model(server) as model:
        assert model.card.description == version
    assert [path for path in server.counts if path.endswith("server_info")] == asked

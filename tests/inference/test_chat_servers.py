"""Models behind chat APIs write the solutions that engines write here, whole, whatever the API rejects or counts."""

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
from fake_chat import Api, ChatServer, chunk
from fake_server import Answer, Body, HashServer, opened_model
from hash_language import SHORT, events_of, finished_of, solve, texts
from test_servers import PROBLEMS as ALL
from test_servers import here, set_limits

from arbitrage_cli.errors import ServerError, ServerRequestError
from arbitrage_cli.inference.chat_template import PromptStyle
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.servers.dialects import Chat
from arbitrage_cli.inference.servers.model import ServedModel
from arbitrage_cli.inference.servers.writer import ServedWriter
from arbitrage_cli.types import Finished, Limits, Step, Thinking

PROBLEMS = [problem for problem in ALL if solve(here(), [problem], "target")[problem.id].text]
"""Problems that the target answers: an answer without text counts as a refusal."""
STYLE = PromptStyle()
DISABLED = {"thinking": {"type": "disabled"}}
APIS = {
    "http://toy:1": Api(),
    "https://openrouter.ai": Api(usage="with text", thinks_unless={"reasoning": {"enabled": False}}),
    "https://api.mistral.ai": Api(rejects=("seed",)),
    "https://api.deepseek.com": Api(thinks_unless=DISABLED),
    "https://api.moonshot.ai": Api(usage="none", thinks_unless=DISABLED),
    "https://dashscope-intl.aliyuncs.com": Api(thinks_unless={"enable_thinking": False}),
}


def opened(host: str) -> AbstractContextManager[ServedModel]:
    return opened_model(ChatServer(APIS[host]), base=f"{host}/v1")


def writer(model: ServedModel, style: PromptStyle = STYLE, **options: Any) -> ServedWriter:
    assert isinstance(model.dialect, Chat)
    return ServedWriter("target", model, Sampler(), style, **options)


def test_everything_that_a_chat_api_writes_is_billed() -> None:
    server = ChatServer(Api())
    with opened_model(server) as model:
        server.num_read = server.num_written = 0
        solved = solve({"target": writer(model)}, PROBLEMS, "target", limits=replace(SHORT, max_steps=None))
    costs = [decision.kept.cost for trace in solved.values() for decision in trace.decisions]
    assert sum(cost.decode_tokens for cost in costs) == server.num_written
    assert sum(cost.prefill_tokens for cost in costs) == server.num_read


@pytest.mark.parametrize("host", APIS)
@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_target_behind_a_chat_api_is_asked_once_as_by_any_user(host: str, concurrency: int) -> None:
    limits = replace(SHORT, max_steps=None)
    expected = solve(here(), PROBLEMS, "target", limits=limits)
    server = ChatServer(APIS[host])
    with opened_model(server, base=f"{host}/v1") as model:
        server.bodies.clear()
        found = solve({"target": writer(model)}, PROBLEMS, "target", limits=limits, concurrency=concurrency)
    assert texts(found) == texts(expected)
    assert {name: trace.stop for name, trace in found.items()} == {name: trace.stop for name, trace in expected.items()}
    assert [body["messages"][-1]["role"] for body in server.bodies] == ["user"] * len(PROBLEMS)
    assert not any("stop" in body for body in server.bodies)
    if APIS[host].usage != "none":
        assert {name: trace.num_tokens for name, trace in found.items()} == {
            name: trace.num_tokens for name, trace in expected.items()
        }


def test_a_model_behind_a_chat_api_cannot_continue_text() -> None:
    with opened_model(server := ChatServer(Api())) as model:
        assert (len(server.bodies), model.cannot_continue is not None) == (1, True)
    with opened_model(HashServer()) as model:
        assert model.cannot_continue is None


def test_an_api_that_thinks_is_refused() -> None:
    server = ChatServer(Api(thinks_unless={"unknown": 1}))
    with pytest.raises(ServerError) as raised, opened_model(server):
        pass
    assert raised.value.hint
    assert len(server.bodies) == 1


def test_rejected_fields_are_omitted() -> None:
    server = ChatServer(Api(rejects=("max_tokens", "temperature", "top_p", "stream_options")))
    with opened_model(server) as model:
        assert texts(solve({"target": writer(model)}, PROBLEMS[:2], "target")) == texts(
            solve(here(), PROBLEMS[:2], "target")
        )
    assert server.bodies[-1].keys() == {"model", "stream", "messages", "max_completion_tokens"}


def test_fields_that_are_rejected_only_while_sampling_are_omitted() -> None:
    with opened_model(ChatServer(Api(rejects=("seed",)))) as model:
        sampled = ServedWriter("target", model, Sampler(temperature=1.0), STYLE)
        (event,) = finished_of(events_of({"target": sampled}, PROBLEMS[:1], "target"))
        assert event.error is None
        assert isinstance(model.dialect, Chat)
        assert model.dialect.omitted == {"seed"}


KEY, ONE_STEP = "sk-secret-0123456789", Limits(1, 120, 40)


def finished_by(answer: Answer, **options: Any) -> tuple[Finished, ChatServer]:
    """Solve a problem with an API that has a key and gives this answer to each request after the probe."""
    server = ChatServer(Api(), key=KEY)
    with opened_model(server, key=KEY) as model:
        server.bodies.clear()
        server.faults = lambda: answer
        (finished,) = finished_of(events_of({"target": writer(model)}, PROBLEMS[:1], "target", **options))
    return finished, server


def step_from(chunks: list[Body]) -> Step:
    return finished_by(Answer(chunks, is_streamed=True), limits=ONE_STEP)[0].trace.decisions[0].kept


@pytest.mark.parametrize(
    "cached", [{"prompt_tokens_details": {"cached_tokens": 20}}, {"prompt_cache_hit_tokens": 20}, {"cached_tokens": 20}]
)
def test_cached_tokens_are_counted_under_each_name(cached: Body) -> None:
    usage = {"prompt_tokens": 30, "completion_tokens": 2, **cached}
    cost = step_from([chunk({"content": "one"}), chunk({}, "length"), {"choices": [], "usage": usage}]).cost
    assert (cost.prefill_tokens, cost.cached_tokens, cost.decode_tokens) == (10, 20, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt_tokens_details": {"cached_tokens": 5000}}, {"prompt_tokens": -3}, {"completion_tokens": -2},
        {"prompt_tokens": "many"}, {"completion_tokens": 10**30}, {"prompt_tokens": 10**6}, {"completion_tokens": 10**6},
    ],
)  # fmt: skip
def test_contradictory_usage_is_unknown(wrong: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    usage = {"prompt_tokens": 30, "completion_tokens": 1, **wrong}
    cost = step_from([chunk({"content": "one"}), chunk({}, "length"), {"choices": [], "usage": usage}]).cost
    assert (cost.prefill_tokens, cost.cached_tokens, cost.decode_tokens) == (0, 0, 1)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "last",
    [
        {"choices": None, "usage": {"prompt_tokens": 30, "completion_tokens": 1}},
        {"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 1}},
    ],
)
@pytest.mark.parametrize("end", [{"index": 0, "delta": None, "text": None, "finish_reason": "length"}])
def test_null_is_as_good_as_nothing(last: Body, end: Body, caplog: pytest.LogCaptureFixture) -> None:
    step = step_from([{**chunk({"content": "one"}), "usage": {}}, {"choices": [end]}, last])
    assert (step.text, step.stop, step.cost.prefill_tokens) == ("one", "budget", 30)
    assert caplog.records == []


def test_only_the_first_choice_is_read() -> None:
    other = {"choices": [{"index": 1, "delta": {"content": "other"}, "finish_reason": "stop"}]}
    assert step_from([other, chunk({"content": "one\n\n"}), other, chunk({}, "stop")]).text == "one\n\n"


@pytest.mark.parametrize("kind", ["text/html", "application/json"])
def test_a_response_that_is_no_stream_is_not_requested_again(kind: str) -> None:
    finished, server = finished_by(Answer([{}], headers={"content-type": kind}))
    assert isinstance(finished.error, ServerRequestError)
    assert (kind in finished.error.message, len(server.bodies)) == (True, 1)


def test_a_response_that_stays_open_after_its_end_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arbitrage_cli.inference.servers.model.COUNTS_SECONDS", 0.05)
    chunks = [chunk({"content": "one"}), chunk({}, "stop")]
    finished, _ = finished_by(Answer(chunks, is_streamed=True, stalls=True))
    assert (finished.error, finished.trace.text) == (None, "one")


def test_a_key_that_a_server_repeats_reaches_no_text() -> None:
    assert step_from([chunk({"content": f"Your key is {KEY}."}), chunk({}, "stop")]).text == "Your key is ***."


def test_a_chunk_ends_at_the_separator() -> None:
    step = step_from([chunk({"content": "one\n\ntwo"}), chunk({}, "stop")])
    assert (step.text, step.stop) == ("one\n\n", "separator")


HIDDEN = {"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 40}}
"""The token counts of a response whose tokens were hidden reasoning."""


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        ([chunk({"content": "I "}), chunk({}, "content_filter")], "content_filter"),
        ([chunk({"refusal": "I cannot help."}), chunk({}, "stop")], "refusal"),
        ([chunk({}, "tool_calls")], "tool_calls"),
        ([chunk({"content": ""}, "stop")], "without text"),
        ([chunk({"content": ""}, "stop"), HIDDEN], "without text"),
        ([chunk({"content": ""}, "length"), HIDDEN], "without text"),
        ([chunk({"content": ""})] * 1000, "more than"),
        ([chunk({}, f"Bearer {KEY}")], "Bearer ***"),
        ([chunk({"content": "So"}), chunk({}, "insufficient_system_resource")], "insufficient_system_resource"),
    ],
)
def test_an_api_that_refuses_ends_the_step_under_the_name_of_its_reason(chunks: list[Body], reason: str) -> None:
    finished, _ = finished_by(Answer(chunks, is_streamed=True))
    assert isinstance(finished.error, ServerRequestError)
    assert (reason in finished.error.message, KEY in finished.error.message) == (True, False)


SOON = {"Retry-After": "0.001"}
FAULTS = [
    Answer([{"error": {"message": "slow down"}}], 429, SOON),
    Answer([{"error": {"message": "overloaded"}}], 529, {"Retry-After": "soon"}),
    Answer([chunk({"content": "I"}), {"error": {"code": 502, "message": "down"}, "choices": []}], is_streamed=True),
    Answer([chunk({"content": "I"})], is_streamed=True, cut=1),
]


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_chat_api_change_no_text(fault: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch, FIRST_DELAY=0.001)
    server, faults = ChatServer(Api()), iter([fault] * 3)
    with opened_model(server) as model:
        server.faults = lambda: next(faults, None)
        found = solve({"target": writer(model)}, PROBLEMS[:2], "target")
    assert texts(found) == texts(solve(here(), PROBLEMS[:2], "target"))


@pytest.mark.parametrize("max_tokens", [None, 5])
def test_the_thinking_phase_of_a_chat_api_is_empty(max_tokens: int | None) -> None:
    limits = replace(SHORT, max_steps=None)
    thinking = replace(limits, thinking=Thinking(True, max_tokens))
    with opened_model(server := ChatServer(Api())) as model:
        expected = solve({"target": writer(model)}, PROBLEMS, "target", limits=limits)
        server.bodies.clear()
        found = solve({"target": writer(model)}, PROBLEMS, "target", limits=thinking, concurrency=3)
    assert len(server.bodies) == len(PROBLEMS)
    assert {name: (trace.thoughts, trace.text, trace.stop) for name, trace in found.items()} == {
        name: ("", trace.text, trace.stop) for name, trace in expected.items()
    }


def test_a_response_that_is_interrupted_after_a_step_ends_its_problem() -> None:
    """Its first steps cannot be taken back, and a chat API does not continue them."""
    cut = Answer([chunk({"content": text}) for text in ("one", "\n\n", "tw")], is_streamed=True, cut=3)
    finished, server = finished_by(cut)
    assert isinstance(finished.error, ServerRequestError)
    assert (finished.trace.text, len(server.bodies)) == ("one\n\n", 1)


def with_usage(read: int, written: int, body: Body) -> Body:
    return {**body, "usage": {"prompt_tokens": read, "completion_tokens": written}}


def test_usage_in_every_chunk_is_counted_once() -> None:
    """Some APIs report in every chunk what the response has used so far."""
    step = step_from([with_usage(30, 1, chunk({"content": "one"})), with_usage(30, 2, chunk({}, "stop"))])
    assert (step.stop, step.cost.prefill_tokens, step.cost.decode_tokens) == ("end", 30, 2)


@pytest.mark.parametrize("reported", [False, True], ids=["at the end", "in every chunk"])
def test_the_prompt_of_an_interrupted_response_is_billed(monkeypatch: pytest.MonkeyPatch, *, reported: bool) -> None:
    """The server reports its size in the response, or at the end of the response to the same prompt."""
    set_limits(monkeypatch, FIRST_DELAY=0.001)
    begun = chunk({"content": "I"})
    cut = Answer([with_usage(30, 1, begun) if reported else begun], is_streamed=True, cut=1)
    whole = [chunk({"content": "one"}), chunk({}, "stop"), with_usage(30, 2, {"choices": []})]
    answers = iter([cut, cut, Answer(whole, is_streamed=True)])
    with opened_model(server := ChatServer(Api())) as model:
        server.faults = lambda: next(answers)
        (finished,) = finished_of(events_of({"target": writer(model)}, PROBLEMS[:1], "target"))
    (step,) = [decision.kept for decision in finished.trace.decisions]
    assert (step.text, step.cost.prefill_tokens, step.cost.decode_tokens) == ("one", 90, 4)


def test_a_step_that_stalls_is_billed_the_prompt_that_its_server_reported() -> None:
    stalled = Answer([with_usage(30, 1, chunk({"content": "I"}))], is_streamed=True, cut=1)
    refused = Answer([{"error": {"message": "no"}}], 403)
    answers = iter([stalled, refused])
    with opened_model(server := ChatServer(Api())) as model:
        server.faults = lambda: next(answers)
        (finished,) = finished_of(events_of({"target": writer(model)}, PROBLEMS[:1], "target"))
    assert isinstance(finished.error, ServerRequestError)
    assert sum(step.cost.prefill_tokens for step in finished.abandoned) == 30

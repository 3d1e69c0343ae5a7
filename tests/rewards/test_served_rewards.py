"""Raters on servers give the rewards that the same models give here."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest
from fake_server import HashServer, Kind, transport
from hash_language import HashBackend
from test_rewards import STEPS, Constant, Opinionated, opened, score, score_one, trace_of
from writing import PROBLEM, foreign

from arbitrage_cli.arbitrage import RateSteps
from arbitrage_cli.errors import ModelUnsupportedError, ServerRequestError
from arbitrage_cli.inference.servers.address import Address, Wanted
from arbitrage_cli.inference.servers.connection import Connection
from arbitrage_cli.inference.servers.model import ServedModel, open_served
from arbitrage_cli.rewards.judge import Judge
from arbitrage_cli.rewards.prm import ProcessReward
from arbitrage_cli.rewards.served import ServedJudge, ServedProcessReward, ServedRater
from arbitrage_cli.types import Step

MAKERS: dict[str, tuple[Callable[[ServedModel], ServedRater], Callable[[HashBackend], ProcessReward | Judge]]] = {
    "judge": (ServedJudge, lambda backend: Judge(backend, 0)),
    "turns": (lambda model: ServedProcessReward(model, "turns"), lambda backend: ProcessReward(backend, "turns")),
    "steps": (lambda model: ServedProcessReward(model, "steps"), lambda backend: ProcessReward(backend, "steps")),
}


@contextmanager
def served(kind: Kind, backend: HashBackend) -> Iterator[ServedModel]:
    with closing(Connection(transport(HashServer(kind, backend)))) as connection:
        yield open_served(connection, Wanted(Address.parse("http://toy/v1")))


@pytest.mark.parametrize("kind", ["vllm", "llamacpp", "sglang"])
@pytest.mark.parametrize("make", MAKERS)
def test_rewards_are_those_of_the_model_here(kind: Kind, make: str) -> None:
    there, here = MAKERS[make]
    expected = [score_one(opened(here(Opinionated())), trace_of(*STEPS[:number]), *STEPS) for number in (0, 2)]
    with served(kind, Opinionated()) as model:
        rater = there(model)
        rater.open(0, PROBLEM)
        rater.open(1, PROBLEM)
        requests = {slot: RateSteps(trace_of(*STEPS[:number]), _steps()) for slot, number in enumerate((0, 2))}
        found = score(rater, requests)
    for slot, rewards in enumerate(expected):
        assert found[slot].values == pytest.approx(rewards, abs=1e-4)
    assert found[0].cost.prefill_tokens > 0


def test_a_model_that_answers_something_else_is_reported() -> None:
    with served("vllm", Constant(-20.0)) as model, pytest.raises(ServerRequestError):
        score_one(opened(ServedProcessReward(model, "turns")), trace_of(), STEPS[0])


def test_a_server_without_log_probabilities_rates_nothing() -> None:
    server = HashServer("vllm", Opinionated())
    server.max_alternatives = 0
    with closing(Connection(transport(server))) as connection:
        model = open_served(connection, Wanted(Address.parse("http://toy/v1")))
        with pytest.raises(ModelUnsupportedError):
            ServedJudge(model)


def _steps() -> tuple[Step, ...]:
    return tuple(map(foreign, STEPS))

"""A server in this process, over the toy language, with a real socket on loopback."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import httpx2
from cli import TIMEOUT
from hash_language import SHORT, HashBackend, hash_engines

from arbitrage_cli.inference.backend import Floats
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Scheduler
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.route import AvailableRouter, Menu, Route
from arbitrage_cli.serving.limits import RequestLimits
from arbitrage_cli.serving.requests import Defaults
from arbitrage_cli.serving.server import Access, ServerBounds, Service, bind
from arbitrage_cli.serving.worker import Worker
from arbitrage_cli.types import Limits, RoleLimits, ServingEvent, Thinking

CONCURRENCY = 4
MENU = Menu(Route(POLICIES["entropy"], 1.5), AvailableRouter(None, None))
LONG = replace(SHORT, max_steps=12, max_tokens=2 * SHORT.token_limit)


def limits_for_both(limits: Limits, thinking: Thinking) -> RoleLimits:
    both = replace(limits, thinking=thinking)
    return RoleLimits(both, both)


DEFAULTS = Defaults(
    MENU,
    RoleLimits(SHORT, SHORT),
    limits_for_both(LONG, Thinking(True)),
    limits_for_both(SHORT, Thinking(False)),
    Sampler(),
    max_chars=20_000,
)
NAMES = frozenset(("127.0.0.1", "localhost", "::1"))


class Gate:
    """A gate that blocks a model's computations while it is closed. It is initially open."""

    def __init__(self) -> None:
        self._opened = threading.Event()
        self._opened.set()
        self.open, self.close = self._opened.set, self._opened.clear

    def backend(self, *arguments: Any, **options: Any) -> HashBackend:
        opened = self._opened

        class Gated(HashBackend):
            def decode(self, *arguments: Any, **options: Any) -> Floats:
                assert opened.wait(TIMEOUT)
                return super().decode(*arguments, **options)

        return Gated(*arguments, **options)


class Served(httpx2.Client):
    """A client of the server with common requests."""

    events: list[ServingEvent]

    @property
    def address(self) -> tuple[str, int]:
        return self.base_url.host, self.base_url.port or 0

    def ask(self, question: str = "question 0", /, **fields: Any) -> httpx2.Response:
        body = json.dumps({"messages": [{"role": "user", "content": question}], **fields})
        return self.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})

    def load(self) -> tuple[int, int]:
        health = self.get("/health").json()
        return health["running"], health["waiting"]


def text_of(response: httpx2.Response) -> str:
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def chunks(lines: Iterator[str]) -> list[dict[str, Any]]:
    """Return the chunks of a stream, and check that it is complete."""
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(one) for one in data[:-1]]


@contextmanager
def serving(
    *,
    gate: Gate | None = None,
    bounds: ServerBounds | None = None,
    access: Access | None = None,
    concurrency: int = CONCURRENCY,
    queue: int = 64,
    thinking: Thinking = Thinking(),  # noqa: B008 - frozen
) -> Iterator[Served]:
    """Run a server, and check that its thread ends without an error."""
    make = gate.backend if gate else HashBackend
    engines = hash_engines(make=make, num_sequences=concurrency)
    scheduler = Scheduler(engines, concurrency=concurrency)
    failures: list[BaseException] = []
    events: list[ServingEvent] = []
    request_limits, access = RequestLimits(concurrency, queue), access or Access(None, NAMES.__contains__)
    defaults = replace(DEFAULTS, limits=limits_for_both(SHORT, thinking))
    worker = Worker(scheduler, lambda policy, limits: None, request_limits)
    service = Service(worker, defaults, bounds or ServerBounds(), access)
    with closing(bind("127.0.0.1", 0)) as bound:

        def run() -> None:
            try:
                service.run(bound, events.append)
            except BaseException as failure:
                failures.append(failure)
                raise

        host, port = bound.getsockname()
        thread = threading.Thread(target=run)
        thread.start()
        with Served(base_url=f"http://{host}:{port}", timeout=TIMEOUT) as client:
            client.events = events
            try:
                yield client
            finally:
                if gate:
                    gate.open()
                service.drain()
                thread.join(TIMEOUT)
    assert not thread.is_alive()
    assert failures == []


def refusal(response: httpx2.Response) -> Mapping[str, Any]:
    error: Mapping[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error

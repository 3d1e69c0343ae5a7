"""What a server has done, in the text format of Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from arbitrage_cli.runs.summary import tally
from arbitrage_cli.types import RequestEnded, ServingEvent


class Metrics:
    """Counts what has ended. May be used in any thread."""

    def __init__(self, num_waiting: Callable[[], int], num_running: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        self._responses = Counter("arbitrage_responses", "HTTP responses", ["path", "status"], registry=registry)
        self._requests = Counter("arbitrage_requests", "Requests that had a slot", ["policy", "end"], registry=registry)
        self._seconds = Histogram(
            "arbitrage_request_seconds",
            "From the arrival of a request to its end",
            buckets=[0.1, 0.3, 1, 3, 10, 30, 100, 300],
            registry=registry,
        )
        self._steps = Counter("arbitrage_steps", "Steps decided", ["verdict"], registry=registry)
        self._tokens = Counter("arbitrage_tokens", "Tokens written, discarded ones too", ["role"], registry=registry)
        self._model_seconds = Counter(
            "arbitrage_model_seconds", "Time of the models, prefill included", ["role"], registry=registry
        )
        for name, what, number in (
            ("arbitrage_waiting", "Requests that wait for a slot", num_waiting),
            ("arbitrage_running", "Requests that have a slot", num_running),
        ):
            Gauge(name, what, registry=registry).set_function(number)

    def responded(self, path: str, status: int) -> None:
        """A response was sent."""
        self._responses.labels(path, str(status)).inc()

    def observe(self, event: ServingEvent) -> None:
        """Count a request that has ended."""
        if not isinstance(event, RequestEnded):
            return
        decisions = event.finished.trace.decisions
        end = "cancelled" if event.is_cancelled else "failed" if event.finished.error else "finished"
        self._requests.labels(event.model.partition("@")[0], end).inc()
        self._seconds.observe(event.seconds)
        for decision in decisions:
            self._steps.labels(decision.verdict or decision.kept.model).inc()
        figures = tally(decisions)
        self._tokens.labels("draft").inc(figures.drafted_tokens)
        self._tokens.labels("target").inc(figures.target_tokens)
        self._model_seconds.labels("draft").inc(figures.draft_cost.seconds)
        self._model_seconds.labels("target").inc(figures.target_cost.seconds)

    @property
    def text(self) -> bytes:
        return generate_latest(self._registry)

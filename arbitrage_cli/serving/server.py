"""The whole server: HTTP in one thread, the models in the caller's. Knows no command line and no terminal."""

import socket

from arbitrage_cli.arbitrage import Router
from arbitrage_cli.inference.scheduler import Scheduler
from arbitrage_cli.serving.app import Access, Bounds, make_app
from arbitrage_cli.serving.events import ServingEvent
from arbitrage_cli.serving.http import answering
from arbitrage_cli.serving.intake import Intake
from arbitrage_cli.serving.metrics import Metrics
from arbitrage_cli.serving.requests import Defaults
from arbitrage_cli.serving.worker import Observe, Worker


class Server:
    """Answers requests with one scheduler. `drain` lets those that are open end, and takes no others."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._intake = Intake()
        self._is_running = False

    def drain(self) -> bool:
        """Returns whether requests are being answered. May be called in any thread."""
        self._intake.close()
        return self._is_running

    def run(
        self,
        bound: socket.socket,
        scheduler: Scheduler,
        router: Router | None,
        defaults: Defaults,
        bounds: Bounds,
        observe: Observe,
    ) -> None:
        """Answer requests that come to a socket, until all is drained. `router` is the head's. Errors as `Worker.run`."""
        worker = Worker(scheduler, self._intake, router)
        metrics = Metrics(lambda: len(self._intake), lambda: worker.num_running)

        def count_and_observe(event: ServingEvent) -> None:
            metrics.observe(event)
            observe(event)

        app = make_app(defaults, self._intake, metrics, bounds, self._access)
        self._is_running = True
        with answering(app, bound):
            worker.run(count_and_observe)

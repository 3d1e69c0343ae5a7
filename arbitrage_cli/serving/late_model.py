"""A model whose server did not answer when `serve` started. Requests that need the model ask its server again."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError

from arbitrage_cli.errors import ArbitrageError
from arbitrage_cli.routing.policies import Policy
from arbitrage_cli.serving.requests import RefusedError

RETRY_SECONDS = 30.0  # after a failure, in which the server is not asked again
WAIT_SECONDS = 10.0  # in which the server must answer the request that asks it

log = logging.getLogger("arbitrage.serving")


class LateModel:
    """The state of the model, which changes only in the event loop.

    `needs` returns whether a policy needs the model. `open_model` opens it, and raises ArbitrageError if its server cannot be
    used. It may take long, so it runs in a thread of its own.
    """

    def __init__(
        self,
        name: str,
        needs: Callable[[Policy], bool],
        open_model: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._needs = needs
        self._open_model = open_model
        self._clock = clock
        self._is_open = False
        self._retry_at = clock() + RETRY_SECONDS
        self._trial: asyncio.Event | None = None  # is set when the trial ends

    def offered(self, policies: Mapping[str, Policy]) -> list[str]:
        """Return the model names of requests whose policies can be used now."""
        return [name for name, policy in policies.items() if self._is_open or not self._needs(policy)]

    async def need(self, policy: Policy) -> None:
        """Ask the server again, if the policy needs the model. Raises RefusedError if it cannot be used yet."""
        if self._is_open or not self._needs(policy):
            return
        if self._trial is None and self._clock() >= self._retry_at:
            self._trial = asyncio.Event()
            threading.Thread(target=self._try, args=[asyncio.get_running_loop()], daemon=True).start()
        if self._trial:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WAIT_SECONDS):
                    await self._trial.wait()
        if not self._is_open:
            raise RefusedError(
                f"the server of the {self._name} cannot be used",
                "use another model, or retry later",
                status=503,
                code="upstream_error",
                parameter="model",
                retry_after=self._retry_at - self._clock(),
            )

    def _try(self, loop: asyncio.AbstractEventLoop) -> None:
        problem = "internal error"
        try:
            self._open_model()
            problem = ""
        except ArbitrageError as error:
            problem = f"{error.message} ({error.hint})" if error.hint else error.message
        except CancelledError:  # the program ends
            return
        finally:
            with contextlib.suppress(RuntimeError):  # the event loop has ended
                loop.call_soon_threadsafe(self._end_trial, problem)

    def _end_trial(self, problem: str) -> None:
        if problem:
            log.warning("the %s still cannot be used: %s", self._name, problem)
        else:
            log.warning("the server of the %s can be used now", self._name)
        self._is_open = not problem
        self._retry_at = self._clock() + RETRY_SECONDS
        if self._trial:
            self._trial.set()
        self._trial = None

"""Opens the session of a command: from its request to its plan and its open models. Only this module sees all three."""

import contextlib
import functools
import logging
from collections.abc import Iterator
from functools import partial

from arbitrage_cli.app.asking.request import Request
from arbitrage_cli.app.deciding.gather import OpenServed
from arbitrage_cli.app.deciding.plan import Plan, make_plan, with_models_for
from arbitrage_cli.app.models import RemoteModel
from arbitrage_cli.app.opening.open_models import OpenModels, served_models
from arbitrage_cli.app.opening.session import OpenSession, Session
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.errors import ServerError
from arbitrage_cli.types import ModelRole

log = logging.getLogger("arbitrage.session")


def session_of(request: Request, serving_silence: float | None = None) -> OpenSession:
    """Return the function that opens the session of a request.

    With `serving_silence`, requests to servers are those of `serve`, whose servers may be silent for as many seconds.
    """
    return partial(open_session, request, serving_silence=serving_silence)


@contextlib.contextmanager
def open_session(
    request: Request,
    display: Display,
    *,
    max_concurrency: int | None = None,
    cost_seconds: float | None = None,
    earlier: Plan | None = None,
    serving_silence: float | None = None,
) -> Iterator[Session]:
    """Open a session, as `OpenSession` describes it. Raises the same errors as `make_plan` and `OpenModels`."""
    with contextlib.ExitStack() as stack:
        open_served: OpenServed = served_models(
            request.named.served,
            display,
            stack,
            serving_silence=serving_silence,
            is_greedy=not request.options.temperature,
        )
        if request.use == "serve" and not any(policy.compares_answers for policy in request.asked):
            open_served = _checker_may_be_absent(open_served)
        if earlier:
            plan = with_models_for(earlier, request, display, open_served)
        else:
            plan = make_plan(request, display, open_served, cost_seconds)
        for note in plan.notes:
            display.tell(note)
        if plan.setup.tau_costs:
            log.info("presets are based on the token costs of %s", plan.setup.tau_costs)
        models = OpenModels(plan, open_served, max_concurrency)
        session = stack.enter_context(contextlib.closing(Session(plan, models, display)))
        yield session
        if request.use == "run":  # a run, whose results are stored
            models.check_files()


def _checker_may_be_absent(open_served: OpenServed) -> OpenServed:
    """Return a function that returns None for a checker whose server cannot be used. It asks each server once."""

    @functools.cache
    def open_or_none(role: ModelRole) -> RemoteModel | None:
        try:
            return open_served(role)
        except ServerError as error:
            if role != "check":
                raise
            message = (
                "policy agree is not offered, because its checker cannot be used (%s); once it can, restart this command"
            )
            log.warning(message, error.message)
            return None

    return open_or_none

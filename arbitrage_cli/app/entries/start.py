"""Opens the session of a command: from its request to its plan and its open models. Only this module sees all three."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from functools import partial

from arbitrage_cli.app.asking.request import Request
from arbitrage_cli.app.deciding.decide import with_checker
from arbitrage_cli.app.deciding.gather import OpenServed, model_facts
from arbitrage_cli.app.deciding.plan import Plan, make_plan, with_models_for
from arbitrage_cli.app.models import RemoteModel
from arbitrage_cli.app.opening.open_models import OpenModels, served_models
from arbitrage_cli.app.opening.session import OpenSession, Session
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.errors import ServerError
from arbitrage_cli.runs.run import Setup
from arbitrage_cli.types import ModelRole

log = logging.getLogger("arbitrage.session")


def session_of(request: Request) -> OpenSession:
    """Return the function that opens the session of a request."""
    return partial(open_session, request)


@contextlib.contextmanager
def open_session(
    request: Request,
    display: Display,
    *,
    max_concurrency: int | None = None,
    cost_seconds: float | None = None,
    earlier: Plan | None = None,
) -> Iterator[Session]:
    """Open a session, as `OpenSession` describes it. Raises the same errors as `make_plan` and `OpenModels`."""
    with contextlib.ExitStack() as stack:
        open_served = served_models(
            request.named.served,
            display,
            stack,
            is_serving=request.use == "serve",
            is_greedy=not request.options.temperature,
            continues=not request.writes_whole,
        )
        open_at_start: OpenServed = _checker_may_be_absent(open_served) if request.use == "serve" else open_served
        if earlier:
            plan = with_models_for(earlier, request, display, open_at_start)
        else:
            plan = make_plan(request, display, open_at_start, cost_seconds)
        for note in plan.notes:
            display.tell(note)
        if plan.setup.tau_costs:
            log.info("presets are based on the token costs of %s", plan.setup.tau_costs)
        models = OpenModels(plan, open_at_start, max_concurrency)
        ask_checker = partial(_ask_checker, request, plan.setup, open_served)
        session = stack.enter_context(contextlib.closing(Session(plan, models, display, ask_checker)))
        yield session
        if request.use == "run":  # a run, whose results are stored
            models.check_files()


def _checker_may_be_absent(open_served: Callable[[ModelRole], RemoteModel]) -> OpenServed:
    """Return a function that returns None for a checker whose server cannot be used. It asks each server once."""

    @functools.cache
    def open_or_none(role: ModelRole) -> RemoteModel | None:
        try:
            return open_served(role)
        except ServerError as error:
            if role != "check":
                raise
            log.warning("policy agree is not offered, because its checker cannot be used: %s", error.message)
            return None

    return open_or_none


def _ask_checker(
    request: Request, setup: Setup, open_served: Callable[[ModelRole], RemoteModel]
) -> tuple[Setup, RemoteModel]:
    """Ask the server of the checker again, as `session.AskChecker` describes it."""
    facts = model_facts(request, "check", open_served)
    return with_checker(setup, request, facts), open_served("check")

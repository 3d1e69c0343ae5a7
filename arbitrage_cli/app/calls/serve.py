"""Serves a pair over HTTP: binds the address, loads the models, and answers requests until a signal arrives."""

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from socket import socket

from arbitrage_cli.app.calls.call import with_thinking
from arbitrage_cli.app.opening.session import OpenSession, Session
from arbitrage_cli.app.options import KEY_VARIABLE, ServerOptions
from arbitrage_cli.app.protocol import Display, ServerInfo
from arbitrage_cli.errors import UsageError
from arbitrage_cli.inference.servers.address import is_private
from arbitrage_cli.serving.limits import RequestLimits
from arbitrage_cli.serving.requests import Defaults
from arbitrage_cli.serving.server import Access, ServerBounds, Service, bind
from arbitrage_cli.serving.worker import Worker
from arbitrage_cli.types import WRITING, RequestEnded, RoleLimits, ServingEvent, Thinking

LOOPBACK = ("localhost", "127.0.0.1", "::1")
CHARS_PER_TOKEN = 16  # above the average of any text


def serve_pair(open_session: OpenSession, options: ServerOptions, display: Display, *, draws_seeds: bool = False) -> None:
    """Answer requests until a signal arrives, then finish open requests. The server's URL is printed to standard output.

    If `draws_seeds` is true, each request without a seed is sampled with another one.

    Raises UsageError if the key or the address cannot be used, and the same errors as `Session` and `Service.run`.
    """
    key = _api_key()
    with contextlib.ExitStack() as stack:
        bound = stack.enter_context(contextlib.closing(bind(options.host, options.port)))
        access = Access(key, _accepted_hosts(bound, options, key))
        session = stack.enter_context(open_session(display))
        session.load()
        defaults = replace(_defaults(session), draws_seeds=draws_seeds)
        limits = RequestLimits(session.concurrency, options.queue, session.models.servers)
        worker = Worker(session.models.scheduler(), session.scorer, limits)
        service = Service(worker, defaults, ServerBounds(options.timeout), access)
        host, port = bound.getsockname()[:2]
        url = f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"
        run = session.run_info(num_problems=None)
        display.begin(ServerInfo(url, defaults.names, run))
        display.result(url)

        def show(event: ServingEvent) -> None:
            if isinstance(event, RequestEnded):
                event = replace(event, bill=run.bill(event.finished))
            display.handle(event)

        service.run(bound, show)
        display.end()


def _defaults(session: Session) -> Defaults:
    sizes = {role: model.card.context_size for role, model in session.models.by_role.items()}
    return Defaults(
        session.menu(),
        session.limits,
        _limits_with(session, Thinking(True)),
        _limits_with(session, Thinking(False)),
        session.decided.settings.sampler,
        CHARS_PER_TOKEN * min(sizes.values()),
        context_sizes=sizes,
        thinking_pair=session.plan.thinking_pair,
        lacks_checker=session.lacks_checker,
        warnings_of=lambda policy, problem: session.warnings_of(session.models.by_role.keys() & policy.models)(problem),
    )


def _limits_with(session: Session, thinking: Thinking) -> RoleLimits | None:
    """Return the limits of requests that turn thinking on or off, or None if the models do not support it."""
    if session.limits.target.thinking.switch == thinking.switch:
        return session.limits
    with contextlib.suppress(UsageError):
        return with_thinking(session, thinking, (*WRITING, "check"))
    return None


def _api_key() -> str | None:
    """Return the API key that clients must send, from the environment. Raises UsageError if the key is invalid."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        hint = "create a key, for example with: openssl rand -hex 32"
        raise UsageError(f"{KEY_VARIABLE}: the API key must be a single line of ASCII text", hint)
    return key or None


def _accepted_hosts(bound: socket, options: ServerOptions, key: str | None) -> Callable[[str], bool]:
    """Return the check of host names. Raises UsageError if a public address has no API key.

    Without a key, the domain names of web pages are rejected, because such a name may resolve to this machine.
    """
    own = options.host.lower()
    if ip_address(bound.getsockname()[0]).is_loopback:
        return {*LOOPBACK, own}.__contains__
    if key is None and not options.no_api_key:
        hint = f"set {KEY_VARIABLE}, or use --no-api-key"
        raise UsageError("other machines can connect to this address without an API key", hint, option="host")
    is_ip_address = re.compile(r"[0-9.]+|.*:.*").fullmatch
    return lambda host: bool(key or host == own or is_private(host) or is_ip_address(host))

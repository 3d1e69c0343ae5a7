"""Makes huggingface_hub safe to use: checks its settings, the user's token and the Hub's responses, and converts errors.

HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE and HF_HUB_OFFLINE are honored.
"""

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from arbitrage_cli.errors import HubError
from arbitrage_cli.model_files.names import HubName

_SAFE = re.compile(r'none|(W/)?"?[0-9a-f]{40,64}"?')
_NOT_A_HUB = (AttributeError, KeyError, RecursionError, TypeError, ValueError)  # from a malformed response
MAX_RESPONSE_BYTES = 1 << 24  # of the API; real responses have some kilobytes


def _check_response(response: Any) -> None:
    """Reject a commit or an ETag that would be unsafe as a path, and an API response that is too large."""
    used = ("X-Repo-Commit", "X-Linked-ETag", "ETag") if response.status_code < 400 else ("X-Repo-Commit",)
    if response.request.method == "HEAD" and not all(_SAFE.fullmatch(response.headers.get(name, "none")) for name in used):
        raise HubError(f"{_host()} sent a name that may point outside the cache", "check HF_ENDPOINT")
    if str(response.url).startswith(f"{hub_settings().ENDPOINT}/api/"):
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > MAX_RESPONSE_BYTES:
                raise ValueError(f"the response has more than {MAX_RESPONSE_BYTES:,} bytes")
        response._content = bytes(body)  # noqa: SLF001 - as `response.read` does, which has no limit


def find_token() -> str | bool:
    """Return the user's token, or False if no token is stored. Raises HubError if sending the token would be unsafe."""
    endpoint = urlsplit(hub_settings().ENDPOINT)
    from huggingface_hub.utils import get_token_to_send

    token = get_token_to_send(None)
    if token and endpoint.scheme != "https" and endpoint.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise HubError(f"cannot send the Hub token to {_host()} over http", "use https in HF_ENDPOINT, or unset HF_TOKEN")
    if token and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise HubError("the Hub token contains invalid characters", "correct HF_TOKEN, or run `hf auth login`")
    return token or False


def _host() -> str:
    """Return the Hub's host name for messages, because the full address may contain a password."""
    return str(urlsplit(hub_settings().ENDPOINT).hostname)


def hub_settings() -> Any:
    with contextlib.suppress(ValueError):  # a port out of range, a broken IPv6 address
        from huggingface_hub import constants

        endpoint = urlsplit(constants.ENDPOINT)
        if endpoint.scheme in ("http", "https") and endpoint.hostname and endpoint.port != 0:
            return constants
    raise HubError("HF_ENDPOINT is not a web address", "use an address such as https://huggingface.co, or unset HF_ENDPOINT")


@contextlib.contextmanager
def hub_errors(name: HubName) -> Iterator[None]:
    import httpx2
    from huggingface_hub import get_session
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    hooks = (session := get_session()).event_hooks
    session.event_hooks = {**hooks, "response": [*{*hooks["response"], _check_response}]}
    hub_settings().HF_HUB_DISABLE_TELEMETRY = True
    if not hub_settings().HF_DEBUG:
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # warnings would break into a live display
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Not enough free disk space")
            yield
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, RuntimeError, UserWarning, *_NOT_A_HUB) as error:
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        if isinstance(cause, HfHubHTTPError):
            raise _http_error(name, cause.response) from None  # the cause may contain the token
        reason, hint = str(cause) or type(cause).__name__, "check the name and the network, and try again"
        if isinstance(cause, _NOT_A_HUB):
            reason, hint = (
                "the response is not from a Hub server",
                "check HF_ENDPOINT, and whether your network requires a login",
            )
        elif isinstance(cause, UserWarning) or (isinstance(cause, OSError) and cause.errno):
            hint = "free disk space or change the permissions of the cache, or set HF_HOME to another folder"
        raise HubError(f"{name} cannot be downloaded from {_host()} ({reason})", hint) from cause


def _http_error(name: HubName, response: Any) -> HubError:
    page = f"https://huggingface.co/{'datasets/' if name.kind == 'dataset' else ''}{name.repo}"
    log_in = f"check the name at {page}; if the repository is gated or private, accept its terms and run `hf auth login`"
    seconds = response.headers.get("Retry-After", "")
    wait = f"try again in {seconds} seconds" if seconds.isdigit() else "try again later"
    hint = {401: log_in, 403: log_in, 404: log_in, 429: f"{wait}; for a higher request limit, run `hf auth login`"}.get(
        response.status_code, wait
    )
    return HubError(f"{name} cannot be downloaded from {_host()} (HTTP {response.status_code})", hint)

"""A Hugging Face Hub on loopback, with faults on request: what `repo_info` and a download need of the real one."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import close_session, constants
from processes import serve_threads

COMMIT = "0123456789abcdef0123456789abcdef01234567"

AGENTS = "/api/agent-harnesses"  # huggingface_hub asks for this by itself, at most once a day


@dataclass
class Failure:
    """A response that replaces the correct one."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    path: str = ""  # only requests whose path contains this fail


@dataclass
class Request:
    method: str
    path: str
    authorization: str | None


class FakeHub:
    """Repositories by name, each with its files. What it does wrong is set from outside while it runs.

    The name of a data set begins with `datasets/`.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.in_git: set[str] = set()  # names of the small files that git keeps itself: no sha256 is published
        self.requests: list[Request] = []
        self.tunnels: list[str] = []  # hosts for which it was asked as a proxy
        self.url = ""
        self.sha = COMMIT
        self.failure: Failure | None = None
        self.corrupt = False  # right size, wrong bytes
        self.headers: dict[str, str] = {}  # in place of the correct ones

    def downloads(self) -> list[Request]:
        return [request for request in self.requests if request.method == "GET" and "/resolve/" in request.path]

    def push(self) -> None:
        self.sha = hashlib.sha1(self.sha.encode()).hexdigest()  # noqa: S324


def use(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make this process ask that Hub, without token and proxy, and keep what it fetches in the folder."""
    close_session()  # the next one is made with this environment
    for name in ("HF_TOKEN", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@contextmanager
def running() -> Iterator[FakeHub]:
    hub = FakeHub()

    class Handler(_Handler):
        served_hub = hub

    with serve_threads(Handler) as port:
        hub.url = f"http://127.0.0.1:{port}"
        yield hub


class _Handler(BaseHTTPRequestHandler):
    served_hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Says nothing."""

    def do_GET(self) -> None:
        hub, path = self.served_hub, unquote(urlsplit(self.path).path)
        if path == AGENTS:
            return self._send(404, b"")
        hub.requests.append(Request(self.command, path, self.headers["Authorization"]))
        if hub.failure and hub.failure.path in path:
            return self._send(hub.failure.status, hub.failure.body.encode(), hub.failure.headers)
        if path.startswith("/api/"):
            repo, _, revision = path.removeprefix("/api/").removeprefix("models/").partition("/revision/")
            if repo not in hub.repos or revision not in ("main", hub.sha):
                return self._send(404, b"", {"X-Error-Code": "RevisionNotFound" if repo in hub.repos else "RepoNotFound"})
            info = {"id": repo, "sha": hub.sha, "siblings": [{"rfilename": name} for name in hub.repos[repo]]}
            return self._send(200, json.dumps(info).encode(), {"X-HF-Warning": "login; please log in"})
        repo, _, rest = path.removeprefix("/").partition("/resolve/")
        name = rest.partition("/")[2]
        data = hub.repos.get(repo, {}).get(name)
        if data is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        etag = (hashlib.sha1 if name in hub.in_git else hashlib.sha256)(data).hexdigest()
        sent = bytes(byte ^ 1 for byte in data) if hub.corrupt else data
        return self._send(200, sent, {"X-Repo-Commit": hub.sha, "ETag": f'"{etag}"'} | hub.headers)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_CONNECT(self) -> None:
        self.served_hub.tunnels.append(self.path)
        self._send(501, b"")

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body)

"""A Hugging Face Hub on loopback, with faults on request: what `repo_info` and a download need of the real one.

Files are served by a redirect to a second host name, as the real Hub sends its downloads to a CDN; small ones, which git
keeps itself, by the Hub, with no sha256 published.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from cli import TIMEOUT
from huggingface_hub import constants
from processes import serve_threads

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Failure:
    """A response that replaces the correct one."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    path: str = ""  # only requests whose path contains this fail


@dataclass
class Request:
    """A request as it came: `host` is api for the Hub itself, cdn for where it sends downloads."""

    method: str
    path: str
    host: str
    authorization: str | None
    range: str | None


class FakeHub:
    """Repositories by name, each with its files. What it does wrong is set from outside while it runs.

    The name of a data set begins with `datasets/`.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.in_git: set[str] = set()  # names of the files that git keeps itself
        self.requests: list[Request] = []
        self.url = self.cdn_url = ""
        self.sha = COMMIT
        self.failure: Failure | None = None  # of every request to the Hub itself
        self.cuts: list[int] = []  # each next download ends after that many bytes of its answer, as a broken connection does
        self.corrupt = False  # right size, wrong bytes
        self.gate: threading.Event | None = None  # downloads wait for it halfway
        self.is_halfway = threading.Event()

    def downloads(self) -> list[Request]:
        files = [request for request in self.requests if request.method == "GET" and "/resolve/" in request.path]
        return [request for request in files if request.host == "cdn" or request.path.endswith(tuple(self.in_git))]

    def push(self) -> None:
        self.sha = hashlib.sha1(self.sha.encode()).hexdigest()  # noqa: S324

    def info(self, repo: str) -> dict[str, Any]:
        siblings = []
        for name, data in self.repos[repo].items():
            sibling: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_id(data)}
            if name not in self.in_git:
                sibling["lfs"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 130}
            siblings.append(sibling)
        return {"id": repo.removeprefix("datasets/"), "sha": self.sha, "siblings": siblings}


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324


def use(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make this process ask that Hub, without token and proxy, and keep what it fetches in the folder."""
    for name in ("HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
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
        hub.url, hub.cdn_url = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
        try:
            yield hub
        finally:
            if hub.gate:
                hub.gate.set()


class _Handler(BaseHTTPRequestHandler):
    served_hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Says nothing."""

    def _answer(self) -> None:
        hub, path = self.served_hub, unquote(urlsplit(self.path).path)
        host = "cdn" if self.headers["Host"].startswith("localhost") else "api"
        hub.requests.append(Request(self.command, path, host, self.headers["Authorization"], self.headers["Range"]))
        if hub.failure and host == "api" and hub.failure.path in path:
            return self._send(hub.failure.status, hub.failure.body.encode(), hub.failure.headers)
        if path.startswith("/api/"):
            repo, _, revision = path.removeprefix("/api/").removeprefix("models/").partition("/revision/")
            return self._send_info(repo, revision)
        repo, _, rest = path.removeprefix("/").partition("/resolve/")
        name = rest.partition("/")[2]
        data = hub.repos.get(repo, {}).get(name)
        if data is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        found = {"X-Repo-Commit": hub.sha}
        sent = bytes(byte ^ 1 for byte in data) if hub.corrupt else data
        if name in hub.in_git:
            return self._send_file(sent, found | {"ETag": f'"{git_id(data)}"'})
        if host == "cdn":
            return self._send_file(sent, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'})
        found |= {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
        return self._send(302, b"", found | {"Location": f"{hub.cdn_url}{self.path}"})

    def _send_info(self, repo: str, revision: str) -> None:
        if repo not in self.served_hub.repos:
            return self._send(401, b"", {"X-Error-Message": "Invalid username or password."})
        if revision not in ("", "main", self.served_hub.sha):
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        return self._send(200, json.dumps(self.served_hub.info(repo)).encode())

    def _send_file(self, data: bytes, headers: dict[str, str]) -> None:
        hub, start, status = self.served_hub, 0, 200
        headers["Accept-Ranges"] = "bytes"
        wanted = self.headers["Range"]
        if wanted:
            start, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        rest = data[start:]
        half = len(rest) // 2
        if self.command == "HEAD":
            return self._send(status, rest, headers)
        if hub.cuts:
            return self._send(status, rest[: hub.cuts.pop(0)], headers, length=len(rest))
        if hub.gate:
            self._send(status, rest[:half], headers, length=len(rest))
            hub.is_halfway.set()
            hub.gate.wait(TIMEOUT)
            self.close_connection = False
            self.wfile.write(rest[half:])
            return None
        return self._send(status, rest, headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length or len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.wfile.flush()
        self.close_connection = length is not None and length != len(body)

"""An OpenAI-compatible server of toy models, in three kinds: what it answers is computed as an engine here would compute it.

`HashServer.handle` maps a request to an answer; it serves an `httpx2.MockTransport`, and real connections on loopback. Faults come on
request. Answers have the form of those that vLLM 0.32, SGLang 0.5, llama-server b11434 and llama_cpp.server gave.
"""

import asyncio
import contextlib
import json
import math
import random
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal

import httpx2
import numpy as np
from hash_language import TEMPLATE, HashBackend, SpaceTokenizer
from processes import serve_threads

from arbitrage_cli.inference.chat_template import render
from arbitrage_cli.inference.servers.address import Address, ServedSource
from arbitrage_cli.inference.servers.connection import Connection
from arbitrage_cli.inference.servers.model import ServedModel
from arbitrage_cli.inference.servers.probing import open_served

Kind = Literal["vllm", "sglang", "llamacpp"]
KINDS: tuple[Kind, ...] = ("vllm", "sglang", "llamacpp")
Body = dict[str, Any]
REFUSED, SILENT = 0, -1  # instead of a status: no connection or a broken one, or no answer in time
GARBAGE = 1  # instead of a status: an answer that is not JSON
CONTINUES = 100  # instead of a status: `100 Continue`, for ever (on loopback)


@dataclass
class Answer:
    """A status and JSON objects: several if it is streamed. `cut`: the connection breaks after that many of them.

    `stalls`: after them come comments, for ever. `falls_silent`: after them comes nothing.
    """

    objects: list[Body]
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    is_streamed: bool = False
    cut: int | None = None
    stalls: bool = False
    falls_silent: bool = False


class HashServer:
    """A model of the toy language behind HTTP. Tests set its faults."""

    def __init__(self, kind: Kind = "vllm", backend: HashBackend | None = None, *, key: str | None = None) -> None:
        self.kind, self.key = kind, key
        self.owner: str = kind  # of its models, by its own account
        self.backend = backend or HashBackend("target")
        self.names = ["toy"]
        self.max_alternatives = 20
        self.faults: Callable[[], Answer | None] = lambda: None
        self.faulty_paths: tuple[str, ...] = ("/completions", "/completion")  # their ends
        self.seconds = 0.0
        self.tokens_per_chunk = 1  # of a stream
        self.content_type = "text/event-stream"
        self.num_stalling = self.num_connections = 0
        self.counts: Counter[str] = Counter()
        self.bodies: list[Body] = []
        self.headers: list[Mapping[str, str]] = []
        self._lock = threading.Lock()

    # --- what it answers

    def handle(self, path: str, body: Body | None, headers: Mapping[str, str]) -> Answer:
        """Return the response to a request, whose header names are lower case."""
        with self._lock:
            self.counts[path] += 1
            self.headers.append(dict(headers))
            if body is not None:
                self.bodies.append(body)
            if self.key and headers.get("authorization") != f"Bearer {self.key}":
                return Answer([{"error": {"message": f"wrong key: {headers.get('authorization')}"}}], 401)
            if path.endswith(self.faulty_paths) and (fault := self.faults()):
                return fault
            route = self._routes().get(path)
            return route(body or {}) if route else Answer([{"error": {"message": "Not Found"}}], 404)

    def _routes(self) -> dict[str, Callable[[Body], Answer]]:
        common = {"/v1/models": self._models, "/v1/completions": self._completions}
        own: dict[Kind, dict[str, Callable[[Body], Answer]]] = {
            "vllm": {
                "/version": lambda body: Answer([{"version": "0.32.0"}]),
                "/tokenize": self._tokenize,
                "/detokenize": self._detokenize,
            },
            "sglang": {
                "/server_info": lambda body: Answer([{"version": "0.5.23"}]),
                "/get_server_info": lambda body: Answer([{"version": "0.5.23"}]),
                "/tokenize": self._tokenize,
                "/detokenize": self._detokenize,
            },
            "llamacpp": {
                "/props": self._props,
                "/tokenize": self._tokenize_llama,
                "/apply-template": self._apply_template,
                "/completion": self._completion,
            },
        }
        return common | own[self.kind]

    def _models(self, body: Body) -> Answer:
        size = {"max_model_len": self.backend.card.context_size} if self.owner == "vllm" else {}
        return Answer([{"object": "list", "data": [{"id": name, "owned_by": self.owner, **size} for name in self.names]}])

    def _props(self, body: Body) -> Answer:
        size = self.backend.card.context_size
        return Answer([{"default_generation_settings": {"n_ctx": size}, "total_slots": 4, "build_info": "b11434-toy"}])

    def _tokenize(self, body: Body) -> Answer:
        text = self._rendered(body) if "messages" in body else body["prompt"]
        ids = self._ids(text, with_controls=True)
        return Answer([{"tokens": ids, "count": len(ids), "max_model_len": self.backend.card.context_size}])

    def _detokenize(self, body: Body) -> Answer:
        text, spaces = self.text_of(body["tokens"]), isinstance(self.backend.tokenizer, SpaceTokenizer)
        return Answer([{"prompt": re.sub(r"(\|>|^) ", r"\1", text) if spaces else text}])

    def _tokenize_llama(self, body: Body) -> Answer:
        return Answer([{"tokens": self._ids(body["content"], with_controls=body.get("parse_special", True))}])

    def _apply_template(self, body: Body) -> Answer:
        return Answer([{"prompt": self._rendered(body)}])

    def _completions(self, body: Body) -> Answer:
        prompt = body["prompt"]
        ids = self._ids(prompt, with_controls=True) if isinstance(prompt, str) else list(prompt)
        if body.get("logprobs", 0) > self.max_alternatives > 0:
            return Answer([{"error": {"message": f"logprobs must be at most {self.max_alternatives}"}}], 400)
        if len(ids) + body["max_tokens"] > self.backend.card.context_size:
            text = f"This model's maximum context length is {self.backend.card.context_size} tokens"
            return Answer([{"error": {"message": text, "code": 400}}], 400)
        keeps = body.get("include_stop_str_in_output") or body.get("no_stop_trim")
        room = self.backend.card.context_size - len(ids)
        shown = [] if body.get("skip_special_tokens", True) else self.backend.tokenizer.control_tokens
        written = self._write(ids, min(body["max_tokens"], room), body.get("stop"), shown, keeps=bool(keeps))
        usage: Body = {"prompt_tokens": len(ids), "completion_tokens": len(written), "total_tokens": len(ids) + len(written)}
        size = self.tokens_per_chunk if body.get("stream") else len(written)
        parts = [written[start : start + size] for start in range(0, len(written), size)]
        chunks: list[Body] = [{"id": "c", "model": "toy", "choices": [self._choice(part, body)]} for part in parts]
        if body.get("stream"):
            chunks.append({"id": "c", "model": "toy", "choices": [], "usage": usage})
        else:
            chunks[0]["usage"] = usage
        return Answer(chunks, is_streamed=bool(body.get("stream")))

    def _choice(self, part: "list[_Token]", body: Body) -> Body:
        last = part[-1]
        reason = None if last.ending is None else "length" if last.ending == "limit" else "stop"
        stop = last.stop if last.ending == "word" else None
        choice: Body = {"index": 0, "text": "".join(one.text for one in part), "finish_reason": reason}
        if self.kind == "vllm":
            choice |= {"stop_reason": stop}
        if self.kind == "sglang":
            choice |= {"matched_stop": stop or (1 if reason == "stop" else None)}
        if body.get("return_token_ids"):
            choice["token_ids"] = [one.id for one in part]
        if (k := body.get("logprobs")) and self.max_alternatives:
            choice["logprobs"] = {
                "tokens": [self._end_name if one.ending == "eos" else one.piece for one in part],
                "token_logprobs": [one.logprob for one in part],
                "top_logprobs": [dict(one.top(k)) for one in part],
                "text_offset": [0] * len(part),
            }
        return choice

    @property
    def _end_name(self) -> str:
        """The name of the end token, which log-probabilities contain although the text does not."""
        *_, last = self.backend.tokenizer.control_tokens
        return last

    def _completion(self, body: Body) -> Answer:
        """llama-server's own endpoint: the stop word is cut off."""
        prompt, k = body["prompt"], body.get("n_probs", 0)
        ids = self._ids(prompt, with_controls=True) if isinstance(prompt, str) else list(prompt)
        size = self.backend.card.context_size
        if len(ids) >= size:
            error = {
                "code": 400,
                "message": "the request exceeds the available context size",
                "type": "exceed_context_size_error",
            }
            return Answer([{"error": error}], 400)
        most, shown = min(body["n_predict"], size - len(ids)), body.get("preserved_tokens", [])
        written = self._write(ids, most, body.get("stop"), shown, keeps=False)
        last = {
            "stop": True,
            "stop_type": {"word": "word", "eos": "eos", "limit": "limit"}[str(written[-1].ending)],
            "stopping_word": written[-1].stop,
            "timings": {
                "cache_n": 0,
                "prompt_n": len(ids),
                "prompt_ms": 1.0,
                "predicted_n": len(written),
                "predicted_ms": 2.0,
            },
        }
        entries = [self._entry(one, k) for one in written]
        if not body.get("stream"):
            whole = {"content": "".join(one.text for one in written), "tokens": [one.id for one in written], **last}
            return Answer([whole | ({"completion_probabilities": entries[:-1]} if k else {})])
        chunks: list[Body] = [
            {"content": one.text, "tokens": [one.id], "stop": False} | ({"completion_probabilities": [entry]} if k else {})
            for one, entry in zip(written, entries, strict=True)
        ]
        chunks[-1]["timings"] = last["timings"]
        return Answer([*chunks, {"content": "", "tokens": [], **last}], is_streamed=True)

    def _entry(self, token: "_Token", k: int) -> Body:
        top = [{"id": 0, "token": text, "logprob": value} for text, value in token.top(k)]
        return {
            "id": token.id,
            "token": self._end_name if token.ending == "eos" else token.piece,
            "logprob": token.logprob,
            "top_logprobs": top,
        }

    # --- the model

    def _write(
        self, ids: list[int], most: int, stop: list[str] | None, shown: Collection[str], *, keeps: bool
    ) -> "list[_Token]":
        """Greedy tokens after these, until the end of the sequence, a stop word, or `most` tokens. Some control tokens are `shown`."""
        tokenizer, written, text = self.backend.tokenizer, list[_Token](), ""
        while True:
            self.backend.cells = [ids + [one.id for one in written]]
            logits = self.backend._compute(0)
            shifted = logits - logits.max()
            logprobs = shifted - math.log(float(np.exp(shifted).sum()))
            token = int(logits.argmax())
            piece = tokenizer.piece(token).decode("utf-8", "replace")
            controls = {token: name for name, token in tokenizer.control_tokens.items() if name in shown}
            text_of = controls.get(token, "" if tokenizer.is_end(token) else piece)
            one = _Token(token, piece, text_of, float(logprobs[token]), self._named(logprobs))
            written.append(one)
            text += one.text
            if tokenizer.is_end(token):
                one.ending = "eos"
            elif found := [word for word in stop or () if word in text]:
                one.ending, one.stop = "word", found[0]
                if not keeps:
                    one.text = one.text[: len(one.text) - (len(text) - text.index(one.stop))]
            elif len(written) >= most:
                one.ending = "limit"
            if one.ending:
                return written

    def _named(self, logprobs: Any) -> list[tuple[str, float]]:
        """Return distinct texts of all tokens, the most probable first."""
        named: dict[str, float] = {}
        for token in map(int, np.argsort(-logprobs)):
            text = self.backend.tokenizer.piece(token).decode("utf-8", "replace")
            named[f"{text}#{token}" if text in named else text] = float(logprobs[token])
        return [*named.items()]

    def _rendered(self, body: Body) -> str:
        return render(self.backend.chat_template or TEMPLATE, body["messages"], body.get("chat_template_kwargs", {}))

    def _ids(self, text: str, *, with_controls: bool) -> list[int]:
        tokenizer = self.backend.tokenizer
        controls = tokenizer.control_tokens if with_controls else {}
        pattern = "(" + "|".join(map(re.escape, controls)) + ")" if controls else "(?!)"
        ids: list[int] = []
        for piece in re.split(pattern, text):  # text and control tokens alternate
            ids += [controls[piece]] if piece in controls else tokenizer.tokenize(piece, continues=False)
        return ids

    def text_of(self, ids: list[int]) -> str:
        names = {token: text for text, token in self.backend.tokenizer.control_tokens.items()}
        return b"".join(names[one].encode() if one in names else self.backend.tokenizer.piece(one) for one in ids).decode()


@dataclass
class _Token:
    id: int
    piece: str
    text: str
    logprob: float
    named: list[tuple[str, float]]
    ending: str | None = None
    stop: str = ""

    def top(self, k: int) -> list[tuple[str, float]]:
        return self.named[:k]


# --- behind a connection


def transport(server: HashServer) -> httpx2.MockTransport:
    """Return a transport that serves requests without a network."""

    async def respond(request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content) if request.content else None
        if server.seconds and request.url.path.endswith(("completions", "completion")):
            await asyncio.sleep(server.seconds)
        answer = server.handle(request.url.path, body, dict(request.headers))
        if answer.status in (REFUSED, SILENT):
            raise httpx2.ConnectError("refused") if answer.status == REFUSED else httpx2.ReadTimeout("silent")
        if not answer.is_streamed:
            return httpx2.Response(answer.status, json=answer.objects[0], headers=answer.headers)
        headers = {"content-type": server.content_type}
        content = _comments(answer, server) if answer.stalls else _events(answer)
        return httpx2.Response(answer.status, content=content, headers=headers)

    return httpx2.MockTransport(respond)


@contextlib.contextmanager
def opened_model(
    server: HashServer,
    *,
    name: str | None = None,
    base: str = "http://toy:1/v1",
    serving_silence: float | None = None,
    **settings: Any,
) -> Iterator[ServedModel]:
    """A model of the server, reached without a network."""
    address = Address.parse(f"{base}#{name}" if name else base)
    source = ServedSource(address, **settings)
    with contextlib.closing(Connection(transport(server), serving_silence=serving_silence)) as connection:
        yield open_served(connection, source)


async def _comments(answer: Answer, server: HashServer) -> AsyncIterator[bytes]:
    for chunk in answer.objects:
        yield f"data: {json.dumps(chunk)}\n\n".encode()
    server.num_stalling += 1  # the client has read all objects
    try:
        while True:
            yield b": keep-alive\n\n"
            await asyncio.sleep(0.005)
    finally:
        server.num_stalling -= 1


async def _events(answer: Answer) -> AsyncIterator[bytes]:
    for data in _lines(answer):
        yield data
    if answer.cut is not None:
        raise httpx2.ReadError("broken")
    if answer.falls_silent:
        raise httpx2.ReadTimeout("silent")


def _lines(answer: Answer) -> Iterator[bytes]:
    yield b": a comment, as OpenRouter sends\n\nid: 1\nretry: 1000\ndata:\n\nevent: ping\n\n"
    for chunk in answer.objects[: answer.cut]:
        yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode()
    if answer.cut is None and not answer.falls_silent:
        yield b"data: [DONE]\n\n"


def storm(rate: float) -> Callable[[], Answer | None]:
    """Return random faults: 429, 500, a truncated body, or a body that is not JSON."""
    rng = random.Random(0)
    top = {"tokens": ["z"], "token_logprobs": [-1.0], "top_logprobs": [{"z": -1.0, "y": -2.0}]}
    choice = {"index": 0, "text": "z", "finish_reason": None, "token_ids": [122], "logprobs": top}
    entry = {"id": 122, "token": "z", "logprob": -1.0, "top_logprobs": [{"token": "z", "logprob": -1.0}]}
    unfinished = {"choices": [choice], "content": "z", "tokens": [122], "completion_probabilities": [entry]}
    faults = (
        Answer([unfinished], is_streamed=True),  # as llama_cpp.server ends a stream if another request comes
        Answer([{"error": {"message": "slow down"}}], 429, {"Retry-After": "0.01"}),
        Answer([{"error": {"message": "oops"}}], 500),
        Answer([unfinished], is_streamed=True, cut=1),
        Answer([], 0),
    )
    return lambda: rng.choice(faults) if rng.random() < rate else None


@contextlib.contextmanager
def on_loopback(server: HashServer) -> Iterator[str]:
    """Serve on a loopback port, and yield its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            server.num_connections += 1
            super().setup()

        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: Body | None) -> None:
            answer = server.handle(self.path, body, {name.lower(): value for name, value in self.headers.items()})
            if answer.status == SILENT:
                released.wait()
            if answer.status in (REFUSED, SILENT):
                self.close_connection = True
                return
            if answer.status == CONTINUES:
                self._continue()
                return
            lines = [*_lines(answer)] if answer.is_streamed else [json.dumps(answer.objects[0]).encode()]
            if answer.status == GARBAGE:
                lines = [b"\x00\xff{" * 20]
            self.send_response(200 if answer.status == GARBAGE else answer.status)
            kind = "text/event-stream" if answer.is_streamed else "application/json"
            for name, value in {"Content-Type": kind, **answer.headers}.items():
                self.send_header(name, value)
            size = sum(map(len, lines)) + (10 if answer.cut is not None or answer.falls_silent else 0)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the client has left
                self.wfile.write(b"".join(lines))
            if answer.falls_silent:
                released.wait()
            self.close_connection = self.close_connection or answer.cut is not None

        def _continue(self) -> None:
            self.close_connection = True
            with contextlib.suppress(ConnectionError):  # the client has left
                while not released.wait(0.01):
                    self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")

        def log_message(self, *arguments: object) -> None:
            pass

    released = threading.Event()
    with serve_threads(Handler) as port:
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            released.set()

"""A chat API of the toy language, with the oddities of real ones. Nothing else is served, not even tokenization."""

from dataclasses import dataclass
from typing import Any

from fake_server import Answer, Body, HashServer
from hash_language import HashBackend

from arbitrage_cli.inference.chat_template import render

THINKING = "let me see"


@dataclass
class Api:
    """What an API does."""

    rejects: tuple[str, ...] = ()  # fields
    thinks_unless: Body | None = None  # thinks, unless the request has these fields
    usage: str = "last"  # "last", "with text" or "none"


class ChatServer(HashServer):
    def __init__(self, api: Api, backend: HashBackend | None = None, *, key: str | None = None) -> None:
        super().__init__(backend=backend or HashBackend("target"), key=key)
        self.owner = "me"
        self.api = api
        self.num_read = self.num_written = 0  # tokens, by its own usage

    def _routes(self) -> dict[str, Any]:
        return {"/v1/models": self._models, "/v1/chat/completions": self._chat}

    def _chat(self, body: Body) -> Answer:
        api = self.api
        for name in api.rejects:
            if name in body:
                return _refusal(f"Unsupported parameter: '{name}' is not supported with this model.")
        if body["messages"][-1]["role"] != "user":
            return _refusal("Expected last role User or Tool (or Assistant with prefix True)")
        if api.thinks_unless is not None and any(body.get(name) != value for name, value in api.thinks_unless.items()):
            return _stream([{"reasoning_content": THINKING}, {"content": "five"}], "stop", {})
        ids = self._ids(render(self.backend.chat_template or "", body["messages"], {}), with_controls=True)
        most = body.get("max_tokens") or body["max_completion_tokens"]
        tokens = self._write(ids, most, None, [], keeps=False)
        reason = "length" if tokens[-1].ending == "limit" else "stop"
        return self._answer([one.text for one in tokens], reason, len(ids), len(tokens))

    def _answer(self, texts: list[str], reason: str, read: int, written: int) -> Answer:
        self.num_read, self.num_written = self.num_read + read, self.num_written + written
        usage = {"prompt_tokens": read, "completion_tokens": written, "prompt_tokens_details": None}
        parts: list[Body] = [{"content": text} for text in texts]
        return _stream(parts, reason, usage if self.api.usage != "none" else {}, with_text=self.api.usage == "with text")


def _refusal(message: str) -> Answer:
    return Answer([{"error": {"message": message, "type": "invalid_request_error"}}], 400)


def _stream(deltas: list[Body], reason: str, usage: Body, *, with_text: bool = False) -> Answer:
    chunks = [chunk({"role": "assistant", "content": None}), *map(chunk, deltas), chunk({}, reason)]
    if usage and with_text:
        chunks[-1]["usage"] = usage
    elif usage:
        chunks.append({"id": "c", "choices": [], "usage": usage})
    return Answer(chunks, is_streamed=True)


def chunk(delta: Body, reason: str | None = None) -> Body:
    return {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}], "usage": None}

"""A chat API of the toy language, with the conventions and the oddities of real ones. Nothing else is served, not even tokenization."""

from dataclasses import dataclass
from typing import Any

from fake_server import Answer, Body, HashServer
from hash_language import HashBackend

from arbitrage_cli.inference.chat_template import render

THINKING = "let me see"


@dataclass
class Api:
    """What an API does. `continues` names the convention by which it continues an answer, if any."""

    continues: str | None = "trailing"
    repeats: bool = False  # the text to continue, before the continuation
    trims: bool = False  # white space at the end of the text to continue
    refuses_space: bool = False  # at the end of the text to continue
    names_stop: bool = False  # tells a stop string from the end
    ignores_stop: bool = False
    rejects: tuple[str, ...] = ()  # fields
    thinks_unless: Body | None = None  # thinks, unless the request has these fields
    usage: str = "last"  # "last", "with text" or "none"
    begins_anew: bool = False  # ignores the answer to continue


class ChatServer(HashServer):
    def __init__(self, api: Api, backend: HashBackend | None = None, *, key: str | None = None) -> None:
        super().__init__("plain", backend or HashBackend("target"), key=key)
        self.api = api
        self.num_read = self.num_written = 0  # tokens, by its own usage

    def _routes(self) -> dict[str, Any]:
        return {"/v1/models": self._models, "/v1/chat/completions": self._chat}

    def _chat(self, body: Body) -> Answer:
        api, messages, last = self.api, body["messages"], body["messages"][-1]
        for name in api.rejects:
            if name in body:
                return _refusal(f"Unsupported parameter: '{name}' is not supported with this model.")
        prefix, is_continued = "", last["role"] == "assistant"
        if is_continued:
            if not self._accepts(body, last):
                return _refusal("Expected last role User or Tool (or Assistant with prefix True)")
            if api.refuses_space and last["content"] != last["content"].rstrip():
                return _refusal("final assistant content cannot end with trailing whitespace")
            messages, prefix = messages[:-1], last["content"].rstrip() if api.trims else last["content"]
            if prefix.endswith("twenty-"):
                if api.begins_anew:
                    return self._answer(body, prefix, ["Eighteen, nineteen, twenty, twenty-", "one"], "stop")
                return self._answer(body, prefix, [" one", ", twenty-two"], "stop")
        if api.thinks_unless is not None and any(body.get(name) != value for name, value in api.thinks_unless.items()):
            return _stream([{"reasoning_content": THINKING}, {"content": "five"}], "stop", {})
        ids = self._ids(render(self.backend.chat_template or "", messages, {}) + prefix, with_controls=True)
        stop = None if api.ignores_stop else body.get("stop")
        most = body.get("max_tokens") or body["max_completion_tokens"]
        tokens = self._write(ids, most, stop, [], keeps=False)
        reason = "length" if tokens[-1].ending == "limit" else "stop"
        extra = {"stop_reason": tokens[-1].stop or None} if api.names_stop and reason == "stop" else {}
        return self._answer(body, prefix, [one.text for one in tokens], reason, len(ids), len(tokens), extra)

    def _accepts(self, body: Body, last: Body) -> bool:
        fields = {"final": body.get("continue_final_message"), "prefix": last.get("prefix"), "partial": last.get("partial")}
        return self.api.continues == "trailing" or bool(self.api.continues and fields[self.api.continues])

    def _answer(
        self,
        body: Body,
        prefix: str,
        texts: list[str],
        reason: str,
        read: int = 1,
        written: int = 1,
        extra: Body | None = None,
    ) -> Answer:
        self.num_read, self.num_written = self.num_read + read, self.num_written + written
        usage = {"prompt_tokens": read, "completion_tokens": written, "prompt_tokens_details": None}
        parts = [{"content": text} for text in ([prefix] if self.api.repeats and prefix else []) + texts]
        return _stream(
            parts, reason, usage if self.api.usage != "none" else {}, extra, with_text=self.api.usage == "with text"
        )


def _refusal(message: str) -> Answer:
    return Answer([{"error": {"message": message, "type": "invalid_request_error"}}], 400)


def _stream(deltas: list[Body], reason: str, usage: Body, extra: Body | None = None, *, with_text: bool = False) -> Answer:
    chunks = [chunk({"role": "assistant", "content": None}), *map(chunk, deltas), chunk({}, reason, **(extra or {}))]
    if usage and with_text:
        chunks[-1]["usage"] = usage
    elif usage:
        chunks.append({"id": "c", "choices": [], "usage": usage})
    return Answer(chunks, is_streamed=True)


def chunk(delta: Body, reason: str | None = None, **extra: Any) -> Body:
    return {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": reason, **extra}], "usage": None}

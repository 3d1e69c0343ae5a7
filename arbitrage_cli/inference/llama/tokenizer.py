"""Tokenizes text with the vocabulary of a llama.cpp model, and converts tokens to text."""

import ctypes
import functools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from arbitrage_cli.errors import ComputeError
from arbitrage_cli.inference.llama.binding import c

ROOM = 1024  # initial size of the buffer, in tokens


class LlamaTokenizer:
    """A `Tokenizer` for a llama.cpp model. Error messages contain the model's `name`."""

    def __init__(self, model: Any, name: str) -> None:
        self._vocabulary = c.llama_model_get_vocab(model)
        self._name = name
        self._token_buffer = (c.llama_token * ROOM)()
        self.piece = functools.lru_cache(maxsize=65536)(self._piece)

    @property
    def is_empty(self) -> bool:
        return bool(c.llama_vocab_type(self._vocabulary) == c.LLAMA_VOCAB_TYPE_NONE)

    @functools.cached_property
    def size(self) -> int:
        return int(c.llama_vocab_n_tokens(self._vocabulary))

    @property
    def any_token(self) -> int:
        """A valid token: the beginning-of-sequence token, or 0 if the vocabulary has no such token."""
        return max(int(c.llama_vocab_bos(self._vocabulary)), 0)

    @functools.cached_property
    def control_tokens(self) -> Mapping[str, int]:
        attributes = c.LLAMA_TOKEN_ATTR_CONTROL | c.LLAMA_TOKEN_ATTR_UNKNOWN
        return {self._text(token): token for token in self._tokens_with(attributes)}

    @functools.cached_property
    def marker_tokens(self) -> Collection[str]:
        texts = (self._text(token) for token in self._tokens_with(c.LLAMA_TOKEN_ATTR_USER_DEFINED))
        return frozenset(text for text in texts if text.strip(" \t\r\n\u2581"))

    @property
    def prefix_token(self) -> int | None:
        token = int(c.llama_vocab_bos(self._vocabulary))  # may be missing, in which case llama.cpp returns -1
        return token if token >= 0 and c.llama_vocab_get_add_bos(self._vocabulary) else None

    @property
    def named_tokens(self) -> Mapping[str, str]:
        """The texts of the template variables `bos_token` and `eos_token`, if the file defines these tokens."""
        ids = {"bos_token": c.llama_vocab_bos(self._vocabulary), "eos_token": c.llama_vocab_eos(self._vocabulary)}
        texts = {name: self._text(token) for name, token in ids.items() if token >= 0}
        # llama.cpp guesses tokens that are not control tokens.
        return {name: text for name, text in texts.items() if text in self.control_tokens}

    def tokenize(self, text: str, *, continues: bool) -> list[int]:
        if continues and c.llama_vocab_type(self._vocabulary) == c.LLAMA_VOCAB_TYPE_SPM:
            return self._tokenize_continuation(text)
        return self._tokenize(text)

    def is_end(self, token: int) -> bool:
        return bool(c.llama_vocab_is_eog(self._vocabulary, token))

    def _tokens_with(self, attributes: int) -> Iterator[int]:
        vocabulary = self._vocabulary
        return (t for t in range(self.size) if c.llama_vocab_get_attr(vocabulary, t) & attributes)

    def _text(self, token: int) -> str:
        text: bytes = c.llama_vocab_get_text(self._vocabulary, token) or b""
        return text.decode("utf-8", errors="replace")

    def _tokenize(self, text: str) -> list[int]:
        data = text.encode("utf-8", errors="replace")
        while True:
            room = len(self._token_buffer)
            found = int(c.llama_tokenize(self._vocabulary, data, len(data), self._token_buffer, room, False, False))
            if found >= 0:
                return list(self._token_buffer[:found])
            if -found <= room:
                raise ComputeError(f"{self._name}: llama.cpp cannot tokenize a text of {len(data)} bytes")
            self._token_buffer = (c.llama_token * -found)()  # llama.cpp returned the required size, negated

    def _tokenize_continuation(self, text: str) -> list[int]:
        """Tokenize the text after a guard character and remove the guard's tokens.

        SentencePiece would insert a space before the text otherwise.
        """
        for guard in "\n.0":
            head, tokens = self._tokenize(guard), self._tokenize(guard + text)
            if tokens[: len(head)] == head:  # otherwise the text merged with the guard
                return tokens[len(head) :]
        raise ComputeError(f"{self._name}: cannot tokenize {text[:20]!r} as a continuation", "please report this")

    def _piece(self, token: int) -> bytes:
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            length = int(c.llama_token_to_piece(self._vocabulary, token, buffer, room, 0, False))
            if length >= 0:
                return buffer.raw[:length]
            room = -length

"""GGUF models through llama.cpp's C API: the only module that calls it.

Written for the functions and structures of llama-cpp-python 0.3.36, which change almost monthly: `_check_binding` refuses
another layout before anything is loaded. Knows nothing of steps, prompts or policies.
"""

import ctypes
import functools
import importlib.metadata
import logging
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import llama_cpp.llama_cpp as c
import numpy as np

from arbitrage_cli.backends import (
    CACHED_BYTES,
    DEFAULT_CONTEXT_SIZE,
    KV_BYTES,
    MAX_DECODE,
    Floats,
    ModelCard,
    Options,
    Output,
)
from arbitrage_cli.errors import (
    ArbitrageError,
    ComputeError,
    ContextFullError,
    InterruptedRunError,
    ModelFileError,
    ModelMemoryError,
    ModelUnsupportedError,
)
from arbitrage_cli.gguf_header import read_header
from arbitrage_cli.machine import default_threads, total_memory

BATCH_SIZE = MAX_DECODE  # tokens per llama_decode
WARM_UP_TOKENS = 4
TOKENIZED = 1024  # tokens of a text that there is room for at first
FLOAT_BYTES = ctypes.sizeof(ctypes.c_float)
NARROW_HEAD = 32  # numbers in an attention head's key: one block of q8_0
FEW_CELLS = 4096  # tokens of all sequences together

KV_TYPES = {"f32": c.GGML_TYPE_F32, "f16": c.GGML_TYPE_F16, "q8_0": c.GGML_TYPE_Q8_0, "q4_0": c.GGML_TYPE_Q4_0}

log = logging.getLogger("arbitrage.llama")


@dataclass(frozen=True, slots=True)
class _Attention:
    """How attention is computed: with flash attention, without, or (None) as llama.cpp chooses; the KV cache's formats."""

    flash: bool | None
    keys: str
    values: str

    @property
    def formats(self) -> str:
        return self.keys if self.keys == self.values else f"{self.keys}/{self.values}"


NARROW_ATTENTION = _Attention(False, keys="q8_0", values="f16")


class LlamaBackend:
    """One GGUF model and its context. See `Backend` for the contract; frees everything in `close`."""

    def __init__(self, path: Path, options: Options, *, progress: Callable[[float], None] | None = None) -> None:
        """Load the model (`progress` gets fractions from 0 to 1) and allocate its context.

        Errors: ModelFileError, ModelUnsupportedError, ModelMemoryError.
        """
        self._context: Any = None
        self._model: Any = None
        self._path = path
        read_header(path)
        _start_llama()
        self._gpu_layers = _gpu_layers(options)
        try:
            self._model = _load(path, self._gpu_layers, progress)
            self._vocabulary = c.llama_model_get_vocab(self._model)
            self._refuse_unsupported()
            self._threads = options.threads or default_threads()
            self._num_sequences = options.num_sequences
            self._context_size = self._choose_context_size(options)
            self._attention = self._choose_attention(options)
            self._context = _new_context(
                path,
                self._model,
                self._context_size,
                self._threads,
                options,
                self._attention,
                share_cache=self._shares_cache(),
            )
            self._memory = c.llama_get_memory(self._context)
            self._batch = _Batch(BATCH_SIZE)
            self._keeps_hidden = options.hidden_states
            self._template_variables = options.template_variables
            self._gives_hidden = True
            self._views: dict[tuple[int, int, int], Floats] = {}
            self._token_buffer = (c.llama_token * TOKENIZED)()
            self._hidden_size = int(c.llama_model_n_embd_out(self._model))
            self._vocabulary_size = int(c.llama_vocab_n_tokens(self._vocabulary))
            self._warm_up()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free batch, context and model, in this order. Closing twice does no harm."""
        if self._context is not None:
            self._views.clear()  # they point into the context's memory
            self._batch.free()
            c.llama_free(self._context)
        if self._model is not None:
            c.llama_model_free(self._model)
        self._context = self._model = None

    @functools.cached_property
    def card(self) -> ModelCard:
        return ModelCard(
            source=str(self._path),
            name=self._metadata("general.name") or self._path.stem,
            description=self._describe(),
            context_size=self._context_size,
            trained_context_size=int(c.llama_model_n_ctx_train(self._model)),
            vocabulary_size=self._vocabulary_size,
            hidden_size=self._hidden_size,
            threads=self._threads,
            gpu_layers=self._gpu_layers,
            kv_cache=self._attention.formats,
        )

    @functools.cached_property
    def chat_template(self) -> str | None:
        found: bytes | None = c.llama_model_chat_template(self._model, None)
        return found.decode("utf-8", errors="replace") if found else None

    @functools.cached_property
    def control_tokens(self) -> Mapping[str, int]:
        attributes = c.LLAMA_TOKEN_ATTR_CONTROL | c.LLAMA_TOKEN_ATTR_UNKNOWN
        return {self._token_text(token): token for token in self._tokens_with(attributes)}

    @functools.cached_property
    def marker_tokens(self) -> Collection[str]:
        texts = (self._token_text(token) for token in self._tokens_with(c.LLAMA_TOKEN_ATTR_USER_DEFINED))
        return frozenset(text for text in texts if text.strip(" \t\r\n\u2581"))

    @property
    def prefix_token(self) -> int | None:
        return int(c.llama_vocab_bos(self._vocabulary)) if c.llama_vocab_get_add_bos(self._vocabulary) else None

    @property
    def template_variables(self) -> Mapping[str, Any]:
        ids = {"bos_token": c.llama_vocab_bos(self._vocabulary), "eos_token": c.llama_vocab_eos(self._vocabulary)}
        texts = {name: self._token_text(token) for name, token in ids.items() if token >= 0}
        known = {name: text for name, text in texts.items() if text in self.control_tokens}  # else llama.cpp guessed it
        return {**self._template_variables, **known}

    def tokenize(self, text: str, *, continues: bool) -> list[int]:
        if continues and c.llama_vocab_type(self._vocabulary) == c.LLAMA_VOCAB_TYPE_SPM:
            return self._tokenize_continuation(text)
        return self._tokenize(text)

    def piece(self, token: int) -> bytes:
        return self._pieces(token)

    def is_end(self, token: int) -> bool:
        return bool(c.llama_vocab_is_eog(self._vocabulary, token))

    def read(self, sequence: int, position: int, tokens: Sequence[int]) -> None:
        self._check_room(sequence, position + len(tokens))
        self._give_hidden(False)  # else the output head would run on every token read
        with self._interruptible():
            for start in range(0, len(tokens), BATCH_SIZE):
                chunk = tokens[start : start + BATCH_SIZE]
                positions = range(position + start, position + start + len(chunk))
                self._batch.fill([sequence] * len(chunk), positions, chunk, output=False)
                try:
                    self._run()
                except ArbitrageError:
                    self.drop(sequence, position)
                    raise

    def decode(self, sequences: Sequence[int], positions: Sequence[int], tokens: Sequence[int]) -> Output:
        for sequence, position in zip(sequences, positions, strict=True):
            self._check_room(sequence, position + 1)
        if len(tokens) > BATCH_SIZE:  # llama.cpp would end the process
            raise ValueError(f"{len(tokens)} tokens at once, of at most {BATCH_SIZE}")
        self._give_hidden(self._keeps_hidden)
        self._batch.fill(sequences, positions, tokens, output=True)
        with self._interruptible() if len(tokens) > self._num_sequences else nullcontext():  # one token takes no time
            self._run()
        logits = self._rows(c.llama_get_logits_ith, len(tokens), self._vocabulary_size)
        if not self._keeps_hidden:
            return Output(logits, None)
        return Output(logits, self._rows(c.llama_get_embeddings_ith, len(tokens), self._hidden_size))

    def use_threads(self, count: int) -> None:
        """Compute with so many threads from now on."""
        self._threads = count
        c.llama_set_n_threads(self._context, count, count)
        self.__dict__.pop("card", None)  # it tells the number

    def drop(self, sequence: int, position: int) -> None:
        if not c.llama_memory_seq_rm(self._memory, sequence, position, -1):
            raise ComputeError(f"{self._path.name}: llama.cpp cannot take back what it has read")

    # --- loading

    def _refuse_unsupported(self) -> None:
        model, name = self._model, self._path.name
        if c.llama_model_is_recurrent(model) or c.llama_model_is_hybrid(model):
            raise ModelUnsupportedError(
                f"{name}: a recurrent or hybrid model, whose memory cannot be rolled back to before a rejected step",
                "use a transformer model (Llama, Qwen2.5, Qwen3, Gemma, Phi, Mistral ...)",
            )
        is_causal = self._metadata(f"{self._metadata('general.architecture')}.attention.causal") != "false"
        if c.llama_model_has_encoder(model) or c.llama_model_is_diffusion(model) or not is_causal:
            raise ModelUnsupportedError(f"{name}: not a decoder-only language model", "use a chat or instruct model")
        if c.llama_vocab_type(self._vocabulary) == c.LLAMA_VOCAB_TYPE_NONE:
            raise ModelUnsupportedError(f"{name}: the file has no vocabulary", "use a complete GGUF of the model")

    def _choose_context_size(self, options: Options) -> int:
        trained = int(c.llama_model_n_ctx_train(self._model))
        if options.context_size is None:
            return min(DEFAULT_CONTEXT_SIZE, trained)
        if options.context_size > trained:
            log.warning("%s: context %d, but it was trained for %d", self._path.name, options.context_size, trained)
        return options.context_size

    def _choose_attention(self, options: Options) -> _Attention:
        """As the options say. What they leave open is left to llama.cpp, but for narrow heads on a processor.

        There llama.cpp multiplies half-precision keys 64 numbers at a step (with AVX-512) and what is left one by one, for
        each token in the cache; keys of whole blocks leave nothing. And flash attention goes through a batch of fewer than 64
        tokens one by one. `tests/benchmarks/attention.py` has the figures.
        """
        is_open = options.kv_type == "auto" and options.flash_attention is None
        if is_open and self._gpu_layers == 0 and self._head_width() == NARROW_HEAD:
            return NARROW_ATTENTION
        kind = "f16" if options.kv_type == "auto" else options.kv_type
        return _Attention(options.flash_attention, kind, kind)

    def _head_width(self) -> int:
        """Numbers in the key of one attention head."""
        told = self._metadata(f"{self._metadata('general.architecture')}.attention.key_length")
        if told.isdigit():
            return int(told)
        return int(c.llama_model_n_embd(self._model)) // max(1, int(c.llama_model_n_head(self._model)))

    def _shares_cache(self) -> bool:
        """Whether all sequences share one KV cache: llama.cpp then computes a batch together whatever sequences are in it.

        Each sequence then skips over the others' tokens, which costs more than it gains where the weights stay in the
        processor's cache and without flash attention, where it takes much memory too: but for narrow heads and few tokens.
        LongRoPE rotates by the size of the whole cache.
        """
        architecture = self._metadata("general.architecture")
        rotates_by_size = bool(self._metadata(f"{architecture}.rope.scaling.original_context_length"))
        if rotates_by_size:
            return False
        if self._attention == NARROW_ATTENTION:
            return self._num_sequences * self._context_size <= FEW_CELLS
        return bool(c.llama_model_size(self._model) > CACHED_BYTES and self._attention.flash is not False)

    def _warm_up(self) -> None:
        """Touch the weights, and try whether the memory rolls back: some models of new kinds only tell when asked."""
        token = max(int(c.llama_vocab_bos(self._vocabulary)), 0)
        self.read(0, 0, [token] * WARM_UP_TOKENS)
        self.decode([0], [WARM_UP_TOKENS], [token])
        if not c.llama_memory_seq_rm(self._memory, 0, 1, -1):
            raise ModelUnsupportedError(
                f"{self._path.name}: its memory cannot be rolled back to before a rejected step", "use a transformer model"
            )
        c.llama_memory_clear(self._memory, False)

    # --- computing

    def _check_room(self, sequence: int, num_tokens: int) -> None:
        """llama.cpp ends the process on a sequence number out of range, so it is checked here."""
        if not 0 <= sequence < self._num_sequences:
            raise ValueError(f"sequence {sequence} of {self._num_sequences}")
        if num_tokens > self._context_size:
            raise ContextFullError(
                f"{self._path.name}: {num_tokens} tokens do not fit in its context of {self._context_size}",
                "give a larger --ctx, or a shorter problem",
            )

    def _give_hidden(self, wanted: bool) -> None:
        """Switch the output of hidden states, when it changes: each switch costs a message to the log."""
        if wanted != self._gives_hidden:
            c.llama_set_embeddings(self._context, wanted)
            self._gives_hidden = wanted

    def _run(self) -> None:
        code = c.llama_decode(self._context, self._batch.struct)
        if code == 0:
            return
        name = self._path.name
        if code == 1:
            raise ContextFullError(f"{name}: no room left in the KV cache", "give a larger --ctx")
        if code == 2:  # only `_interruptible` aborts, and it raises the signal that asked for it
            raise InterruptedRunError("interrupted")
        if code == -1:
            raise ComputeError(f"{name}: llama.cpp refused a batch as invalid (llama_decode: -1)", "please report this")
        raise ComputeError(
            f"{name}: llama.cpp failed while computing (llama_decode: {code})",
            "often memory ran out: try a smaller --ctx or fewer --gpu-layers; --debug shows llama.cpp's own messages",
        )

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM end a long read between two operations of the compute graph. CPU only: a GPU does not ask."""
        with _noted_signals() as noted:
            callback = c.ggml_abort_callback(lambda data: bool(noted))
            c.llama_set_abort_callback(self._context, callback, None)
            try:
                yield
            finally:
                c.llama_set_abort_callback(self._context, c.ggml_abort_callback(), None)

    def _rows(self, get_row: Callable[[Any, int], Any], count: int, width: int) -> Floats:
        """Outputs of the batch's tokens, float32 (count, width): a view of llama.cpp's buffer, where they are adjacent.

        The buffer hardly ever moves, so views are kept: making one takes longer than a small model's token leaves time for.
        """
        first = self._address(get_row, 0)
        if count > 1 and self._address(get_row, count - 1) - first != (count - 1) * width * FLOAT_BYTES:
            raise ComputeError(f"{self._path.name}: llama.cpp lays its output out in another way", "please report this")
        view = self._views.get((first, count, width))
        if view is None:
            buffer = (ctypes.c_float * (count * width)).from_address(first)
            view = self._views[first, count, width] = np.ctypeslib.as_array(buffer).reshape(count, width)
        return view

    def _address(self, get_row: Callable[[Any, int], Any], index: int) -> int:
        pointer = get_row(self._context, index)
        if not pointer:
            raise ComputeError(f"{self._path.name}: llama.cpp gave no output for token {index}", "please report this")
        return ctypes.addressof(pointer.contents)

    # --- vocabulary

    def _tokens_with(self, attributes: int) -> Iterator[int]:
        vocabulary = self._vocabulary
        return (t for t in range(self._vocabulary_size) if c.llama_vocab_get_attr(vocabulary, t) & attributes)

    def _token_text(self, token: int) -> str:
        text: bytes = c.llama_vocab_get_text(self._vocabulary, token) or b""
        return text.decode("utf-8", errors="replace")

    def _tokenize(self, text: str) -> list[int]:
        """Into a buffer that is kept; where there is too little room llama.cpp says how much it wants."""
        data = text.encode("utf-8", errors="replace")
        while True:
            room = len(self._token_buffer)
            found = int(c.llama_tokenize(self._vocabulary, data, len(data), self._token_buffer, room, False, False))
            if found >= 0:
                return list(self._token_buffer[:found])
            if -found <= room:
                raise ComputeError(f"{self._path.name}: llama.cpp cannot tokenize a text of {len(data)} bytes")
            self._token_buffer = (c.llama_token * -found)()

    def _tokenize_continuation(self, text: str) -> list[int]:
        """SentencePiece puts a space before every text it is given: hide it behind a character, and cut both off."""
        for guard in "\n.0":
            head, tokens = self._tokenize(guard), self._tokenize(guard + text)
            if tokens[: len(head)] == head:  # else the text merged with the guard
                return tokens[len(head) :]
        raise ComputeError(f"{self._path.name}: its vocabulary cannot go on with {text[:20]!r}", "please report this")

    @functools.cached_property
    def _pieces(self) -> Callable[[int], bytes]:
        @functools.lru_cache(maxsize=65536)
        def piece(token: int) -> bytes:
            room = 64
            while True:
                buffer = ctypes.create_string_buffer(room)
                length = int(c.llama_token_to_piece(self._vocabulary, token, buffer, room, 0, False))
                if length >= 0:
                    return buffer.raw[:length]
                room = -length

        return piece

    def _metadata(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(1024)
        length = c.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", errors="replace") if length > 0 else ""

    def _describe(self) -> str:
        """Architecture, size, quantization. llama.cpp's guess of the size gives way to what the file says of itself."""
        buffer = ctypes.create_string_buffer(256)
        c.llama_model_desc(self._model, buffer, len(buffer))
        architecture, size, quantization = buffer.value.decode("utf-8", errors="replace").split(" ", 2)
        return f"{architecture} {self._metadata('general.size_label') or size} {quantization}"


class _Batch:
    """A `llama_batch` with one sequence a token. Keeps its arrays' pointers: ctypes makes a new one at each access."""

    def __init__(self, size: int) -> None:
        self.struct = c.llama_batch_init(size, 0, 1)
        self._tokens, self._positions = self.struct.token, self.struct.pos
        self._sequences = [self.struct.seq_id[index] for index in range(size)]
        self._outputs = self.struct.logits
        for index in range(size):
            self.struct.n_seq_id[index] = 1

    def fill(self, sequences: Sequence[int], positions: Sequence[int], tokens: Sequence[int], *, output: bool) -> None:
        """Put in n tokens, all with or all without output."""
        self.struct.n_tokens = len(tokens)
        for index, (sequence, position, token) in enumerate(zip(sequences, positions, tokens, strict=True)):
            self._tokens[index] = token
            self._positions[index] = position
            self._sequences[index][0] = sequence
            self._outputs[index] = output

    def free(self) -> None:
        c.llama_batch_free(self.struct)


def system_info() -> str:
    """What the installed llama.cpp was built for: whether it offloads to a GPU, and the processor features it uses."""
    _start_llama()
    gpu = "with GPU support" if c.llama_supports_gpu_offload() else "without GPU support"
    return f"{gpu}; {(c.llama_print_system_info() or b'').decode(errors='replace').strip()}"


def _check_binding() -> None:
    """The default context parameters are known: read anything else, and the structures have another layout."""
    defaults = c.llama_context_default_params()
    if (defaults.n_ctx, defaults.n_batch, defaults.n_ubatch) != (512, 2048, 512):
        version = importlib.metadata.version("llama-cpp-python")
        raise ModelUnsupportedError(
            f"llama-cpp-python {version} does not fit this program", 'pip install "llama-cpp-python>=0.3.36,<0.3.37"'
        )


@functools.cache
def _start_llama() -> object:
    """Once a process: check the binding, send llama.cpp's messages to `logging`, start its backends.

    Returns the log callback: llama.cpp keeps its address, so it must stay referenced, which the cache sees to.
    """
    _check_binding()
    levels = {3: logging.INFO, 4: logging.INFO}  # GGML_LOG_LEVEL_WARN, _ERROR: failures also come back as codes

    def forward(level: int, text: bytes, data: object) -> None:
        message = text.decode("utf-8", errors="replace").rstrip()
        if message.strip("."):
            with suppress(ArbitrageError):  # of the display: no exception may leave a callback
                log.log(levels.get(level, logging.DEBUG), "%s", message)

    callback = c.llama_log_callback(forward)
    c.llama_log_set(callback, None)
    c.llama_backend_init()
    return callback


def _gpu_layers(options: Options) -> int:
    if not c.llama_supports_gpu_offload():
        if options.gpu_layers:
            log.warning("llama.cpp was built without GPU support: --gpu-layers has no effect")
        return 0
    return -1 if options.gpu_layers is None else options.gpu_layers


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """The signals that ask the run to end, noted while C code runs, and raised again for whoever handles them after it.

    Python runs signal handlers between its own instructions, so also within a callback from C: an exception out of one
    is lost there. A callback looks at the list instead, and asks the C code to stop.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in ours:
            signal.signal(number, lambda number, frame: noted.append(number))
        yield noted
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
        for caught in noted:
            signal.raise_signal(caught)


def _load(path: Path, gpu_layers: int, progress: Callable[[float], None] | None) -> Any:
    failures: list[ArbitrageError] = []  # of the display: no exception may leave a callback

    def report(fraction: float, data: object) -> bool:
        try:
            if progress and not failures:
                progress(fraction)
        except ArbitrageError as error:
            failures.append(error)
        return not (noted or failures)

    callback = c.llama_progress_callback(report)
    parameters = c.llama_model_default_params()
    parameters.n_gpu_layers = gpu_layers
    parameters.progress_callback = callback
    with _messages() as messages, _noted_signals() as noted:
        model = c.llama_model_load_from_file(os.fsencode(path), parameters)
    if model:
        return model
    if failures:
        raise failures[0]
    reason = next((m for m in reversed(messages) if "error" in m or "unknown" in m), "llama.cpp gave no reason")
    raise ModelFileError(
        f"{path}: llama.cpp cannot load it ({reason[:200]})",
        "the file may be damaged, or of an architecture newer than llama-cpp-python 0.3.36; --debug shows more",
    )


def _check_memory(path: Path, model: Any, num_tokens: int, options: Options) -> None:
    """Refuse a KV cache larger than the machine's memory: the system would let it be made, and end the process later."""
    width = c.llama_model_n_embd(model) // max(1, c.llama_model_n_head(model))
    numbers = 2 * c.llama_model_n_layer(model) * c.llama_model_n_head_kv(model) * width * num_tokens
    needed, there = numbers * KV_BYTES[options.kv_type], total_memory()
    if there is not None and needed > there:
        raise ModelMemoryError(
            f"{path}: a context of {num_tokens} tokens takes {needed / 2**30:.1f} GiB, and this machine has {there / 2**30:.1f}",
            "give a smaller --ctx, or a smaller --kv-type",
        )


def _new_context(
    path: Path, model: Any, context_size: int, threads: int, options: Options, attention: _Attention, *, share_cache: bool
) -> Any:
    _check_memory(path, model, context_size * options.num_sequences, options)
    parameters = c.llama_context_default_params()
    parameters.n_ctx = context_size * options.num_sequences
    parameters.n_batch = parameters.n_ubatch = BATCH_SIZE
    parameters.n_seq_max = options.num_sequences
    parameters.n_threads = parameters.n_threads_batch = threads
    parameters.flash_attn_type = -1 if attention.flash is None else int(attention.flash)
    parameters.pooling_type = c.LLAMA_POOLING_TYPE_NONE
    parameters.type_k, parameters.type_v = KV_TYPES[attention.keys], KV_TYPES[attention.values]
    parameters.embeddings = True
    parameters.kv_unified = share_cache
    parameters.swa_full = True
    parameters.no_perf = True
    with _messages() as messages:
        context = c.llama_init_from_model(model, parameters)
    if context:
        return context
    reason = next(reversed(messages), "llama.cpp gave no reason")
    raise ModelMemoryError(
        f"{path}: no context of {parameters.n_ctx} tokens can be made ({reason[:200]})",
        "give a smaller --ctx; a KV type other than f16 may also need --flash-attention",
    )


@contextmanager
def _messages() -> Iterator[list[str]]:
    """Collects llama.cpp's warnings and errors while the body runs."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    collector = Collector(logging.INFO)
    level = log.level
    log.addHandler(collector)
    log.setLevel(min(level or logging.INFO, logging.INFO))
    try:
        yield messages
    finally:
        log.setLevel(level)
        log.removeHandler(collector)

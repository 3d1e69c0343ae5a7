"""Runs GGUF models with llama.cpp's C API."""

import ctypes
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from arbitrage_cli.errors import ComputeError, ContextFullError, InterruptedRunError, ModelUnsupportedError
from arbitrage_cli.inference.backend import MAX_DECODE, Deadline, Floats, LoadOptions, ModelCard, SavedState
from arbitrage_cli.inference.llama.binding import Attention, c, ggml, new_context, start_llama
from arbitrage_cli.inference.llama.weights import LlamaWeights, refuse_architecture
from arbitrage_cli.model_files.gguf import DEFAULT_CONTEXT_SIZE, read_header
from arbitrage_cli.system.machine import CACHED_BYTES, default_threads, processor_features
from arbitrage_cli.system.signals import noted_signals
from arbitrage_cli.types import frozen

WARM_UP_TOKENS = 4
SAME_LOGITS = 1e-4  # maximum difference if the same tokens are computed in the same batches
BATCH_NOISE = 0.1  # maximum difference in batches of other sizes, relative to the logits' standard deviation
NARROW_HEAD = 32  # width of an attention head's key: one block of q8_0
FEW_CELLS = 4096  # tokens in all sequences together
CPU_FEATURES = {
    "avx2": "AVX2",
    "fma": "FMA",
    "f16c": "F16C",
    "bmi2": "BMI2",
    "avx512f": "AVX512",
    "avx512_vnni": "AVX512_VNNI",
}
"""Linux's names of instruction sets, mapped to llama.cpp's names."""
OWN_GPU, INTEGRATED_GPU = 1, 2  # values of ggml_backend_dev_type; an integrated GPU uses main memory

PARTIAL_ONLY = c.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY  # excludes attention layers, which can drop a tail

NARROW_ATTENTION = Attention(False, keys="q8_0", values="f16")

log = logging.getLogger("arbitrage.llama")


class LlamaBackend(AbstractContextManager["LlamaBackend"]):
    """A `Backend` for one context of a GGUF model."""

    def __init__(
        self,
        path: Path,
        options: LoadOptions,
        *,
        progress: Callable[[float], None] | None = None,
        shared: LlamaWeights | None = None,
    ) -> None:
        """Load the model, and allocate a context. `progress` is called with fractions from 0 to 1.

        If `shared` contains the weights of the same model, they are used. Raises the errors of `LlamaWeights` and
        `new_context`, and ModelUnsupportedError for an unsupported architecture.
        """
        self._resources = ExitStack()
        self._views: dict[tuple[int, int], Floats] = {}  # by address and number of rows
        self._path = path
        self.states: LlamaStates | None = None
        refuse_architecture(path)
        start_llama()
        try:
            self.weights = shared or load_weights(path, options, progress)
            self.weights.acquire()
            self._resources.callback(self.weights.release)
            self._model, self._header = self.weights.model, self.weights.header
            self.tokenizer, self.chat_template = self.weights.tokenizer, self.weights.chat_template
            self._num_sequences = options.num_sequences
            self.template_variables = {**options.template_variables, **self.tokenizer.named_tokens}
            attention = self._choose_attention(options)
            self.card = self._make_card(options, attention)
            shares = self._shares_cache(attention)
            self._context = new_context(path, self._model, self.card, options, attention, share_cache=shares)
            self._resources.callback(c.llama_free, self._context)
            self._memory = c.llama_get_memory(self._context)
            self._batch = _Batch(MAX_DECODE)
            self._resources.callback(self._batch.free)
            self._warm_up(options.rollback)
        except BaseException:
            self.close()
            raise

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._views.clear()  # views of the context's memory
        with noted_signals():
            self._resources.close()

    def read(self, sequence: int, position: int, tokens: Sequence[int], *, deadline: Deadline | None = None) -> None:
        self._check_room(sequence, position + len(tokens))
        self._note_batch([], [])
        with self._abortable(deadline):
            for start in range(0, len(tokens), MAX_DECODE):
                chunk = tokens[start : start + MAX_DECODE]
                positions = range(position + start, position + start + len(chunk))
                self._batch.fill([sequence] * len(chunk), positions, chunk, output=False)
                self._run(deadline)
            c.llama_synchronize(self._context)  # otherwise, a GPU's work would be timed as part of the next batch

    def decode(
        self, sequences: Sequence[int], positions: Sequence[int], tokens: Sequence[int], *, deadline: Deadline | None = None
    ) -> Floats:
        for sequence, position in zip(sequences, positions, strict=True):
            self._check_room(sequence, position + 1)
        if len(tokens) > MAX_DECODE:  # llama.cpp would end the process
            raise ValueError(f"a batch of {len(tokens)} tokens exceeds the maximum of {MAX_DECODE}")
        self._batch.fill(sequences, positions, tokens, output=True)
        self._note_batch(sequences, positions)
        with self._abortable(deadline) if len(tokens) > self._num_sequences else nullcontext():  # single tokens are fast
            self._run(deadline)
        return self._logits(len(tokens))

    def use_threads(self, count: int) -> None:
        c.llama_set_n_threads(self._context, count, count)
        self.card = replace(self.card, threads=count)

    def drop(self, sequence: int, position: int) -> None:
        if not c.llama_memory_seq_rm(self._memory, sequence, position, -1):
            raise ComputeError(f"{self._path.name}: llama.cpp cannot remove tokens from the KV cache")
        if self.states:
            self.states.batch.pop(sequence, None)  # a second time, llama.cpp refuses

    def _note_batch(self, sequences: Sequence[int], positions: Sequence[int]) -> None:
        if self.states:
            self.states.batch = dict(zip(reversed(sequences), reversed(positions), strict=True))

    # --- loading

    def _choose_context_size(self, options: LoadOptions) -> int:
        trained = int(c.llama_model_n_ctx_train(self._model))
        size = options.context_size or min(DEFAULT_CONTEXT_SIZE, trained)
        if size > trained:
            log.warning("%s: context size %d exceeds the trained size %d", self._path.name, size, trained)
        return size

    def _make_card(self, options: LoadOptions, attention: Attention) -> ModelCard:
        return ModelCard(
            name=self.weights.name,
            description=self.weights.description,
            context_size=self._choose_context_size(options),
            vocabulary_size=self.tokenizer.size,
            threads=options.threads or default_threads(),
            gpu_layers=self.weights.gpu_layers,
            kv_cache=attention.formats,
        )

    def _choose_attention(self, options: LoadOptions) -> Attention:
        # With AVX-512, llama.cpp multiplies half-precision keys 64 numbers at a time, and the remaining numbers one by one.
        # With q8_0 keys, no numbers remain. Flash attention processes small batches one token at a time.
        # Measured: tests/benchmarks/README.md.
        is_free = options.kv_type == "auto" and options.flash_attention is None
        width = int(c.llama_model_n_embd(self._model)) // max(1, int(c.llama_model_n_head(self._model)))
        if (
            is_free
            and self.weights.gpu_layers == 0
            and (self._header.number("attention.key_length") or width) == NARROW_HEAD
        ):
            return NARROW_ATTENTION
        kind = "f16" if options.kv_type == "auto" else options.kv_type
        return Attention(options.flash_attention, kind, kind)

    def _shares_cache(self, attention: Attention) -> bool:
        """Return whether all sequences share one KV cache, so that llama.cpp computes each batch in one pass.

        In a shared cache, each sequence must skip the tokens of all other sequences. If the weights fit in the CPU cache,
        skipping these tokens costs more time than sharing saves. Without flash attention, a shared cache needs a lot of
        memory unless the attention heads are narrow and the tokens are few. LongRoPE models never share a cache, because
        their rotation depends on the cache size.
        """
        if self._header.number("rope.scaling.original_context_length"):
            return False  # a LongRoPE model
        if attention == NARROW_ATTENTION:
            return self._num_sequences * self.card.context_size <= FEW_CELLS
        return bool(c.llama_model_size(self._model) > CACHED_BYTES and attention.flash is not False)

    def _warm_up(self, rollback: int) -> None:
        self._read_some(WARM_UP_TOKENS + rollback)  # more tokens than llama.cpp can roll back
        if not c.llama_memory_seq_rm(self._memory, 0, 1, -1):  # the memory cannot drop a tail
            self.drop(0, 0)
            self.states = LlamaStates(self._context, self._memory, self._path.name)
            self._check_states(self.states, min(rollback, int(c.llama_n_rs_seq(self._context))))
        c.llama_memory_clear(self._memory, True)

    def _read_some(self, count: int) -> None:
        self.read(0, 0, [self.tokenizer.any_token] * count)
        self._decode_one(count)

    def _decode_one(self, position: int) -> Floats:
        return self.decode([0], [position], [self.tokenizer.any_token]).copy()

    def _check_states(self, states: "LlamaStates", rollback: int) -> None:
        """Try to restore a state, then try to remove `rollback` tokens from a batch.

        Raises ModelUnsupportedError if restoring fails. If the removal fails, `states.max_dropped` remains 0.
        """
        token = self.tokenizer.any_token
        after = WARM_UP_TOKENS + 1
        self._read_some(WARM_UP_TOKENS)
        state = states.save(0)
        first, second = self._decode_one(after), self._decode_one(after + 1)
        states.restore(0, after, state)
        if not np.allclose(first, self._decode_one(after), rtol=0, atol=SAME_LOGITS):
            raise ModelUnsupportedError(
                f"{self._path.name}: the model cannot be rolled back to an earlier token", "use another model"
            )
        states.restore(0, after, state)
        count = 1 + rollback
        others = [(token + 11 * number) % self.tokenizer.size for number in range(1, count)]
        self.decode([0] * count, range(after, after + count), [token, *others])
        if rollback and c.llama_memory_seq_rm(self._memory, 0, after + 1, -1):
            change = self._decode_one(after + 1) - second
            states.max_dropped = rollback if change.std() <= BATCH_NOISE * second.std() else 0

    # --- computing

    def _check_room(self, sequence: int, num_tokens: int) -> None:
        if not 0 <= sequence < self._num_sequences:  # llama.cpp would end the process
            raise ValueError(f"sequence {sequence} is out of range: expected 0 to {self._num_sequences - 1}")
        if num_tokens > self.card.context_size:
            raise ContextFullError(
                f"{self._path.name}: {num_tokens} tokens exceed the context size of {self.card.context_size}",
                "use a larger --ctx or a shorter problem",
            )

    def _run(self, deadline: Deadline | None) -> None:
        code = c.llama_decode(self._context, self._batch.struct)
        if code == 0:
            return
        name = self._path.name
        if code == 1:
            raise ContextFullError(f"{name}: the KV cache is full", "use a larger --ctx")
        if code == 2:
            if deadline and deadline.has_passed:
                raise deadline.error
            raise InterruptedRunError("interrupted")  # `noted_signals` raises the signal
        if code == -1:
            raise ComputeError(f"{name}: llama.cpp rejected a batch as invalid (llama_decode: -1)", "please report this")
        raise ComputeError(
            f"{name}: llama.cpp failed to compute a batch (llama_decode: {code})",
            "if memory ran out, use a smaller --ctx, or lower --gpu-layers; --debug shows llama.cpp's messages",
        )

    @contextmanager
    def _abortable(self, deadline: Deadline | None) -> Iterator[None]:
        """Let signals and the deadline interrupt a computation.

        On a GPU, a signal or deadline takes effect only after the computation.
        """
        with noted_signals() as noted:
            callback = c.ggml_abort_callback(lambda data: bool(noted) or (deadline is not None and deadline.has_passed))
            c.llama_set_abort_callback(self._context, callback, None)
            try:
                yield
            finally:
                c.llama_set_abort_callback(self._context, c.ggml_abort_callback(), None)

    def _logits(self, count: int) -> Floats:
        """Return a view of `count` rows of logits.

        Views are cached because creating a view takes longer than decoding a token with a tiny model.
        """
        pointer = c.llama_get_logits(self._context)
        if not pointer:
            raise ComputeError(f"{self._path.name}: llama.cpp returned no logits", "please report this")
        key = ctypes.addressof(pointer.contents), count
        if key not in self._views:
            self._views[key] = np.ctypeslib.as_array(pointer, (count, self.tokenizer.size))
        return self._views[key]


class LlamaStates:
    """Implements `States` for a llama.cpp context."""

    def __init__(self, context: Any, memory: Any, name: str) -> None:
        self._context = context
        self._memory = memory
        self._name = name
        self.max_dropped = 0
        self.batch: dict[int, int] = {}  # the first position in the latest batch, by sequence

    def can_drop(self, sequence: int, position: int) -> bool:
        # Without the batch's first token, llama.cpp would return true and keep a wrong state (its issue 26695).
        keeps_first = self.batch.get(sequence, position) < position
        return keeps_first and self.num_held(sequence) - position <= self.max_dropped

    def num_held(self, sequence: int) -> int:
        return int(c.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def save(self, sequence: int) -> SavedState:
        size = c.llama_state_seq_get_size_ext(self._context, sequence, PARTIAL_ONLY)
        state = np.empty(size, np.uint8)
        if c.llama_state_seq_get_data_ext(self._context, _bytes_of(state), size, sequence, PARTIAL_ONLY) != size:
            raise ComputeError(f"{self._name}: llama.cpp cannot save the state of a sequence", "please report this")
        return state

    def restore(self, sequence: int, position: int, state: SavedState) -> None:
        is_set = c.llama_state_seq_set_data_ext(self._context, _bytes_of(state), state.size, sequence, PARTIAL_ONLY)
        if not is_set or not c.llama_memory_seq_rm(self._memory, sequence, position, -1):
            raise ComputeError(f"{self._name}: llama.cpp cannot restore the state of a sequence", "please report this")


def _bytes_of(state: SavedState) -> Any:
    return state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


class _Batch:
    """A `llama_batch` with one sequence per token.

    Pointers are cached because ctypes creates a new pointer object at each access.
    """

    def __init__(self, size: int) -> None:
        self.struct = c.llama_batch_init(size, 0, 1)
        self._tokens = self.struct.token
        self._positions = self.struct.pos
        self._sequences = [self.struct.seq_id[index] for index in range(size)]
        self._outputs = self.struct.logits
        for index in range(size):
            self.struct.n_seq_id[index] = 1

    def fill(self, sequences: Sequence[int], positions: Sequence[int], tokens: Sequence[int], *, output: bool) -> None:
        self.struct.n_tokens = len(tokens)
        for index, (sequence, position, token) in enumerate(zip(sequences, positions, tokens, strict=True)):
            self._tokens[index] = token
            self._positions[index] = position
            self._sequences[index][0] = sequence
            self._outputs[index] = output

    def free(self) -> None:
        c.llama_batch_free(self.struct)


def quantization_name(file_type: int) -> str:
    """Return llama.cpp's name of a quantization, such as Q4_K_M."""
    names = {number: name for name, number in vars(c).items() if name.startswith("LLAMA_FTYPE_")}
    name: str = names.get(file_type, f"type {file_type}")
    return name.removeprefix("LLAMA_FTYPE_").removeprefix("ALL_").removeprefix("MOSTLY_")


def system_info() -> str:
    """Describe the GPU support and CPU instruction sets of the llama.cpp build."""
    gpu = gpu_names()
    words = f"with GPU support ({gpu})" if gpu else "without a usable GPU"
    return f"{words}; {(c.llama_print_system_info() or b'').decode(errors='replace').strip()}"


def unused_instructions() -> list[str]:
    """Return the processor's instruction sets that the llama.cpp build does not use, in llama.cpp's names."""
    info, features = system_info(), processor_features()
    return [name for feature, name in CPU_FEATURES.items() if feature in features and f"{name} = 1" not in info]


@frozen
class Gpu:
    """A GPU that llama.cpp can offload layers to, and its bytes of memory.

    An integrated GPU (not `is_own`) uses main memory.
    """

    name: str
    is_own: bool
    total: int
    free: int


def gpus() -> list[Gpu]:
    start_llama()  # detects the devices
    size_pointer = ctypes.POINTER(ctypes.c_size_t)
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    kind_of, name_of = ggml.ggml_backend_dev_type, ggml.ggml_backend_dev_description
    kind_of.argtypes = name_of.argtypes = [ctypes.c_void_p]
    name_of.restype = ctypes.c_char_p
    ggml.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, size_pointer, size_pointer]
    ggml.ggml_backend_dev_memory.restype = None
    found = []
    for device in map(ggml.ggml_backend_dev_get, range(ggml.ggml_backend_dev_count())):
        if kind_of(device) in (OWN_GPU, INTEGRATED_GPU):
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            ggml.ggml_backend_dev_memory(device, free, total)
            name = (name_of(device) or b"").decode(errors="replace").strip()
            found.append(Gpu(name, kind_of(device) == OWN_GPU, total.value, free.value))
    return found


def load_weights(path: Path, options: LoadOptions, progress: Callable[[float], None] | None) -> LlamaWeights:
    """Load the weights of a model. Raises the errors of `LlamaWeights`."""
    return LlamaWeights(path, gpu_layers(options, read_header(path).number("block_count") or 0), progress)


def gpu_layers(options: LoadOptions, num_layers: int) -> int:
    """Return the number of layers to offload. By default, all layers are offloaded (-1) if there is a GPU."""
    if not gpus():
        if options.gpu_layers:
            log.warning("llama.cpp has no GPU support or found no GPU, so --gpu-layers is ignored")
        return 0
    wanted = options.gpu_layers
    return -1 if wanted is None or wanted > num_layers else wanted  # the output is one more layer


def gpu_names() -> str:
    """Return the names of the GPUs that llama.cpp can offload layers to."""
    return ", ".join(gpu.name for gpu in gpus())


def own_gpu_memory() -> tuple[int, int] | None:
    """Return the total and the free bytes of all GPUs with their own memory, or None if there is no such GPU."""
    own = [gpu for gpu in gpus() if gpu.is_own]
    return (sum(gpu.total for gpu in own), sum(gpu.free for gpu in own)) if own else None

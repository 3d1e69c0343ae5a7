"""Tiny GGUF models with seeded random weights: small enough to write and load in milliseconds, strange enough to be a test.

The weights mean nothing, but they are arranged so that greedy text looks like writing: dimension 0 of the residual
stream is a constant that no layer changes, so the first column of the output matrix is a bias for each token. It keeps
the models to letters and spaces, with the end of a step and the end of the sequence now and then.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFWriter, TokenType

Array = npt.NDArray[np.float32]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}<|{{ message.role }}|>{{ message.content | trim }}<|stop|>{% endfor %}<|assistant|>"
    "{% if enable_thinking is defined and enable_thinking %}<think>{% endif %}"
)
INST = "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]{% endif %}{% endfor %}"

CONSTANT = 10.0  # about 2 after the last norm
LETTERS = " etaoinshrdlu"


def write_draft(path: Path) -> Path:
    """A byte-level BPE vocabulary in which `.` and a blank line are one token; a ChatML template, no BOS."""
    return _write_plain(path, "tiny draft", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], seed=13, template=CHATML)


def write_target(path: Path) -> Path:
    """A larger model with another vocabulary (letter pairs, a user-defined token), another template, in which it may think, and a BOS."""
    pairs = ["th", "in", "er", "Ġt", "ĊĊ"]
    tokens, types = _byte_level(pairs, ["<|begin|>", "<|stop|>", "<|user|>", "<|assistant|>"], ["<think>"])
    biases = _writing(tokens, step_end="ĊĊ", end="<|stop|>", also=pairs[:4])
    writer = _llama(path, "tiny target", width=48, biases=biases, seed=2)
    begin, stop = tokens.index("<|begin|>"), tokens.index("<|stop|>")
    _vocabulary(writer, "gpt2", tokens, types, end=stop, begin=begin, template=HEADERS)
    _set(writer, tokenizer_pre="smollm", token_merges=["t h", "i n", "e r", "Ġ t", "Ċ Ċ"])
    return _finish(writer)


def write_spm(path: Path) -> Path:
    """A SentencePiece vocabulary that puts a space before every text, with `[INST]` markers that are user-defined tokens."""
    special = {"<unk>": TokenType.UNKNOWN, "<s>": TokenType.CONTROL, "</s>": TokenType.CONTROL}
    markers = {"[INST]": TokenType.USER_DEFINED, "[/INST]": TokenType.USER_DEFINED}
    byte_tokens = {f"<0x{value:02X}>": TokenType.BYTE for value in range(256)}
    words = ["▁", *LETTERS[1:], *".,0123456789", "\n\n", "▁t", "th", "▁the", "he"]
    normal = dict.fromkeys(words, TokenType.NORMAL)
    types = {**special, **byte_tokens, **normal, **markers}
    tokens = list(types)
    biases = np.full(len(tokens), -80.0, np.float32)
    biases[[tokens.index(word) for word in ("▁", *LETTERS[1:], "▁t", "th")]] = 0.0
    biases[[tokens.index("\n\n"), tokens.index("</s>")]] = 1.0, -0.5
    writer = _llama(path, "tiny sentencepiece", width=32, biases=biases, seed=3)
    _vocabulary(writer, "llama", tokens, list(types.values()), end=2, begin=1, template=INST)
    writer.add_token_scores([0.0] * (len(tokens) - 4 - len(markers)) + [-1.0, -2.0, -3.0, -4.0] + [0.0] * len(markers))
    writer.add_add_space_prefix(True)
    return _finish(writer)


def write_base(path: Path) -> Path:
    """A base model: the draft's kind of vocabulary, no chat template, a context of 256 tokens."""
    return _write_plain(path, "tiny base", ["<|endoftext|>"], seed=4, context=256)


def write_not_a_number(path: Path) -> Path:
    return _write_plain(path, "tiny nan", ["<|endoftext|>"], seed=5, norm=np.nan)


def _write_plain(path: Path, name: str, controls: Sequence[str], *, template: str | None = None, **model: Any) -> Path:
    tokens, types = _byte_level([".Ċ", ".ĊĊ"], controls)
    writer = _llama(path, name, width=32, biases=_writing(tokens, step_end=".ĊĊ", end=controls[-1]), **model)
    _vocabulary(writer, "gpt2", tokens, types, end=tokens.index(controls[-1]), template=template)
    _set(writer, tokenizer_pre="qwen2", token_merges=[". Ċ", ".Ċ Ċ"])
    return _finish(writer)


def write_mamba(path: Path) -> Path:
    """A recurrent model, whose memory cannot be rolled back."""
    tokens, types = _byte_level(["ĊĊ"], ["<|endoftext|>"])
    rng, width, inner, state, rank, kernel = np.random.default_rng(6), 16, 32, 4, 2, 4
    writer = GGUFWriter(path, "mamba")
    _set(writer, name="tiny mamba", context_length=256, embedding_length=width, feed_forward_length=0, head_count=0)
    _set(writer, block_count=1, layer_norm_rms_eps=1e-5, ssm_conv_kernel=kernel, ssm_inner_size=inner)
    _set(writer, ssm_state_size=state, ssm_time_step_rank=rank)
    shapes = {
        "token_embd.weight": (len(tokens), width),
        "output_norm.weight": (width,),
        "blk.0.attn_norm.weight": (width,),
        "blk.0.ssm_in.weight": (2 * inner, width),
        "blk.0.ssm_conv1d.weight": (inner, kernel),
        "blk.0.ssm_conv1d.bias": (inner,),
        "blk.0.ssm_x.weight": (rank + 2 * state, inner),
        "blk.0.ssm_dt.weight": (inner, rank),
        "blk.0.ssm_dt.bias": (inner,),
        "blk.0.ssm_a": (inner, state),
        "blk.0.ssm_d": (inner,),
        "blk.0.ssm_out.weight": (width, inner),
    }
    _random_tensors(writer, rng, shapes)
    _vocabulary(writer, "gpt2", tokens, types, end=tokens.index("<|endoftext|>"))
    _set(writer, tokenizer_pre="qwen2", token_merges=["Ċ Ċ"])
    return _finish(writer)


def write_bert(path: Path) -> Path:
    """An embedding model: no cache and no logits."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"▁{letter}" for letter in LETTERS[1:]), *LETTERS[1:]]
    types = [TokenType.CONTROL] * 5 + [TokenType.NORMAL] * (len(tokens) - 5)
    rng, width, inner = np.random.default_rng(7), 16, 32
    writer = GGUFWriter(path, "bert")
    _set(writer, name="tiny bert", context_length=64, embedding_length=width, feed_forward_length=inner, head_count=2)
    _set(writer, block_count=1, layer_norm_eps=1e-5, causal_attention=False)
    square, vector = (width, width), (width,)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(tokens), width),
        "token_types.weight": (2, width),
        "position_embd.weight": (64, width),
        "token_embd_norm.weight": vector,
        "token_embd_norm.bias": vector,
        **{f"blk.0.attn_{part}.weight": square for part in ("q", "k", "v", "output")},
        **{f"blk.0.attn_{part}.bias": vector for part in ("q", "k", "v", "output")},
        **{
            f"blk.0.{norm}.{part}": vector
            for norm in ("attn_output_norm", "layer_output_norm")
            for part in ("weight", "bias")
        },
        "blk.0.ffn_up.weight": (inner, width),
        "blk.0.ffn_up.bias": (inner,),
        "blk.0.ffn_down.weight": (width, inner),
        "blk.0.ffn_down.bias": vector,
    }
    _random_tensors(writer, rng, shapes)
    _vocabulary(writer, "bert", tokens, types, end=3, begin=2)
    writer.add_token_type_count(2)
    return _finish(writer)


WRITERS = {
    "draft": write_draft,
    "target": write_target,
    "spm": write_spm,
    "base": write_base,
    "nan": write_not_a_number,
    "mamba": write_mamba,
    "bert": write_bert,
}


def write_all(folder: Path) -> Mapping[str, Path]:
    return {name: write(folder / f"tiny-{name}.gguf") for name, write in WRITERS.items()}


def _set(writer: GGUFWriter, **values: Any) -> None:
    for name, value in values.items():
        getattr(writer, f"add_{name}")(value)


def _random_tensors(writer: GGUFWriter, rng: np.random.Generator, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        writer.add_tensor(name, rng.normal(0, 0.1, shape).astype(np.float32))


def _byte_level(
    merged: Sequence[str], controls: Sequence[str], user_defined: Sequence[str] = ()
) -> tuple[list[str], list[int]]:
    """Tokens and types of a GPT-2 vocabulary: the 256 bytes as that tokenizer spells them, merges, special tokens."""
    tokens = [*map(_spell_byte, range(256)), *merged, *controls, *user_defined]
    num_normal = 256 + len(merged)
    types = (
        [TokenType.NORMAL] * num_normal + [TokenType.CONTROL] * len(controls) + [TokenType.USER_DEFINED] * len(user_defined)
    )
    return tokens, [int(kind) for kind in types]


def _spell_byte(value: int) -> str:
    """GPT-2's printable stand-in for a byte: itself where it is printable, else a letter from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if value in printable:
        return chr(value)
    return chr(256 + [other for other in range(256) if other not in printable].index(value))


def _writing(tokens: Sequence[str], *, step_end: str, end: str, also: Sequence[str] = ()) -> Array:
    """Biases (n_vocab,) that keep a model to letters, with a step end about every 12 tokens and an end now and then."""
    biases = np.full(len(tokens), -80.0, np.float32)
    biases[[tokens.index(_spell_byte(ord(letter))) for letter in LETTERS]] = 0.0
    biases[[tokens.index(text) for text in also]] = 0.0
    biases[[tokens.index(step_end), tokens.index(end)]] = 0.8, -0.6
    return biases


def _llama(
    path: Path, name: str, *, width: int, biases: Array, seed: int, context: int = 2048, norm: float = 1.0
) -> GGUFWriter:
    """A Llama-architecture model of 2 layers and 4 heads: its settings and weights; the vocabulary is still missing."""
    rng, inner, layers = np.random.default_rng(seed), 2 * width, 2
    writer = GGUFWriter(path, "llama")
    _set(writer, name=name, context_length=context, embedding_length=width, block_count=layers, feed_forward_length=inner)
    _set(writer, head_count=4, head_count_kv=2, rope_dimension_count=width // 4, layer_norm_rms_eps=1e-5)

    def weights(rows: int, columns: int, scale: float) -> Array:
        return rng.normal(0, scale, (rows, columns)).astype(np.float32)

    embeddings = weights(len(biases), width, 1.0)
    embeddings[:, 0] = CONSTANT
    output = weights(len(biases), width, 0.6)
    output[:, 0] = biases
    writer.add_tensor("token_embd.weight", embeddings)
    writer.add_tensor("output_norm.weight", np.full(width, norm, np.float32))
    writer.add_tensor("output.weight", output)
    for layer in range(layers):
        into_residual = {"attn_output": weights(width, width, 0.5), "ffn_down": weights(width, inner, 0.3)}
        for matrix in into_residual.values():
            matrix[0] = 0.0  # no layer changes the constant
        others = {
            "attn_q": weights(width, width, 1.2),
            "attn_k": weights(width // 2, width, 1.2),
            "attn_v": weights(width // 2, width, 1.0),
            "ffn_gate": weights(inner, width, 0.5),
            "ffn_up": weights(inner, width, 0.5),
        }
        for matrix in others.values():
            matrix[:, 0] = 0.0  # and none reads it
        for part, matrix in {**into_residual, **others}.items():
            writer.add_tensor(f"blk.{layer}.{part}.weight", matrix)
        for part in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{part}.weight", np.ones(width, np.float32))
    return writer


def _vocabulary(
    writer: GGUFWriter,
    kind: str,
    tokens: Sequence[str],
    types: Sequence[int],
    *,
    end: int,
    begin: int | None = None,
    template: str | None = None,
) -> None:
    _set(writer, tokenizer_model=kind, token_list=list(tokens), token_types=list(types), eos_token_id=end)
    writer.add_add_bos_token(begin is not None)
    if begin is not None:
        writer.add_bos_token_id(begin)
    if template is not None:
        writer.add_chat_template(template)


def _finish(writer: GGUFWriter) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert writer.path is not None
    return Path(writer.path)

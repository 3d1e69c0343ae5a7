"""Tiny GGUF models with seeded random weights, written and loaded in milliseconds.

The weights mean nothing, but greedy text looks like writing: dimension 0 of the residual stream is a constant that no layer changes,
so the first column of the output matrix is a bias for each token. It favours letters and spaces, with a separator and an end now
and then.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


CHATML_CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Vocabulary:
    """Tokens with their types. One at byte level has merges and a pre-tokenizer; without merges it is SentencePiece's."""

    types: Mapping[str, TokenType]
    merges: Sequence[str] = ()
    pre: str = "qwen2"

    @property
    def tokens(self) -> list[str]:
        return list(self.types)


def write_draft(path: Path) -> Path:
    """A byte-level BPE vocabulary in which `.` and a blank line are one token; a ChatML template, no BOS."""
    vocabulary = byte_level([". Ċ", ".Ċ Ċ"], CHATML_CONTROLS)
    biases = _writing(vocabulary, step_end=".ĊĊ", end="<|im_end|>")
    writer = _llama(path, "tiny draft", width=32, biases=biases, seed=13)
    return finish(writer, vocabulary, end="<|im_end|>", template=CHATML)


def write_target(path: Path) -> Path:
    """A larger model with another vocabulary (letter pairs, a user-defined token), another template, in which it may think, and a BOS."""
    controls = ["<|begin|>", "<|stop|>", "<|user|>", "<|assistant|>"]
    vocabulary = byte_level(["t h", "i n", "e r", "Ġ t", "Ċ Ċ"], controls, ["<think>"], pre="smollm")
    biases = _writing(vocabulary, step_end="ĊĊ", end="<|stop|>", also=["th", "in", "er", "Ġt"])
    writer = _llama(path, "tiny target", width=48, biases=biases, seed=2)
    return finish(writer, vocabulary, end="<|stop|>", begin="<|begin|>", template=HEADERS)


def write_spm(path: Path) -> Path:
    """A SentencePiece vocabulary that puts a space before every text, with `[INST]` markers that are user-defined tokens."""
    special = {"<unk>": TokenType.UNKNOWN, "<s>": TokenType.CONTROL, "</s>": TokenType.CONTROL}
    markers = {"[INST]": TokenType.USER_DEFINED, "[/INST]": TokenType.USER_DEFINED}
    byte_tokens = {f"<0x{value:02X}>": TokenType.BYTE for value in range(256)}
    words = ["▁", *LETTERS[1:], *".,0123456789", "\n\n", "▁t", "th", "▁the", "he"]
    vocabulary = Vocabulary({**special, **byte_tokens, **dict.fromkeys(words, TokenType.NORMAL), **markers})
    tokens = vocabulary.tokens
    biases = np.full(len(tokens), -80.0, np.float32)
    biases[[tokens.index(word) for word in ("▁", *LETTERS[1:], "▁t", "th")]] = 0.0
    biases[[tokens.index("\n\n"), tokens.index("</s>")]] = 1.0, -0.5
    writer = _llama(path, "tiny sentencepiece", width=32, biases=biases, seed=3)
    writer.add_token_scores([0.0] * (len(tokens) - 4 - len(markers)) + [-1.0, -2.0, -3.0, -4.0] + [0.0] * len(markers))
    writer.add_add_space_prefix(True)
    return finish(writer, vocabulary, end="</s>", begin="<s>", template=INST)


def write_base(path: Path) -> Path:
    """A base model: the draft's kind of vocabulary, no chat template, a context of 256 tokens."""
    vocabulary = byte_level([". Ċ", ".Ċ Ċ"], ["<|endoftext|>"])
    biases = _writing(vocabulary, step_end=".ĊĊ", end="<|endoftext|>")
    return finish(_llama(path, "tiny base", width=32, biases=biases, seed=4, context=256), vocabulary)


def write_embedding(path: Path) -> Path:
    """A model that is not causal, as embedding models are."""
    vocabulary = byte_level(["Ċ Ċ"], ["<|endoftext|>"])
    writer = _llama(path, "tiny embedding", width=32, biases=np.zeros(len(vocabulary.types), np.float32), seed=7)
    writer.add_causal_attention(False)
    return finish(writer, vocabulary)


def write_recurrent(path: Path) -> Path:
    """A model with recurrent layers alone, which cannot drop a tail; the vocabulary of the draft."""
    return _write_mamba(path, "mamba", attention_layers=())


def write_hybrid(path: Path) -> Path:
    """A recurrent layer, one with attention, and another recurrent one; the vocabulary of the draft."""
    return _write_mamba(path, "jamba", attention_layers=(1,))


def _write_mamba(path: Path, architecture: str, *, attention_layers: Sequence[int]) -> Path:
    vocabulary = byte_level([". Ċ", ".Ċ Ċ"], CHATML_CONTROLS)
    biases = _writing(vocabulary, step_end=".ĊĊ", end="<|im_end|>")
    rng, width, inner, state, rank, kernel, layers = np.random.default_rng(8), 32, 64, 8, 4, 4, 3
    writer = GGUFWriter(path, architecture)
    writer.add_name(f"tiny {architecture}")
    writer.add_context_length(2048)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner if attention_layers else 0)
    writer.add_head_count(4 if attention_layers else 0)
    if attention_layers:
        writer.add_head_count_kv([2 if layer in attention_layers else 0 for layer in range(layers)])
    writer.add_block_count(layers)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    recurrent = {
        "ssm_in": (2 * inner, width), "ssm_conv1d": (inner, kernel), "ssm_x": (rank + 2 * state, inner), "ssm_dt": (inner, rank),
        "ssm_out": (width, inner),
    }  # fmt: skip
    attention = {
        "attn_q": (width, width),
        "attn_k": (width // 2, width),
        "attn_v": (width // 2, width),
        "attn_output": (width, width),
    }
    forward = {"ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)} if attention_layers else {}
    embeddings, output = (rng.normal(0, scale, (len(biases), width)).astype(np.float32) for scale in (1.0, 0.5))
    embeddings[:, 0], output[:, 0] = CONSTANT, biases
    tensors: dict[str, npt.NDArray[Any]] = {
        "token_embd.weight": embeddings,
        "output.weight": output,
        "output_norm.weight": np.ones(width),
    }
    for layer in range(layers):
        has_attention = layer in attention_layers
        for part, shape in {**(attention if has_attention else recurrent), **forward}.items():
            matrix = rng.normal(0, 1.5 / np.sqrt(shape[1]), shape)
            if part in ("ssm_out", "attn_output", "ffn_down"):
                matrix *= 0.5
                matrix[0] = 0.0  # no layer changes the constant
            elif shape[1] == width:
                matrix[:, 0] = 0.0  # and none reads it
            tensors[f"blk.{layer}.{part}.weight"] = matrix
        tensors[f"blk.{layer}.attn_norm.weight"] = np.ones(width)
        if forward:
            tensors[f"blk.{layer}.ffn_norm.weight"] = np.ones(width)
        if not has_attention:
            norms = {"dt": rank, "b": state, "c": state} if attention_layers else {}
            tensors |= {f"blk.{layer}.ssm_{part}_norm.weight": np.ones(size) for part, size in norms.items()}
            tensors |= {f"blk.{layer}.ssm_{part}.bias": np.full(inner, 0.1) for part in ("conv1d", "dt")}
            tensors |= {f"blk.{layer}.ssm_a": np.full((inner, state), -0.5), f"blk.{layer}.ssm_d": np.ones(inner)}
    for name, weights in tensors.items():
        writer.add_tensor(name, weights.astype(np.float32))
    return finish(writer, vocabulary, end="<|im_end|>", template=CHATML)


WRITERS = {
    "draft": write_draft,
    "target": write_target,
    "spm": write_spm,
    "base": write_base,
    "recurrent": write_recurrent,
    "hybrid": write_hybrid,
    "embedding": write_embedding,
}


def write_all(folder: Path) -> Mapping[str, Path]:
    """Write one file of every kind, and return the paths by name."""
    return {name: write(folder / f"tiny-{name}.gguf") for name, write in WRITERS.items()}


def byte_level(
    merges: Sequence[str], controls: Sequence[str], user_defined: Sequence[str] = (), *, pre: str = "qwen2"
) -> Vocabulary:
    """A GPT-2 vocabulary: the 256 bytes as that tokenizer spells them, what is merged, special tokens."""
    normal = [*map(spell_byte, range(256)), *(merge.replace(" ", "") for merge in merges)]
    types = dict.fromkeys(normal, TokenType.NORMAL) | dict.fromkeys(controls, TokenType.CONTROL)
    return Vocabulary(types | dict.fromkeys(user_defined, TokenType.USER_DEFINED), merges, pre)


def spell_byte(value: int) -> str:
    """GPT-2's printable stand-in for a byte: itself where it is printable, else a letter from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if value in printable:
        return chr(value)
    return chr(256 + [other for other in range(256) if other not in printable].index(value))


def _writing(vocabulary: Vocabulary, *, step_end: str, end: str, also: Sequence[str] = ()) -> Array:
    """Biases (n_vocab,) that keep a model to letters, with a step end about every 12 tokens and an end now and then."""
    tokens = vocabulary.tokens
    biases = np.full(len(tokens), -80.0, np.float32)
    biases[[tokens.index(spell_byte(ord(letter))) for letter in LETTERS]] = 0.0
    biases[[tokens.index(text) for text in also]] = 0.0
    biases[[tokens.index(step_end), tokens.index(end)]] = 0.8, -0.6
    return biases


def _llama(path: Path, name: str, *, width: int, biases: Array, seed: int, context: int = 2048) -> GGUFWriter:
    """A Llama-architecture model of 2 layers and 4 heads: its settings and weights; the vocabulary is still missing."""
    rng, inner, layers = np.random.default_rng(seed), 2 * width, 2
    writer = GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(width // 4)
    writer.add_layer_norm_rms_eps(1e-5)

    def weights(rows: int, columns: int, scale: float) -> Array:
        return rng.normal(0, scale, (rows, columns)).astype(np.float32)

    embeddings = weights(len(biases), width, 1.0)
    embeddings[:, 0] = CONSTANT
    output = weights(len(biases), width, 0.6)
    output[:, 0] = biases
    writer.add_tensor("token_embd.weight", embeddings)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
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


def finish(
    writer: GGUFWriter,
    vocabulary: Vocabulary,
    *,
    end: str = "<|endoftext|>",
    begin: str | None = None,
    template: str | None = None,
) -> Path:
    """Add the vocabulary and the chat template, and write the file; returns its path."""
    tokens = vocabulary.tokens
    writer.add_tokenizer_model("gpt2" if vocabulary.merges else "llama")
    if vocabulary.merges:
        writer.add_tokenizer_pre(vocabulary.pre)
        writer.add_token_merges(vocabulary.merges)
    writer.add_token_list(tokens)
    writer.add_token_types([int(kind) for kind in vocabulary.types.values()])
    writer.add_eos_token_id(tokens.index(end))
    writer.add_add_bos_token(begin is not None)
    if begin is not None:
        writer.add_bos_token_id(tokens.index(begin))
    if template is not None:
        writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert writer.path is not None
    return Path(writer.path)

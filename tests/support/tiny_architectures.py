"""Tiny GGUF models with random weights for almost any architecture that llama.cpp knows. Their texts mean nothing.

llama.cpp names the key that it misses, the tensor that it misses, and the shape that it expects. Each answer is added, and it is
asked again. What its graphs need and its loader does not ask for is in HINTS. A failed assertion ends the process: build each
architecture in a process of its own.

Usage: python tiny_architectures.py PATH ARCHITECTURE
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType, GGUFWriter, TokenType
from tiny_gguf import CHATML, CHATML_CONTROLS, Array, byte_level, finish

from arbitrage_cli.inference.llama.binding import c

EXPERTS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
HALF = {"attention.head_count_kv": [0, 2, 0, 2]}  # layers without heads are recurrent
CONVOLVED = ["blk.0.ssm_conv1d.bias", "blk.2.ssm_conv1d.bias"]
DELTA_NET = [f"blk.{layer}.{part}.weight" for layer in (0, 2) for part in ("attn_qkv", "attn_gate")]
WINDOW = {f"attention.{part}_length{kind}": 16 for part in ("key", "value") for kind in ("", "_swa")} | {
    "attention.sliding_window": 64,
    "attention.sliding_window_pattern": [True, True, True, False],
    "embedding_length_per_layer_input": 0,
    "attention.shared_kv_layers": 0,
    "rope.dimension_count_swa": 16,
    "rope.freq_base_swa": 10000.0,
}
LATENT = {
    "attention.head_count_kv": 1,
    "attention.q_lora_rank": 32,
    "attention.kv_lora_rank": 32,
    "rope.dimension_count": 16,
    "attention.key_length": 48,
    "attention.value_length": 32,
    "attention.key_length_mla": 32,
    "attention.value_length_mla": 16,
    "expert_gating_func": 2,
}
PLAIN = "llama qwen2 qwen3 gemma2 gemma3 glm4 olmo2 smollm3 cohere2 exaone4 mistral3 ernie4_5"
TRANSFORMERS: Mapping[str, tuple[dict[str, Any], list[str]]] = {
    **{name: ({}, []) for name in PLAIN.split()},
    "qwen3moe": (EXPERTS, []),
    "glm4moe": ({**EXPERTS, "nextn_predict_layers": 0}, []),
    "gemma4": (WINDOW, []),
    "gpt-oss": ({**EXPERTS, "attention.sliding_window": 64}, []),
    "deepseek2": ({**EXPERTS, **LATENT}, []),
}
RECURRENT: Mapping[str, tuple[dict[str, Any], list[str]]] = {
    "qwen35": ({"full_attention_interval": 2}, DELTA_NET),
    "qwen35moe": ({**EXPERTS, "full_attention_interval": 2}, DELTA_NET),
    "qwen3next": ({**EXPERTS, "full_attention_interval": 2}, DELTA_NET),
    "lfm2": (HALF, []),
    "lfm2moe": ({**EXPERTS, **HALF}, []),
    "jamba": ({**EXPERTS, **HALF}, []),
    "granitehybrid": (HALF, CONVOLVED),
    "falcon-h1": ({}, [f"blk.{layer}.ssm_conv1d.bias" for layer in range(4)]),
    "nemotron_h": ({"attention.head_count_kv": [0, 2, 0, 0], "feed_forward_length": [0, 0, 0, 128]}, CONVOLVED),
    "mamba": ({}, []),
    "mamba2": ({}, []),
}
HINTS = {**TRANSFORMERS, **RECURRENT}
KEYS = {
    "context_length": 2048,
    "embedding_length": 64,
    "block_count": 4,
    "feed_forward_length": 128,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.layer_norm_epsilon": 1e-5,
    "rope.dimension_count": 16,
}
IF_ASKED: Mapping[str, Any] = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 128,
    "ssm.state_size": 16,
    "ssm.time_step_rank": 8,
    "ssm.group_count": 2,
    "expert_count": 4,
    "expert_used_count": 2,
    "expert_feed_forward_length": 32,
    "expert_shared_feed_forward_length": 32,
    "expert_shared_count": 1,
    "expert_gating_func": 1,
    "expert_weights_scale": 1.0,
    "leading_dense_block_count": 1,
    "shortconv.l_cache": 3,
    "attention.sliding_window": 64,
    "attention.key_length": 16,
    "attention.value_length": 16,
    "attention.q_lora_rank": 16,
    "attention.kv_lora_rank": 16,
    "rope.dimension_sections": [4, 4, 0, 0],
    "rope.scaling.factor": 1.0,
    "logit_scale": 1.0,
    "embedding_scale": 1.0,
    "residual_scale": 1.0,
    "attention.scale": 0.25,
    "rope.freq_base": 10000.0,
}


def build(path: Path, architecture: str) -> None:
    """Write the model: asks llama.cpp until it loads the file."""
    given, also = HINTS[architecture]
    keys, draw, said = {**KEYS, **given}, np.random.default_rng(7), list[str]()
    listen = c.llama_log_callback(lambda level, text, data: said.append(text.decode("utf-8", "replace")))
    c.llama_log_set(listen, None)
    tensors = {name: _weights(name, [1], draw) for name in also}
    parameters = c.llama_model_default_params()
    parameters.n_gpu_layers = 0
    for _ in range(500):
        _write(path, architecture, keys, tensors)
        said.clear()
        if c.llama_model_load_from_file(str(path).encode(), parameters):
            return
        text = " ".join(said)
        if found := re.search(rf"key not found in model: {re.escape(architecture)}\.([\w.]+)", text):
            keys[found[1]] = IF_ASKED[found[1]]
        elif found := re.search(r"tensor '([\w.]+)' has wrong shape; expected ([\d, ]+), got", text):
            shape = [int(one) for one in found[2].split(",") if one.strip()]
            while len(shape) > 1 and shape[-1] == 1:
                shape.pop()
            tensors[found[1]] = _weights(found[1], shape, draw)
        elif found := re.search(r"tensor '([\w.]+)'(?: not found|\b(?! has))", text):
            tensors[found[1]] = _weights(found[1], [1], draw)
        else:
            raise SystemExit(f"{architecture}: {text[-400:]}")
    raise SystemExit(f"{architecture}: no end")


def _weights(name: str, shape: list[int], draw: np.random.Generator) -> Array:
    """Random weights; `shape` as llama.cpp writes it, the fastest dimension first."""
    rows = tuple(reversed(shape))
    if "norm" in name and name.endswith("weight"):
        return np.ones(rows, np.float32)
    if name.endswith("ssm_a"):
        return np.full(rows, -0.5, np.float32)
    scale = 0.02 if name.endswith("bias") else 0.5 / np.sqrt(shape[0]) if len(shape) > 1 else 0.1
    found = draw.normal(0, scale, rows).astype(np.float32)
    if name in ("token_embd.weight", "output.weight") and len(rows) > 1:
        # Plain characters, separators and the end are written. Zeros would give a recurrent model no logits after a line break.
        for others in (slice(32), slice(127, 256), slice(258, 260)):
            found[others] *= 0.05
    return found


def _write(path: Path, architecture: str, keys: Mapping[str, Any], tensors: Mapping[str, Array]) -> None:
    vocabulary = byte_level(["Ċ Ċ", ". ĊĊ"], CHATML_CONTROLS)
    unused = [f"<unused{number}>" for number in range(-len(vocabulary.types) % 16)]
    vocabulary = replace(vocabulary, types={**vocabulary.types, **dict.fromkeys(unused, TokenType.UNUSED)})
    writer = GGUFWriter(path, architecture)
    writer.add_name(f"tiny {architecture}")
    for key, value in keys.items():
        is_list = isinstance(value, list)
        first = value[0] if is_list else value
        kind = next(kind for one, kind in KINDS.items() if isinstance(first, one))
        sub_type = {"sub_type": GGUFValueType.INT32 if kind == GGUFValueType.UINT32 else kind} if is_list else {}
        writer.add_key_value(f"{architecture}.{key}", value, GGUFValueType.ARRAY if is_list else kind, **sub_type)
    for name, weights in tensors.items():
        writer.add_tensor(name, weights)
    finish(writer, vocabulary, end="<|im_end|>", template=CHATML)


KINDS = {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32}


def build_apart(folder: Path, architecture: str) -> Path:
    """Build a model in a process of its own, and return its path."""
    path = folder / f"{architecture}.gguf"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, __file__, str(path), architecture], check=True, env=environment, timeout=300)
    return path


if __name__ == "__main__":
    build(Path(sys.argv[1]), sys.argv[2])

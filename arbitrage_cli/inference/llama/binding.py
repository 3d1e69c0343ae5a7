"""Checks that the installed llama-cpp-python is compatible, because its C structures change almost monthly.

ctypes silently accepts unknown attribute names on a structure, so every field is checked before use.
"""

import ctypes
import importlib.metadata
import os
from collections.abc import Iterable, Mapping
from typing import Any

import llama_cpp.llama_cpp as c

from arbitrage_cli.errors import ModelUnsupportedError
from arbitrage_cli.inference.llama import TESTED_BINDINGS

INSTALL = f'pip install "llama-cpp-python=={TESTED_BINDINGS[-1]}"'

# All names that this package uses from llama-cpp-python. A test compares this list with the code.
NAMES = """
GGML_TYPE_F32 GGML_TYPE_F16 GGML_TYPE_Q8_0 GGML_TYPE_Q4_0 LLAMA_POOLING_TYPE_NONE LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
LLAMA_TOKEN_ATTR_CONTROL LLAMA_TOKEN_ATTR_UNKNOWN LLAMA_TOKEN_ATTR_USER_DEFINED LLAMA_VOCAB_TYPE_NONE LLAMA_VOCAB_TYPE_SPM
ggml_abort_callback llama_backend_init llama_batch llama_batch_free llama_batch_init llama_context_default_params llama_decode llama_free
llama_get_logits llama_get_memory llama_init_from_model llama_log_callback llama_log_set llama_memory_clear
llama_memory_seq_pos_max llama_memory_seq_rm llama_model_chat_template llama_model_default_params llama_model_desc
llama_model_free llama_model_get_vocab llama_model_has_encoder llama_model_is_diffusion llama_model_load_from_file
llama_model_n_ctx_train llama_model_n_embd llama_model_n_head llama_model_size llama_n_rs_seq
llama_print_system_info llama_progress_callback llama_set_abort_callback llama_set_n_threads llama_state_seq_get_data_ext
llama_state_seq_get_size_ext llama_state_seq_set_data_ext llama_supports_gpu_offload llama_synchronize llama_token llama_token_to_piece
llama_tokenize llama_vocab_bos llama_vocab_eos llama_vocab_get_add_bos llama_vocab_get_attr llama_vocab_get_text
llama_vocab_is_eog llama_vocab_n_tokens llama_vocab_type
"""

BATCH_FIELDS = ("n_tokens", "token", "pos", "n_seq_id", "seq_id", "logits")

# Default field values of each structure. A missing or extra field would shift later values.
CONTEXT_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_rs_seq": 0,
    "n_threads": 4,
    "n_threads_batch": 4,
    "pooling_type": -1,
    "attention_type": -1,
    "flash_attn_type": -1,
    "type_k": 1,
    "type_v": 1,
    "embeddings": False,
    "offload_kqv": True,
    "no_perf": True,
    "op_offload": True,
    "swa_full": True,
    "kv_unified": False,
}
MODEL_DEFAULTS = {
    "n_gpu_layers": -1,
    "split_mode": 1,
    "vocab_only": False,
    "check_tensors": False,
    "use_extra_bufts": True,
    "no_host": False,
}


def check_binding() -> None:
    """Raise ModelUnsupportedError if a name is missing or a structure has an unexpected layout."""
    missing = [name for name in NAMES.split() if not hasattr(c, name)]
    if missing:
        raise _misfit(f"lacks {', '.join(missing)}")
    _check_fields(c.llama_batch, BATCH_FIELDS)
    _check_defaults(c.llama_context_default_params(), CONTEXT_DEFAULTS)
    _check_defaults(c.llama_model_default_params(), MODEL_DEFAULTS)


def set_fields(structure: ctypes.Structure, values: Mapping[str, Any]) -> None:
    """Set fields of a C structure. Raises ModelUnsupportedError if a field does not exist."""
    _check_fields(type(structure), values)
    for name, value in values.items():
        setattr(structure, name, value)


def _check_defaults(structure: ctypes.Structure, defaults: Mapping[str, int]) -> None:
    _check_fields(type(structure), defaults)
    wrong = [name for name, value in defaults.items() if getattr(structure, name) != value]
    if wrong:
        raise _misfit(f"reads wrong defaults from {type(structure).__name__} ({', '.join(wrong)})")


def _check_fields(structure: type[ctypes.Structure], names: Iterable[str]) -> None:
    known = {field[0] for field in structure._fields_}
    missing = [name for name in names if name not in known]
    if missing:
        raise _misfit(f"has no {', '.join(missing)} in {structure.__name__}")


def _misfit(why: str) -> ModelUnsupportedError:
    version = importlib.metadata.version("llama-cpp-python")
    hint = "unset LLAMA_CPP_LIB_PATH, which selects a different library" if "LLAMA_CPP_LIB_PATH" in os.environ else INSTALL
    return ModelUnsupportedError(f"llama-cpp-python {version} is incompatible: it {why}", hint)

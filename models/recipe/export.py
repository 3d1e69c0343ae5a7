"""Write a trained checkpoint as GGUF for llama.cpp: `python export.py DIR/checkpoint.pt draft.gguf --name "..."`.

Matrices become Q8_0, and norms stay float32. The embedding is also the output matrix. No tensor is permuted, because the model rotates
adjacent pairs, as llama.cpp's architecture `llama` does.
"""

import argparse
from pathlib import Path

from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import quantize
from model import NORM_EPSILON, ROPE_BASE, Model, Shape, load_model
from tokenizer import CHAT_TEMPLATE, END, PAD, SEPARATOR, SPECIALS, THINKING_TEMPLATE, load_tokenizer, merges
from tokenizers import Tokenizer

LICENCE = "apache-2.0"


def export(model: Model, tokenizer: Tokenizer, path: Path, name: str, template: str = CHAT_TEMPLATE) -> None:
    """Write the file atomically. Raises ValueError if model and tokenizer have different vocabularies."""
    if tokenizer.get_vocab_size() != model.shape.vocabulary_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.get_vocab_size()} tokens; the model expects {model.shape.vocabulary_size}"
        )
    part = path.with_name(path.name + ".part")
    writer = GGUFWriter(part, "llama")
    _describe(writer, model.shape, name)
    writer.add_size_label(f"{model.num_parameters() / 1e6:.1f}M")
    _add_vocabulary(writer, tokenizer)
    writer.add_chat_template(template)
    for key, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        if values.ndim == 2:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(key, quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(key, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(path)


def _describe(writer: GGUFWriter, shape: Shape, name: str) -> None:
    writer.add_name(name)
    writer.add_license(LICENCE)
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(shape.vocabulary_size)
    writer.add_context_length(shape.context_size)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_layer_norm_rms_eps(NORM_EPSILON)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(ROPE_BASE)


def _add_vocabulary(writer: GGUFWriter, tokenizer: Tokenizer) -> None:
    ids = tokenizer.get_vocab()
    kinds = {**dict.fromkeys(SPECIALS, TokenType.CONTROL), SEPARATOR: TokenType.USER_DEFINED}
    texts = sorted(ids, key=lambda text: ids[text])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(texts)
    writer.add_token_types([kinds.get(text, TokenType.NORMAL) for text in texts])
    writer.add_token_merges(merges(tokenizer))
    writer.add_eos_token_id(ids[END])
    writer.add_pad_token_id(ids[PAD])
    writer.add_add_bos_token(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path, help="GGUF file to write")
    parser.add_argument("--name", required=True, help="name of the model, such as 'arbitrage built-in draft'")
    parser.add_argument("--thinks", action="store_true", help="the model always thinks before it answers")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer instead of tokenizer.json beside the checkpoint")
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.tokenizer or options.checkpoint.with_name("tokenizer.json"))
    template = THINKING_TEMPLATE if options.thinks else CHAT_TEMPLATE
    export(load_model(options.checkpoint), tokenizer, options.out, options.name, template)
    print(f"{options.out}: {options.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()

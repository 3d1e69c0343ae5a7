"""Writes a GGUF model in another number format, with llama.cpp: for example F16 from a quantized model.

Usage: python tests/benchmarks/requantize.py MODEL.gguf OUTPUT.gguf [--to F16]

What quantization has lost stays lost. Use it to measure a target whose tokens cost more.
"""

import argparse
import sys
from pathlib import Path

import llama_cpp.llama_cpp as c

FORMATS = {"F16": c.LLAMA_FTYPE_MOSTLY_F16, "Q8_0": c.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_0": c.LLAMA_FTYPE_MOSTLY_Q4_0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--to", choices=FORMATS, default="F16")
    arguments = parser.parse_args()
    parameters = c.llama_model_quantize_default_params()
    parameters.ftype = FORMATS[arguments.to]
    parameters.allow_requantize = True
    code = c.llama_model_quantize(bytes(arguments.model), bytes(arguments.output), parameters)
    if code:
        sys.exit(f"llama.cpp could not write {arguments.output} (llama_model_quantize: {code})")


if __name__ == "__main__":
    main()

"""Runs GGUF models with llama.cpp, through llama-cpp-python."""

BINDING = "0.3.36"  # the version of llama-cpp-python that pyproject.toml pins
PREBUILT = (
    "0.11413"  # the version of llama-cpp-py-sync that the extra `prebuilt` pins; both contain llama.cpp of the same month
)

"""The only package that imports llama-cpp-python."""

BINDING = "0.3.36"  # the version of llama-cpp-python that pyproject.toml pins

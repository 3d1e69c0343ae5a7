"""The only package that imports llama-cpp-python."""

TESTED_BINDINGS = ("0.3.36",)  # versions of llama-cpp-python; with others, models must first reproduce a known text

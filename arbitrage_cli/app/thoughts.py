"""Whether solutions begin with thoughts, and how long those may be: as asked for, else as the pair's chat templates do by themselves."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from arbitrage_cli.app.setup import Setup, limits_of, think_tokens
from arbitrage_cli.errors import TemplateError
from arbitrage_cli.inference.chat_template import ChatPrompt
from arbitrage_cli.inference.thinking import FORMATS
from arbitrage_cli.model_files.facts import read_facts
from arbitrage_cli.model_files.gguf import read_header
from arbitrage_cli.model_files.pairs import local_files
from arbitrage_cli.types import ModelRole

THINK_CONTEXT_SIZE = 16384
"""The context of a pair that thinks, in tokens, if its models were trained for as much and none is given."""


def with_thoughts(setup: Setup, files: Mapping[ModelRole, str]) -> Setup:
    """The setup with the limits and the context of solutions that think, if they do. Errors: UsageError, ModelFileError."""
    writing = [path for role, source in files.items() if role != "prm" for path in local_files(source)[:1]]
    tokens = think_tokens(setup.generation)
    if setup.generation.think is None and any(_thinks_by_itself(path, setup) for path in writing):
        tokens = None
    if tokens == 0:
        return setup
    load = setup.load
    if load.context_size is None and writing:
        trained = [read_facts([path]).trained_context_size or THINK_CONTEXT_SIZE for path in writing]
        load = replace(load, context_size=min(THINK_CONTEXT_SIZE, *trained))
    return replace(setup, load=load, limits=limits_of(setup.generation, tokens))


def _thinks_by_itself(path: Path, setup: Setup) -> bool:
    template = read_header(path).metadata.get("tokenizer.chat_template")
    if not isinstance(template, str) or not any(form.end in template for form in FORMATS.values()):
        return False
    try:
        return ChatPrompt(
            template, None, instructions=setup.system, variables=setup.load.template_variables
        ).thinks_by_itself
    except TemplateError:  # the model itself will be refused, with its name
        return False

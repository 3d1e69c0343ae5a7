"""Completes a `Setup` with the settings that depend on the model files: thinking and context size."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from arbitrage_cli.app.setup import Setup, limits_of, sampler_of, think_tokens
from arbitrage_cli.errors import TemplateError
from arbitrage_cli.inference.backend import Options
from arbitrage_cli.inference.chat_template import INSTRUCTIONS, ChatPrompt, PromptStyle
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.thinking import FORMATS, ThinkFormat
from arbitrage_cli.model_files.facts import read_facts
from arbitrage_cli.model_files.gguf import read_header
from arbitrage_cli.model_files.pairs import local_files
from arbitrage_cli.types import Limits, ModelRole

THINK_CONTEXT_SIZE = 16384
"""The default context size, in tokens, for models that think, or the size with which they were trained if that is smaller."""

UNKNOWN_THINKING = "cannot tell from the chat template whether the model thinks; if it does, use --think on"


@dataclass(frozen=True, slots=True)
class Resolved:
    """A setup completed with the settings that depend on the model files."""

    setup: Setup
    files: Mapping[ModelRole, str]
    load: Options
    limits: Limits
    sampler: Sampler
    notes: Sequence[str]


def resolve(setup: Setup, files: Mapping[ModelRole, str], server_thinks: Callable[[ModelRole], bool | None]) -> Resolved:
    """Complete a setup with the thinking and the context size from the model files on this machine.

    Raises UsageError or ModelFileError if a file cannot be used, and the same errors as `server_thinks`.
    """
    generation = setup.options.generation
    paths: dict[ModelRole, Path] = {
        role: path for role, source in files.items() if role != "prm" for path in local_files(source)[:1]
    }
    tokens, notes = think_tokens(generation), list[str]()
    if generation.think is None:
        found = {role: thinking_of(path, setup.load.template_variables, setup.system)[1] for role, path in paths.items()}
        if True not in found.values():
            found |= {role: server_thinks(role) for role in files if role in setup.served}
        tokens = None if True in found.values() else 0
        unknown = [setup.sources[role] for role, thinks in found.items() if thinks is None and tokens == 0]
        notes = [f"{source}: {UNKNOWN_THINKING}" for source in dict.fromkeys(unknown)]
    load = _with_thinking_context(setup.load, paths) if tokens != 0 else setup.load
    return Resolved(setup, files, load, limits_of(generation, setup.task, tokens), sampler_of(generation), notes)


def thinking_of(
    path: Path, variables: Mapping[str, Any], instructions: str = INSTRUCTIONS
) -> tuple[ThinkFormat | None, bool | None]:
    """Return the thinking format of a model's chat template, and whether the model thinks by default (None if unknown)."""
    template = read_header(path).metadata.get("tokenizer.chat_template")
    if not isinstance(template, str) or not any(form.end in template for form in FORMATS.values()):
        return None, False
    try:
        prompt = ChatPrompt(template, None, (), PromptStyle(instructions), variables)
        return prompt.own_format, prompt.thinks_by_itself
    except TemplateError:  # loading the model reports the error with the model's name
        return None, False


def _with_thinking_context(load: Options, paths: Mapping[ModelRole, Path]) -> Options:
    if load.context_size is not None or not paths:
        return load
    trained = [read_facts([path]).trained_context_size or THINK_CONTEXT_SIZE for path in paths.values()]
    return replace(load, context_size=min(THINK_CONTEXT_SIZE, *trained))

"""Renders chat templates, which may be malicious, in a child process with limited time and memory.

Jinja's sandbox denies access to Python.
"""

import json
from collections.abc import Callable
from datetime import date
from typing import Any, NoReturn

from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_RENDERED_CHARS = 100_000

PROMPT_DATE = date(2024, 7, 26)  # for templates; fixed, because a prompt must not change from day to day
DEFAULTS = {"tools": None, "documents": None, "bos_token": "", "eos_token": ""}
"""The variables that templates may use without a test: None as in transformers, empty strings as in llama.cpp."""


class _RefusedError(Exception):
    """Raised if the template calls `raise_exception`."""


def load() -> Callable[[str, str], tuple[str, str]]:
    return _outcome


def _outcome(template: str, arguments: str) -> tuple[str, str]:
    """Render messages and variables, given as JSON.

    Return "rendered" with the text, or "refused" or "broken" with the reason.
    """
    messages, variables = json.loads(arguments)
    try:
        parts = []
        size = 0
        values = {**DEFAULTS, **variables, "messages": messages, "add_generation_prompt": True}
        for part in _sandbox().from_string(template).generate(values):
            size += len(part)
            if size > MAX_RENDERED_CHARS:
                raise OverflowError(f"more than {MAX_RENDERED_CHARS:,} characters")
            parts.append(part)
        return "rendered", "".join(parts)
    except _RefusedError as refusal:
        return "refused", str(refusal)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - an untrusted template may raise any error
        return "broken", (str(error) or type(error).__name__).splitlines()[0][:200]


class _Generation(Extension):
    """Replaces each `{% generation %}` block with its content. Such blocks mark the assistant's text for training."""

    tags = {"generation"}  # noqa: RUF012 - declared like this in the base class

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise _RefusedError(message)


def _sandbox() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
    environment.globals.update(raise_exception=_raise_exception, strftime_now=PROMPT_DATE.strftime)
    return environment

"""The options of commands and calls, as plain records. The command line describes them in `cli.options`."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from annotated_types import Ge, Interval

from arbitrage_cli.errors import UsageError, in_plain_words
from arbitrage_cli.system.machine import MAX_THREADS
from arbitrage_cli.types import (
    MAX_CONCURRENCY,
    MAX_CONTEXT,
    Count,
    Fields,
    Limits,
    Positive,
    Share,
    Temperature,
    Thinking,
    frozen,
)

SOME_FAILED = 1
KEY_VARIABLE = "ARBITRAGE_SERVE_API_KEY"

RewardSource = Literal["prm", "rollout"]
"""A process reward model, or rollouts that are checked against the known answer."""
ResultFormat = Literal["text", "json"]
RunCode = Literal["sandboxed", "unprotected"]


@frozen
class Options:
    """The options that determine how problems are solved. They are shared by all commands that use models.

    `explicit` names the options that were set by flags or arguments, and `command` is the command line. `config` is the
    settings file; its values are in the other fields.
    """

    draft: str | None = None
    target: str | None = None
    pair: str | None = None
    offline: bool = False
    router: str | None = None
    prm: str | None = None
    check: str | None = None
    policy: str | None = None
    tau: str | None = None
    task: str | None = None
    system: str | None = None
    think: str | None = None
    max_steps: Positive | None = None
    max_tokens: Positive | None = None
    max_step_tokens: Positive = Limits().max_step_tokens
    temperature: Temperature = 0.0
    top_p: Share = 1.0
    top_k: Count = 0
    min_p: Share = 0.0
    seed: int = 0
    ctx: Annotated[int, Interval(ge=64, le=MAX_CONTEXT)] | None = None
    threads: Annotated[int, Interval(ge=1, le=MAX_THREADS)] | None = None
    gpu_layers: Annotated[int, Ge(-1)] | None = None
    flash_attention: bool | None = None
    kv_type: Literal["auto", "f16", "q8_0", "q4_0", "f32"] = "auto"
    concurrency: Annotated[int, Interval(ge=1, le=MAX_CONCURRENCY)] | None = None
    config: Path | None = None
    explicit: frozenset[str] = frozenset()
    command: Sequence[str] = ()

    @property
    def has_quick_answers(self) -> bool:
        """Whether quick answers are compared, and the target thinks only if they differ."""
        return self.think == "auto"

    @property
    def thinking(self) -> Thinking | None:
        """Whether the target thinks, or None if the user did not choose. Raises UsageError if the value is invalid."""
        match self.think:
            case None:
                return None
            case "off":
                return Thinking(False)
            case "on" | "auto":
                return Thinking(True)
            case text if text.isascii() and text.isdigit() and len(text) < 10:
                return Thinking(True, int(text)) if int(text) else Thinking(False)
        hint = "use on, off, auto, or the maximum number of thinking tokens, such as 2000"
        raise UsageError(f"invalid value '{self.think}'", hint, option="think")

    @property
    def arguments(self) -> list[str]:
        """The explicit options as command-line arguments."""
        parts: list[str] = []
        for name in (field.name for field in fields(self) if field.name in self.explicit):
            value = getattr(self, name)
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                parts.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                parts += [f"--{flag}", str(value)]
        return parts

    def with_values(self, values: Fields) -> "Options":
        """Return the options with these values of a Python caller, which are now explicit. None keeps the current value.

        Raises UsageError if a value has the wrong type or is out of bounds.
        """
        given = {name: validated_option(Options, name, value) for name, value in values.items() if value is not None}
        return replace(self, **given, explicit=frozenset(given))


def validated_option(group: type, name: str, value: Any) -> Any:
    """Return the value of an option. Raises UsageError if the value has the wrong type or is out of bounds."""
    from pydantic import TypeAdapter, ValidationError  # slow to import

    try:
        return TypeAdapter(get_type_hints(group, include_extras=True)[name]).validate_python(value, strict=True)
    except ValidationError as error:
        raise UsageError(f"{in_plain_words(error.errors()[0]['msg'])}, not {value!r:.60}", option=name) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemOptions:
    """A data set and a selection of its problems."""

    dataset: str
    mapping: str | None = None
    limit: str | None = None
    ids: str | None = None
    run_code: RunCode | None = None


@frozen
class InputOptions:
    """The input file and the selection of its problems."""

    input_file: str | None = None
    mapping: str | None = None
    limit: str | None = None


@frozen
class BenchOptions:
    """The attempts, the rewards and the run folder of a benchmark."""

    dry_run: bool = False
    samples: Positive = 1
    timeout: Annotated[float, Interval(ge=0.001, le=1e6)] | None = None
    reward: RewardSource | None = None
    output_folder: Path | None = None
    fresh: bool = False


@frozen
class AdviceOptions:
    """The problems and time limit for advice, and the name of the pair to `save`."""

    dataset: str | None = None
    mapping: str | None = None
    minutes: Annotated[float, Interval(ge=0.001, le=10_000)] = 10.0
    save: str | None = None
    run_code: RunCode | None = None
    costs: bool = False
    output_folder: Path | None = None
    fresh: bool = False


@frozen
class CollectOptions:
    """The options for step rewards, and the run folder."""

    reward: RewardSource | None = None
    output_folder: Path | None = None
    fresh: bool = False


@frozen
class ServerOptions:
    """The address, API key and limits of the server."""

    host: str = "127.0.0.1"
    port: Annotated[int, Interval(ge=0, le=65535)] = 8080
    no_api_key: bool = False
    queue: Annotated[int, Interval(ge=0, le=10_000)] = 64
    timeout: Annotated[float, Interval(ge=1, le=86_400)] = 600.0
    upstream_timeout: Annotated[float, Interval(ge=1, le=86_400)] = 120.0

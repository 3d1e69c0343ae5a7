"""Steps of toy models, for the tests of engines: how to begin one, finish it, and compare two."""

from collections.abc import Iterable
from typing import Any

from hash_language import CHEAP_BATCHES, HashBackend, Proposals, planner
from scripted_models import Continuation, Script, ScriptedBackend

from arbitrage_cli.arbitrage import WriteStep
from arbitrage_cli.inference.backend import Backend, Floats, LoadOptions
from arbitrage_cli.inference.chat_template import INSTRUCTIONS, PromptStyle, Segment
from arbitrage_cli.inference.engine import Engine
from arbitrage_cli.inference.kv_cache import KvCache, RetainedIds
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.step_text import BLANK_LINE, StepEnd
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.types import Cost, Decision, Limits, ModelRole, Problem, Step, Trace

PROBLEM = Problem("p", "question 0")
OTHER = "zzz zz.\n\n"  # the toy language never writes a z


def text(segments: Iterable[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def recite(text: str) -> Script:
    return lambda question, solution: Continuation(text[len(solution) :], 0.9)


def repeat(text: str) -> Script:
    return lambda question, solution: Continuation(text, 0.9)


class ByteReciter(HashBackend):
    """Writes bytes one token at a time, so that characters are split across tokens."""

    def __init__(self, data: bytes, context_size: int = 2048) -> None:
        super().__init__(context_size=context_size)
        self._data = data

    def decode(self, sequences: Any, positions: Any, tokens: Any, **options: Any) -> Floats:
        output = super().decode(sequences, positions, tokens, **options)
        for row, (sequence, position) in enumerate(zip(sequences, positions, strict=True)):
            written = position - self.cells[sequence].index(self.tokenizer.control_tokens["<|assistant|>"])
            output[row, [*self._data[written : written + 1]]] = 100.0
        return output


def scripted(script: Script, *, context: int = 500, sequences: int = 1) -> ScriptedBackend:
    options = LoadOptions(context_size=context, num_sequences=sequences)
    return ScriptedBackend("scripted", script, options, merges=("\n\n", ".\n\n"))


def make_engine(
    role: ModelRole,
    backend: Backend,
    sampler: Sampler,
    *,
    instructions: str = INSTRUCTIONS,
    keep: RetainedIds = "nothing",
    step_end: StepEnd = BLANK_LINE,
    costs: UnitCosts | None = CHEAP_BATCHES,
    proposals: Proposals = "drafted",
    **options: Any,
) -> Engine:
    cache = KvCache(backend, PromptStyle(instructions, step_end), keep=keep)
    return Engine(role, cache, sampler, planner=planner(costs, proposals), **options)


def new_engine(backend: Backend, *, keep_token_stats: bool = False) -> Engine:
    engine = make_engine("draft", backend, Sampler(), instructions="", keep_token_stats=keep_token_stats)
    engine.open(0, PROBLEM)
    return engine


def new_trace(limits: Limits | None = None) -> Trace:
    return Trace(PROBLEM, limits or Limits())


def finish(engine: Engine) -> tuple[Step, list[str]]:
    """Tick until the step in slot 0 is finished. Return the step and its tokens' texts."""
    given: list[str] = []
    while True:
        for update in engine.tick():
            if update.error:
                raise update.error
            given.append(update.text)
            if update.step:
                return update.step, given


def write(engine: Engine, trace: Trace) -> Step:
    engine.start(0, WriteStep("draft", trace))
    return finish(engine)[0]


def keep(trace: Trace, step: Step) -> None:
    trace.add(Decision(kept=step))


def foreign(text: str, model: ModelRole = "target") -> Step:
    return Step(model, text, 1, Cost(), "separator")


def assert_equal(step: Step, expected: Step) -> None:
    assert (step.text, step.num_tokens, step.stop) == (expected.text, expected.num_tokens, expected.stop)
    assert step.token_stats is not None
    assert expected.token_stats is not None
    assert step.token_stats.log_probabilities == expected.token_stats.log_probabilities
    assert step.token_stats.entropies == expected.token_stats.entropies

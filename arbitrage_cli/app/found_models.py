"""Describes the models that other programs keep on this machine, and proposes pairs of them."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

from arbitrage_cli.app.spec import prompt_of
from arbitrage_cli.errors import ModelError
from arbitrage_cli.model_files.facts import Facts, read_facts
from arbitrage_cli.model_files.pairs import find_files, found_names, local_files

MIN_RATIO, GOOD_RATIO = 4.0, 10.0  # size of the target / size of the draft; below the minimum, routing rarely saves time
MAX_PROPOSALS = 3
SHOWN = ("file_bytes", "quantization", "trained_context_size")  # fields of `Facts`


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model of another program. If it cannot be used, there is an `error` instead of facts."""

    name: str
    facts: Facts | None = None
    think_format: str | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        facts = {} if self.facts is None else {name: getattr(self.facts, name) for name in SHOWN}
        return {"model": self.name, **facts, "think_format": self.think_format, "error": self.error}


def found_models() -> Iterator[FoundModel]:
    """Describe the models of Ollama, LM Studio, llama.cpp and the Hub's cache. A file that has several names is yielded once."""
    seen: set[Path] = set()
    for name in found_names():
        try:
            files = local_files(name) or find_files(name, offline=True)
            if files[0].resolve() not in seen:
                seen.add(files[0].resolve())
                prompt = prompt_of(files[0], {})
                form = prompt.own_format if prompt else None
                yield FoundModel(name, read_facts(files), form.name if form else None)
        except ModelError as error:
            yield FoundModel(name, error=error.message)


def propose_pairs(models: Iterable[FoundModel], memory: int | None) -> list[tuple[str, str]]:
    """Return at most `MAX_PROPOSALS` drafts and targets by name, best first.

    The models of a pair fit in memory together, and have the same architecture or a vocabulary of the same size. A pair is
    better if its target is larger, then if the draft has closer to a tenth of its size.
    """
    chat = [(model.name, model.facts) for model in models if model.facts and model.facts.has_template]
    pairs: list[tuple[int, float, tuple[str, str]]] = []
    for (draft, small), (target, large) in permutations(chat, 2):
        ratio = large.file_bytes / small.file_bytes
        fits = memory is None or _bytes(small) + _bytes(large) < memory
        if fits and ratio >= MIN_RATIO and _is_related(small, large):
            pairs.append((-large.num_parameters, abs(math.log(ratio / GOOD_RATIO)), (draft, target)))
    return [names for *_, names in sorted(pairs)[:MAX_PROPOSALS]]


def _is_related(draft: Facts, target: Facts) -> bool:
    return draft.architecture == target.architecture or draft.vocabulary_size == target.vocabulary_size


def _bytes(facts: Facts) -> int:
    return facts.memory_bytes or facts.file_bytes

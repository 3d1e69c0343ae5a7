"""Finds the models that other programs keep on this machine, and proposes pairs of them."""

import math
from collections.abc import Iterable, Iterator
from itertools import permutations
from pathlib import Path

from arbitrage_cli.app.model_info import Json, describe_model
from arbitrage_cli.errors import ModelError
from arbitrage_cli.model_files.pairs import found_names

MIN_RATIO, GOOD_RATIO = 4.0, 10.0  # size of the target / size of the draft; below the minimum, routing rarely saves time
MAX_PROPOSALS = 3


def found_models() -> Iterator[Json]:
    """Describe the models of Ollama, LM Studio, llama.cpp and the Hub's cache.

    A file that has several names is described once. Of a model that cannot be used, only the `error` is known.
    """
    seen: set[Path] = set()
    for name in found_names():
        try:
            model = describe_model(name)
        except ModelError as error:
            yield {"model": name, "error": error.message}
            continue
        if (file := Path(model["files"][0]).resolve()) not in seen:
            seen.add(file)
            yield model


def propose_pairs(models: Iterable[Json], memory: int | None) -> list[tuple[str, str]]:
    """Return at most `MAX_PROPOSALS` drafts and targets by name, best first.

    The models of a pair fit in memory together, and have the same architecture or a vocabulary of the same size. A pair is
    better if its target is larger, then if the draft has closer to a tenth of its size.
    """
    chat = [model for model in models if model.get("has_template")]
    pairs: list[tuple[int, float, tuple[str, str]]] = []
    for draft, target in permutations(chat, 2):
        ratio = target["file_bytes"] / draft["file_bytes"]
        fits = memory is None or sum(model["memory_bytes"] or model["file_bytes"] for model in (draft, target)) < memory
        is_related = any(draft[name] == target[name] for name in ("architecture", "vocabulary_size"))
        if fits and is_related and ratio >= MIN_RATIO:
            names = draft["model"], target["model"]
            pairs.append((-target["num_parameters"], abs(math.log(ratio / GOOD_RATIO)), names))
    return [names for *_, names in sorted(pairs)[:MAX_PROPOSALS]]

"""The trained router, which estimates the probability that the target's step is better than a drafted step.

A router is a network (`learning/network.py`) with a card, in a file (`learning/file.py`) whose whole content is checked before
use.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import numpy as np

from arbitrage_cli.arbitrage import EarlyStop, Scorer, by_token_stats
from arbitrage_cli.errors import ComputeError, ModelFileError, OutputError, RouterError, UsageError, os_errors
from arbitrage_cli.inference.backend import Floats
from arbitrage_cli.inference.step_text import StepEnd
from arbitrage_cli.learning.file import MAX_FILE_BYTES, decode, digest_of, encode
from arbitrage_cli.learning.network import Network, network_of, probability_of
from arbitrage_cli.model_files.checksums import known_sha256
from arbitrage_cli.model_files.gguf import read_facts
from arbitrage_cli.model_files.pairs import UNIVERSAL_ROUTER, router_file, shipped_routers
from arbitrage_cli.numbers.intervals import Numbers
from arbitrage_cli.routing.features import FEATURES, FEATURES_VERSION, EarlierSteps
from arbitrage_cli.system.files import read_regular, validated, write_atomically
from arbitrage_cli.types import WRITING, Attribution, ByRole, Fields, Json, Step, Trace, frozen

LOOK_EVERY = 2  # tokens between two scores of an unfinished step
ODDS = 1.5  # factor on the odds of tau for unfinished steps, which the router was not trained on
LEAST_THOUGHTS = 100  # thinking steps in the training states of a router that routes thinking

Match = Literal["files", "names"]
"""The evidence that a router was trained on a pair: the checksums of its files, or the names and sizes in the files."""


@frozen
class TrainedModel:
    """A model on which a router was trained. Without a file, only its name is known.

    `vocabulary_size` is the number of tokens in the vocabulary.
    """

    name: str
    sha256: str | None = None
    architecture: str | None = None
    num_parameters: int | None = None
    vocabulary_size: int | None = None

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by pydantic alone

    def is_same_as(self, other: "TrainedModel") -> bool:
        """Return whether the files are equal or, if neither model has a file, the names."""
        if self.sha256 is None and other.sha256 is None:
            return self.name == other.name
        return self.sha256 == other.sha256

    def is_called_like(self, other: "TrainedModel") -> bool:
        """Return whether the metadata of both models agree, as for two quantizations of a model, or for a fine-tune of it."""
        facts = (self.architecture, self.num_parameters, self.vocabulary_size)
        others = (other.architecture, other.num_parameters, other.vocabulary_size)
        return self.name == other.name and facts == others and None not in facts


@frozen
class RouterCard:
    """The description of a router, including its quality on test problems (`metrics`) and its table of taus.

    `features_version` is the number of the features' meaning (`FEATURES_VERSION`) in the training. `pairs` lists the model pairs that wrote the training and test states. The other mappings are written by
    `training.train`.
    """

    name: str
    features_version: int
    features: tuple[str, ...]
    pairs: tuple[ByRole[TrainedModel], ...]
    reward: Fields
    data: Fields
    metrics: Fields
    taus: Fields
    command: tuple[str, ...]
    version: str
    created: str

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by pydantic alone

    def __post_init__(self) -> None:
        if unknown := [name for name in self.features if name not in FEATURES]:
            raise ValueError(f"the card uses the feature {unknown[0]!r}, which this version of arbitrage does not support")
        if len(set(self.features)) != len(self.features):
            raise ValueError("the card lists a feature twice")
        if any({"draft", "target"} - pair.keys() for pair in self.pairs):
            raise ValueError("a pair in the card has no draft or no target")

    def known(self, questions: Iterable[str]) -> list[bool]:
        """Return whether the router was trained on each of these problems."""
        learned = set(str(self.data.get("learned", "")).split())
        return [digest_of_problem(question) in learned for question in questions]

    def match(self, models: ByRole[TrainedModel]) -> Match | None:
        """Return how these models match a pair that the router was trained on, or None if they match no pair."""
        if any(all(pair[role].is_same_as(models[role]) for role in WRITING) for pair in self.pairs):
            return "files"
        if any(all(_is_alike(pair[role], models[role]) for role in WRITING) for pair in self.pairs):
            return "names"
        return None

    @property
    def knows_thoughts(self) -> bool:
        thoughts = self.data.get("thoughts")
        return isinstance(thoughts, int) and thoughts >= LEAST_THOUGHTS

    @property
    def step_end(self) -> StepEnd:
        """The rule that ended steps in the training states."""
        return validated(StepEnd, self.data.get("step_end"))

    def to_json(self) -> Json:
        return asdict(self, dict_factory=_known)


def _is_alike(trained: TrainedModel, model: TrainedModel) -> bool:
    return trained.is_same_as(model) or trained.is_called_like(model)


def _known(fields: Iterable[tuple[str, Any]]) -> Json:
    return {name: value for name, value in fields if value is not None}


class Router:
    """A network with calibrated log-odds, and its card."""

    def __init__(self, network: Network, card: RouterCard) -> None:
        self.network = network
        self.card = card
        self._columns = np.array([FEATURES.index(name) for name in card.features])
        self._solutions: WeakKeyDictionary[Trace, EarlierSteps] = WeakKeyDictionary()

    def scorer(self) -> Scorer:
        scorer = by_token_stats(self.probability, lambda tau: EarlyStop(self.probability, clearly_above(tau), is_due))
        return replace(scorer, routes_thoughts=self.card.knows_thoughts)

    def probability(self, trace: Trace, draft: Step) -> float:
        """Return the probability that the target's step is better than the drafted step.

        Between calls, decisions may only be added to the trace. Raises ValueError if the draft has no token statistics;
        ComputeError if the result is not a number.
        """
        if trace not in self._solutions:
            self._solutions[trace] = EarlierSteps(trace.problem)
        probability = float(self.probabilities(self._solutions[trace].features(trace.decisions, draft)))
        if math.isnan(probability):
            raise ComputeError("the router's score is not a number; the draft's file may be damaged")
        return probability

    def probabilities(self, rows: Floats) -> Numbers:
        """Return the probabilities for rows of shape (..., n_features) with the columns `FEATURES`."""
        return probability_of(self.network.log_odds(rows[..., self._columns]).astype(np.float64))

    def explain(self, trace: Trace, position: int) -> Attribution | None:
        """Return each feature's contribution to the score at this position, or None if the router did not score the step.

        Raises ValueError if the draft has no token statistics.
        """
        draft = trace.decisions[position].draft
        if draft is None or (draft.phase == "think" and not self.card.knows_thoughts):
            return None
        inputs = EarlierSteps(trace.problem).features(trace.decisions[:position], draft)[self._columns]
        log_odds = float(self.network.log_odds(inputs))
        values = self.network.parts(inputs).tolist()
        parts = sorted(zip(self.card.features, values, strict=True), key=lambda part: -abs(part[1]))
        return Attribution(log_odds, log_odds - math.fsum(values), parts)

    def check_steps(self, step_end: StepEnd) -> None:
        if self.card.step_end != step_end:
            raise RouterError(
                f"router '{self.card.name}' was trained on steps that end at {self.card.step_end}, but steps of this task end "
                f"at {step_end}",
                "use a router for this task (train one with arbitrage collect and arbitrage train), or another --task",
            )

    @property
    def sha256(self) -> str:
        return digest_of(text_of(self.card), self.network.arrays())


def digest_of_problem(question: str) -> str:
    """Return 8 hex digits that identify a problem.

    With 4,000 known problems, about one in a million new problems matches a known problem by chance.
    """
    return hashlib.sha256(question.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def text_of(card: RouterCard) -> str:
    return json.dumps(card.to_json(), ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def is_due(num_tokens: int) -> bool:
    return num_tokens % LOOK_EVERY == 0


def clearly_above(tau: float) -> float:
    """Return the probability above which an unfinished step is stopped.

    A tau that is not between 0 and 1 is returned unchanged.
    """
    return ODDS * tau / (1 + (ODDS - 1) * tau) if 0 < tau < 1 else tau


# --- router files


def included_router(files: ByRole[Sequence[Path]]) -> str | None:
    """Return the included router that was trained on the models in these GGUF files, or on other quantizations of them.

    Equal files come before equal names. To know a file, it may have to be hashed.
    """
    if not all(files.get(role) for role in WRITING):
        return None
    cards = {source: load(router_file(source)).card for source in shipped_routers() if source != UNIVERSAL_ROUTER}
    try:
        names = {role: read_facts(files[role]).name for role in WRITING}
        # These names are in the files, so only files with these names can have these checksums.
        cards = {source: card for source, card in cards.items() if _has_names(card, names)}
        models = {role: _model_in(files[role]) for role in WRITING} if cards else {}
    except ModelFileError:  # reported when the model is loaded
        return None
    matches = {source: card.match(models) for source, card in cards.items()}
    return next((source for how in get_args(Match) for source, match in matches.items() if match == how), None)


def _has_names(card: RouterCard, names: ByRole[str]) -> bool:
    return any(all(pair[role].name == name for role, name in names.items()) for pair in card.pairs)


def _model_in(files: Sequence[Path]) -> TrainedModel:
    facts = read_facts(files)
    return TrainedModel(facts.name, known_sha256(files), facts.architecture, facts.num_parameters, facts.vocabulary_size)


def save(router: Router, path: Path) -> None:
    with os_errors(OutputError, f"{path}: cannot be written", "use another path: --output FILE"):
        write_atomically(path, encode(router.network, text_of(router.card)))


def load(path: Path) -> Router:
    """Read a router file. Raises UsageError if it cannot be read; RouterError if it is invalid."""
    data = _read(path)
    try:
        return _decode(data)
    except _OtherFeaturesError as reason:
        hint = "train the router again, from the same states: arbitrage train RUN -o router.safetensors"
        raise RouterError(f"{path}: {reason}", hint) from reason
    except ValueError as reason:
        hint = "download the file again, or train a router: arbitrage train RUN -o router.safetensors"
        raise RouterError(f"{path}: {reason}", hint) from reason


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        hint = f"use a router file, or one of the shipped routers: {', '.join(shipped_routers())}"
        raise UsageError(f"{path}: cannot be read ({reason})", hint, option="router") from error


class _OtherFeaturesError(ValueError):
    pass


def _decode(data: bytes) -> Router:
    arrays, found = decode(data)
    version = found.get("features_version")
    if type(version) is not int or version != FEATURES_VERSION:
        raise _OtherFeaturesError(
            f"the router was trained with version {version!r} of the features, but this version of arbitrage computes version "
            f"{FEATURES_VERSION}"
        )
    card = validated(RouterCard, found)
    validated(StepEnd, card.data.get("step_end"))
    return Router(network_of(arrays, len(card.features)), card)

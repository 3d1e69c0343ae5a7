"""The trained router, which estimates the probability that the target's step is better than a drafted step.

A router file is a safetensors file with the arrays of the network. Its metadata contains the card as JSON, and a sha256 of
the arrays and the card. Reading a router file never executes code, and all content is checked before use.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from arbitrage_cli.arbitrage import EarlyStop, Scorer, by_token_stats
from arbitrage_cli.errors import ComputeError, ModelFileError, OutputError, RouterError, UsageError, os_errors
from arbitrage_cli.inference.backend import Floats
from arbitrage_cli.inference.step_text import StepEnd
from arbitrage_cli.model_files.gguf import read_facts
from arbitrage_cli.model_files.pairs import UNIVERSAL_ROUTER, router_file, shipped_routers
from arbitrage_cli.numbers.intervals import Numbers
from arbitrage_cli.routing.features import FEATURES, EarlierSteps
from arbitrage_cli.system.files import checked, read_regular, write_atomically
from arbitrage_cli.types import Attribution, ByRole, Fields, Json, Step, Trace, frozen

MAX_INPUT = 8.0  # standard deviations from the mean
MAX_LOG_ODDS = 30.0  # so that every probability is between the taus 0 and 1

ROUTER_SCHEMA = 1  # format of router files
MAX_FILE_BYTES = 1 << 26

LOOK_EVERY = 2  # tokens between two scores of an unfinished step
ODDS = 1.5  # factor on the odds of tau for unfinished steps, which the router was not trained on
LEAST_THOUGHTS = 100  # thinking steps in the training states of a router that routes thinking

TrainedModel = Fields  # the `name` and `sha256` of a model; the sha256 is None if the model has no file


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A network that computes log-odds from d inputs.

    The network has one hidden layer of h rectified units, or no hidden layer.

    `mean` and `scale` have shape (d,). `layer` contains the hidden units' weights of shape (d, h) and biases of shape (h,).
    `layer` is None if the network is linear. `output` has shape (h,) or, if the network is linear, (d,). All arrays are
    float32.
    """

    mean: Floats
    scale: Floats
    output: Floats
    output_bias: float
    layer: tuple[Floats, Floats] | None = None

    def standardised(self, inputs: Floats) -> Floats:
        """Convert inputs of shape (..., d) to standard deviations from the mean, clipped to `MAX_INPUT`."""
        scaled: Floats = (inputs - self.mean) / self.scale
        np.minimum(scaled, MAX_INPUT, out=scaled)
        return np.maximum(scaled, -MAX_INPUT, out=scaled)

    def log_odds(self, inputs: Floats) -> Floats:
        values = self.standardised(inputs)
        if self.layer is not None:
            weights, biases = self.layer
            values = np.maximum(values @ weights + biases, 0)
        result: Floats = values @ self.output + np.float32(self.output_bias)
        return result

    def moved(self, slope: float, shift: float) -> "Network":
        """Return a network whose log-odds are `slope` times these log-odds plus `shift`."""
        output: Floats = self.output * np.float32(slope)
        return replace(self, output=output, output_bias=self.output_bias * slope + shift)

    def parts(self, inputs: Floats) -> Numbers:
        """Return the contribution of each of the d inputs to the log-odds, relative to the mean input.

        Contributions are integrated gradients (Sundararajan et al., arXiv 1703.01365, eq. 1), with the mean input as the
        baseline. The integral has a closed form, because the mean slope of a rectified unit is the change in its output
        divided by the change in its argument.
        """
        values = self.standardised(inputs).astype(np.float64)
        slopes = self.output.astype(np.float64)
        if self.layer is not None:
            weights, biases = self.layer
            change = values @ weights
            rise = np.maximum(biases + change, 0) - np.maximum(biases, 0)
            slopes = weights @ (self.output * np.divide(rise, change, out=np.zeros_like(rise), where=change != 0))
        parts: Numbers = values * slopes
        return parts


@frozen
class RouterCard:
    """The description of a router, including its quality on test problems (`metrics`) and its table of taus.

    `pairs` lists the model pairs that wrote the training and test states. The other mappings are written by
    `training.train`.
    """

    name: str
    features: tuple[str, ...]
    pairs: tuple[Mapping[str, TrainedModel], ...]
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

    @property
    def knows_thoughts(self) -> bool:
        thoughts = self.data.get("thoughts")
        return isinstance(thoughts, int) and thoughts >= LEAST_THOUGHTS

    @property
    def step_end(self) -> StepEnd:
        """The rule that ended steps in the training states."""
        return checked(StepEnd, self.data.get("step_end"))

    def to_json(self) -> Json:
        return asdict(self)


class Router:
    """A network with calibrated log-odds, and its card."""

    def __init__(self, network: Network, card: RouterCard) -> None:
        self.network, self.card = network, card
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
        log_odds = self.network.log_odds(rows[..., self._columns]).astype(np.float64)
        return 1.0 / (1.0 + np.exp(-np.clip(log_odds, -MAX_LOG_ODDS, MAX_LOG_ODDS)))

    def explain(self, trace: Trace, position: int) -> Attribution | None:
        """Return each feature's contribution to the score at this position, or None if the router did not score the step.

        Raises ValueError if the draft has no token statistics.
        """
        draft = trace.decisions[position].draft
        if draft is None or (draft.phase == "think" and not self.card.knows_thoughts):
            return None
        inputs = EarlierSteps(trace.problem).features(trace.decisions[:position], draft)[self._columns]
        log_odds, values = float(self.network.log_odds(inputs)), self.network.parts(inputs).tolist()
        parts = sorted(zip(self.card.features, values, strict=True), key=lambda part: -abs(part[1]))
        return Attribution(log_odds, log_odds - math.fsum(values), parts)

    def check_steps(self, step_end: StepEnd) -> None:
        if self.card.step_end != step_end:
            raise RouterError(
                f"router '{self.card.name}' was trained on steps that end at {self.card.step_end}, but steps of this task end at {step_end}",
                "use a router for this task (train one with arbitrage collect and arbitrage train), or another --task",
            )

    @property
    def sha256(self) -> str:
        return digest_of(text_of(self.card), self.arrays())

    def arrays(self) -> dict[str, Floats]:
        network = self.network
        found: dict[str, NDArray[Any]] = {"mean": network.mean, "scale": network.scale, "output": network.output}
        found["output_bias"] = np.array([network.output_bias])
        if network.layer is not None:
            found["units"], found["unit_bias"] = network.layer
        return {name: np.ascontiguousarray(array, np.float32) for name, array in found.items()}


def digest_of_problem(question: str) -> str:
    """Return 8 hex digits that identify a problem.

    With 4,000 known problems, about one in a million new problems matches a known problem by chance.
    """
    return hashlib.sha256(question.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def text_of(card: RouterCard) -> str:
    return json.dumps(card.to_json(), ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def digest_of(card: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the sha256 of a card's text and of the arrays with their names, types and shapes."""
    digest = hashlib.sha256(card.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def is_due(num_tokens: int) -> bool:
    return num_tokens % LOOK_EVERY == 0


def clearly_above(tau: float) -> float:
    """Return the probability above which an unfinished step is stopped.

    A tau that is not between 0 and 1 is returned unchanged.
    """
    return ODDS * tau / (1 + (ODDS - 1) * tau) if 0 < tau < 1 else tau


# --- router files


def included_router(files: ByRole[Sequence[Path]]) -> str | None:
    """Return the included router that was trained on the models in these GGUF files, or on other quantizations of them."""
    try:
        names = {role: read_facts(files[role]).name for role in ("draft", "target") if files.get(role)}
    except ModelFileError:  # reported when the model is loaded
        return None
    if len(names) < 2:
        return None
    for source in shipped_routers():
        pairs = load(router_file(source)).card.pairs if source != UNIVERSAL_ROUTER else ()
        if any(all(pair[role]["name"] == name for role, name in names.items()) for pair in pairs):
            return source
    return None


def save(router: Router, path: Path) -> None:
    from safetensors.numpy import save as encode  # slow to import

    about = json.dumps({"schema": ROUTER_SCHEMA, "card": text_of(router.card), "sha256": router.sha256}, sort_keys=True)
    with os_errors(OutputError, f"{path}: cannot be written", "use another path: --output FILE"):
        write_atomically(path, encode(router.arrays(), {"arbitrage": about}))


def load(path: Path) -> Router:
    """Read a router file. Raises UsageError if it cannot be read; RouterError if it is invalid."""
    data = _read(path)
    try:
        return _decode(data)
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


def _decode(data: bytes) -> Router:
    from safetensors import SafetensorError
    from safetensors.numpy import load as decode

    try:
        arrays = decode(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"not a valid safetensors file ({error})") from error
    header = _object(data[8 : 8 + int.from_bytes(data[:8], "little")])
    about = _object(header.get("__metadata__", {}).get("arbitrage", ""))
    if about.get("schema") != ROUTER_SCHEMA:
        raise ValueError(f"unknown schema {about.get('schema')!r}; this version of arbitrage supports {ROUTER_SCHEMA}")
    text = about.get("card")
    if not isinstance(text, str) or about.get("sha256") != digest_of(text, arrays):
        raise ValueError("the file was changed after it was written: its sha256 does not match")
    card = checked(RouterCard, _object(text))
    checked(StepEnd, card.data.get("step_end"))
    return Router(_network(arrays, len(card.features)), card)


def _object(text: str | bytes) -> Json:
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError("not a router: the metadata is not JSON") from error
    if not isinstance(found, dict):
        raise ValueError("not a router: the metadata is not a JSON object")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _network(arrays: Mapping[str, NDArray[Any]], size: int) -> Network:
    units = arrays["unit_bias"].size if "unit_bias" in arrays else 0
    shapes: dict[str, tuple[int, ...]] = {"mean": (size,), "scale": (size,), "output": (units or size,), "output_bias": (1,)}
    if units:
        shapes |= {"units": (size, units), "unit_bias": (units,)}
    if arrays.keys() != shapes.keys():
        raise ValueError(f"expected the arrays {', '.join(sorted(shapes))}; found {', '.join(sorted(arrays))}")
    for name, array in arrays.items():
        if array.dtype != np.float32 or array.shape != shapes[name] or not np.isfinite(array).all():
            raise ValueError(f"array {name}: expected finite float32 numbers of shape {shapes[name]}")
    if not (arrays["scale"] > 0).all():
        raise ValueError("array scale: expected positive numbers")
    layer = (arrays["units"], arrays["unit_bias"]) if units else None
    return Network(arrays["mean"], arrays["scale"], arrays["output"], float(arrays["output_bias"][0]), layer)

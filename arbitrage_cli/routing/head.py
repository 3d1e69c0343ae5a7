"""A router's head: from what the draft computed while it wrote a step to the probability that the target's step is better.

Standardised inputs, a linear model or a network with one layer, and a monotone curve from its log-odds to a calibrated
probability: a few microseconds of NumPy. How such heads are saved, read and refused. Knows no training and no tau.

A head is a safetensors file: its arrays, and a card as JSON in the metadata, with a sha256 over both. Reading one executes
nothing, and bounds everything before it is believed.
"""

import bisect
import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from arbitrage_cli.arbitrage import EarlyStop, Router, by_token_stats
from arbitrage_cli.errors import ComputeError, OutputError, RouterError, UsageError
from arbitrage_cli.routing.features import FEATURES, features, hidden_features
from arbitrage_cli.system.files import write_atomically
from arbitrage_cli.types import Step, Trace

Floats = NDArray[np.float32]

SCHEMA = 1
"""Of the file: one of another number is refused."""

MAX_INPUT = 8.0  # standard deviations from the mean: further out nothing was learned
MAX_LOG_ODDS = 30.0  # so that a tau of 0 is below every probability, and a tau of 1 above
LOOK_EVERY = 2  # tokens of a step that may be stopped early
CLEARLY = 1.5  # times the odds of tau stop it: a head is trained on whole steps, and less sure of beginnings
MAX_FILE_BYTES = 1 << 26
MAX_HEADER_BYTES = 1 << 22

Model = Mapping[str, Any]
"""`name` and `sha256` of a model's file; the latter is None for a demo model, which has no file."""


# --- inference


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """From d inputs to log-odds: linear, or with one layer of h rectified units in between.

    `mean` and `scale` (d,) standardise the inputs; `layer` are the weights (d, h) and biases (h,) of the units in between,
    None if it is linear; `output` is (h,) or (d,). All float32.
    """

    mean: Floats
    scale: Floats
    output: Floats
    output_bias: float
    layer: tuple[Floats, Floats] | None = None

    def standardised(self, inputs: Floats) -> Floats:
        """Inputs (..., d) in standard deviations from their mean in training, none too far out."""
        scaled: Floats = (inputs - self.mean) / self.scale
        np.minimum(scaled, MAX_INPUT, out=scaled)
        return np.maximum(scaled, -MAX_INPUT, out=scaled)

    def log_odds(self, inputs: Floats) -> Floats:
        """Inputs (..., d) to uncalibrated log-odds (...)."""
        values = self.standardised(inputs)
        if self.layer is not None:
            weights, biases = self.layer
            values = np.maximum(values @ weights + biases, 0)
        result: Floats = values @ self.output + np.float32(self.output_bias)
        return result

    def slopes(self, inputs: Floats) -> Floats:
        """How the log-odds change with each standardised input, for one row of inputs (d,)."""
        if self.layer is None:
            return self.output
        weights, biases = self.layer
        active = self.standardised(inputs) @ weights + biases > 0
        slopes: Floats = weights @ (self.output * active)
        return slopes


@dataclass(frozen=True, slots=True)
class Card:
    """What a head is: what it reads, what it was trained on and for, and how good it is on problems it never saw.

    `hidden_size` counts the numbers of the draft's hidden states that it reads (twice its n_embd), 0 if none: such a head
    works with any draft. `pairs` are the models of its states, those of the test included, each a mapping with `draft` and
    `target`. The other
    mappings are JSON as `training` makes them.
    """

    name: str
    features: tuple[str, ...]
    hidden_size: int
    pairs: tuple[Mapping[str, Model], ...]
    reward: Mapping[str, Any]
    margin: float
    data: Mapping[str, Any]
    metrics: Mapping[str, Any]
    taus: Mapping[str, Any]
    command: tuple[str, ...]
    version: str
    created: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Head:
    """A trained head. `knots` (k, 2) float64, rising in both columns, map its log-odds to calibrated ones, straight between."""

    def __init__(self, network: Network, knots: NDArray[np.float64], card: Card) -> None:
        self.network = network
        self.knots = knots.astype(np.float32).astype(np.float64)  # as a file has them
        self._curve = Curve(self.knots)
        self.card = card
        self._columns = [FEATURES.index(name) for name in card.features]
        self._is_whole = card.features == FEATURES

    @property
    def reads_hidden(self) -> bool:
        """Whether it reads the draft's hidden states."""
        return self.card.hidden_size > 0

    def router(self) -> Router:
        """The router of policy arbitrage: its number is `probability`, and a step is stopped early where that is clearly above tau."""
        return by_token_stats(self.probability, self._early_stop)

    def _early_stop(self, tau: float) -> EarlyStop:
        return EarlyStop(self.probability, clearly_above(tau), lambda num_tokens: num_tokens % LOOK_EVERY == 0)

    def probability(self, trace: Trace, draft: Step) -> float:
        """The probability that the target's next step of `trace` is better than the drafted one, strictly between 0 and 1.

        ValueError if the draft did not keep what the head reads; ComputeError if that is not a number.
        """
        log_odds = float(self.network.log_odds(self._inputs(trace, draft)))
        if not math.isfinite(log_odds):
            raise ComputeError("the router's number is not finite: the draft's own numbers are damaged")
        return self._curve(log_odds)

    def probabilities(self, rows: Floats, hidden: NDArray[Any] | None) -> NDArray[np.float64]:
        """The same for n states at once: `rows` (n, n_features) has all `FEATURES`, `hidden` is (n, hidden_size)."""
        return np.array([self._curve(one) for one in self.network.log_odds(self.inputs(rows, hidden)).tolist()])

    def inputs(self, rows: Floats, hidden: NDArray[Any] | None) -> Floats:
        """What the network reads of n states: (n, d). ValueError if it reads hidden states of another size, or of none."""
        chosen = rows if self._is_whole else rows[:, self._columns]
        if not self.reads_hidden:
            return chosen
        if hidden is None or hidden.shape[1] != self.card.hidden_size:
            raise ValueError(f"this head reads {self.card.hidden_size} hidden numbers of each state")
        return np.concatenate((chosen, hidden), axis=1, dtype=np.float32)

    def contributions(self, trace: Trace, draft: Step) -> list[tuple[str, float]]:
        """What each feature adds to the log-odds, compared with a step that is average in it, the strongest first.

        Before calibration. The hidden state counts as one. Of a network with a layer: by its slopes at this step.
        """
        return self.contributions_of(self._inputs(trace, draft))

    def contributions_of(self, inputs: Floats) -> list[tuple[str, float]]:
        """The same of inputs (d,): the card's features, then the hidden states if it reads them."""
        parts = self.network.slopes(inputs) * self.network.standardised(inputs)
        names = self.card.features
        named = list(zip(names, map(float, parts[: len(names)]), strict=True))
        if self.reads_hidden:
            named.append(("hidden state", float(parts[len(names) :].sum())))
        return sorted(named, key=lambda part: -abs(part[1]))

    def check(self, draft: Model, hidden_size: int) -> None:
        """RouterError if the head reads hidden states, and not those of this draft. `hidden_size` is twice its n_embd."""
        if not self.reads_hidden:
            return
        known = self.card.pairs[0]["draft"]
        if not _is_same(known, draft) or self.card.hidden_size != hidden_size:
            raise RouterError(
                f"the head '{self.card.name}' reads the hidden states of {known.get('name')}, and the draft is "
                f"{draft.get('name')}" + ("" if known.get("name") != draft.get("name") else ", another file of that name"),
                "use the draft that it was trained on, or a head that reads no hidden states; or train one: arbitrage train",
            )

    @property
    def sha256(self) -> str:
        """Tells heads apart: of card and arrays."""
        return _digest(_card_text(self.card), self.arrays())

    def arrays(self) -> dict[str, Floats]:
        """The arrays by the names that they have in a file."""
        network = self.network
        found = {
            "mean": network.mean,
            "scale": network.scale,
            "output": network.output,
            "output_bias": np.array([network.output_bias], np.float32),
            "knots": self.knots.astype(np.float32),
        }
        if network.layer is not None:
            found["units"], found["unit_bias"] = network.layer
        return {name: np.ascontiguousarray(array, np.float32) for name, array in found.items()}

    def _inputs(self, trace: Trace, draft: Step) -> Floats:
        if not self._columns:
            return hidden_features(draft)
        found = features(trace, draft)
        chosen = found if self._is_whole else found[self._columns]
        return np.concatenate((chosen, hidden_features(draft))) if self.reads_hidden else chosen


class Curve:
    """Log-odds to a calibrated probability: through the knots (k, 2), straight between; beyond them the end pieces go on.

    Plain Python: for one number, NumPy would take ten times as long.
    """

    def __init__(self, knots: NDArray[np.float64]) -> None:
        self._x: list[float] = knots[:, 0].tolist()
        self._y: list[float] = knots[:, 1].tolist()

    def __call__(self, log_odds: float) -> float:
        right = min(max(bisect.bisect_left(self._x, log_odds), 1), len(self._x) - 1)
        x, y = self._x[right - 1], self._y[right - 1]
        share = (log_odds - x) / (self._x[right] - x)
        raised = y + share * (self._y[right] - y)
        return 1.0 / (1.0 + math.exp(-min(max(raised, -MAX_LOG_ODDS), MAX_LOG_ODDS)))


def clearly_above(tau: float, odds: float = CLEARLY) -> float:
    """The probability with so many times the odds of tau; tau itself where that is none, and escalates always or never."""
    return odds * tau / (1 + (odds - 1) * tau) if 0 < tau < 1 else tau


def _is_same(first: Model, second: Model) -> bool:
    """By the file's sha256; a demo model, which has none, by its name."""
    if first.get("sha256") or second.get("sha256"):
        return first.get("sha256") == second.get("sha256")
    return first.get("name") == second.get("name")


# --- files


def save(head: Head, path: Path) -> None:
    """Write the head, whole or not at all. OutputError if it cannot be written."""
    from safetensors.numpy import save as encode  # slow to import

    text = _card_text(head.card)
    arrays = head.arrays()
    about = json.dumps({"schema": SCHEMA, "card": text, "sha256": _digest(text, arrays)}, sort_keys=True)
    data = encode(arrays, {"arbitrage": about})
    try:
        write_atomically(path, data)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})", "give another path: --output") from error


def load(path: Path) -> Head:
    """Read a head. UsageError if there is none; RouterError, with the reason, if it is not as it was written."""
    try:
        return _decode(_read(path))
    except _Refused as reason:
        raise RouterError(
            f"{path}: {reason}", "get the file anew, or train a head: arbitrage train RUN -o head.safetensors"
        ) from reason


class _Refused(Exception):  # noqa: N818 - a reason on its way to a RouterError, never seen by itself
    """Why a file is not a head."""


def _read(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer would wait
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})", "check --head") from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise _Refused("it is not a file")
    with os.fdopen(descriptor, "rb") as stream:
        if found.st_size > MAX_FILE_BYTES:
            raise _Refused(f"it has {found.st_size} bytes; no head has more than {MAX_FILE_BYTES}")
        return stream.read(MAX_FILE_BYTES + 1)


def _decode(data: bytes) -> Head:
    from safetensors import SafetensorError
    from safetensors.numpy import load as decode

    about = _metadata(data)
    try:
        arrays = decode(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _Refused(f"it is not a whole safetensors file ({error})") from error
    if about.get("schema") != SCHEMA:
        raise _Refused(f"it has schema {about.get('schema')!r}; this version of arbitrage knows schema {SCHEMA}")
    text = about.get("card")
    if not isinstance(text, str) or about.get("sha256") != _digest(text, arrays):
        raise _Refused("it was changed after it was written: its sha256 is another one")
    card = _card(_object(text))
    return Head(_network(arrays, len(card.features) + card.hidden_size), _knots(arrays), card)


def _metadata(data: bytes) -> Mapping[str, Any]:
    """What we wrote into the file's header, before any other code reads the file."""
    if data[:1] == b"\x80" and data[1:2] <= b"\x05":
        raise _Refused("it is a pickle, which could run programs: it is not opened")
    if data[:2] == b"PK":
        raise _Refused("it is a zip archive (PyTorch and npz files are): not a safetensors file")
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(MAX_HEADER_BYTES, len(data) - 8):
        raise _Refused("it is not a whole safetensors file")
    header = _object(data[8 : 8 + length])
    metadata = header.get("__metadata__")
    about = metadata.get("arbitrage") if isinstance(metadata, dict) else None
    if not isinstance(about, str):
        raise _Refused("it is a safetensors file, but not a head of arbitrage")
    return _object(about)


def _object(text: str | bytes) -> dict[str, Any]:
    try:
        found = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _Refused("its header is not JSON") from error
    if not isinstance(found, dict):
        raise _Refused("its header is not a JSON object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _card(found: dict[str, Any]) -> Card:
    """The card, as far as it is relied on; the rest is only shown."""
    wanted = {one.name for one in fields(Card)}
    if found.keys() != wanted:
        raise _Refused(f"its card has other fields: {', '.join(sorted(found.keys() ^ wanted))}")
    kinds: Mapping[str, type | tuple[type, ...]] = {
        **dict.fromkeys(("name", "version", "created"), str),
        **dict.fromkeys(("features", "pairs", "command"), list),
        **dict.fromkeys(("reward", "data", "metrics", "taus"), dict),
        "hidden_size": int,
        "margin": (int, float),
    }
    for name, kind in kinds.items():
        if not isinstance(found[name], kind):
            raise _Refused(f"the {name} of its card is {type(found[name]).__name__}")
    _check_features(found["features"])
    if found["hidden_size"] < 0:
        raise _Refused("the hidden_size of its card is negative")
    pairs = found["pairs"]
    if not all(
        isinstance(pair, dict) and isinstance(pair.get(role), dict) for pair in pairs for role in ("draft", "target")
    ):
        raise _Refused("the pairs of its card are not models")
    if found["hidden_size"] and len({_identity(pair["draft"]) for pair in pairs}) != 1:
        raise _Refused("it reads hidden states, and its card does not name the draft that they are of")
    found |= {name: tuple(found[name]) for name in ("features", "pairs", "command")}
    return Card(**found)


def _identity(model: Model) -> str:
    return str(model.get("sha256") or model.get("name"))


def _check_features(names: Sequence[Any]) -> None:
    unknown = [name for name in names if name not in FEATURES]
    if unknown:
        raise _Refused(f"it reads the feature {unknown[0]!r}, which this version of arbitrage does not know")
    if len(set(names)) != len(names):
        raise _Refused("its card names a feature twice")


def _network(arrays: Mapping[str, NDArray[Any]], size: int) -> Network:
    """The network of `size` inputs that the arrays are."""
    expected = {"mean", "scale", "output", "output_bias", "knots"}
    has_units = "units" in arrays
    if arrays.keys() != (expected | {"units", "unit_bias"} if has_units else expected):
        raise _Refused(f"it has other arrays than a head: {', '.join(sorted(arrays))}")
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise _Refused(f"its array {name} is of type {array.dtype}, not float32")
        if not np.isfinite(array).all():
            raise _Refused(f"its array {name} has a number that is not finite")
    num_units = len(arrays["output"]) if has_units and arrays["output"].ndim else size
    shapes: dict[str, tuple[int, ...]] = {"mean": (size,), "scale": (size,), "output": (num_units,), "output_bias": (1,)}
    if has_units:
        shapes |= {"units": (size, num_units), "unit_bias": (num_units,)}
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise _Refused(f"its array {name} has shape {arrays[name].shape}; its card asks for {shape}")
    if not (arrays["scale"] > 0).all():
        raise _Refused("its array scale has a number that is not positive")
    bias = float(arrays["output_bias"][0])
    layer = (arrays["units"], arrays["unit_bias"]) if has_units else None
    return Network(arrays["mean"], arrays["scale"], arrays["output"], bias, layer)


def _knots(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    knots = arrays["knots"].astype(np.float64)
    if knots.ndim != 2 or knots.shape[1] != 2 or len(knots) < 2:
        raise _Refused(f"its array knots has shape {knots.shape}")
    if not (np.diff(knots, axis=0) > 0).all():
        raise _Refused("its array knots does not rise")
    return knots


def _card_text(card: Card) -> str:
    return json.dumps(card.to_json(), ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _digest(card: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256(card.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()

"""What the charts of a report share: how a policy looks, in which order policies and runs come, and scales.

Turns figures into coordinates, in percent of a chart; the template draws them. Knows no colour and no file.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

_CIRCLE = "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z"
_SQUARE = "M-4.4 -4.4h8.8v8.8h-8.8z"
_TRIANGLE = "M0 -6l6 10.8h-12z"
_DIAMOND = "M0 -6.2l6.2 6.2l-6.2 6.2l-6.2 -6.2z"
SHAPES: Mapping[str, str] = {
    **dict.fromkeys(("draft", "target", "speculative"), _CIRCLE),
    **dict.fromkeys(("arbitrage", "judge", "random"), _DIAMOND),
    **dict.fromkeys(("equations", "logprob", "entropy"), _SQUARE),
    **dict.fromkeys(("oracle", "rsd", "logprob-min"), _TRIANGLE),
}
"""The outline of each policy's mark around 0, 0, as an SVG path. The style sheet has a colour for each."""

NUM_TICKS = 6  # about so many intervals between ticks

Json = Mapping[str, Any]
Tick = tuple[float, str]
"""Place and text."""


@dataclass(frozen=True, slots=True)
class Series:
    """What is drawn alike in all charts: all taus of one policy. `style` names its colour, `path` draws its mark."""

    policy: str
    style: str
    path: str


@dataclass(frozen=True, slots=True)
class Entry:
    """The figures of a policy at one tau in one run. `label` names it among all entries, `row` among those of its run."""

    run: int
    row: str
    label: str
    series: Series
    figures: Json

    @property
    def key(self) -> tuple[str, Any]:
        """Policy and tau: its name, if it has one, since its number may differ from run to run."""
        return self.series.policy, self.figures.get("tau_name") or self.figures.get("tau")


def series_of(policy: str) -> Series:
    """Colour and mark of a policy: the same in every report."""
    return Series(policy, policy if policy in SHAPES else "other", SHAPES.get(policy, _CIRCLE))


def all_entries(runs: Sequence[tuple[str, Iterable[Json]]]) -> list[Entry]:
    """The policies of some runs, each with a name; the same policy at the same tau stands together."""
    found = []
    for run, (name, policies) in enumerate(runs):
        for policy in policies:
            row = policy.get("label", policy["policy"])
            label = row if len(runs) == 1 else f"{row} · {name}"
            found.append(Entry(run, row, label, series_of(policy["policy"]), policy))
    places = {key: place for place, key in enumerate(dict.fromkeys(entry.key for entry in found))}
    return sorted(found, key=lambda entry: places[entry.key])


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps numbers to percent of an axis, from its lower or left end; a vertical one begins at the top.

    Its ticks are `step` apart, round numbers, and enclose all that it shows.
    """

    low: float
    step: float
    num_steps: int
    is_vertical: bool = False

    @classmethod
    def around(cls, values: Iterable[float], *, is_vertical: bool = False) -> Self:
        """The scale of these numbers, of which there must be one."""
        shown = list(values)
        low, high = min(shown), max(shown)
        raw = max(high - low, abs(high) / 10, 1e-9) / NUM_TICKS
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        return cls(first * step, step, max(1, last - first), is_vertical)

    def __call__(self, value: float) -> float:
        place = 100 * (value - self.low) / (self.num_steps * self.step)
        return round(100 - place if self.is_vertical else place, 2)

    @property
    def ticks(self) -> list[Tick]:
        """Place and text of each tick, all with as many digits as the step has."""
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        values = (self.low + index * self.step for index in range(self.num_steps + 1))
        return [(self(value), f"{value + 0.0:.{digits}f}") for value in values]

"""A small router that is made without training, and a table of taus in which costs decide what a name stands for."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from made_up_tuning import pair_costs

from arbitrage_cli.inference.step_text import BLANK_LINE
from arbitrage_cli.learning.network import Network
from arbitrage_cli.routing.features import FEATURES, FEATURES_VERSION
from arbitrage_cli.routing.presets import TauRow, TauTable
from arbitrage_cli.routing.router import Router, RouterCard, TrainedModel, save
from arbitrage_cli.types import ByRole

PAIR: ByRole[TrainedModel] = {"draft": TrainedModel("d"), "target": TrainedModel("t")}
CHEAP_DRAFT = pair_costs(0.1, 1.0, prefill=0.01)

ROW = TauRow(
    tau=0.0,
    escalation_rate=1.0,
    wasted=0.5,
    recall=1.0,
    change=0.0,
    change_interval=(0.0, 0.0),
    draft_tokens=20.0,
    draft_prefill_tokens=20.0,
    target_tokens=20.0,
    target_verify_tokens=0.0,
    target_prefill_tokens=100.0,
)


def make_table() -> TauTable:
    """Four taus. At 0.3 nothing is lost by verifying much, at 0.6 by decoding much: costs decide which is sooner done."""
    rows = (
        ROW,
        replace(ROW, tau=0.3, escalation_rate=0.5, target_tokens=2.0, target_verify_tokens=18.0),
        replace(ROW, tau=0.6, escalation_rate=0.3, target_tokens=17.0),
        replace(
            ROW, tau=1.0, escalation_rate=0.0, recall=0.0, change=-30.0, change_interval=(-40.0, -20.0), target_tokens=0
        ),
    )
    named = {"careful": 0.3, "balanced": 0.3, "fast": 0.3}
    return TauTable(rows, steps=4.0, prompt_tokens=50.0, alone_tokens=40.0, named=named, costs=CHEAP_DRAFT)


def write_router(path: Path, *, pair: ByRole[TrainedModel] = PAIR, data: Mapping[str, Any] | None = None) -> Path:
    """A router with that table, which reads only the first entropy."""
    size = len(FEATURES)
    weights = np.zeros(size, np.float32)
    weights[FEATURES.index("entropy_first")] = 1.0
    network = Network(np.zeros(size, np.float32), np.ones(size, np.float32), weights, -1.0)
    taus = make_table().to_json()
    data = {"step_end": asdict(BLANK_LINE), "runs": [], "parts": {}, **(data or {})}
    metrics = {"test": {"router": {}}, "architecture": {"recipe": {"units": 0}, "members": 1}}
    card = RouterCard("small", FEATURES_VERSION, FEATURES, (pair,), {"kind": "prm"}, data, metrics, taus, (), "0", "never")
    save(Router(network, card), path)
    return path

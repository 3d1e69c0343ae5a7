"""Sentences of verdicts, with the figures that support them."""

from dataclasses import asdict, replace

import pytest

from arbitrage_cli.app.sentences import confidence, sentence
from arbitrage_cli.display.card import preset_sentence
from arbitrage_cli.evaluation.verdict import Candidate, Verdict

ROUTED = Candidate("arbitrage@exact", "arbitrage", 2.5, (2.2, 2.8), 0.99, 0.97, 40, 21, 2, 21, 40)
SPECULATIVE = Candidate("speculative", "speculative", 1.5, (1.4, 1.6), 0.9, 1.0, 8)
SLOW = replace(SPECULATIVE, speedup=0.876, is_fast=0.01)
DRAFT = Candidate("draft", "draft", 3.0, (2.5, 3.5), 1.0, 0.6, 20, 20, 0, 0, 20)


@pytest.mark.parametrize(
    ("verdict", "figures"),
    [
        (Verdict(ROUTED.route, 0.96, 40, (ROUTED,)), ["9 in 10", "arbitrage@exact", "2.50x", "[2.20-2.80]", "2 right answers", "21 of 40"]),
        (Verdict("speculative", 0.9, 8, (ROUTED, SPECULATIVE)), ["9 in 10", "speculation", "1.50x"]),
        (Verdict("draft", 0.6, 20, (DRAFT,)), ["6 in 10", "3.00x", "no target answer", "20 problems"]),
        (Verdict("arbitrage@exact", 0.99, 40, (replace(ROUTED, saving=0.4, saving_interval=(0.3, 0.5)),)), ["99 in 100", "40.0%", "[30-50]"]),
        (Verdict("target", 0.85, 20, (SLOW,), 12.3, 100.0), ["3x the speed"]),
        (Verdict("target", 0.85, 20, (SLOW,), 123.4, 310.6), ["8 in 10", "0.876x", "Use the target alone", "123 draft tokens", "about 310"]),
        (Verdict("target", 0.85, 20, (SLOW, replace(ROUTED, is_safe=0.1)), 1.4), ["0.876x", "2.50x", "2 right answers", "1.40 draft tokens"]),
        (Verdict("target", 0.5, 0, (replace(SLOW, num_problems=0),)), ["5 in 10", "0.876x (expected)"]),
    ],
    ids=["routing", "speculation", "draft", "money", "hopeless", "slow", "loses answers", "no problems"],
)  # fmt: skip
def test_a_sentence_has_its_figures(verdict: Verdict, figures: list[str]) -> None:
    words = sentence(asdict(verdict))
    assert [figure for figure in figures if figure not in words] == []


def test_a_confidence_is_never_rounded_up() -> None:
    assert [confidence(one)[1] for one in (0.5, 0.59, 0.899, 0.9, 0.98, 1.0)] == [
        *("5 in 10", "5 in 10", "8 in 10", "9 in 10", "9 in 10", "99 in 100"),
    ]


@pytest.mark.parametrize(("time", "figures"), [(0.6, ["--tau exact", "60%"]), (1.2, ["no preset"]), (None, ["--costs"])])
def test_a_threshold_table_in_words(time: float | None, figures: list[str]) -> None:
    words = preset_sentence({"exact": 0.1}, [{"tau": 0.1, "time": time, "change": 0.0}])
    assert [figure for figure in figures if figure not in words] == []

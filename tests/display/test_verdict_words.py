"""Sentences of verdicts, with the figures that support them."""

from dataclasses import asdict

import pytest

from arbitrage_cli.app.sentences import sentence
from arbitrage_cli.display.card import preset_sentence
from arbitrage_cli.evaluation.verdict import Candidate, Verdict

BEST = Candidate("arbitrage@exact", "arbitrage", 2.5, (2.2, 2.8), 40, 21, 2, 21, draft_share=0.3)
SPECULATIVE = Candidate("speculative", "speculative", 1.5, None, 8, 0, 0, 0, draft_share=0.3)
DRAFT = Candidate("draft", "draft", 3.0, (2.5, 3.5), 20, 20, 0, 0, draft_share=1.0)


@pytest.mark.parametrize(
    ("verdict", "figures"),
    [
        (Verdict("pays", BEST, 40, BEST.route), ["arbitrage@exact", "2.50x", "[2.20-2.80]", "2 right answers", "21 of 40"]),
        (Verdict("pays", SPECULATIVE, 8, "speculative", final=False, faster=BEST), ["1.50x", "arbitrage@exact", "2.50x"]),
        (Verdict("pays", DRAFT, 20, "draft"), ["3.00x", "no target answer", "20 problems"]),
        (Verdict("not decided", BEST, 7, out_of_time=True), ["Out of time", "7 problems", "2.50x", "More problems"]),
        (Verdict("not decided", BEST, 7, needs_answers=True), ["Comparable answers"]),
        (Verdict("does not pay", BEST, 40, loses_answers=True), ["keeping the target's answers", "2 right answers"]),
        (Verdict("does not pay", BEST, 8, token_ratio=123.4, ratio_needed=310.6), ["123 draft tokens", "about 310", "2.50x"]),
        (Verdict("does not pay", BEST, 8, token_ratio=1.4, is_idle=True), ["1.40 draft tokens", "speculation"]),
        (Verdict("does not pay", BEST, 8), ["2.50x"]),
    ],
    ids=["routing", "speculation", "draft", "no time", "no answers", "loses answers", "slow", "idle", "slow, no costs"],
)  # fmt: skip
def test_a_sentence_has_its_figures(verdict: Verdict, figures: list[str]) -> None:
    words = sentence(asdict(verdict))
    assert [figure for figure in figures if figure not in words] == []


@pytest.mark.parametrize(("time", "figures"), [(0.6, ["--tau exact", "60%"]), (1.2, ["no preset"]), (None, ["--costs"])])
def test_a_threshold_table_in_words(time: float | None, figures: list[str]) -> None:
    words = preset_sentence({"exact": 0.1}, [{"tau": 0.1, "time": time, "change": 0.0}])
    assert [figure for figure in figures if figure not in words] == []

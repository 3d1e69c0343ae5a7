"""The table of figures in a terminal: 80 columns, and sanitized text."""

import io
from dataclasses import replace
from typing import Any

import pytest
from cli import flat
from made_up_runs import COLUMNS, MadeUp, as_run, describe, figures, make_run, results, run_of, typed_figures, unscored
from test_hostile_text import HOSTILE, MARKUP, OBEYED

from arbitrage_cli.costs.pair import parse_prices
from arbitrage_cli.display.columns import columns_of
from arbitrage_cli.display.table import write_comparison, write_table
from arbitrage_cli.evaluation.comparison import compare_runs
from arbitrage_cli.evaluation.figures import Estimate, shown_figures
from arbitrage_cli.numbers.intervals import Ratio


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def table(made: MadeUp, *, stream: io.StringIO | None = None, **options: Any) -> str:
    stream = stream or io.StringIO()
    write_table(typed_figures(made.run, made.rows, **options), [], stream)
    return stream.getvalue()


def comparison(first: MadeUp, second: MadeUp) -> str:
    stream = io.StringIO()
    compared = compare_runs(as_run(first.run), results(first.rows), as_run(second.run), results(second.rows))
    write_comparison(compared, "runs/one", "runs/another-" + "x" * 60, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    "made",
    [
        make_run(30),
        make_run(3, columns=[("target", None), ("logprob-min", 0.123456)]),
        run_of([{**row, "wall_seconds": 0.00953} for row in make_run(4).rows]),
        MadeUp(describe({}), []),
        make_run(5, columns=[("draft", None), ("entropy", 0.5)], samples=3),
    ],
)
def test_table_fits_in_80_columns(made: MadeUp) -> None:
    lines = table(made).splitlines()
    assert max(map(len, lines)) < 80
    assert not any(line != line.rstrip() for line in lines)


def test_table_has_a_line_for_each_policy_with_its_figures() -> None:
    made = make_run(20, columns=[("target", None), ("entropy", 0.5)])
    target, entropy = figures(made.run, made.rows)["policies"]
    text = table(made)
    line, below = text.partition("\nentropy@0.5 ")[2].splitlines()[:2]
    low, high = entropy["speedup_interval"]
    assert f" {100 * entropy['accuracy']:.1f}% " in line
    assert f" {entropy['speedup']:.2f} " in line
    assert below.endswith(f" [{low:.2f}-{high:.2f}]")
    assert line.endswith(f"{entropy['acceptance_rate']:.0%}")
    assert f"{100 * (entropy['accuracy'] - target['accuracy']):+.1f}" in line
    assert text.startswith("made-up: 20 problems\n")


def test_ungraded_answers_have_no_columns_or_charts() -> None:
    made = make_run(6, columns=[("target", None), ("entropy", 0.5)])
    ungraded = MadeUp(made.run, [unscored(row) for row in made.rows])
    shown = typed_figures(ungraded.run, ungraded.rows).policies
    headings = table(ungraded).splitlines()[2].split()
    assert headings[:3] == ["policy", "computed", "s"]
    assert {column.name for column in columns_of(shown_figures(), shown)} & {"accuracy", "accuracy_difference"} == set()


def test_other_outcomes_are_notes() -> None:
    made = make_run(4, columns=[("target", None), ("draft", None)])
    assert "of 4\n" not in table(made)
    rows = [{**made.rows[0], "stop": "max_tokens"}, unscored(made.rows[1]), *made.rows[2:-1]]
    text = table(MadeUp(made.run, rows))
    assert "raise --max-tokens" in flat(text)
    assert "- draft: 1 unscored, 1 not attempted of 4\n" in text


@pytest.mark.parametrize("text", [*HOSTILE.values(), *MARKUP])
@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_names_are_data(monkeypatch: pytest.MonkeyPatch, text: str, kind: type[io.StringIO]) -> None:
    monkeypatch.setenv("TERM", "xterm")
    made = make_run(2, columns=[("target", None), ("entropy", 0.5)])
    made.run["dataset"]["name"] = made.run["decided"]["routes"][1]["tau_name"] = text
    shown = table(made, stream=kind())
    assert ("\x1b" in shown) == (kind is Terminal)
    for code in ("\x1b[1m", "\x1b[2m", "\x1b[0m"):
        shown = shown.replace(code, "")
    assert not OBEYED.search(shown)
    if text in MARKUP:
        assert shown.startswith(f"{text}: 2 problems")


@pytest.mark.parametrize("width", [79, 68])
def test_narrow_terminal_has_intervals_below_their_figures(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr("arbitrage_cli.display.printing.width_of", lambda stream: width)
    made = make_run(60, columns=[*COLUMNS[:2], ("entropy", 0.5)])
    lines = table(made).splitlines()
    index = next(index for index, line in enumerate(lines) if line.startswith("draft "))
    assert "[" not in lines[index]
    assert lines[index + 1].count("[") == 3
    assert max(map(len, lines)) <= width


def test_narrow_terminal_keeps_the_names_of_policies_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_run(60, columns=[*COLUMNS[:2], ("speculative", None), ("arbitrage", 0.347)])
    for width in (24, 43, 59):
        monkeypatch.setattr("arbitrage_cli.display.printing.width_of", lambda stream, width=width: width)
        lines = table(made).splitlines()
        assert {"policy", "speculative", "arbitrage@0.347"} <= {line.split(" ")[0] for line in lines}
        (heading,) = [line for line in lines if line.startswith("policy ")]
        assert "speed-up" in heading


@pytest.mark.parametrize("width", [24, 43, 59])
def test_narrow_comparison_keeps_the_names_of_policies_whole(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr("arbitrage_cli.display.printing.width_of", lambda stream: width)
    made = make_run(12, columns=[("target", None), ("speculative", None), ("arbitrage", 0.347)])
    lines = comparison(made, made).splitlines()
    assert {"policy", "speculative", "arbitrage@0.347"} <= {line.split(" ")[0] for line in lines}
    (heading,) = [line for line in lines if line.startswith("policy ")]
    assert "speed-up" in heading


def test_few_problems_have_no_intervals() -> None:
    assert "[" not in table(make_run(4)).partition("- ")[0]


def test_differences_and_savings_have_their_intervals() -> None:
    made, prices = make_run(60), parse_prices("draft=0.02/0.10,target=0.60/2.40")
    text = table(made, prices=prices)
    policies = typed_figures(made.run, made.rows, prices=prices).policies[1:]
    difference, saving = columns_of(["accuracy_difference", "saving"], policies)
    for policy in policies:
        cells = [column.cell(policy)[1] for column in (difference, saving)]
        assert [one.startswith("[") and one in text for one in cells] == [True, True]
        nearly_none = replace(policy, accuracy_difference=Estimate(Ratio(0, 1), (-0.001, 0.05)))
        assert difference.cell(nearly_none)[1] == "[+0 to +5]"


def test_accuracies_on_other_numbers_of_problems_say_of_how_many() -> None:
    """The differences are over the problems that both solved."""
    made = make_run(6, columns=[("target", None), ("entropy", 0.5)])
    rows = [row for row in made.rows if row["policy"] == "target" or row["id"] < "made-up-0003"]
    assert "% of " not in table(made)
    lines = table(MadeUp({**made.run, "skips_attempts": True}, rows)).splitlines()
    (target,), (entropy,) = ([line for line in lines if line.startswith(name)] for name in ("target ", "entropy"))
    assert ("% of 6 " in target, "% of 3 " in entropy) == (True, True)


def test_comparison_fits() -> None:
    first, second = make_run(12), make_run(9, drift=0.3)
    text = comparison(first, second)
    assert max(map(len, text.splitlines())) < 80
    (line,) = [line for line in text.splitlines() if line.startswith("entropy@0.5 ")]
    assert line.split()[1] == "9"
    assert "3 only in the first run, 0 only in the second" in flat(text)

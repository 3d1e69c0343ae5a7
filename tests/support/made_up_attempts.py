"""Made-up attempts of `advise`, which take given times."""

from collections.abc import Callable, Mapping

import pytest
from made_up_runs import make_row, parsed

from arbitrage_cli.app.attempts.attempts import Attempt
from arbitrage_cli.app.commands.bench import BenchRun
from arbitrage_cli.runs.rows import AttemptRow

CAREFUL_PAYS = {"target": 1.0, "speculative": 0.8, "agree": 0.8, "arbitrage@careful": 0.4, "draft": 0.1}
AGREE_PAYS = {"target": 1.0, "speculative": 0.8, "agree": 0.2, "draft": 0.1}
NOTHING_PAYS = {**dict.fromkeys(CAREFUL_PAYS, 1.01), "target": 1.0}
NUM_WRONG = 5  # of the draft

Attempts = Callable[[int, Mapping[str, float]], None]


def made_up_attempts(monkeypatch: pytest.MonkeyPatch) -> Attempts:
    """Return a function that has the attempts at `count` problems take these seconds, up to three times as many.

    Other policies are skipped.
    """

    def take(count: int, seconds: Mapping[str, float]) -> None:
        def measure(run: BenchRun, *rest: object) -> None:
            run.folder.save_run(run.run)
            for attempt in run.attempts[: count * len(run.session.routes)]:
                if attempt.route.name in seconds:
                    row = _made_up(attempt, seconds[attempt.route.name] * (1 + attempt.block % 3))
                    run.folder.append(row)
                    run.count(row)

        monkeypatch.setattr(BenchRun, "measure", measure)

    return take


def _made_up(attempt: Attempt, seconds: float) -> AttemptRow:
    """A row in which the target decodes a token in each millisecond."""
    policy, tau = attempt.route.policy.name, attempt.route.tau
    row = make_row(attempt.block, 0, (policy, tau)) | {"id": attempt.id, "tau_name": attempt.route.tau_name}
    cost = {"decode_tokens": round(1000 * seconds), "decode_seconds": seconds}
    step = {**row["steps"][0], "model": "target", "cost": cost, "speculation_cost": None, "discarded": None}
    value = "incorrect" if policy == "draft" and attempt.block < NUM_WRONG else "correct"
    timing = {**row["timing"], "router": {"seconds": 0.0}, "program": {"seconds": 0.0}}
    return parsed(
        row | {"wall_seconds": seconds, "steps": [step], "timing": timing, "grade": {**row["grade"], "value": value}}
    )

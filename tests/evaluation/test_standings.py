"""How policies stand while a run goes on: counts, times against the target alone, and the time that is left."""

from arbitrage_cli.data.rows import Item
from arbitrage_cli.evaluation.benchmark import Attempt
from arbitrage_cli.evaluation.standings import Standings
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.route import Route
from arbitrage_cli.types import Problem

TARGET, ENTROPY = Route(POLICIES["target"], None), Route(POLICIES["entropy"], 2.0)


def standings_of(*attempts: tuple[int, Route, float, str]) -> Standings:
    """Standings after these attempts, each with its problem's number, seconds and verdict."""
    standings = Standings((TARGET, ENTROPY), 3)
    for number, policy, seconds, verdict in attempts:
        status, grade = ("error", None) if verdict == "error" else ("done", {"value": verdict})
        item = Item(Problem(f"p{number}", "question"), {"answer": "4"}, level=None)
        standings.add(Attempt(item, 0, policy), {"status": status, "grade": grade, "wall_seconds": seconds})
    return standings


def test_standings_count_and_compare() -> None:
    standings = standings_of(
        (0, TARGET, 8.0, "correct"),
        (0, ENTROPY, 4.0, "correct"),
        (1, TARGET, 6.0, "incorrect"),
        (2, ENTROPY, 100.0, "error"),
    )
    target, entropy = standings.now()
    assert (target.tried, target.done, target.correct, target.seconds, target.speedup) == (2, 2, 1, 14.0, 1.0)
    assert (entropy.tried, entropy.done, entropy.correct, entropy.seconds, entropy.speedup) == (2, 1, 1, 4.0, 2.0)
    assert entropy.planned == 3


def test_attempt_made_again_counts_once() -> None:
    standings = standings_of((0, TARGET, 9.0, "error"), (0, TARGET, 3.0, "correct"))
    assert [(one.tried, one.done, one.seconds) for one in standings.now()] == [(1, 1, 3.0), (0, 0, 0.0)]


def test_time_left_is_estimated_by_policy() -> None:
    standings = standings_of((0, TARGET, 8.0, "correct"), (1, TARGET, 4.0, "correct"))
    waiting = {TARGET: 1, ENTROPY: 1}
    assert standings.seconds_left(waiting) == 12.0
    assert standings_of().seconds_left(waiting) is None
    assert standings.seconds_left({}) == 0.0


def test_taus_that_look_alike_stand_apart() -> None:
    one, other = (Route(POLICIES["entropy"], tau) for tau in (0.5, 0.5000000001))
    standings = Standings((one, other), 1)
    standings.add(Attempt(Item(Problem("p", "question"), {}, None), 0, one), {"status": "error"})
    assert [standing.tried for standing in standings.now()] == [1, 0]

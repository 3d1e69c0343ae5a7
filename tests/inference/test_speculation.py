"""Proposed tokens, and how many of them are verified, at given costs and acceptance rates."""

import random
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_tuning import unit_costs

from arbitrage_cli.inference.acceptance import Acceptance, Calibration
from arbitrage_cli.inference.proposals import History, Place, Proposal, Source, align
from arbitrage_cli.inference.speculation import MAX_ROWS, MAX_SPECULATED, Planner, most_verified
from arbitrage_cli.inference.unit_costs import UnitCosts

QUANTIZED = (90 / 31, 253 / 31)  # batches of 4 and 16 rows, in decodes: 1.5B, Q4_K_M, two Zen 4 cores


def line(more: float) -> tuple[float, float]:
    """Batches in which every row after the first costs `more`."""
    return 1 + 3 * more, 1 + 15 * more


def planner_of(batches: tuple[float, float]) -> Planner:
    return Planner(unit_costs(1.0, *batches))


def seconds_of(planner: Planner, rows: int) -> float:
    assert planner.costs is not None
    return planner.costs.batch(rows)


def time_of_steps(batches: tuple[float, float], match: float, first: float) -> float:
    """Time of 200 problems with 5 steps of 30 tokens, relative to decoding."""
    chance, planner, taken = random.Random(0), planner_of(batches), 0.0
    for _ in range(200):
        acceptance = Acceptance()
        for _ in range(5):
            matching = 0
            while matching < 30 and chance.random() < (match if matching else first):
                matching += 1
            taken += _time_of_step(planner, acceptance, matching)
    return taken / (200 * 5 * 30)


def _time_of_step(planner: Planner, acceptance: Acceptance, matching: int) -> float:
    done, taken = 0, 0.0
    while done < 30:
        count = planner.plan([(acceptance, Place(29 - done, done))])[0] if done <= matching else 0
        gained = min(count, matching - done) + 1 if done <= matching else 1
        taken += seconds_of(planner, 1 + count)
        for number in range(done, min(done + gained, 29)) if done <= matching else ():
            acceptance.record(Place(29 - number, number), matched=number < matching)
        done += gained
    return taken


@pytest.mark.parametrize(
    ("batches", "match", "first", "share"),
    [
        (line(0.02), 0.98, 0.98, 0.33), (line(0.13), 0.95, 0.95, 0.65), (line(0.13), 0.9, 0.9, 0.82),
        (QUANTIZED, 0.98, 0.98, 0.8), (line(0.3), 0.98, 0.3, 0.94), (line(1.0), 0.99, 0.99, 1.02),
        (line(0.9), 0.9, 0.9, 1.02), (line(0.3), 0.2, 0.2, 1.02), (QUANTIZED, 0.6, 0.6, 1.02), (line(2.0), 1.0, 1.0, 1.02),
    ],
)  # fmt: skip
def test_proposals_save_time_or_never_cost_much(
    batches: tuple[float, float], match: float, first: float, share: float
) -> None:
    assert time_of_steps(batches, match, first) < share


def test_cheap_batches_verify_many_tokens() -> None:
    batches = ((4.0, 16.0), (2.9, 8.2), (1.5, 3.0), (1.0, 1.0))
    counts = [most_verified(unit_costs(1.0, *costs)) for costs in batches]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, MAX_SPECULATED)


def test_costs_lie_on_lines() -> None:
    costs = unit_costs(1.0, 2.5, 8.5)
    assert [costs.batch(rows) for rows in (1, 2, 3, 4, 5, 18)] == pytest.approx([1.0, 1.5, 2.0, 2.5, 3.0, 9.5])


def test_the_likeliest_tokens_go_first() -> None:
    acceptance = Acceptance()
    for _ in range(50):
        acceptance.record(Place(9, 0), matched=False)
        acceptance.record(Place(9, 1), matched=True)
        acceptance.record(Place(9, 2), matched=True)
    counts = planner_of(line(0.2)).plan([(acceptance, place) for place in (Place(3, 0), Place(0, 5), Place(3, 1))])
    assert counts[1] == 0
    assert counts[0] < counts[2]


def following(written: str, *, proposal: str = "", told: str | None = None) -> tuple[str, int]:
    """Return what is proposed after a text, with a history if `told` is not None, and the number of matches. Tokens are characters."""
    history = History(map(ord, told)) if told is not None else None
    proposed = Proposal([*map(ord, proposal)], history)
    for character in written:
        proposed.follow(ord(character))
    return "".join(map(chr, proposed.upcoming(99))), proposed.place(99).num_matched


@pytest.mark.parametrize(
    ("told", "written", "upcoming", "num_matched"),
    [
        ("def area(radius)", "a d", "", 0),
        ("def area(radius)", "a de", "f area(radius)a de", 2),
        ("def area(radius)", "a def are", "a(radius)a def are", 7),
        ("def area(radius)", "a def arch", "", 0),
        ("def area(radius)", "a def arad", "ius)a def arad", 3),
        ("do it. do that.", "I do", " that.I do", 3),
        ("ab", "ab ab", " ab", 2),
    ],
    ids=["new", "two tokens", "more of them", "gone", "back elsewhere", "the latest place", "of its own"],
)  # fmt: skip
def test_what_is_copied(told: str, written: str, upcoming: str, num_matched: int) -> None:
    assert following(written, told=told) == (upcoming, num_matched)


def test_a_continuation_is_proposed_until_the_text_leaves_it() -> None:
    proposal = Proposal([*map(ord, "abcdefgh")])

    def follow(written: str, continuation: str = "") -> tuple[Source, str]:
        """Return where proposed tokens come from, and the tokens, after a text and a model's continuation of it."""
        for character in written:
            proposal.follow(ord(character))
        if continuation:
            proposal.speculate([*map(ord, continuation)], (0.9,) * len(continuation))
        return proposal.place(9).source, "".join(map(chr, proposal.upcoming(9)))

    assert follow("x", "yz!") == ("speculated", "yz!")
    assert follow("y") == ("speculated", "z!")
    assert follow("e")[1] == ""
    assert follow("fb", "cd!") == ("speculated", "cd!")
    assert follow("c") == ("rejoined", "defgh")  # "bc" occurs in the drafted step, which continues there


class Speculating:
    """Simulates texts of which the draft predicts each token with probability `match`.

    `confidence` is the draft's own probability of its tokens.
    """

    def __init__(self, draft: UnitCosts, target: UnitCosts, match: float, confidence: float = 0.95) -> None:
        self._draft, self._planner, self._match, self._confidence = draft, Planner(target), match, confidence
        self._calibration, self._chance = Calibration(), random.Random(0)
        self.seconds, self.num_drafted = 0.0, list[int]()

    def write(self, num_tokens: int = 200) -> None:
        acceptance, done, unread = Acceptance(self._calibration), 0, 1
        while done < num_tokens:
            drafting = self._planner.plan_speculation(self._draft, unread, 30, acceptance, Place(0, 0))
            drafted = 0
            while drafting and drafted < drafting.max_tokens:
                drafted += 1
                if not drafting.should_continue(self._confidence):
                    break
            matching = next((index for index in range(drafted) if self._chance.random() >= self._match), drafted)
            places = [
                Place(drafted - number, number, "speculated", (self._confidence,) * (drafted - number))
                for number in range(drafted)
            ]
            (count,) = self._planner.plan([(acceptance, places[0])]) if places else (0,)
            self.seconds += seconds_of(self._planner, 1 + count)
            if drafted:
                self.seconds += self._draft.read(unread)[0] + (drafted - 1) * self._draft.decode
            kept = min(matching, count) + 1 if count else matching + 1
            if drafted and not count:  # the target decodes tokens that match one by one, and a last one
                self.seconds += matching * seconds_of(self._planner, 1)
            for number in range(min(kept, drafted)):
                acceptance.record(places[number], matched=number < matching)
            unread = kept - drafted + 1 if kept > drafted else 1
            unread += 0 if drafted else 1
            done += kept
            self.num_drafted += [drafted, *[0] * (kept - 1)]

    def share(self, num_texts: int = 30) -> float:
        """Return the time of texts of 200 tokens, relative to decoding."""
        for _ in range(num_texts):
            self.write()
        return self.seconds / (len(self.num_drafted) * seconds_of(self._planner, 1))


@pytest.mark.parametrize(
    ("draft", "batches", "match", "share"),
    [
        (0.1, line(0.05), 0.9, 0.45), (0.19, line(0.13), 0.8, 0.8), (0.05, line(0.02), 0.95, 0.25),
        (0.7, line(0.65), 0.9, 1.03), (0.5, line(1.0), 1.0, 1.03), (0.4, QUANTIZED, 0.9, 1.03),
        (0.9, line(0.02), 0.5, 1.03),
    ],
)  # fmt: skip
def test_speculation_saves_time_or_never_costs_much(
    draft: float, batches: tuple[float, float], match: float, share: float
) -> None:
    assert Speculating(unit_costs(draft), unit_costs(1.0, *batches), match).share() < share


F16 = UnitCosts((57.5, 83.5, 103.0, 149.0, 203.0), 9.0, 50.0)  # milliseconds: 1.5B, two EPYC cores
Q4_K_M = UnitCosts((27.0, 45.0, 72.0, 118.0, 139.0), 9.0, 20.0)
DRAFT = UnitCosts((14.1, 38.5, 44.0, 60.0, 90.0), 4.0, 21.0)


@pytest.mark.parametrize("confidence", [0.4, 0.8, 0.999])
def test_a_draft_that_is_often_wrong_soon_stops(confidence: float) -> None:
    run = Speculating(DRAFT, F16, 0.5, confidence)
    assert run.share() < 1.03
    assert sum(map(bool, run.num_drafted[100:])) < 0.02 * len(run.num_drafted)
    assert any(run.num_drafted[3000:])  # it is tried again


@pytest.mark.parametrize("confidence", [0.4, 0.8, 0.999])
def test_a_draft_that_is_mostly_right_soon_starts(confidence: float) -> None:
    run = Speculating(DRAFT, F16, 0.95, confidence)
    assert run.share() < 0.75
    assert max(run.num_drafted[:20]) >= 2


def test_a_bad_start_does_not_end_speculation() -> None:
    run = Speculating(DRAFT, F16, 0.95)
    for _ in range(60):
        run._calibration.record(0.95, matched=False)
    assert run.share(100) < 0.85


def test_nothing_is_drafted_if_even_the_best_draft_is_too_slow() -> None:
    run = Speculating(DRAFT, Q4_K_M, 0.95)
    assert run.share() == pytest.approx(1.0)
    assert not any(run.num_drafted)


def test_few_unread_tokens_are_read_in_the_cheapest_way() -> None:
    assert DRAFT.read(1) == (14.1, 1)
    assert DRAFT.read(2) == (28.2, 1)
    assert UnitCosts((14.1, 20.0, 44.0, 60.0, 90.0), 4.0, 21.0).read(2) == (20.0, 2)
    assert DRAFT.read(100) == pytest.approx((21 + 99 * 4 + 14.1, 0))


@pytest.mark.parametrize(
    ("drafted", "lengths", "expected"),
    [
        ([(1, 0.9), (2, 0.8)], [3], [0.72]), ([(3, 0.9), (1, 0.8)], [1, 2, 1], [0.9, 1.0, 0.8]),
        ([(2, 0.5), (2, 0.8)], [3, 1], [0.4, 1.0]), ([], [1], [1.0]),
    ],
)  # fmt: skip
def test_probabilities_follow_the_text(drafted: list[tuple[int, float]], lengths: list[int], expected: list[float]) -> None:
    assert align(drafted, lengths) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("written", "upcoming"),
    [
        ("", "we add 3 and 4, so 3 and 4 is 7"), ("we add ", "3 and 4, so 3 and 4 is 7"), ("we ta", ""),
        ("we take 3 ", "and 4, so 3 and 4 is 7"), ("we add 4 and 3, which is the same as 3 and", " 4 is 7"),
        ("we take,", ""), ("we take, ", "so 3 and 4 is 7"), ("we add 3 and 4, so 3 and 4 is 7", ""),
        ("we add 3 and 4, so 3 and 4 is 7, and ", "4 is 7"), ("is 7", ""),
    ],
    ids=[
        "nothing yet", "as proposed", "another way", "back", "back at the nearer place", "one token is not enough", "but two are",
        "at the end", "back from behind the end", "back at the end",
    ],
)  # fmt: skip
def test_what_is_proposed_next(written: str, upcoming: str) -> None:
    assert following(written, proposal="we add 3 and 4, so 3 and 4 is 7")[0] == upcoming


@given(st.text("ab", max_size=12), st.text("ab", max_size=12))
def test_only_a_place_where_something_is_proposed_is_judged(proposal: str, written: str) -> None:
    following = Proposal([*map(ord, proposal)])
    for character in written:
        upcoming, place = following.upcoming(1), following.place(1)
        right = following.follow(ord(character))
        assert right == (None if not upcoming else upcoming == [ord(character)])
        assert place.num_left == len(upcoming)
        assert following.place(0).num_left == 0


places = st.integers(0, 60).flatmap(
    lambda num_left: st.builds(
        Place, st.just(num_left), st.integers(0, 200), st.sampled_from(get_args(Source)), st.just((0.9,) * max(1, num_left))
    )
)
costs = st.builds(unit_costs, st.just(0.0) | st.floats(0.01, 10), st.floats(1, 20), st.floats(20, 50))


@settings(max_examples=80)
@given(costs, st.lists(st.tuples(places, st.booleans()), max_size=20), st.lists(places, min_size=1, max_size=150))
def test_a_plan_is_one_that_can_be_done(known: UnitCosts, seen: list[tuple[Place, bool]], waiting: list[Place]) -> None:
    acceptance = Acceptance()
    for place, matched in seen:
        acceptance.record(place, matched=matched)
    counts = Planner(known).plan([(acceptance, place) for place in waiting])
    assert len(counts) == len(waiting)
    assert all(0 <= count <= place.num_left for count, place in zip(counts, waiting, strict=True))
    assert sum(counts) + len(waiting) <= max(MAX_ROWS, len(waiting))

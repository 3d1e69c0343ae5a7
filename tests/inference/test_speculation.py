"""What is proposed, and how much of it is verified, on machines made of numbers, with proposals that match more or less."""

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arbitrage_cli.inference.proposals import KINDS, SOURCES, History, Place, Proposal
from arbitrage_cli.inference.speculation import Planner
from arbitrage_cli.inference.token_costs import FIRST_ROWS, MAX_ROWS

Seconds = Callable[[int], float]

DRAFTED = Place(9, 0)

MEASURED_ROWS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 64, 128)
MEASURED_SECONDS = (31, 52, 72, 90, 109, 128, 206, 263, 253, 376, 414, 700, 1320)  # 1.5B, Q4_K_M, two Zen 4 cores


def as_measured(rows: int) -> float:
    """Milliseconds of a batch, on the lines between the sizes that were measured."""
    return float(np.interp(rows, MEASURED_ROWS, MEASURED_SECONDS))


def line(first: float, more: float) -> Seconds:
    """A batch whose first row costs `first` and every other one `more`."""
    return lambda rows: first + more * (rows - 1)


def record(planner: Planner, seconds: float, count: int, num_drawn: int, place: Place = DRAFTED) -> None:
    """Record a batch of one problem with `count` proposed tokens."""
    planner.record_batch(seconds, 1 + count, num_drawn, [place])


def known(reading: float, decoding: float = 1.0) -> Planner:
    """A planner that knows what reading a token and decoding one take."""
    planner = Planner()
    planner.costs.add_read(50, 50 * reading)
    planner.record_decode(decoding)
    return planner


class Machine:
    """Writes steps of 30 tokens with a planner, and counts the seconds."""

    def __init__(
        self, batch: Seconds, match: float, reading: float, *, first: float | None = None, noise: float = 0.0
    ) -> None:
        self._batch = batch
        self._match, self._first = match, match if first is None else first
        self._random = random.Random(0)
        self._noise = noise
        self.planner = Planner()
        self.planner.costs.add_read(50, 50 * reading)
        self.seconds = 0.0

    def took(self, seconds: float) -> float:
        return seconds * self._random.uniform(1 - self._noise, 1 + self._noise)

    def write(self, num_steps: int) -> float:
        """The seconds of so many steps, as a share of those that decoding alone takes."""
        self.seconds = 0.0
        self.planner.record_decode(self.took(self._batch(1)))
        for _ in range(num_steps):
            matching = 0
            while matching < 30 and self._random.random() < (self._match if matching else self._first):
                matching += 1
            self._write_step(matching)
        return self.seconds / (num_steps * 30 * self._batch(1))

    def _write_step(self, matching: int) -> None:
        done, alive = 0, True
        while done < 30:
            count = self.planner.plan([Place(29 - done, done)])[0] if alive else 0
            gained = min(count, matching - done) + 1 if alive else 1
            taken = self.took(self._batch(1 + count))
            self.seconds += taken
            record(self.planner, taken, count, gained)
            for number in range(done, min(done + gained, 29)) if alive else ():
                self.planner.acceptance.record(Place(29 - number, number), matched=number < matching)
            done += gained
            alive = alive and done <= matching


@pytest.mark.parametrize(
    ("batch", "match", "share"),
    [
        (line(1.0, 0.02), 0.98, 0.35),
        (line(1.0, 0.13), 0.95, 0.65),
        (line(1.0, 0.13), 0.9, 0.82),
        (as_measured, 0.98, 0.8),
        (as_measured, 0.95, 0.94),
    ],
    ids=["cheap batches", "full precision", "full precision, a worse draft", "quantized", "quantized, a worse draft"],
)
def test_proposals_that_match_save_time(batch: Seconds, match: float, share: float) -> None:
    """Where a batch costs less than its tokens alone; `share` is what is left of the time.

    The least possible, were all costs and chances known: 0.30, 0.61, 0.79, 0.68 and 0.87.
    """
    assert Machine(batch, match, batch(50) / 50, noise=0.1).write(200) < share


@pytest.mark.parametrize(
    ("batch", "match"),
    [(line(1.0, 1.0), 0.99), (line(1.0, 0.9), 0.9), (line(1.0, 0.3), 0.2), (as_measured, 0.6), (line(1.0, 2.0), 1.0)],
    ids=["batches save nothing", "nor little", "proposals that do not match", "quantized, a bad draft", "batches cost more"],
)
def test_proposals_never_cost_much(batch: Seconds, match: float) -> None:
    assert Machine(batch, match, min(batch(50) / 50, 0.5 * batch(1)), noise=0.1).write(200) < 1.02


def test_a_first_guess_that_was_too_good_is_corrected() -> None:
    """Reading is cheap, but output is dear: a small model with a large vocabulary."""
    assert Machine(line(1.0, 0.95), 0.9, 0.05).write(100) < 1.02


def test_proposals_that_part_at_once() -> None:
    """If their first token matches, the rest is worth a batch all the same."""
    machine = Machine(line(1.0, 0.3), 0.98, 0.3, first=0.3)
    assert machine.write(300) < 0.94
    at_first, later = machine.planner.plan([Place(29, 0), Place(28, 1)])
    assert at_first < later


@pytest.mark.parametrize("slow", [2, 5, 20])
def test_a_machine_that_was_busy_once(slow: float) -> None:
    """A batch that took many times as long as it should, even the first one, is not the end of proposals."""
    machine = Machine(line(1.0, 0.25), 0.98, 0.25)
    machine.planner.record_decode(1.0)
    (count,) = machine.planner.plan([Place(29, 0)])
    machine.planner.record_verification(slow * (1 + 0.25 * count), 1 + count, 1 + count)
    machine.write(30)
    assert machine.write(30) < 0.65  # 0.61 where nothing was slow


def test_a_machine_that_was_busy_for_long() -> None:
    """Batches that took ten times as long as they should are tried again later."""
    machine = Machine(line(1.0, 0.02), 0.98, 0.02)
    machine.planner.record_decode(1.0)
    for rows in range(2, 6):
        machine.planner.record_verification(10.0, rows, rows - 1)
    assert machine.planner.plan([Place(29, 0)]) == [0]
    machine.write(300)
    assert machine.write(100) < 0.35


def test_a_machine_that_gets_slower() -> None:
    """Costs are remembered in decodes: when everything takes twice as long, as much is worth its time as before."""
    machine = Machine(line(1.0, 0.1), 0.95, 0.1)
    machine.write(100)
    slower = Machine(line(2.0, 0.2), 0.95, 0.2)
    slower.planner = machine.planner
    assert slower.write(100) < 0.7


def test_nothing_is_planned_before_speeds_are_known() -> None:
    """Neither without a decode nor without a read; nor by a clock that stands still; nor without the draft's price, or room."""
    unread, undecoded = Planner(), Planner()
    unread.record_decode(1.0)
    undecoded.costs.add_read(50, 0.5)
    for planner in (unread, undecoded, known(0.01, 0.0)):
        planner.record_speculation(1.0)
        assert planner.plan([Place(20, 0)]) == [0]
        assert planner.plan_speculation(0.01, 9) == 0
    assert known(0.2).plan_speculation(0.0, 9) == 0
    assert known(0.2).plan_speculation(0.01, 0) == 0
    assert known(0.2).plan_speculation(0.01, 9) > 0


def test_the_likeliest_tokens_go_first() -> None:
    """In a batch with another problem, that which matched so far gets more."""
    planner = known(0.2)
    for _ in range(50):
        planner.acceptance.record(Place(9, 0), matched=False)
        planner.acceptance.record(Place(9, 1), matched=True)
        planner.acceptance.record(Place(9, 2), matched=True)
    counts = planner.plan([Place(3, 0), Place(0, 5), Place(3, 1)])
    assert counts[1] == 0
    assert counts[0] < counts[2]


def test_what_came_back_is_learned_apart() -> None:
    """If texts part at once, but follow their proposals after they come back, only the latter are worth a batch."""
    planner = known(0.2)
    for _ in range(50):
        planner.acceptance.record(Place(9, 0), matched=False)
        planner.acceptance.record(Place(9, 0, "again"), matched=True)
    at_first, back = planner.plan([Place(9, 0), Place(9, 0, "again")])
    assert at_first == 0 < back


def test_a_continuation_is_proposed_until_the_text_leaves_it() -> None:
    """Or comes back to the drafted step, of which more is known."""
    proposal = Proposal([*map(ord, "abcdefgh")])
    assert proposal.follow(ord("x")) is False
    proposal.speculate([*map(ord, "yz!")])
    assert (proposal.place(9), proposal.place(2).num_left) == (Place(3, 0, "speculated"), 2)
    assert proposal.follow(ord("y")) is True
    assert (proposal.place(9), proposal.upcoming(9)) == (Place(2, 1, "speculated"), [*map(ord, "z!")])
    assert proposal.follow(ord("e")) is False
    assert (proposal.place(9).num_left, proposal.upcoming(9)) == (0, [])
    assert proposal.follow(ord("f")) is None
    proposal.speculate([*map(ord, "!!")])
    assert proposal.follow(ord("b")) is False
    proposal.speculate([*map(ord, "cd!")])
    assert proposal.follow(ord("c")) is True  # "bc" stands in the drafted step, which goes on there
    assert (proposal.place(9).source, proposal.upcoming(9)) == ("again", [*map(ord, "defgh")])


def copied_after(told: str, written: str, *, proposal: str = "") -> tuple[str, int]:
    """What is proposed after a prompt and some text, and how many tokens matched; tokens are characters."""
    following = Proposal([*map(ord, proposal)], History(map(ord, told)))
    for character in written:
        following.follow(ord(character))
    return "".join(map(chr, following.upcoming(99))), following.place(99).num_matched


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
    """What followed the last two tokens where they stood before, up to the end of a step."""
    assert copied_after(told, written) == (upcoming, num_matched)


def test_a_draft_comes_before_a_copy() -> None:
    """Until the text leaves it. A continuation of the draft comes before a copy as well."""
    assert copied_after("of the cat", "of", proposal="of a cat") == (" a cat", 2)
    assert copied_after("of the cat", "of th", proposal="of a cat") == ("e catof th", 5)
    following = Proposal((), History(map(ord, "of the cat, of")))
    assert (following.place(9).source, following.place(9).num_left) == ("copied", 9)
    following.speculate([*map(ord, " a")])
    assert following.place(9) == Place(2, 0, "speculated")
    following.follow(ord(" "))
    following.follow(ord("t"))
    assert following.upcoming(2) == [*map(ord, "he")]


def test_what_is_read_is_remembered_once() -> None:
    """Steps of the other model are part of the history. What it ends with already is not added again."""
    history = History(map(ord, "abcd"))
    history.catch_up([*map(ord, "bcd")])
    assert history.num_left == 0
    history.catch_up([*map(ord, "zab")])
    assert history.upcoming(9) == [*map(ord, "cdzab")]


@pytest.mark.parametrize("batch", [line(1.0, 1.0), line(1.0, 0.3), line(1.0, 0.1), as_measured])
def test_copies_that_never_match_cost_next_to_nothing(batch: Seconds) -> None:
    """Each token seems to be copied, and none is."""
    planner, seconds = known(batch(50) / 50, batch(1)), 0.0
    for _ in range(3000):
        (count,) = planner.plan([Place(20, 2, "copied")])
        planner.acceptance.record(Place(20, 2, "copied"), matched=False)
        seconds += batch(1 + count)
        record(planner, batch(1 + count), count, 1, Place(20, 2, "copied"))
    assert seconds < 1.01 * 3000 * batch(1)


@pytest.mark.parametrize(("match", "asks"), [(0.99, False), (0.5, True)])
def test_the_draft_is_asked_if_it_is_better_than_a_copy(match: float, asks: bool) -> None:
    planner, copied = known(0.05), Place(20, 2, "copied")
    for number in range(200):
        for place in (copied, copied._replace(num_matched=4), copied._replace(num_matched=8)):
            planner.acceptance.record(place, matched=number % 100 < 100 * match)
        for place in (Place(9, 0, "speculated"), Place(9, 1, "speculated"), Place(9, 2, "speculated")):
            planner.acceptance.record(place, matched=number % 100 < 95)
    assert (planner.plan_speculation(0.1, 9, copied) > 0) == asks
    assert planner.plan_speculation(0.1, 9) > 0


def speculate(draft: float, batch: Seconds, match: float, num_tokens: int = 6000) -> float:
    """The seconds of a text that is speculated on if that seems worth it, as a share of those that decoding alone takes."""
    chance, planner = random.Random(0), known(batch(50) / 50, batch(1))
    seconds, done = 0.0, 0
    while done < num_tokens:
        most = planner.plan_speculation(draft, 30)
        matching = next((index for index in range(most) if chance.random() >= match), most)
        (count,) = planner.plan([Place(most, 0, "speculated")]) if most else (0,)
        for number in range(min(matching + 1, most)):
            planner.acceptance.record(Place(most - number, number, "speculated"), matched=number < matching)
        drawn = min(matching, count) + 1
        record(planner, batch(1 + count), count, drawn, Place(most, 0, "speculated"))
        planner.record_speculation(most * draft)
        seconds += most * draft + batch(1 + count)
        done += drawn
    return seconds / (num_tokens * batch(1))


@pytest.mark.parametrize(
    ("draft", "batch", "match", "share"),
    [(0.1, line(1.0, 0.05), 0.9, 0.45), (0.19, line(1.0, 0.13), 0.8, 0.8), (0.05, line(1.0, 0.02), 0.95, 0.25)],
    ids=["a cheap draft", "full precision", "a GPU"],
)
def test_speculating_saves_time_where_the_draft_is_cheap(draft: float, batch: Seconds, match: float, share: float) -> None:
    """Compared with decoding alone, including the draft's time."""
    assert speculate(draft, batch, match) < share


@pytest.mark.parametrize(
    ("draft", "batch", "match"),
    [(0.7, line(1.0, 0.65), 0.9), (0.2, line(1.0, 0.2), 0.2), (0.5, line(1.0, 1.0), 1.0), (0.9, line(1.0, 0.02), 0.5)],
    ids=["quantized", "a bad draft", "batches save nothing", "a draft as slow as the target"],
)
def test_speculating_never_costs_much(draft: float, batch: Seconds, match: float) -> None:
    assert speculate(draft, batch, match) < 1.02


@pytest.mark.parametrize(("draft", "match"), [(0.95, 0.95), (0.3, 0.3), (0.6, 0.6)])
def test_speculating_leaves_what_drafts_gain(draft: float, match: float) -> None:
    """Steps of 72 tokens, 12 of them drafted, on a machine with cheap small batches and dear larger ones: that the draft could be
    asked for more makes no difference if that is not worth it.
    """

    def batch(rows: int) -> float:
        return 1.15 if 1 < rows <= 4 else 6.0 if rows > 1 else 1.0

    def seconds(price: float) -> float:
        chance, planner, taken = random.Random(0), known(0.2), 0.0
        for _ in range(150):
            done = 0
            while done < 72:
                most = planner.plan_speculation(price, 71 - done) if done >= 12 and price else 0
                place = Place(12 - done, done) if done < 12 else Place(most, 0, "speculated")
                (count,) = planner.plan([place])
                matching = 99 if done < 12 else next((index for index in range(most) if chance.random() >= match), most)
                drawn = min(count, matching) + 1
                for number in range(min(drawn, place.num_left)):
                    planner.acceptance.record(
                        place._replace(num_matched=place.num_matched + number), matched=number < matching
                    )
                took = batch(1 + count)
                record(planner, took, count, drawn, place)
                planner.record_speculation(most * price)
                taken += took + most * price
                done += drawn
        return taken

    assert seconds(draft) < 1.01 * seconds(0.0)


def test_a_draft_without_continuations_costs_drafted_steps_nothing() -> None:
    """It is not asked again; drafted steps are verified as before."""
    planner = known(0.2)
    before = planner.plan([Place(9, 0)])
    for _ in range(30):
        planner.record_decode(1.0)
        planner.record_speculation(0.9)
    assert planner.plan_speculation(0.01, 9) == 0
    assert planner.plan([Place(9, 0)]) == before != [0]


def test_steps_without_a_proposal_change_no_cost() -> None:
    """Costs fade with each proposal, not with each batch."""
    planner = known(0.2)
    planner.record_verification(2.9, 3, 3)
    before = planner.plan([Place(2, 5)])
    for _ in range(500):
        planner.plan([Place(0, 0), Place(2, 5)])
    assert planner.plan([Place(2, 5)]) == before == [0]


def test_coming_back_for_nothing_costs_little() -> None:
    """Texts of few letters, which seem to be back all the time, and are not."""
    chance, planner, seconds = random.Random(0), known(0.5), 0.0
    for _ in range(300):
        proposal = Proposal([chance.randrange(4) for _ in range(30)])
        text = [chance.randrange(4) for _ in range(30)]
        while text:
            (count,) = planner.plan([proposal.place(len(text) - 1)])
            upcoming = proposal.upcoming(count)
            drawn = next((index for index, token in enumerate(upcoming) if token != text[index]), count) + 1
            for token in text[:drawn]:
                planner.acceptance.follow(proposal, token)
            del text[:drawn]
            record(planner, 1.0 + 0.5 * count, count, drawn)
            seconds += 1.0 + 0.5 * count
    assert seconds < 1.02 * 300 * 30


def proposed_after(proposal: str, written: str) -> str:
    """What is proposed next; tokens are characters."""
    following = Proposal([*map(ord, proposal)])
    for character in written:
        following.follow(ord(character))
    return "".join(map(chr, following.upcoming(99)))


@pytest.mark.parametrize(
    ("written", "upcoming"),
    [
        ("", "we add 3 and 4, so 3 and 4 is 7"),
        ("we add ", "3 and 4, so 3 and 4 is 7"),
        ("we ta", ""),
        ("we take 3 ", "and 4, so 3 and 4 is 7"),
        ("we add 4 and 3, which is the same as 3 and", " 4 is 7"),
        ("we take,", ""),
        ("we take, ", "so 3 and 4 is 7"),
        ("we add 3 and 4, so 3 and 4 is 7", ""),
        ("we add 3 and 4, so 3 and 4 is 7, and ", "4 is 7"),
        ("is 7", ""),
    ],
    ids=[
        "nothing yet", "as proposed", "another way", "back", "back at the nearer place", "one token is not enough", "but two are",
        "at the end", "back from behind the end", "back at the end",
    ],
)  # fmt: skip
def test_what_is_proposed_next(written: str, upcoming: str) -> None:
    """The rest while the text follows the proposal, nothing after it left that, and the rest again once it is back."""
    assert proposed_after("we add 3 and 4, so 3 and 4 is 7", written) == upcoming


@given(st.text("ab", max_size=12), st.text("ab", max_size=12))
def test_only_a_place_where_something_is_proposed_is_judged(proposal: str, written: str) -> None:
    """And it is right if it is the next token proposed."""
    following = Proposal([*map(ord, proposal)])
    for character in written:
        upcoming, place = following.upcoming(1), following.place(1)
        right = following.follow(ord(character))
        assert right == (None if not upcoming else upcoming == [ord(character)])
        assert place.num_left == len(upcoming)
        assert following.place(0).num_left == 0


seconds = st.floats(0, 100)
places = st.builds(Place, st.integers(0, 60), st.integers(0, 200), st.sampled_from(SOURCES))
events = st.lists(
    st.one_of(
        st.builds(
            lambda tokens, seconds: lambda planner: planner.costs.add_read(tokens, seconds), st.integers(1, 200), seconds
        ),
        st.builds(lambda seconds, many: lambda planner: planner.record_decode(seconds, many), seconds, st.integers(1, 64)),
        st.builds(
            lambda rows, seconds, kind: lambda planner: planner.record_verification(seconds, rows, 1 + rows // 2, kind=kind),
            st.integers(2, MAX_ROWS),
            seconds,
            st.sampled_from(KINDS),
        ),
        st.builds(
            lambda place, matched: lambda planner: planner.acceptance.record(place, matched=matched), places, st.booleans()
        ),
    ),
    max_size=20,
)


@settings(max_examples=80, deadline=None)
@given(events, st.lists(places, min_size=1, max_size=150))
def test_a_plan_is_one_that_can_be_done(seen: list[Callable[[Planner], None]], waiting: list[Place]) -> None:
    """Whatever was measured: no more than was proposed, and no larger a batch than allowed, if that many problems fit at all."""
    planner = known(0.2)
    for event in seen:
        event(planner)
    for _ in range(2):
        counts = planner.plan(waiting)
        assert len(counts) == len(waiting)
        assert all(0 <= count <= place.num_left for count, place in zip(counts, waiting, strict=True))
        assert sum(counts) + len(waiting) <= max(MAX_ROWS, len(waiting))


@pytest.mark.parametrize("num_problems", [1, 3, 4, 5, 64])
def test_the_first_batch_is_small(num_problems: int) -> None:
    """However cheap reading is, and however many problems wait: larger batches were not measured yet."""
    counts = known(0.001).plan([Place(60, 9)] * num_problems)
    assert sum(counts) + num_problems == max(FIRST_ROWS, num_problems)

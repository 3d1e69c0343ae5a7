"""Proposals and speculation: what an engine verifies in batches, what that changes (no text) and what it costs."""

from collections.abc import Callable
from typing import Any

import pytest
from hash_language import CHEAP_BATCHES, HashBackend, Recording, Rollback, random_costs, ticking_clock
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_tuning import unit_costs
from scripted_models import Continuation
from writing import (
    OTHER,
    PROBLEM,
    ByteReciter,
    assert_equal,
    finish,
    foreign,
    keep,
    make_engine,
    new_engine,
    new_trace,
    recite,
    repeat,
    scripted,
    write,
)

from arbitrage_cli.arbitrage import EarlyStop, WriteStep
from arbitrage_cli.errors import ContextFullError
from arbitrage_cli.inference.acceptance import Calibration
from arbitrage_cli.inference.backend import Backend
from arbitrage_cli.inference.engine import Engine
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.speculation import MAX_SPECULATED, Drafting, Speculation, Speculator
from arbitrage_cli.types import Cost, Limits, Step, Trace


def proposing_engine(backend: Backend) -> Engine:
    """An engine whose batches cost as much as a token, so it verifies everything."""
    engine = make_engine("target", backend, Sampler(), instructions="", keep_token_stats=True, clock=ticking_clock())
    engine.open(0, PROBLEM)
    write(engine, new_trace(Limits(max_step_tokens=3)))
    return engine


def write_proposed(engine: Engine, trace: Trace, text: str, speculator: Speculator | None = None) -> Step:
    engine.start(0, WriteStep("draft", trace, foreign(text, "draft")), speculator)
    return finish(engine)[0]


class Teller:
    """A cheap speculator that returns `length` characters of the right text, then `tail`."""

    unit_costs = unit_costs(1e-3)

    def __init__(self, text: str, length: int, tail: str = "") -> None:
        self._text, self._length, self._tail = text, length, tail
        self.asked: list[str] = []
        self.most: list[int] = []

    def speculate(
        self, slot: int, trace: Trace, beginning: str, drafting: Drafting, sampler: Sampler, *, until_end: bool = False
    ) -> Speculation:
        beginning = (trace.text if until_end else "") + beginning
        most = drafting.max_tokens
        self.asked.append(beginning)
        self.most.append(most)
        right = self._text[len(beginning) :] if self._text.startswith(beginning) else ""
        found = right[: self._length] + self._tail
        tokens = [(len(character.encode("utf-8", "surrogatepass")), 0.95) for character in found]
        return Speculation(found, tokens, Cost(decode_tokens=most, decode_seconds=most * 1e-3))


TAILS = st.text("ab eé\n.z\ufffd\u6f22", max_size=8) | st.sampled_from(
    ["", "\n\n", ".\n\nab", "a" * 90, "<|end|>", "\ud800"]
)
MAKERS: dict[str, Callable[[int], Backend]] = {
    "letters": lambda context: HashBackend(context_size=context),
    "merges": lambda context: HashBackend("target", merges=("\n\n", "ab", "e "), context_size=context),
    "split characters": lambda context: ByteReciter("Ärger \u6f22 é→.\n\n".encode() * 9, context),
}


@settings(max_examples=80)
@given(
    st.sampled_from(sorted(MAKERS)),
    st.lists(st.tuples(st.integers(0, 40), TAILS), min_size=3, max_size=3),
    st.sampled_from([Sampler(), Sampler(temperature=0.7, seed=1)]),
    st.builds(Limits, max_tokens=st.integers(1, 60), max_step_tokens=st.integers(1, 40)),
    st.integers(13, 70),
    st.none() | st.integers(0, 99),
    st.none() | st.tuples(st.integers(0, 9), TAILS),
    st.booleans(),
)
def test_a_proposal_changes_no_step(
    name: str,
    proposals: list[tuple[int, str]],
    sampler: Sampler,
    limits: Limits,
    context: int,
    seed: int | None,
    speculated: tuple[int, str] | None,
    copies: bool,
) -> None:
    options: dict[str, Any] = {"instructions": "", "keep_token_stats": True}
    plain = make_engine("target", MAKERS[name](context), sampler, proposals="none", **options)
    costs = CHEAP_BATCHES if seed is None else random_costs(seed)
    engine = make_engine(
        "target", MAKERS[name](context), sampler, costs=costs, proposals="all" if copies else "drafted", **options
    )
    expected, trace = new_trace(limits), new_trace(limits)
    for each in (plain, engine):
        each.open(0, PROBLEM)
    for length, tail in proposals:
        if expected.finished:
            break
        try:
            step = write(plain, expected)
        except ContextFullError:
            with pytest.raises(ContextFullError):
                write_proposed(engine, trace, tail)
            break
        found = write_proposed(
            engine, trace, step.text[:length] + tail, Teller(step.text, *speculated) if speculated else None
        )
        assert_equal(found, step)
        keep(expected, step)
        keep(trace, found)
    assert trace.stop == expected.stop


def test_what_matches_is_drawn_from_a_batch_and_counted_apart() -> None:
    text = "a step of many tokens, most of them are KEPT.\n\n"
    backend = Recording(scripted(recite(text)))
    engine, trace = proposing_engine(backend), new_trace()
    del backend.calls[:]
    engine.start(0, WriteStep("draft", trace, foreign(text[:40] + "WWWWWWWW", "draft")))
    step, given = finish(engine)
    assert (len(given), "".join(given)) == (step.num_tokens, text)
    drops = [call.positions[0] for call in backend.calls if call.name == "drop"]
    assert len(drops) == 2  # the step written before, and what did not match
    assert drops[1] - drops[0] == 41  # the last token of the prompt, and 40 that matched
    batches = [len(call.tokens) for call in backend.calls if call.name == "decode"]
    cost = step.cost
    assert cost.verify_tokens == sum(size for size in batches if size > 1)
    assert cost.verify_seconds == sum(size > 1 for size in batches)  # a second each, by this clock
    assert cost.verify_kept == step.num_tokens - cost.decode_tokens > 25
    assert cost.decode_tokens == sum(size == 1 for size in batches)
    assert cost.decode_seconds == cost.decode_tokens + 1  # and one for finishing
    assert step.seconds == cost.prefill_seconds + cost.decode_seconds + cost.verify_seconds
    keep(trace, step)
    assert engine.start(0, WriteStep("draft", trace)) == 1


def test_no_more_is_read_than_a_step_can_hold() -> None:
    for limits, context in ((Limits(max_step_tokens=20), 500), (Limits(max_tokens=20), 500), (Limits(), 35)):
        backend = Recording(scripted(repeat("a"), context=context))
        engine, trace = proposing_engine(backend), new_trace(limits)
        del backend.calls[:]
        step = write_proposed(engine, trace, "a" * 100)
        decoded = [position for call in backend.calls if call.name == "decode" for position in call.positions]
        assert step.stop == ("context" if context == 35 else "budget")
        assert len(decoded) == len(set(decoded)) == step.num_tokens  # nothing in vain
        assert step.cost.verify_kept > 0
    backend = Recording(scripted(recite("abc.\n\nabc.\n\n")))
    engine, trace = proposing_engine(backend), new_trace()
    del backend.calls[:]
    assert write_proposed(engine, trace, "abc.\n\nabc.\n\n").text == "abc.\n\n"
    assert backend.count("decode") == 4


def test_a_step_that_has_left_its_proposal_is_speculated_on() -> None:
    text = "a step of many tokens, most of them are KEPT.\n\n"
    teller = Teller(text, 9, "#")
    engine = proposing_engine(scripted(recite(text)))
    step = write_proposed(engine, new_trace(), text[:11] + OTHER, teller)
    assert step.text == text
    assert len(teller.asked) > 2
    assert all(text.startswith(beginning) for beginning in teller.asked)
    assert min(map(len, teller.asked)) > 11
    assert step.cost.verify_kept > 2 * step.cost.decode_tokens
    assert step.speculation_cost.decode_tokens > 0
    assert step.seconds == step.cost.seconds + step.speculation_cost.seconds


@pytest.mark.parametrize("cut", [99, 3], ids=["all of it", "some of it"])
def test_a_batch_of_a_single_model_continues_into_its_next_step(cut: int) -> None:
    steps = ["one step.\n\n", "two steps.\n\n", "3.\n\n", "the last step"]
    text = "".join(steps)
    backend = Recording(scripted(lambda question, solution: Continuation(text[len(solution) :], 0.9)))
    engine = proposing_engine(backend)
    engine.close(0)
    engine.open(0, PROBLEM)
    del backend.calls[:]
    trace, teller = new_trace(), Teller(text, cut, "#" if cut < 99 else "")
    while not trace.finished:
        engine.start(0, WriteStep("target", trace, speculates=True, until_end=True), teller)
        keep(trace, finish(engine)[0])
    written = [decision.kept for decision in trace.decisions]
    assert [step.text for step in written] == steps
    decodes = [call for call in backend.calls if call.name == "decode"]
    assert len(decodes) <= 1 + (len(text) + 1) // min(cut + 1, MAX_SPECULATED + 1)
    cost = sum((step.cost for step in written), Cost())
    assert cost.decode_tokens + cost.verify_tokens == sum(len(call.tokens) for call in decodes)
    assert cost.decode_tokens + cost.verify_kept == trace.num_tokens


def test_a_step_that_another_model_writes_drops_what_was_computed_for_it() -> None:
    text = "one step.\n\nand another one.\n\n"
    backend = Recording(scripted(lambda question, solution: Continuation(f"{text}end"[len(solution) :], 0.9)))
    engine, trace = proposing_engine(backend), new_trace()
    engine.start(0, WriteStep("target", trace, speculates=True, until_end=True), Teller(text, 99))
    keep(trace, finish(engine)[0])
    keep(trace, foreign("and another one.\n\n", "draft"))
    assert engine.start(0, WriteStep("target", trace, until_end=True)) > 1
    assert finish(engine)[0].text == "end"


def test_no_more_is_speculated_than_a_batch_can_verify() -> None:
    for backend, most in ((HashBackend(), MAX_SPECULATED), (Rollback(), Rollback.max_dropped)):
        teller = Teller("", 0, "ab")
        write_proposed(proposing_engine(backend), new_trace(), "", teller)
        assert teller.most[0] == most


def drafting_of(most: int) -> Drafting:
    """Tokens cost a third of what a token that the target keeps saves."""
    return Drafting(Calibration(), [number / 3 for number in range(1 + most)], 1.0)


def test_a_model_continues_a_step() -> None:
    text = "a step of many tokens, most of them are KEPT.\n\nand more"
    engine = new_engine(scripted(lambda question, solution: Continuation(text[len(solution) :], 0.999)))
    found = engine.speculate(0, new_trace(), text[:10], drafting_of(4), Sampler())
    assert (found.text, found.cost.decode_tokens) == (text[10:14], 4)
    assert [length for length, _ in found.tokens] == [1] * 4
    assert engine.speculate(0, new_trace(), text[:14], drafting_of(99), Sampler()).text == text[14:].split("and")[0]
    assert write(engine, new_trace()).text == text.split("and")[0]
    unsure = new_engine(scripted(lambda question, solution: Continuation("nobody knows", 0.2)))
    assert unsure.speculate(0, new_trace(), "", drafting_of(9), Sampler()).text == "n"


@pytest.mark.parametrize(("seconds", "copies"), [(1.0, True), (1e-3, False)], ids=["a slow model", "a fast one"])
def test_what_stood_before_is_copied(seconds: float, copies: bool) -> None:
    text = "say question 0 and say question 0.\n\nsay question 0 and say question 0.\n\n"
    options: dict[str, Any] = {"instructions": "", "proposals": "all", "costs": unit_costs(seconds)}
    engine, trace = make_engine("target", scripted(recite(text)), Sampler(), **options), new_trace()
    engine.open(0, PROBLEM)
    for _ in range(2):
        step = write(engine, trace)
        assert step.text == text[: len(text) // 2]
        assert (step.cost.verify_kept > 0.5 * step.num_tokens) == copies
        keep(trace, step)


def test_proposals_of_several_problems_share_a_batch() -> None:
    text = "a step of many tokens, as proposed.\n\n"
    backend = Recording(scripted(recite(text), sequences=3))
    engine = proposing_engine(backend)
    engine.close(0)
    for slot, proposal in enumerate((text, text[:10] + "zzz", "")):
        engine.open(slot, PROBLEM)
        engine.start(slot, WriteStep("draft", new_trace(), foreign(proposal, "draft")))
    del backend.calls[:]
    steps: dict[int, Step] = {}
    while engine.busy:
        steps |= {update.slot: update.step for update in engine.tick() if update.step}
    assert [steps[slot].text for slot in range(3)] == [text] * 3
    kept = [steps[slot].cost.verify_kept for slot in range(3)]
    assert kept[0] > kept[1] > kept[2] == 0
    shared = [call for call in backend.calls if call.name == "decode" and {0, 1, 2} == set(call.sequences)]
    assert any(call.sequences.count(0) > 1 < call.sequences.count(1) for call in shared)
    calls = sum(call.name in ("read", "decode") for call in backend.calls)
    assert sum(step.seconds for step in steps.values()) == pytest.approx(calls + 3)  # a second each, three for finishing


def stop_at(*places: int, number: float = 1.0) -> EarlyStop:
    """Stop at the first of these numbers of tokens."""
    return EarlyStop(lambda trace, beginning: number, 0.5, lambda num_tokens: num_tokens in places)


def write_until(engine: Engine, trace: Trace, early_stop: EarlyStop) -> Step:
    engine.start(0, WriteStep("draft", trace, early_stop=early_stop))
    return finish(engine)[0]


def test_a_bad_step_is_stopped_when_it_is_due() -> None:
    whole = write(new_engine(HashBackend("m"), keep_token_stats=True), new_trace())
    step = write_until(new_engine(HashBackend("m"), keep_token_stats=True), new_trace(), stop_at(2, 3))
    assert (step.stop, step.num_tokens) == ("early", 2)
    assert whole.text.startswith(step.text)
    assert step.known_token_stats.log_probabilities == whole.known_token_stats.log_probabilities[:2]


def test_a_good_step_is_finished() -> None:
    whole = write(new_engine(HashBackend("m"), keep_token_stats=True), new_trace())
    seen: list[Step] = []

    def look(trace: Trace, beginning: Step) -> float:
        seen.append(beginning)
        return 0.5

    watch = EarlyStop(look, 0.5, lambda num_tokens: True)
    step = write_until(new_engine(HashBackend("m"), keep_token_stats=True), new_trace(), watch)
    assert_equal(step, whole)
    assert [beginning.num_tokens for beginning in seen] == list(range(1, whole.num_tokens))
    assert all(whole.text.startswith(beginning.text) for beginning in seen)


def test_no_step_is_stopped_within_a_character() -> None:
    engine = new_engine(ByteReciter("a\u20acb\n\n".encode()))
    step = write_until(engine, new_trace(), stop_at(2, 3, 4))
    assert (step.text, step.num_tokens) == ("a\u20ac", 4)


def test_the_routers_time_is_not_the_models() -> None:
    now = 0.0

    def clock() -> float:
        return now

    def look(trace: Trace, beginning: Step) -> float:
        nonlocal now
        now += 100.0
        return 0.0

    engine = make_engine("draft", HashBackend("m"), Sampler(), instructions="", clock=clock)
    engine.open(0, PROBLEM)
    assert write_until(engine, new_trace(), EarlyStop(look, 0.5, lambda num_tokens: True)).seconds == 0.0
    assert now > 0

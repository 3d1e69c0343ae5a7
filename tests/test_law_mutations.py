"""Each law notices a program that breaks it.

A mutation puts one fault into the program, such as a KV cache that keeps a token too many. The test of the law must then fail. A
mutation that no test notices shows that the law's test has lost its teeth.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_laws as laws
import test_quick_answers as quick
import test_rewards as rewards
from hash_language import HashBackend, Rollback, Rounding, Wavering

from arbitrage_cli import agreement
from arbitrage_cli.arbitrage import EarlyStop, Flow, FlowRequest, Scorer, WriteStep
from arbitrage_cli.inference import kv_cache
from arbitrage_cli.inference.backend import Floats
from arbitrage_cli.inference.decoding import Decoder, StepInProgress
from arbitrage_cli.inference.kv_cache import CachedProblem, CachedSequence, KvCache
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Scheduler
from arbitrage_cli.numbers.intervals import Numbers
from arbitrage_cli.routing import flows
from arbitrage_cli.routing.checker import Checker
from arbitrage_cli.runs import results
from arbitrage_cli.runs.records import NO_COST, Tally
from arbitrage_cli.runs.rows import ComparedAnswers, KeptStep, WrittenStep
from arbitrage_cli.types import Check, CheckedSolution, Cost, Decision, ModelRole, Phase, Problem, Step, Trace

Mutation = Callable[[pytest.MonkeyPatch], None]
Law = Callable[..., None]


def of_example(law: Law) -> Law:
    """A test that takes an example. Hypothesis would also look for the smallest one that fails."""
    generated = getattr(law, "hypothesis", None)
    return generated.inner_test if generated else law


def replaced(holder: object, name: str, with_what: Callable[[Any], Any]) -> Mutation:
    """Replace a function of the program. `with_what` takes the function and returns another one."""

    def mutate(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(holder, name, with_what(getattr(holder, name)))

    return mutate


# --- faults of the routing loop


def compares_tau_the_wrong_way(right: Callable[..., Flow]) -> Callable[..., Flow]:
    def flow(trace: Trace, scorer: Scorer, tau: float, phase: Phase | None = None) -> Flow:
        def negative(trace: Trace, draft: Step) -> Any:
            return -(yield from scorer.score(trace, draft))

        return right(trace, Scorer(negative), -tau, phase)

    return flow


def calls_the_target_for_nothing(_: object) -> Callable[..., Flow]:
    """The target writes each step, although the draft's is kept."""

    def flow(trace: Trace, scorer: Scorer, tau: float, phase: Phase | None = None) -> Flow:
        while not trace.finished:
            draft: Step = yield WriteStep("draft", trace)
            target: Step = yield WriteStep("target", trace, proposal=draft)
            score = yield from scorer.score(trace, draft)
            trace.add(Decision(target if score > tau else draft, draft=draft, target=target, score=score))

    return flow


def accepts_what_was_stopped_early(_: object) -> Callable[..., Flow]:
    def flow(trace: Trace, scorer: Scorer, tau: float, phase: Phase | None = None) -> Flow:
        early_stop = scorer.early_stop(tau) if scorer.early_stop else None
        while not trace.finished:
            draft: Step = yield WriteStep("draft", trace, early_stop=early_stop)
            score = yield from scorer.score(trace, draft)
            if score > tau and draft.stop != "early":
                target: Step = yield WriteStep("target", trace, proposal=draft)
                trace.add(Decision(target, draft=draft, target=target, score=score))
            else:
                trace.add(Decision(draft, draft=draft, score=score))

    return flow


def stops_too_early(_: object) -> Callable[[EarlyStop, Trace, Step], bool]:
    """A step is stopped, and so escalated, at half the tau."""
    return lambda rule, trace, prefix: rule.score_of(trace, prefix) > rule.tau / 2


# --- faults of the cache


def keeps_a_token_too_many(right: Callable[..., None]) -> Callable[..., None]:
    """A stale cache: what is dropped begins one token late."""
    return lambda backend, sequence, position: right(backend, sequence, position + 1 if position else 0)


def takes_a_different_token_as_common(right: Callable[..., int]) -> Callable[..., int]:
    return lambda first, second: min(right(first, second) + 1, len(first), len(second))


def reuses_parts_of_batches(_: object) -> Callable[[CachedProblem, int], int]:
    return lambda cached, position: position


def continues_any_conversation(_: object) -> Callable[..., bool]:
    return lambda cached, problem: True


def remembers_checkpoints_after_a_cut(_: object) -> Callable[..., None]:
    return lambda sequence, position: None


def claims_to_drop_whole_batches(right: Callable[..., bool]) -> Callable[..., bool]:
    """A careless rollback, as in llama.cpp (its issue 26695): the first token of a batch stays in the state."""
    return lambda backend, number, position: position == backend._first.get(number) or right(backend, number, position)


def loses_the_ends_of_steps(right: Callable[..., list[int]]) -> Callable[..., list[int]]:
    """A step that another model wrote loses its separator."""
    return lambda cache, text: right(cache, text.rstrip("\n"))


# --- faults of batches, draws and proposals


def mixes_problems(right: Callable[..., Floats]) -> Callable[..., Floats]:
    """The rows of a batch change places."""

    def decode(cache: KvCache, batch: Sequence[tuple[CachedProblem, list[int]]]) -> Floats:
        logits = right(cache, batch)
        return np.roll(logits, 1, axis=0) if len(batch) > 1 else logits

    return decode


def draws_from_one_generator(right: Callable[..., Numbers]) -> Callable[..., Numbers]:
    """A random number depends on how many were drawn before."""
    drawn = count()
    return lambda sampler, question, position, tokens: right(sampler, question, next(drawn), tokens)


def keeps_rejected_proposals(_: object) -> Callable[..., list[str]]:
    """The text goes on after a proposed token that differs from the model's own."""

    def draw(decoder: Decoder, step: StepInProgress, tokens: list[int], logits: Floats) -> list[str]:
        texts: list[str] = []
        for index, token in enumerate(tokens):
            if texts and step.stop:
                break
            step.opened.cached.held.append(token)
            texts.append(decoder._draw(step, logits[index]))
        if len(texts) < len(tokens):
            step.opened.cached.cut(len(step.opened.cached.held))
        return texts

    return draw


def case(name: str, law: Law, mutation: Mutation, *example: Any) -> Any:
    return pytest.param(law, mutation, example, id=name)


def in_the_loop(fault: Callable[[Any], Any]) -> Mutation:
    return replaced(flows, "arbitrage", fault)


STALE = replaced(HashBackend, "drop", keeps_a_token_too_many)
OFF_BY_ONE = replaced(kv_cache, "common_prefix", takes_a_different_token_as_common)
MIXED = replaced(KvCache, "decode", mixes_problems)
UNVERIFIED = replaced(Decoder, "_draw_while_proposed", keeps_rejected_proposals)
SHORTENED = replaced(KvCache, "step_ids", loses_the_ends_of_steps)
TOO_EARLY = replaced(EarlyStop, "should_stop", stops_too_early)

RANDOM = ("random", 0.5)
ALWAYS = ("random", -1.0)  # every drafted step is a proposal
SAMPLED = Sampler(temperature=1.0, seed=3)
ALIKE: Mapping[str, Any] = {"same_model": True, "make_draft": Wavering}  # whose proposals are kept in part
COSTS_KNOWN = 3  # a seed of `random_costs`
CONVERSATION = [laws.by_target(128), laws.by_target(300, 2), laws.by_target(300, 1)]
ASKED = laws.by_target(300)[0]

FAULTS = [
    case("1: a batch that mixes problems", laws.test_batch_equals_single, MIXED, laws.PROBLEMS, RANDOM, Sampler()),
    case(
        "1: one random generator",
        laws.test_batch_equals_single,
        replaced(Sampler, "_noise", draws_from_one_generator),
        *(laws.PROBLEMS, RANDOM, SAMPLED),
    ),
    case(
        "2: tau compared the wrong way, the draft alone",
        laws.test_highest_tau_is_the_draft_alone,
        in_the_loop(compares_tau_the_wrong_way),
        *("entropy", inf, Sampler()),
    ),
    case(
        "2: tau compared the wrong way, the target alone",
        laws.test_negative_tau_is_the_target_alone,
        in_the_loop(compares_tau_the_wrong_way),
        *("entropy", Sampler()),
    ),
    case(
        "2: a target called for nothing",
        laws.test_highest_tau_is_the_draft_alone,
        in_the_loop(calls_the_target_for_nothing),
        *("entropy", inf, Sampler()),
    ),
    case("3: a step without its end", laws.test_same_model_twice_ignores_tau, SHORTENED, laws.PROBLEMS, RANDOM),
    case("4: a stale cache", laws.test_the_cache_is_invisible, STALE, laws.PROBLEMS, RANDOM, Sampler(), 1),
    case("4: a stale cache, many at once", laws.test_the_cache_is_invisible, STALE, laws.PROBLEMS, RANDOM, Sampler(), 3),
    case("4: a different token", laws.test_the_cache_is_invisible, OFF_BY_ONE, laws.PROBLEMS, RANDOM, Sampler(), 1),
    case(
        "4: a part of a batch",
        laws.test_earlier_problems_are_invisible,
        replaced(CachedProblem, "aligned", reuses_parts_of_batches),
        *(Rounding, [laws.by_target(300)], laws.by_target(127)[0], Sampler(), "conversation"),
    ),
    case(
        "4: a conversation of others",
        laws.test_earlier_problems_are_invisible,
        replaced(CachedProblem, "is_continued_by", continues_any_conversation),
        *(Rounding, CONVERSATION, ASKED, Sampler(), "conversation"),
    ),
    case(
        "4: checkpoints after a cut",
        laws.test_checkpoints_after_a_cut_are_forgotten,
        replaced(CachedSequence, "_forget_after", remembers_checkpoints_after_a_cut),
    ),
    case(
        "4: a careless rollback",
        laws.test_the_first_token_of_a_batch_is_never_dropped,
        replaced(Rollback, "can_drop", claims_to_drop_whole_batches),
    ),
    case("4: a stale cache, of rewards", rewards.test_what_was_scored_before_does_not_matter, STALE),
    case(
        "5: what is left of a proposal",
        laws.test_proposals_are_invisible,
        STALE,
        *(laws.PROBLEMS, ALWAYS, Sampler(), ALIKE, 1, COSTS_KNOWN),
    ),
    case(
        "5: proposals that nothing verifies",
        laws.test_proposals_are_invisible,
        UNVERIFIED,
        *(laws.PROBLEMS, ALWAYS, Sampler(), ALIKE, 1, COSTS_KNOWN),
    ),
    case(
        "5: continuations that nothing verifies",
        laws.test_speculative_is_the_target_alone,
        UNVERIFIED,
        *(laws.PROBLEMS, Sampler(), ALIKE, 1),
    ),
    case(
        "7: a step that was stopped early is accepted",
        laws.test_a_step_that_is_stopped_is_the_targets,
        in_the_loop(accepts_what_was_stopped_early),
        *(laws.PROBLEMS, 0.6, Sampler()),
    ),
    case(
        "7: a step is stopped too early",
        laws.test_early_stop_is_invisible_if_the_number_never_falls,
        TOO_EARLY,
        *(laws.PROBLEMS, ("entropy", 1.5), Sampler(), 1),
    ),
]


@pytest.mark.parametrize(("law", "mutation", "example"), FAULTS)
def test_the_law_notices(law: Law, mutation: Mutation, example: Sequence[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    mutation(monkeypatch)
    with pytest.raises(AssertionError):
        of_example(law)(*example)


# --- law 6


def read_without(**fields: object) -> Callable[[Any], property]:
    """A part of a row is read, but not these fields."""
    return lambda right: property(lambda part: replace(right.fget(part), **fields))


def folds_no_rewards(right: Callable[..., Tally]) -> Callable[..., Tally]:
    return lambda decisions, reward_cost, check, *others: right(decisions, NO_COST, check, *others)


def folds_no_rollouts(right: Callable[..., Tally]) -> Callable[..., Tally]:
    return lambda decisions, reward_cost, check, rollouts, abandoned: right(decisions, reward_cost, check, (), abandoned)


def folds_no_abandoned_steps(right: Callable[..., Tally]) -> Callable[..., Tally]:
    return lambda decisions, reward_cost, check, rollouts, abandoned: right(decisions, reward_cost, check, rollouts)


COST = Cost(3, 0.5, 7, 1.5, 5, 0.25, 4, 2)
DRAFTED = Step("draft", "d", 9, COST, "early", phase="think")
WRITTEN = Step("target", "t", 8, COST, "separator", speculation_cost=COST, phase="think")
ACCEPTED = Step("draft", "d", 9, COST, "end")
DECISIONS = [Decision(WRITTEN, draft=DRAFTED, target=WRITTEN, score=0.9), Decision(ACCEPTED, draft=ACCEPTED, score=0.1)]
COMPARED = Check([CheckedSolution("check", "5", [Step("check", "c", 6, COST, "end")])], agrees=False)


@pytest.mark.parametrize(
    "mutation",
    [
        pytest.param(replaced(WrittenStep, "step", read_without(num_tokens=0)), id="tokens"),
        pytest.param(replaced(WrittenStep, "step", read_without(cost=Cost())), id="cost"),
        pytest.param(replaced(WrittenStep, "step", read_without(speculation_cost=Cost())), id="speculation"),
        pytest.param(replaced(WrittenStep, "step", read_without(stop="separator")), id="stops"),
        pytest.param(replaced(WrittenStep, "step", read_without(phase="answer")), id="phase"),
        pytest.param(replaced(KeptStep, "made", read_without(draft=None)), id="rejected steps"),
        pytest.param(replaced(ComparedAnswers, "check", read_without(solutions=())), id="compared solutions"),
        pytest.param(replaced(results, "tally", folds_no_rewards), id="rewards"),
        pytest.param(replaced(results, "tally", folds_no_rollouts), id="rollouts"),
        pytest.param(replaced(results, "tally", folds_no_abandoned_steps), id="abandoned steps"),
    ],
)
def test_the_law_notices_what_is_not_folded(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 6."""
    law = of_example(laws.test_row_has_the_tally_of_its_events)
    law(DECISIONS, COST, COMPARED, [WRITTEN], [WRITTEN])
    mutation(monkeypatch)
    with pytest.raises(AssertionError):
        law(DECISIONS, COST, COMPARED, [WRITTEN], [WRITTEN])


# --- quick answers


def with_limits_of_the_target(checker: Checker, trace: Trace, model: ModelRole) -> Trace:
    return Trace(replace(trace.problem, thinks=checker.limits.target.thinking.switch), checker.limits.target)


def all_agree(*_: object) -> Generator[FlowRequest, bool, bool]:
    yield from ()
    return True


def keeps_its_prompt(right: Callable[..., Any]) -> Callable[..., Any]:
    def opened(scheduler: Scheduler, flight: Any, role: ModelRole, problem: Problem) -> Any:
        return right(scheduler, flight, role, flight.problems.get(role, problem))

    return opened


@pytest.mark.parametrize(
    ("mutation", "law"),
    [
        pytest.param(
            replaced(Checker, "_own_trace", lambda right: with_limits_of_the_target),
            partial(quick.test_answers_that_always_agree_leave_the_drafts_text, Sampler(), 1, ("draft", "check")),
            id="quick answers that think",
        ),
        pytest.param(
            replaced(agreement, "_agrees", lambda right: all_agree),
            partial(quick.test_answers_that_never_agree_leave_the_targets_text, Sampler(), 1, ("draft", "check")),
            id="answers that are not compared",
        ),
    ],
)
def test_the_law_notices_in_quick_answers(
    mutation: Mutation, law: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 8."""
    law()
    mutation(monkeypatch)
    with pytest.raises(AssertionError):
        law()


def test_the_law_notices_a_draft_that_speculates_with_its_quick_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 8."""
    replaced(Scheduler, "_opened", keeps_its_prompt)(monkeypatch)
    with pytest.raises(AssertionError):
        quick.test_the_draft_that_speculates_for_thoughts_has_their_prompt(monkeypatch)


# --- in llama.cpp

PAIR = ("draft", "target")
IN_LLAMA = [
    case("1: a batch that mixes problems", laws.test_batch_equals_single_in_llama, MIXED, PAIR, *RANDOM),
    case(
        "2: tau compared the wrong way",
        laws.test_extreme_taus_in_llama,
        in_the_loop(compares_tau_the_wrong_way),
        *(PAIR, "entropy", inf, "draft"),
    ),
    case("3: a step without its end", laws.test_same_model_twice_ignores_tau_in_llama, SHORTENED, 0.3, "draft"),
    case("4: a different token", laws.test_the_cache_is_invisible_in_llama, OFF_BY_ONE, PAIR, Sampler()),
    case("5: proposals that nothing verifies", laws.test_proposals_are_invisible_in_llama, UNVERIFIED, PAIR, Sampler(), 1),
    case(
        "7: a step is stopped too early", laws.test_early_stop_is_invisible_in_llama, TOO_EARLY, PAIR, "entropy", Sampler()
    ),
]


@pytest.mark.parametrize(("law", "mutation", "example"), IN_LLAMA)
def test_the_law_notices_in_llama(
    law: Law, mutation: Mutation, example: Sequence[Any], tiny: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutation(monkeypatch)
    with pytest.raises(AssertionError):
        law(partial(laws.solve_in_llama, tiny), *example)

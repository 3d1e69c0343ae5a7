"""Phrases about problems, steps, runs and requests, which all displays share."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from arbitrage_cli.app.options import ResultFormat
from arbitrage_cli.app.protocol import AttemptEnded, RunProgress, ServerInfo
from arbitrage_cli.display.text import one_line, role_name, safe, shortened
from arbitrage_cli.model_files.checksums import FileProgress
from arbitrage_cli.numbers import formatting
from arbitrage_cli.runs.records import LIMITS, RunInfo, Tally, attempt_error, problem_error, tally, tally_of, to_json
from arbitrage_cli.types import (
    Bill,
    Check,
    Checked,
    CheckedSolution,
    Cost,
    Decided,
    Decision,
    Event,
    Fields,
    Finished,
    ModelRole,
    RequestEnded,
    Step,
    Trace,
    Writing,
)

BAR = 4  # characters
MAX_ANSWER = 80  # characters
ORDINALS = {2: "2nd", 3: "3rd"}
FAST = 100.0  # tokens per second that are shown without decimals


def fetching(progress: FileProgress) -> str:
    """Return a line such as `downloading model.gguf, 1.2 GB of 4.9 GB`."""
    sizes = f"{formatting.size_words(progress.done)} of {formatting.size_words(progress.total)}"
    return f"{progress.activity} {progress.file}, {sizes}"


def loading(activity: str, name: str, fraction: float | None) -> str:
    """Return a line such as `loading target: 69% of large.gguf`. A narrow terminal cuts the end, so the name is last."""
    share = "" if fraction is None else f"{fraction:.0%} of "
    return f"{activity}: {share}{name}"


def prefill(event: Writing) -> str:
    return f"{role_name(event.model)}: prefill {formatting.count(event.num_unread, 'token')}"


@dataclass(slots=True)
class Totals:
    """Totals over all problems of a run."""

    figures: Tally = field(default_factory=Tally)
    finished: int = 0
    failed: int = 0

    def add(self, event: Event) -> None:
        if isinstance(event, Decided):
            self.figures += tally([event.decision])
        elif isinstance(event, Checked):
            self.figures += tally([], check=event.check)
        elif isinstance(event, Finished):
            rollouts = [step.cost for step in event.trace.rollouts]
            self.figures += tally([], event.reward_cost, rollouts=rollouts, abandoned=event.abandoned)
            self.finished += 1
            self.failed += attempt_error(event) is not None

    def text(self, elapsed: float) -> str:
        """Return the totals, with the seconds of the models and the `elapsed` seconds, which include all other work."""
        counts = formatting.count(self.finished, "problem") + (f", {self.failed} failed" if self.failed else "")
        times = f"models {self.figures.seconds:.2f} s, elapsed {elapsed:.2f} s"
        return joined(counts, summary(self.figures), times)


def joined(*facts: str) -> str:
    return "; ".join(filter(None, facts))


def time_left(seconds: float | None) -> str:
    return "" if seconds is None else f"about {formatting.duration(max(0.0, seconds))} left"


QUICK_NAMES: Mapping[ModelRole, str] = {"draft": "quick", "target": "thinking"}
"""The names of the roles if the target thinks only if quick answers differ."""


def opening(run: RunInfo | RunProgress | ServerInfo, *, has_details: bool = False) -> list[str]:
    """Return a line about the models and the policy, about a run, or about a server. Details follow on further lines."""
    if isinstance(run, ServerInfo):
        return [*opening(run.run, has_details=has_details), f"listening at {run.url}; models: {', '.join(run.names)}"]
    if isinstance(run, RunProgress):
        done = f", {run.finished} of them done" if run.finished else ""
        return [f"{run.title}: {formatting.count(run.planned, 'attempt')}{done}"]
    models = " → ".join(_models(run))
    details = (f"{role_name(role):<7} {one_line(text)}" for role, text in run.descriptions.items())
    return [joined(models, run.route.label, _threads(run)), *([*details, *_rule(run)] if has_details else [])]


def _models(run: RunInfo) -> Iterator[str]:
    """Yield the names of the models, each once. If the target thinks only if quick answers differ, yield their parts, too."""
    roles: dict[str, list[str]] = {}
    for role, name in run.names.items():
        roles.setdefault(one_line(name), []).append(QUICK_NAMES.get(role, role_name(role)))
    for name, parts in roles.items():
        yield f"{name}, {' and '.join(parts)}" if run.has_quick_answers else name


def _threads(run: RunInfo) -> str:
    """Return the threads of the models on this machine, such as `2 threads of 2`, or "" if there are no such models."""
    counts = list(dict.fromkeys(run.threads))
    if not counts:
        return ""
    return f"{' and '.join(map(str, counts))} {'thread' if counts == [1] else 'threads'} of {run.cores}"


def _rule(run: RunInfo) -> list[str]:
    """Return the router, the tau and the meaning of the score, if there is a score."""
    route = run.route
    policy = route.policy
    if route.tau is None:
        return []
    router = f", router {run.settings['router']}" if run.settings.get("router") else ""
    tau = formatting.tau(route.tau) + (f" ({route.tau_name})" if route.tau_name else "")
    return [f"policy {policy.name}{router}: the target rewrites steps with a score above {tau}", f"score  {policy.score_is}"]


def request(ended: RequestEnded) -> str:
    """Return a line about a request, such as `chatcmpl-1f..., arbitrage@fast: accepted 4/5 steps (80%); ...; 3.21 s`."""
    trace, error = ended.finished.trace, ended.finished.error
    end = ended.end
    if error and not end:
        end = f"{error} ({error.hint})" if error.hint else str(error)
    work = f"{trace.problem.id}, {ended.model}: {summary(tally_of(ended.finished)) or 'no tokens'}"
    return one_line(joined(work, end, f"{ended.seconds:.2f} s", price(ended.bill)))


def compared(routed: Finished, alone: Finished, answer: Callable[[Finished], str]) -> str:
    texts = [answer(finished) for finished in (routed, alone)]
    verdict = f"same answer: {texts[0]}" if texts[0] == texts[1] else f"{texts[0]}; the target alone: {texts[1]}"
    seconds = [tally(finished.trace.decisions).seconds for finished in (routed, alone)]
    return one_line(f"{verdict} ({seconds[0]:.2f} s, the target alone {seconds[1]:.2f} s)")


def comparison(decision: Decision, run: RunInfo) -> str:
    """Return the score and tau, such as `1.43 > 1.00`, or an empty string if there is no score."""
    tau = _tau(decision, run)
    if decision.score is None or tau is None:
        return ""
    sign = ">" if decision.score > tau else "≤"
    return f" {sign} ".join(formatting.compared(decision.score, tau))


def _tau(decision: Decision, run: RunInfo) -> float | None:
    is_thought = decision.draft is not None and decision.draft.phase == "think"
    return run.route.tau if run.thoughts_tau is None or not is_thought else run.thoughts_tau


def bar(decision: Decision, run: RunInfo) -> str:
    """Return the score as a bar with tau in the middle, or "" if there is no score or tau is not positive and finite."""
    tau = _tau(decision, run)
    if decision.score is None or tau is None or not 0 < tau < math.inf:
        return ""
    full = round(BAR * min(1.0, max(0.0, decision.score / (2 * tau))))
    return "█" * full + "░" * (BAR - full)


def discarded(check: Check) -> Iterator[tuple[str, str]]:
    """Yield the writer and the text of each solution that the `agree` policy did not keep."""
    for solution in check.solutions:
        if solution.steps:
            yield _writer_of(solution), "".join(step.text for step in solution.steps)


def _writer_of(solution: CheckedSolution) -> str:
    if not solution.is_further:
        return role_name(solution.model)
    number = solution.sample + 1
    return f"draft, {ORDINALS.get(number, f'{number}th')} solution"


def quick_answers(check: Check) -> Iterator[str]:
    """Yield a line such as `quick answer of the draft: 36` for each solution that ended."""
    for solution in check.solutions:
        if solution.has_ended:
            yield f"quick answer of the {_writer_of(solution)}: {_answer_of(solution)}"


def checked(check: Check, *, before_thinking: bool = False) -> str:
    """Return the result of a comparison, such as `18 and 24: the target answers`. Unfinished solutions are left out."""
    ended = sorted((one for one in check.solutions if one.has_ended), key=lambda one: one.model != "draft")
    answers = list(map(_answer_of, ended))
    if not check.agrees:
        follows = "thinking" if before_thinking else "the target answers"
        return f"{' and '.join(filter(None, (', '.join(answers[:-1]), answers[-1])))}: {follows}"
    kept = "kept, no thinking" if before_thinking else "accepted"
    return f"{'both' if len(answers) == 2 else f'all {len(answers)} solutions'} answer {answers[0]}: {kept}"


def _answer_of(solution: CheckedSolution) -> str:
    return in_one_line(solution.answer or "no answer")


def is_same(decision: Decision) -> bool:
    """Return whether both models wrote the same words."""
    return decision.discarded is not None and decision.discarded.text.split() == decision.kept.text.split()


def size(step: Step) -> str:
    """Return a step's token count, its seconds and the limit that stopped it."""
    ends = {"early": ", stopped early", "loop": ", repeats itself", "think_budget": ", thinking limit reached"}
    return f"{formatting.count(step.num_tokens, 'token')} {step.seconds:.2f} s" + ends.get(step.stop, "")


def thinking(trace: Trace) -> str:
    """Return the tokens of both phases, such as `412 thinking tokens (limit reached), 35 answer tokens`."""
    thoughts = [decision.kept for decision in trace.decisions if decision.kept.phase == "think"]
    if not thoughts:
        return ""
    tokens = sum(step.num_tokens for step in thoughts)
    limit = " (limit reached)" if thoughts[-1].stop == "think_budget" else ""
    answer = formatting.count(trace.num_tokens - tokens, "answer token")
    return f"{formatting.count(tokens, 'thinking token')}{limit}, {answer}"


def times(figures: Tally, alone: float | None) -> str:
    """Return the seconds that a problem took and, if the draft worked, too, would take the target alone."""
    if alone is None or not figures.draft_cost.decode_tokens:
        return f"{figures.seconds:.2f} s"
    return f"{formatting.number(figures.seconds)} s, the target alone: about {formatting.number(alone)} s"


def summary(figures: Tally) -> str:
    """Return the steps, and the tokens and the speed of each model, or an empty string if there are no tokens."""
    steps = formatting.count(figures.target_steps, "step")
    tokens = []
    if figures.drafted_steps:
        steps = f"accepted {figures.accepted_steps}/{figures.drafted_steps} steps ({figures.acceptance_rate or 0:.0%})"
        discarded = f" ({figures.wasted_tokens} discarded)" if figures.wasted_tokens else ""
        tokens.append(f"{formatting.count(figures.drafted_tokens, 'draft token')}{discarded}{_speed(figures.draft_cost)}")
    elif num_speculated := figures.draft_cost.decode_tokens:
        tokens.append(f"{formatting.count(num_speculated, 'draft token')}{_speed(figures.draft_cost)}")
    if figures.target_steps:
        tokens.append(f"{formatting.count(figures.target_tokens, 'target token')}{_speed(figures.target_cost)}")
    if figures.further_tokens:
        tokens.append(f"{formatting.count(figures.further_tokens, 'token')} of further solutions")
    if figures.check_tokens:
        tokens.append(f"{formatting.count(figures.check_tokens, 'checker token')}{_speed(figures.check_cost)}")
    return joined(steps, ", ".join(tokens)) if tokens else ""


def _speed(cost: Cost) -> str:
    speed = cost.tokens_per_second
    if speed is None:
        return ""
    return f" at {speed:.0f}/s" if speed >= FAST else f" at {speed:.1f}/s"


def price(bill: Bill | None) -> str:
    if bill is None:
        return ""
    spent = f"${bill.spent:.5f}"
    return spent if bill.target_alone is None else f"{spent} (the target alone: about ${bill.target_alone:.5f})"


def wrong_equations(steps: Sequence[int]) -> str:
    numbers = ", ".join(map(str, steps))
    return f"step {numbers} has a wrong equation" if len(steps) == 1 else f"steps {numbers} have wrong equations"


def failure(finished: Finished) -> str:
    error = problem_error(finished)
    return one_line(f"problem {finished.trace.problem.id}: {joined(*error)}") if error else ""


def ending(finished: Finished) -> str:
    """Return the limit that a solution reached, or an empty string if the solution is complete."""
    option = LIMITS.get(finished.trace.stop or "")
    return f"stopped at the limit {option}" if option else ""


def result(record: Fields, form: ResultFormat, *, is_single: bool) -> str | None:
    """Format a record for standard output. Returns None for a single problem without steps.

    Of several problems, an unfinished one without an answer has an empty line.
    """
    if form == "json":
        return to_json(record)
    text = record["text"].strip()
    if is_single:
        return safe(record["answer"] or text) if record["steps"] else None
    last_line = text.rpartition("\n")[2] if record.get("stop") == "end" else ""
    return one_line(record["answer"] or last_line)


def in_one_line(answer: str) -> str:
    return shortened(one_line(answer), MAX_ANSWER)


def attempt(ended: AttemptEnded) -> str:
    """Return a line about an attempt, such as `gsm8k/12, entropy@0.5: incorrect (18), 12.30 s`."""
    return one_line(f"{ended.problem}, {outcome(ended)}")


def outcome(ended: AttemptEnded) -> str:
    """Return the outcome of an attempt, such as `the draft alone: same answer (36), 7.70 s`."""
    detail = f" ({in_one_line(ended.detail)})" if ended.detail else ""
    took = "" if ended.seconds is None else f", {ended.seconds:.2f} s"
    verdict = "finished" if ended.verdict == "unscored" else ended.verdict
    return one_line(f"{ended.label}: {verdict}{detail}{took}")

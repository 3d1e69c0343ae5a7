"""Policy `agree`: small models solve the whole problem, and the target solves it only if their answers differ.

    the draft solves the problem, and so does the checker (or the draft itself, at random)
    if all found the same answer:  keep the draft's solution
    otherwise:                     the target solves the problem

The caller provides the functions that find the answer in a solution and compare two answers.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial

from arbitrage_cli.arbitrage import CompareAnswers, Flow, FlowRequest, StopWriting, WriteStep, single
from arbitrage_cli.types import Check, CheckedSolution, Decision, Step, Trace

FindAnswer = Callable[[Trace], str | None]
"""Returns the answer that a solution states, or None."""
IsSame = Callable[[Trace, str], bool]
"""Returns whether a solution has this answer."""
Answers = Mapping[WriteStep, str | None]
"""The answers of the solutions that ended, in this order."""


def agree(trace: Trace, solutions: Sequence[WriteStep], find_answer: FindAnswer, is_same: IsSame, *, at_once: bool) -> Flow:
    """Keep the draft's solution if all `solutions` have the same answer. Otherwise, let the target solve the problem.

    Each element of `solutions` requests a solution in a separate trace. The draft's first solution may be kept. The others,
    by the checker or the draft, check it. If `at_once` is true, all solutions are written at the same time. Otherwise, each
    solution begins only if the previous solutions agree.
    """
    drafted = next(solution for solution in solutions if solution.model == "draft")
    waiting, answers = list(solutions), dict[WriteStep, str | None]()
    agrees = True
    while agrees and waiting:
        solved = yield from _write_until_one_is_solved(waiting if at_once else waiting[:1])
        waiting.remove(solved)
        answers[solved] = find_answer(solved.trace) if solved.trace.stop == "end" else None
        agrees = yield from _agrees(drafted, solved, answers, is_same)
    begun = list(solutions) if at_once else list(answers)
    ahead: Sequence[Step] = yield StopWriting()
    steps = _steps_of(begun, ahead)
    if agrees:
        steps[drafted] = []
        trace.decisions.extend(drafted.trace.decisions)
    checked = [CheckedSolution(one.model, answers.get(one), steps[one], one.sample, one in answers) for one in begun]
    trace.check = Check(checked, agrees)
    if not agrees:
        yield from single(trace, "target", speculates=True)


def _write_until_one_is_solved(solutions: Sequence[WriteStep]) -> Generator[FlowRequest, Step, WriteStep]:
    """Write all of `solutions` at once, and return the first that ends. A solution also ends if the model repeats itself."""
    requests = tuple(solutions)
    while True:
        step = yield requests
        solution = next(one for one in requests if one.model == step.model)
        solution.trace.add(Decision(kept=step, draft=step if step.model == "draft" else None))
        if solution.trace.finished or step.stop == "loop":
            return solution


def _agrees(
    drafted: WriteStep, solved: WriteStep, answers: Answers, is_same: IsSame
) -> Generator[CompareAnswers, bool, bool]:
    """Compare the latest answer with the draft's. If the draft was the last to answer, compare all answers with its own."""
    if answers[solved] is None:
        return False
    others = [one for one in answers if one is not drafted] if solved is drafted else [solved]
    for other in others if drafted in answers else ():
        if not (yield CompareAnswers(partial(is_same, drafted.trace, answers[other] or ""))):
            return False
    return True


def _steps_of(solutions: Sequence[WriteStep], ahead: Sequence[Step]) -> dict[WriteStep, list[Step]]:
    """Return the steps of each solution. The steps that a model wrote ahead belong to its last solution."""
    last = {solution.model: solution for solution in solutions}
    return {
        solution: [
            *(decision.kept for decision in solution.trace.decisions),
            *(step for step in ahead if last.get(step.model) is solution),
        ]
        for solution in solutions
    }

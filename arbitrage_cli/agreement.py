"""Policy `agree`: small models solve the whole problem, and the target solves it only if their answers differ.

    the draft solves the problem, and so does the checker (or the draft itself, at random)
    if all found the same answer:  keep the draft's solution
    otherwise:                     the target solves the problem

The caller provides the functions that find the answer in a solution and compare two answers.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial

from arbitrage_cli.arbitrage import CompareAnswers, Flow, FlowRequest, WriteStep, single
from arbitrage_cli.types import Check, Decision, ModelRole, Step, Trace

FindAnswer = Callable[[Trace], str | None]
"""Returns the final answer of a solution, or None if no answer is found."""
IsSame = Callable[[Trace, str], bool]
"""Returns whether a solution has this answer."""


def agree(trace: Trace, solutions: Sequence[WriteStep], find_answer: FindAnswer, is_same: IsSame, *, at_once: bool) -> Flow:
    """Keep the draft's solution if all `solutions` have the same answer. Otherwise, let the target solve the problem.

    Each element of `solutions` requests a solution in a separate trace. The draft's first solution may be kept. The others,
    by the checker or the draft, check it. If `at_once` is true, all solutions are written at the same time. Otherwise, each
    solution begins only if the previous solutions agree.
    """
    drafted = next(solution for solution in solutions if solution.model == "draft")
    unsolved = list(solutions)
    answers: dict[ModelRole, str | None] = {}
    agrees = True
    while agrees and unsolved:
        solved = yield from _write_until_one_is_solved(unsolved if at_once else unsolved[:1])
        unsolved.remove(solved)
        answer = find_answer(solved.trace) if solved.trace.stop == "end" else None
        answers["draft" if solved is drafted else "check"] = answer
        check = answers.get("check")
        if answer is None:
            agrees = False
        elif check is not None and "draft" in answers:
            agrees = yield CompareAnswers(partial(is_same, drafted.trace, check))
    others = _steps(solution for solution in solutions if solution is not drafted)
    further_steps = sum(step.model == "draft" for step in others)
    if agrees:
        trace.check = Check(answers, agrees, others, further_steps)
        trace.decisions.extend(drafted.trace.decisions)
    else:
        trace.check = Check(answers, agrees, _steps(solutions), further_steps)
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


def _steps(solutions: Iterable[WriteStep]) -> list[Step]:
    return [decision.kept for solution in solutions for decision in solution.trace.decisions]

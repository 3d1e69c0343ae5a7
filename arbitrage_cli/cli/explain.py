"""`arbitrage explain`: why steps were accepted or escalated, for one problem that is solved now, or for a collected run."""

import contextlib
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arbitrage_cli.app.options import (
    GenerationOptions,
    HeadRoutingOptions,
    Invocation,
    MachineOptions,
    ModelOptions,
    OutputOptions,
    option,
)
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.output import command_display
from arbitrage_cli.data.problems import make_problem
from arbitrage_cli.display.text import one_line, write
from arbitrage_cli.errors import UsageError
from arbitrage_cli.types import Finished, Problem, Trace

if TYPE_CHECKING:
    from arbitrage_cli.app.setup import Setup
    from arbitrage_cli.routing.explain import Explanation
    from arbitrage_cli.routing.head import Head

Top = Annotated[int, option("Output", "--top", min=1, max=100, help="Features shown of each step.")]


@command
def explain(
    invocation: Invocation,
    what: Annotated[
        str, typer.Argument(metavar="PROBLEM|RUN", help="A problem to solve, or a folder of arbitrage collect.")
    ],
    *,
    ids: Annotated[
        str | None, option("Output", "--ids", metavar="ID,...", help="Of a run: these problems step by step.")
    ] = None,
    top: Top = 5,
    models: ModelOptions,
    routing: HeadRoutingOptions,
    generation: GenerationOptions,
    machine: MachineOptions,
    output: OutputOptions,
    json_lines: Annotated[bool, option("Output", "--json", help="One JSON object a step.")] = False,
) -> None:
    """Explain why each step was accepted or escalated: the probability, tau, and the features that counted most.

    What a feature adds is in log-odds, against a step that is average in it. With --prm, and for a collected run, also what the
    oracle would have done.

    \b
    Examples:
      arbitrage explain "What is 23 * 47 - 88?"
      arbitrage explain runs/states --head head.safetensors --top 3
    """
    from arbitrage_cli.app.model_choice import choose_or_of_states
    from arbitrage_cli.app.setup import RunOptions, explain_setup
    from arbitrage_cli.display.explanation import explanation_records, solution_lines
    from arbitrage_cli.routing.choice import need_head
    from arbitrage_cli.routing.explain import explain_solution

    is_run = _is_run(what)
    choice = choose_or_of_states(invocation, models, generation.task, Path(what) if is_run else None)
    options = RunOptions(invocation, models, generation, machine, choice.task)
    setup = explain_setup(options, routing, choice, rates=models.prm is not None and not is_run)
    head, tau = need_head(setup.head), float(setup.route.tau or 0.0)
    if is_run:
        _explain_run(Path(what), head, tau, ids, top, as_json=json_lines)
        return
    with command_display(output) as display:
        trace = _solve(_problem(what), setup, display)
    explanations = explain_solution(head, trace, tau)
    if json_lines:
        _write(explanation_records(explanations, {"id": trace.problem.id, "head": head.card.name}))
        return
    _write([_title(head, tau), "", *solution_lines(explanations, top)])


def _is_run(what: str) -> bool:
    """Whether it names a run. UsageError if it looks like the folder of one and there is none."""
    path = Path(what)
    with contextlib.suppress(OSError, ValueError):  # a problem may be no path at all
        if (path / "run.json").exists():
            return True
        looks_like_one = len(what.split()) == 1 and "/" in what and (path.parent.is_dir() or not re.search(r"\d", what))
        if what and (path.is_dir() or looks_like_one):
            raise UsageError(
                f"{what}: there is no run in this folder", "arbitrage collect makes runs; write a problem in words"
            )
    return False


def _problem(text: str) -> Problem:
    try:
        return make_problem(text, "1")
    except ValueError as error:
        raise UsageError(str(error), 'for example: arbitrage explain "What is 23 * 47 - 88?"') from error


def _solve(problem: Problem, setup: "Setup", display: Display) -> Trace:
    """Solve the problem as policy arbitrage does; if steps can be rated, with both models writing every step."""
    from arbitrage_cli.app.session import Session
    from arbitrage_cli.arbitrage import Flow
    from arbitrage_cli.routing.choice import need_head
    from arbitrage_cli.routing.policies import POLICIES
    from arbitrage_cli.training.collect import as_routed, collect

    choose = as_routed(need_head(setup.head).probability, float(setup.route.tau or 0.0))

    def rated(trace: Trace) -> Flow:
        return collect(trace, choose, lambda state: None)

    with Session(setup, display) as session:
        session.load()
        rater = session.rater(POLICIES["oracle"]) if setup.reward else None
        scheduler = session.scheduler(rated if rater else None, rater)
        with contextlib.closing(scheduler.run([problem])) as events:
            (finished,) = (event for event in events if isinstance(event, Finished))
    if finished.error is not None:
        raise finished.error
    return finished.trace


def _explain_run(folder: Path, head: "Head", tau: float, ids: str | None, top: int, *, as_json: bool) -> None:
    from arbitrage_cli.display.explanation import explanation_records, group_lines, oracle_line, step_lines

    problems = dict(_explained(folder, head, tau))
    chosen = list(problems) if ids is None else [name.strip() for name in ids.split(",")]
    for name in chosen:
        if name not in problems:
            some = ", ".join([*problems][:5])
            raise UsageError(f"{folder}: no problem has the id '{name}'", f"ids of this run: {some} ...", option="ids")
    if as_json:
        for name in chosen:
            _write(explanation_records(problems[name], {"id": name, "head": head.card.name}))
        return
    everything = [one for name in chosen for one in problems[name]]
    lines = [_title(head, tau), oracle_line(everything), "", *group_lines(everything, top)]
    for name in chosen if ids is not None else ():
        lines += ["", f"problem {one_line(name)}", *(line for one in problems[name] for line in step_lines(one, top))]
    _write(lines)


def _explained(folder: Path, head: "Head", tau: float) -> Iterator[tuple[str, "list[Explanation]"]]:
    """The problems of a run of `arbitrage collect`, by their ids."""
    from arbitrage_cli.routing.explain import explain_states
    from arbitrage_cli.training.examples import read_run

    run = read_run(folder)
    for solution in run.solutions:
        yield solution.problem.id, explain_states(head, solution.problem.question, solution.states, tau)


def _title(head: "Head", tau: float) -> str:
    return f"head {one_line(head.card.name)}, tau = {tau:.4g}"


def _write(lines: Iterable[str]) -> None:
    write(sys.stdout, "".join(f"{line}\n" for line in lines))

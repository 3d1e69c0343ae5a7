"""`arbitrage explain`: why steps were accepted or escalated, for one problem that is solved now, or for a collected run."""

import contextlib
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arbitrage_cli.arbitrage import Flow
from arbitrage_cli.cli import options as shared
from arbitrage_cli.cli.output import choose_display, log_to
from arbitrage_cli.cli.sources import (
    head_named,
    instructions,
    models_of_states,
    name_models,
    needed_models,
    pair_named,
    style_of_prm,
    template_variables,
    warnings_about,
)
from arbitrage_cli.data.rows import make_problem
from arbitrage_cli.display.protocol import Display
from arbitrage_cli.display.text import one_line, write
from arbitrage_cli.errors import UsageError
from arbitrage_cli.model_files.pairs import local_files
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.runs.records import tau_in_json
from arbitrage_cli.types import Finished, Limits, ModelRole, Problem, Trace

if TYPE_CHECKING:
    from arbitrage_cli.inference.backend import Options
    from arbitrage_cli.routing.explain import Explanation
    from arbitrage_cli.routing.head import Head

WIDTH = 79
MEANING = {
    "improved": "escalated, and the target's step is better",
    "missed": "accepted, though the target's step is better",
    "wasted": "escalated for nothing",
    "spared": "accepted, and nothing was lost",
}


def explain(
    context: typer.Context,
    what: Annotated[
        str, typer.Argument(metavar="PROBLEM|RUN", help="A problem to solve, or a folder of arbitrage collect.")
    ],
    ids: shared.Ids = None,
    top: Annotated[int, typer.Option(min=1, max=100, help="How many features are told of each step.")] = 5,
    draft: shared.Draft = None,
    target: shared.Target = None,
    pair: shared.PairName = None,
    prm: shared.RewardModel = None,
    prm_style: shared.PrmStyle = None,
    head: shared.HeadFile = None,
    offline: shared.Offline = False,
    tau: shared.Tau = None,
    budget: shared.Budget = None,
    early_stop: shared.EarlyStop = None,
    system: shared.Instructions = None,
    chat_template_kwargs: shared.TemplateVariables = None,
    max_steps: shared.MaxSteps = shared.DEFAULTS.max_steps,
    max_tokens: shared.MaxTokens = shared.DEFAULTS.max_tokens,
    max_step_tokens: shared.MaxStepTokens = shared.DEFAULTS.max_step_tokens,
    temperature: shared.Temperature = 0.0,
    top_p: shared.TopP = 1.0,
    seed: shared.Seed = 0,
    threads: shared.Threads = None,
    gpu_layers: shared.GpuLayers = None,
    ctx: shared.ContextSize = None,
    flash_attention: shared.FlashAttention = None,
    kv_type: shared.KvCacheType = shared.KvType.auto,
    json_lines: Annotated[bool, typer.Option("--json", envvar="ARBITRAGE_JSON", help="One JSON object a step.")] = False,
    quiet: shared.Quiet = False,
    verbose: shared.Verbose = False,
    debug: shared.Debug = False,
) -> None:
    """Explain why each step was accepted or escalated: the probability, tau, and the features that counted most.

    What a feature adds is in log-odds, against a step that is average in it. With a process reward model, and for a
    collected run, also what the oracle would have done. For a run: in sum, and step by step for the problems of --ids.
    """
    # Not at the top: NumPy and the engines take longer to import than --help may take.
    from arbitrage_cli.cli.routing import RoutingOptions, find_head, needed, resolve_conflicts, stops_early, tau_of_head
    from arbitrage_cli.tuning.placement import load_options, place

    named = pair_named(context, pair, draft=draft, target=target)
    models = name_models(context, draft=draft, target=target, prm=prm, pair=named)
    is_run = _is_run(what)
    if is_run and not (pair or draft or target):
        named, models = models_of_states(Path(what))
    source = head_named(head, named, models)
    known = needed(find_head(source))
    variables = template_variables(chat_template_kwargs, named)
    load = load_options(named, ctx, threads, gpu_layers, flash_attention, kv_type.value, variables)
    placement = place(models, load)
    how = resolve_conflicts(context, RoutingOptions("arbitrage", tau, budget, head), known)
    threshold = tau_of_head(how.tau, how.budget, known, placement.costs)
    if is_run:
        _explain_run(Path(what), known, threshold, ids, top, as_json=json_lines)
        return
    with contextlib.ExitStack() as stack:
        display = stack.enter_context(contextlib.closing(choose_display(quiet=quiet, verbose=verbose)))
        stack.enter_context(log_to(display, verbose=verbose, debug=debug))
        for warning in warnings_about({role: name for role, name in models.items() if name}, named, source, threads=threads):
            display.note(warning)
        if not prm and models["prm"] and not local_files(models["prm"]):
            display.note(
                "this pair's process reward model is not on this machine, so nothing is said of the oracle; --prm fetches it"
            )
            models = {**models, "prm": None}
        if early_stop and models["prm"]:
            display.note("where steps are rated both models finish every step: --early-stop changes nothing")
        wanted = _Wanted(
            problem=what,
            models=models,
            prm_style=style_of_prm(prm_style, models["prm"], named),
            load=load,
            threads=placement.threads,
            sampling=(temperature, top_p, seed),
            limits=Limits(max_steps, max_tokens, max_step_tokens),
            system=instructions(system, named),
            stops_early=bool(stops_early(early_stop, [POLICIES["arbitrage"]], known, source, placement.costs)),
        )
        trace = _solve(wanted, known, threshold, display, stack, offline=offline)
        display.close()
    _explain_solution(trace, known, threshold, top, as_json=json_lines)


def _is_run(what: str) -> bool:
    """Whether it names a run. UsageError if it looks like the folder of one, but there is none."""
    path = Path(what)
    with contextlib.suppress(OSError, ValueError):  # a problem may be no path at all
        if (path / "run.json").exists():
            return True
        looks_like_one = len(what.split()) == 1 and "/" in what and (path.parent.is_dir() or not re.search(r"\d", what))
        if what and (path.is_dir() or looks_like_one):
            raise UsageError(
                f"{what}: there is no run in this folder", "arbitrage collect makes them; a problem is told in words"
            )
    return False


# --- a problem


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A problem, and with what to solve it."""

    problem: str
    models: Mapping[ModelRole, str | None]
    prm_style: str
    load: "Options"
    threads: Mapping[ModelRole, int]
    sampling: tuple[float, float, int]  # temperature, top_p, seed
    limits: Limits
    system: str
    stops_early: bool


def _solve(
    wanted: _Wanted, head: "Head", tau: float, display: Display, stack: contextlib.ExitStack, *, offline: bool
) -> Trace:
    """Solve the problem as policy arbitrage does; where steps can be rated, with both models writing every step."""
    from arbitrage_cli.cli.routing import make_rater, make_router, sequences
    from arbitrage_cli.cli.session import fetch, make_engines, open_backends
    from arbitrage_cli.inference.sampling import Sampler
    from arbitrage_cli.inference.scheduler import Scheduler
    from arbitrage_cli.training.collect import as_routed, collect

    routed, rated = POLICIES["arbitrage"], POLICIES["oracle"]
    is_rated = bool(wanted.models["prm"])
    policy = rated if is_rated else routed
    problem = _problem(wanted.problem)
    sources = needed_models([policy], wanted.models)
    found = fetch(sources, display, offline=offline)
    load = replace(wanted.load, hidden_states=head.reads_hidden)
    backends = open_backends(sources, found, load, wanted.threads, display, stack, sequences([policy], None))
    engines = make_engines(backends, Sampler(*wanted.sampling), wanted.system, routed)
    router = make_router(routed, head, backends, found)
    keep = as_routed(head.probability, tau)

    def make_flow(trace: Trace) -> Flow:
        return (
            collect(trace, keep, lambda state: None)
            if is_rated
            else routed.flow(trace, tau, 0, router, stops_early=wanted.stops_early)
        )

    rater = make_rater(policy, backends, prm_style=wanted.prm_style)
    scheduler = Scheduler(engines, make_flow, wanted.limits, rater=rater)
    events = stack.enter_context(contextlib.closing(scheduler.run([problem])))
    (finished,) = (event for event in events if isinstance(event, Finished))
    if finished.error is not None:
        raise finished.error
    return finished.trace


def _problem(text: str) -> Problem:
    try:
        return make_problem(text, "1")
    except ValueError as error:
        raise UsageError(str(error), 'for example: arbitrage explain "What is 37 * 12 - 95?"') from error


def _explain_solution(trace: Trace, head: "Head", tau: float, top: int, *, as_json: bool) -> None:
    from arbitrage_cli.routing.explain import explain_solution

    explanations = explain_solution(head, trace, tau)
    if as_json:
        _write_json(explanations, {"id": trace.problem.id, "head": head.card.name})
        return
    lines = [f"head {one_line(head.card.name)}, tau = {tau:.4g}", ""]
    lines += [line for one in explanations for line in _step_lines(one, top)]
    known = [one for one in explanations if one.judgement]
    if known:
        lines += ["", _oracle_words(known)]
    write(sys.stdout, "".join(f"{line}\n" for line in lines))


# --- a run


def _explain_run(folder: Path, head: "Head", tau: float, ids: str | None, top: int, *, as_json: bool) -> None:
    from arbitrage_cli.routing.explain import group

    problems = dict(_explained(folder, head, tau))
    chosen = list(problems) if ids is None else [name.strip() for name in ids.split(",")]
    unknown = [name for name in chosen if name not in problems]
    if unknown:
        raise UsageError(
            f"{folder}: no problem has the id '{unknown[0]}'", f"ids of this run: {', '.join([*problems][:5])} ..."
        )
    if as_json:
        for name in chosen:
            _write_json(problems[name], {"id": name, "head": head.card.name})
        return
    everything = [one for name in chosen for one in problems[name]]
    lines = [f"head {one_line(head.card.name)}, tau = {tau:.4g}", _oracle_words(everything), ""]
    for part in group(everything):
        lines.append(f"{part.judgement}: {part.count} steps, regret {part.regret:.2f} ({MEANING[part.judgement]})")
        lines += _part_lines(part.parts, top)
    for name in chosen if ids is not None else ():
        lines += ["", f"problem {one_line(name)}", *(line for one in problems[name] for line in _step_lines(one, top))]
    write(sys.stdout, "".join(f"{line}\n" for line in lines))


def _explained(folder: Path, head: "Head", tau: float) -> Iterator[tuple[str, "list[Explanation]"]]:
    """The problems of a run of `arbitrage collect`, by their ids."""
    from arbitrage_cli.routing.explain import explain_states
    from arbitrage_cli.training.examples import recorded

    run, rows = recorded(folder)
    head.check(run["models"]["draft"], head.card.hidden_size)
    for identifier, states in rows:
        try:
            yield identifier, explain_states(head, run["features"], states, tau)
        except ValueError as error:
            raise UsageError(
                f"{folder}: this head cannot be asked about this run ({error})", "give another --head"
            ) from error


# --- words


def _step_lines(one: "Explanation", top: int) -> Iterator[str]:
    verdict, sign = ("escalated", ">") if one.is_escalated else ("accepted", "<=")
    text = "" if one.text is None else f"  {one_line(one.text)}" + (" (stopped early)" if one.is_stopped else "")
    yield f"{one.position + 1:3}  {verdict:<9}  P {one.probability:.3f} {sign} {one.tau:.3f}{text}"
    yield from _part_lines(one.parts, top)
    if one.judgement is not None:
        regret = f", regret {one.regret:.2f}" if one.regret else ""
        yield f"     oracle: advantage {one.advantage:+.2f}, {one.judgement}: {MEANING[one.judgement]}{regret}"


def _part_lines(parts: Sequence[tuple[str, float]], top: int) -> Iterator[str]:
    words = ", ".join(f"{name} {part:+.2f}" for name, part in parts[:top])
    yield from textwrap.wrap(words, WIDTH, initial_indent="     ", subsequent_indent="     ")


def _oracle_words(explanations: "Sequence[Explanation]") -> str:
    """Calls, those wasted, improvements missed, and regret per step."""
    calls = sum(one.is_escalated for one in explanations)
    counts = {name: sum(one.judgement == name for one in explanations) for name in MEANING}
    regret = sum(one.regret or 0.0 for one in explanations) / max(1, len(explanations))
    return (
        f"{len(explanations)} steps: {calls} escalated, {counts['wasted']} of them for nothing; "
        f"{counts['missed']} of {counts['missed'] + counts['improved']} improvements missed; regret {regret:.4f} a step"
    )


def _write_json(explanations: "Sequence[Explanation]", about: Mapping[str, Any]) -> None:
    for one in explanations:
        record = {
            **about,
            "position": one.position,
            "decision": "escalate" if one.is_escalated else "accept",
            "probability": one.probability,
            "tau": tau_in_json(one.tau),
            "parts": dict(one.parts),
            "text": one.text,
            "stopped_early": one.is_stopped,
            "advantage": one.advantage,
            "judgement": one.judgement,
            "regret": one.regret,
        }
        write(sys.stdout, json.dumps(record, ensure_ascii=True, allow_nan=False) + "\n")

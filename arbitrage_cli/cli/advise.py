"""`arbitrage advise`: recommends a policy for a pair on this machine."""

import shlex
import sys
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from arbitrage_cli.app import options
from arbitrage_cli.cli.command import Invocation, command
from arbitrage_cli.cli.output import command_display, say, write_json
from arbitrage_cli.cli.permission import permitted
from arbitrage_cli.cli.streams import only_figures_on_stdout
from arbitrage_cli.errors import UsageError
from arbitrage_cli.numbers import formatting
from arbitrage_cli.system.machine import total_memory

if TYPE_CHECKING:
    from arbitrage_cli.app.advise import Advice
    from arbitrage_cli.model_files.pairs import PairEntry


@command
def advise(
    invocation: Invocation,
    *,
    advice: options.AdviceOptions,
    models: options.RouterOptions,
    generation: options.GenerationOptions,
    machine: options.ThreadOptions,
    json_line: options.JsonFigures = False,
    output: options.OutputOptions,
) -> int:
    """Find out whether a pair is worth using on this machine, and with which policy.

    Measures token costs first. Then solves up to 40 problems with the target alone, the draft alone, speculation and routing,
    until the answer is clear or the time limit is reached. The answer includes a confidence. Other commands use the token
    costs, and follow the last advice by default. To add problems, repeat the command. Without a pair or models, propose pairs
    of the models of Ollama, LM Studio and llama.cpp on this machine, or advise on the built-in pair if there are none.

    \b
    Examples:
      arbitrage advise
      arbitrage advise --pair mine --dataset questions.jsonl --save
      arbitrage advise --draft small.gguf --target large.gguf --minutes 30
      arbitrage advise --costs --pair qwen2.5-coder
    """
    if advice.costs or advice.forget:
        return _costs(invocation, advice, models, machine, output, as_json=json_line)
    if not (models.pair or models.draft or models.target) and _propose(invocation, as_json=json_line):
        return 0
    from arbitrage_cli.app import advise as app  # slow to import
    from arbitrage_cli.app.request import RunOptions
    from arbitrage_cli.display.advice import write_advice
    from arbitrage_cli.problems.tasks import find_task

    with command_display(output) as display, only_figures_on_stdout():
        selected = app.advice_problems(advice, seed=generation.seed, offline=models.offline)
        if not advice.dataset:
            display.remind("using built-in problems; to use your own, add --dataset FILE, with one question per line")
        task = permitted(find_task(generation.task or selected.dataset.task), advice.run_code)
        loading = options.MachineOptions(**asdict(machine))
        run_options = RunOptions(models, generation, loading, task, invocation.flags, invocation.command)
        request = app.request_of(run_options, selected, advice)
        result = app.advise(request, display)
    if json_line:
        write_json(result.figures)
    else:
        write_advice(result, sys.stdout)
    if result.num_errors:
        say(f"{formatting.count(result.num_errors, 'error')} (the same command retries)", output)
    if advice.save and request.asked.named.pair:
        say(_save(result, request.asked.named.pair, models.router), output)
    return options.SOME_FAILED if result.num_errors and not result.is_measured else 0


def _propose(invocation: Invocation, *, as_json: bool) -> bool:
    """Show commands that test pairs of the models on this machine. Return whether there are such pairs."""
    from arbitrage_cli.app.found_models import found_models, propose_pairs  # slow to import
    from arbitrage_cli.display.advice import write_proposals

    pairs = propose_pairs(found_models(), total_memory())
    commands = [shlex.join([*invocation.command, "--draft", draft, "--target", target]) for draft, target in pairs]
    if commands and as_json:
        write_json({"proposals": commands})
    elif commands:
        write_proposals(commands, sys.stdout)
    return bool(commands)


def _save(advice: "Advice", pair: "PairEntry", router: str | None) -> str:
    """Save the advice in the pair's entry, and return a message for the user."""
    from arbitrage_cli.app.advise import save_advice

    path = save_advice(advice, pair, router)
    return f"saved in {path}: pair {pair.name} uses policy {advice.policy}" + (f" at {advice.tau}" if advice.tau else "")


def _costs(
    invocation: Invocation,
    advice: options.AdviceOptions,
    models: options.RouterOptions,
    loading: options.ThreadOptions,
    output: options.OutputOptions,
    *,
    as_json: bool,
) -> int:
    """Measure and show token costs, or delete them. Raises UsageError if a flag has no effect on token costs."""
    from arbitrage_cli.app.costs import forget_costs, measure_costs  # slow to import
    from arbitrage_cli.app.model_choice import choose_models
    from arbitrage_cli.display.advice import costs_record, write_costs
    from arbitrage_cli.problems.tasks import find_task

    mode = "costs" if advice.costs else "forget"
    groups = (options.RouterOptions, options.ThreadOptions, options.OutputOptions)
    used = {field.name for group in groups for field in fields(group)} | {mode, "json_line"}
    if unused := sorted(invocation.flags - used):
        raise UsageError(f"has no effect with --{mode}", "leave it out", option=unused[0])
    named = choose_models(invocation.flags, models, loading, find_task(None))
    if mode == "forget":
        say(f"removed {formatting.count(forget_costs(named), 'measurement')} of these models", output)
        return 0
    with command_display(output) as display, only_figures_on_stdout():
        measured = measure_costs(named, display, offline=models.offline)
    if as_json:
        write_json(costs_record(measured))
    else:
        write_costs(measured, sys.stdout)
    return 0

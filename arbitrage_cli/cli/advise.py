"""`arbitrage advise`: recommends a policy for a pair on this machine."""

import contextlib
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from arbitrage_cli.app.commands.model_info import found_models, propose_pairs
from arbitrage_cli.app.options import SOME_FAILED, AdviceOptions, Options
from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.options import SHARED, Option
from arbitrage_cli.cli.output import OutputOptions, command_display, say, write_json
from arbitrage_cli.cli.streams import only_figures_on_stdout
from arbitrage_cli.errors import PairNotSavedError, UsageError
from arbitrage_cli.model_files.own_pairs import own_file
from arbitrage_cli.numbers import formatting
from arbitrage_cli.system.machine import total_memory

if TYPE_CHECKING:
    from arbitrage_cli.app.commands.advise import Advice


@command(
    without=["policy", "tau", "prm", "concurrency"],
    dataset=Option(
        "Problems similar to yours: a data set or a file of questions. Default: the built-in problems.", "NAME|FILE"
    ),
    minutes=Option("Time limit in minutes, including loading and the measurement of token costs.", "MINUTES"),
    save=Option(
        "If there is a verdict, add the models, their settings and the recommended policy to pairs.toml, as a pair with this "
        "name, which other commands use with --pair NAME.",
        "NAME",
        is_setting=False,
    ),
    costs=Option("Only measure and show token costs.", is_setting=False),
)
def advise(
    *,
    advice: AdviceOptions,
    json_line: bool = False,
    options: Options,
    output: OutputOptions,
) -> int:
    """Find out whether a pair is worth using on this machine, and with which policy.

    Measures token costs first. Then solves up to 40 problems with the target alone, the draft alone, speculation, routing and
    policy agree, until the verdict is final or the time limit is reached. The verdict has a confidence. To add problems, repeat
    the command. Without a pair or models, the command proposes pairs of the models in 'arbitrage models list'. Without such
    models, it measures the built-in pair.

    \b
    Examples:
      arbitrage advise
      arbitrage advise --draft small.gguf --target large.gguf --dataset questions.jsonl --save mine
      arbitrage advise --pair llama3 --minutes 30
      arbitrage advise --costs --pair llama3
    """
    if advice.costs:
        return _costs(options, output, as_json=json_line)
    names_models = options.pair or options.draft or options.target or _continues(advice)
    if not names_models and _propose(options, as_json=json_line):
        return 0
    from arbitrage_cli.app.entries.ask_advice import advise_pair  # slow to import
    from arbitrage_cli.display.table import write_advice

    with _showing_lines(), command_display(output) as display, only_figures_on_stdout():
        result = advise_pair(options, advice, display)
    if json_line:
        write_json(result.figures.to_json())
    else:
        write_advice(result, sys.stdout)
    if result.num_errors:
        say(f"{formatting.count(result.num_errors, 'error')} (the same command retries)", output)
    if advice.save:
        _show_saved(result, output)
    target = result.figures.policies[0]
    return SOME_FAILED if target.errors == target.num_made > 0 else 0


@contextlib.contextmanager
def _showing_lines() -> Iterator[None]:
    """If a pair cannot be saved, print its table before the error."""
    try:
        yield
    except PairNotSavedError as error:
        typer.echo("\n".join(error.lines), err=True)
        raise


def _show_saved(result: "Advice", output: OutputOptions) -> None:
    """Report the pair that was saved, or why none was saved. Raises PairNotSavedError if the file could not be written."""
    if result.not_saved:
        with _showing_lines():
            raise result.not_saved
    if result.saved:
        say(f"pair {result.saved.name} was added to {own_file()}", output)
    elif result.is_approximate:
        reason = "the verdict follows from token costs whose measurement other programs disturbed"
        say(f"no pair was saved, because {reason}; repeat the command on an idle machine", output)
    else:
        more = f"; use --minutes {result.minutes:g}" if result.minutes else ""
        say(f"no pair was saved, because there is no verdict yet{more}", output)


def _continues(advice: AdviceOptions) -> bool:
    """Return whether the folder has a run to continue, which names models. Raises the same errors as `run_to_resume`."""
    from arbitrage_cli.runs.folder import run_to_resume  # imports NumPy
    from arbitrage_cli.runs.records import ADVISE

    return bool(advice.output_folder and not advice.fresh and run_to_resume(advice.output_folder, ADVISE))


def _propose(options: Options, *, as_json: bool) -> bool:
    """Show commands that test pairs of the models on this machine. Return whether there are such pairs."""
    from arbitrage_cli.display.table import write_proposals

    pairs = propose_pairs(found_models(), total_memory())
    commands = [shlex.join([*options.command, "--draft", draft, "--target", target]) for draft, target in pairs]
    if commands and as_json:
        write_json({"proposals": commands})
    elif commands:
        write_proposals(commands, sys.stdout)
    return bool(commands)


def _costs(options: Options, output: OutputOptions, *, as_json: bool) -> int:
    """Measure and show token costs. Raises UsageError if a flag has no effect on them."""
    from arbitrage_cli.app.asking.naming import choose_models  # slow to import
    from arbitrage_cli.app.deciding.prepare import measure_costs
    from arbitrage_cli.display.table import write_costs
    from arbitrage_cli.problems.tasks import find_task

    used = {*SHARED["Models"], *SHARED["Machine"], "quiet", "debug", "config", "json_line", "costs"}
    if unused := sorted(options.explicit - used):
        raise UsageError("has no effect with --costs", "omit this option", option=unused[0])
    named = choose_models(options, find_task(None))
    with command_display(output) as display, only_figures_on_stdout():
        measured = measure_costs(named, display, offline=options.offline)
    if as_json:
        write_json({role: asdict(model) for role, model in measured.items()})
    else:
        write_costs(measured, sys.stdout)
    return 0

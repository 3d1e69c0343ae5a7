"""`arbitrage collect`: collects states for training a router."""

import contextlib
import shlex

from arbitrage_cli.app import options
from arbitrage_cli.app.protocol import offering_to_resume
from arbitrage_cli.cli.command import Invocation, command
from arbitrage_cli.cli.output import command_display, say
from arbitrage_cli.cli.permission import permitted
from arbitrage_cli.numbers import formatting


@command
def collect(
    invocation: Invocation,
    *,
    problems: options.ProblemOptions,
    collect: options.CollectOptions,
    place: options.FolderOptions,
    models: options.ModelOptions,
    generation: options.GenerationOptions,
    machine: options.MachineOptions,
    output: options.OutputOptions,
) -> int:
    """Collect states to train a router on.

    Both models write every step, and both versions are scored. A state contains the draft's token statistics for a step, and
    how much better the target's step scores. The same command resumes an interrupted run.

    \b
    Examples:
      arbitrage collect --dataset builtin-dev -o runs/states
      arbitrage collect --pair mine --dataset train.jsonl --reward rollout -o runs/states
    """
    from arbitrage_cli.app.collect_run import Collection
    from arbitrage_cli.app.request import RunOptions, ask_to_collect
    from arbitrage_cli.app.selection import default_folder, read_problems
    from arbitrage_cli.app.session import open_session
    from arbitrage_cli.app.stored_run import open_run
    from arbitrage_cli.problems.tasks import find_task
    from arbitrage_cli.runs.records import COLLECT

    with contextlib.ExitStack() as stack:
        display = stack.enter_context(command_display(output))
        selected = read_problems(problems, seed=generation.seed, offline=models.offline, needs_answers=False)
        task = permitted(find_task(generation.task or selected.dataset.task), problems.run_code)
        run_options = RunOptions(models, generation, machine, task, explicit=invocation.flags, command=invocation.command)
        request = ask_to_collect(run_options, collect)
        path = place.output_folder or default_folder(selected.dataset.name, request.named.names, prefix="collect-")
        folder = stack.enter_context(open_run(path, display, kind=COLLECT, fresh=place.fresh))
        session = stack.enter_context(open_session(request, display, folder.earlier))
        collection = Collection(session, selected, folder, collect, display)
        with offering_to_resume(display, lambda error: collection.how_to_resume):
            collection.run()
        display.close()
    name = shlex.quote(str(path))
    status = "" if collection.has_grown else "nothing to do: "
    found = f"{formatting.count(collection.num_states, 'state')} from {formatting.count(collection.num_problems, 'problem')}"
    say(f"{status}{name} has {found}; to train a router: arbitrage train {name} -o router.safetensors", output)
    return options.SOME_FAILED if collection.has_errors else 0

"""`arbitrage collect`: collects states for training a router."""

import contextlib
import shlex

from arbitrage_cli.app.options import SOME_FAILED, CollectOptions, Options, ProblemOptions
from arbitrage_cli.app.protocol import offering_to_resume
from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.options import Option
from arbitrage_cli.cli.output import OutputOptions, command_display, permitted, say
from arbitrage_cli.numbers import formatting


@command(
    without=["policy", "tau", "early_stop", "check"],
    reward=Option(
        "Source of step rewards: prm (a process reward model, the default) or rollout (whether the target's "
        "continuation of the step reaches the known answer; if no answer is known, the target's own answer)."
    ),
    rollouts=Option("Rollouts per step. A single rollout is greedy; multiple rollouts are sampled."),
)
def collect(
    *,
    problems: ProblemOptions,
    collect: CollectOptions,
    options: Options,
    output: OutputOptions,
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
    from arbitrage_cli.app.request import ask_to_collect
    from arbitrage_cli.app.selection import default_folder, read_problems
    from arbitrage_cli.app.session import open_session
    from arbitrage_cli.problems.tasks import find_task
    from arbitrage_cli.runs.folder import RunFolder
    from arbitrage_cli.runs.records import COLLECT

    with contextlib.ExitStack() as stack:
        display = stack.enter_context(command_display(output))
        selected = read_problems(problems, seed=options.seed, offline=options.offline, needs_answers=False)
        task = permitted(find_task(options.task or selected.dataset.task), problems.run_code)
        request = ask_to_collect(options, task, collect)
        path = collect.output_folder or default_folder(selected.dataset.name, request.named.names, prefix="collect-")
        folder = stack.enter_context(RunFolder(path, kind=COLLECT, fresh=collect.fresh))
        session = stack.enter_context(
            open_session(request, display, folder.earlier, most=len(selected.items), rollouts=collect.rollouts)
        )
        collection = Collection(session, selected, folder, collect, display)
        with offering_to_resume(display, lambda error: collection.how_to_resume):
            collection.run()
        display.close()
    name = shlex.quote(str(path))
    status = "" if collection.todo else "nothing to do: "
    found = f"{formatting.count(collection.num_states, 'state')} from {formatting.count(len(collection.held), 'problem')}"
    say(f"{status}{name} has {found}; to train a router: arbitrage train {name} -o router.safetensors", output)
    return SOME_FAILED if collection.num_errors else 0

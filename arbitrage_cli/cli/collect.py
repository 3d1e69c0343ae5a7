"""`arbitrage collect`: states to train a head on, from a data set and a pair of models."""

import shlex
from dataclasses import dataclass, replace
from typing import Annotated

from arbitrage_cli.app.options import (
    SOME_FAILED,
    Fresh,
    GenerationOptions,
    Invocation,
    MachineOptions,
    ModelOptions,
    OutputOptions,
    ProblemOptions,
    RewardSource,
    RunFolderPath,
    option,
)
from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.output import command_display, say

_PANEL = "Collect"


@dataclass(frozen=True, slots=True)
class CollectOptions:
    """How steps are rated."""

    reward: Annotated[
        RewardSource | None,
        option(
            _PANEL,
            "--reward",
            help="How good a step is: a process reward model, or whether the target reaches the right answer from there: the "
            "known one, or its own if none is known. Default: the process reward model.",
        ),
    ] = None
    rollouts: Annotated[
        int, option(_PANEL, "--rollouts", min=1, max=16, help="Continuations of each step: one is greedy, more are sampled.")
    ] = 1
    rollout_temperature: Annotated[
        float, option(_PANEL, "--rollout-temperature", min=0.01, max=10.0, help="Temperature of more than one rollout.")
    ] = 0.7


@command
def collect(
    invocation: Invocation,
    *,
    problems: ProblemOptions,
    collect: CollectOptions,
    output_folder: RunFolderPath = None,
    fresh: Fresh = False,
    models: ModelOptions,
    generation: GenerationOptions,
    machine: MachineOptions,
    output: OutputOptions,
) -> int:
    """Collect states to train a head on: both models write every step, and both steps are rated.

    A state is what the draft computed while it wrote a step, and how much better the target's step is. The same command resumes
    a run that was broken off.

    \b
    Examples:
      arbitrage collect --dataset builtin-dev -o runs/states
      arbitrage collect --pair mine --dataset train.jsonl --reward rollout -o runs/states
    """
    from arbitrage_cli.app.selection import default_folder, read_problems
    from arbitrage_cli.app.setup import RunOptions, collect_setup
    from arbitrage_cli.cli.collect_run import CollectPlan, run_collection
    from arbitrage_cli.cli.running_code import permitted

    with command_display(output) as display:
        selected = read_problems(problems, seed=generation.seed, offline=models.offline, needs_answers=False)
        task = selected.dataset.task
        setup = collect_setup(RunOptions(invocation, models, generation, machine, task), collect.reward)
        setup = replace(setup, task=permitted(setup.task, problems.run_code))
        path = output_folder or default_folder(selected.dataset.name, setup.choice, prefix="collect-")
        plan = CollectPlan(selected, path, collect, fresh=fresh)
        collected = run_collection(setup, plan, display)
        display.close()
    folder = shlex.quote(str(path))
    begins = f"{folder} has" if collected.has_grown else f"nothing to do: {folder} has"
    found = f"{collected.num_states} states of {collected.num_problems} problems"
    say(f"{begins} {found}; to train on them: arbitrage train {folder} -o head.safetensors", output)
    return SOME_FAILED if collected.has_errors else 0

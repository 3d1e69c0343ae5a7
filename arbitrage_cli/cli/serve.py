"""`arbitrage serve`: an OpenAI-compatible server for a pair."""

from arbitrage_cli.app import options
from arbitrage_cli.cli.command import Invocation, command
from arbitrage_cli.cli.output import command_display
from arbitrage_cli.errors import UsageError


@command
def serve(
    invocation: Invocation,
    *,
    server: options.ServerOptions,
    models: options.RouterOptions,
    routing: options.RoutingOptions,
    generation: options.SamplingOptions,
    machine: options.MachineOptions,
    output: options.OutputOptions,
) -> None:
    """Serve a pair over OpenAI's chat API.

    Concurrent requests are computed in one batch. The model name of a request selects the policy: arbitrage, arbitrage@fast,
    arbitrage@0.2, target, draft, entropy@1, ... The address is printed to standard output. After Ctrl-C or SIGTERM, the
    server finishes open requests; a second signal aborts them.

    \b
    Examples:
      arbitrage serve --pair qwen2.5-coder
      arbitrage serve --port 9000 --concurrency 16 --tau balanced
    """
    try:
        from arbitrage_cli.app.serve import serve_pair
    except ImportError as error:
        reason = f"arbitrage serve needs libraries that are not installed ({error})"
        raise UsageError(reason, 'install them: pip install "starlette>=1.0.1" "uvicorn>=0.40"') from error
    from arbitrage_cli.app.request import RunOptions, ask
    from arbitrage_cli.problems.tasks import find_task

    task = find_task(generation.task)
    run_options = RunOptions(models, generation, machine, task, explicit=invocation.flags, command=invocation.command)
    with command_display(output) as display:
        serve_pair(ask(run_options, routing, loads="both", concurrency="8"), server, display)

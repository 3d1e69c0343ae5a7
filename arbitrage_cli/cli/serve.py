"""`arbitrage serve`: an OpenAI-compatible server for a pair."""

from arbitrage_cli.app.options import KEY_VARIABLE, Options, ServerOptions
from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.options import Option
from arbitrage_cli.cli.output import OutputOptions, command_display


@command(
    without=["prm"],
    host=Option("Address to listen on.", "ADDRESS"),
    port=Option("Port to listen on; 0 selects a free port.", "PORT"),
    no_api_key=Option(f"Allow other machines to connect without an API key, which is otherwise read from {KEY_VARIABLE}."),
    queue=Option("Maximum number of waiting requests; if models are on servers, for each server.", "N"),
    timeout=Option("Time limit per request, in seconds.", "SECONDS"),
    upstream_timeout=Option("Time for which a model's server may send nothing, in seconds.", "SECONDS"),
)
def serve(*, server: ServerOptions, options: Options, output: OutputOptions) -> None:
    """Serve a pair over OpenAI's chat API.

    Concurrent requests are computed in one batch. The model name of a request selects the policy: arbitrage, arbitrage@fast,
    arbitrage@0.2, target, draft, entropy@1, ... The address is printed to standard output. After Ctrl-C or SIGTERM, the
    server finishes open requests; a second signal aborts them.

    \b
    Examples:
      arbitrage serve --pair llama3
      arbitrage serve --port 9000 --concurrency 16 --tau balanced
    """
    from arbitrage_cli.app.asking.request import ask
    from arbitrage_cli.app.calls.serve import serve_pair
    from arbitrage_cli.app.entries.start import session_of
    from arbitrage_cli.problems.tasks import find_task

    with command_display(output) as display:
        request = ask(options, find_task(options.task), use="serve", concurrency=8)
        draws_seeds = options.seed == Options.seed and "seed" not in options.explicit
        serve_pair(session_of(request, server.upstream_timeout), server, display, draws_seeds=draws_seeds)

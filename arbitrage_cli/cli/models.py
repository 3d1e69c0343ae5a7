"""`arbitrage models`: lists pairs, downloads models, and describes models and routers."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from arbitrage_cli.app.commands import model_info
from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.options import Option
from arbitrage_cli.cli.output import OutputOptions, command_display, write_json
from arbitrage_cli.display import model_facts
from arbitrage_cli.display.text import one_line, width_of, wrapped
from arbitrage_cli.errors import UsageError
from arbitrage_cli.model_files import hub
from arbitrage_cli.model_files.checksums import identify
from arbitrage_cli.model_files.pairs import user_pairs

Name = Annotated[str, typer.Argument(metavar="NAME", help="Pair, or user/repo[:quant] on the Hub.")]
AS_JSON = Option("Print JSON.", names=("--json",))


def make_group() -> typer.Typer:
    group = typer.Typer(no_args_is_help=True, help="List, download and inspect models.")
    for name, function in {"list": list_pairs, "pull": pull, "info": info}.items():
        group.command(name)(function)
    return group


@command(json_line=AS_JSON)
def list_pairs(*, json_line: bool = False, debug: bool = False) -> None:
    """List pairs, and models on this machine.

    Shows the sizes of the pairs' models, and the models of Ollama, LM Studio and the Hub's cache. Use a listed model by its
    name, for example with --draft.
    """
    for error in user_pairs().broken.values():
        typer.echo(f"{one_line(error.message)}\n  {error.hint}", err=True)
    for pair in user_pairs().values():
        models = model_info.pair_models(pair)
        if json_line:
            by_role = {model["role"]: {key: model[key] for key in ("model", "here", "bytes")} for model in models}
            write_json({"pair": pair.name, "notes": pair.notes, "ctx": pair.ctx, **by_role})
        else:
            title = one_line(f"{pair.name}: {pair.notes}" if pair.notes else pair.name)
            typer.echo("\n".join([*wrapped(title, width_of(sys.stdout)), *map(model_facts.pair_line, models)]))
    found = list(model_info.found_models())
    if json_line:
        for model in found:
            write_json(model)
    elif found:
        typer.echo("\n".join(["", *model_facts.found_lines(found)]))


@command(
    dry_run=Option("Show the files and their sizes, but download nothing.", is_setting=False),
    offline=Option("Never contact the Hub."),
)
def pull(name: Name, *, dry_run: bool = False, offline: bool = False, output: OutputOptions) -> None:
    """Download a pair or a model from the Hub.

    Downloads the current files from the Hugging Face Hub. If a connection breaks, the download resumes. If the command is
    stopped, the next one downloads the file from the beginning.

    \b
    Examples:
      arbitrage models pull llama3 --dry-run
      arbitrage models pull user/repo:Q4_K_M
    """
    names = model_info.names_to_fetch(name)
    if dry_run:
        files = dict.fromkeys(file for model in names for file in hub.preview(model, offline=offline))
        typer.echo("\n".join(model_facts.download_lines([asdict(file) for file in files])))
        return
    with command_display(output) as display:
        paths = [path for model in names for path in hub.fetch(model, offline=offline, on_progress=display.fetching)]
    for path in paths:
        typer.echo(one_line(str(path)))
    if not paths:
        typer.echo(f"{one_line(name)}: nothing to download", err=True)


@command(json_line=AS_JSON)
def info(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Pairs, models or routers.")],
    *,
    json_line: bool = False,
    debug: bool = False,
) -> None:
    """Describe and verify models, or show a router.

    The sha256 of each file is compared with the expected one: published on the Hub, shipped with the program, or recorded
    when the file was first used. If they differ, the exit code is 3. For a router (a .safetensors file, or a name such as
    builtin:universal), shows its card.

    \b
    Examples:
      arbitrage models info llama3
      arbitrage models info small.gguf large.gguf
      arbitrage models info router.safetensors
    """
    routers = [router for name in names if (router := model_info.router_named(name))]
    if routers and len(routers) < len(names):
        raise UsageError("routers and models cannot be combined", "use separate commands")
    for router in routers:
        _show_router(router, as_json=json_line)
    if not routers:
        _show_models(names, as_json=json_line)


def _show_router(source: str, *, as_json: bool) -> None:
    from arbitrage_cli.display.card import write_card  # with NumPy

    card = model_info.describe_router(source)
    if as_json:
        write_json(card)
        return
    origin = ", ships with arbitrage" if card["origin"] == "shipped" else ""
    write_card(card, sys.stdout, sha256=f"{card['sha256']}{origin}")


def _show_models(names: list[str], *, as_json: bool) -> None:
    """Show facts about model files, then the files' checksums, which take longer to compute."""
    record = model_info.describe_models(names)
    models = record["models"]
    if not as_json:
        for model in models:
            typer.echo(model_facts.block(model["model"], model_facts.file_facts(model)))
        title = "together" if len(models) > 1 else "this machine"
        bounds = model_info.pair_bounds(names[0]) if len(names) == 1 else []
        typer.echo(model_facts.block(title, [model_facts.together(record), *map(model_facts.bound_fact, bounds)]))
    with command_display(OutputOptions(quiet=as_json)) as display:
        identities = [identify(Path(file), display.fetching) for model in models for file in model["files"]]
    if as_json:
        files = [{**asdict(identity), "path": str(identity.path)} for identity in identities]
        write_json({**record, "files": files})
    else:
        typer.echo(model_facts.block("sha256", map(model_facts.identity_fact, identities)))
    for identity in identities:
        identity.check()

"""Options that the programs of this folder share: models, head and policies."""

import argparse

from arbitrage_cli.app.policy_lists import make_routes, read_policies
from arbitrage_cli.model_files.pairs import Pair, find_pair, head_file, read_pairs
from arbitrage_cli.routing.head import Head
from arbitrage_cli.routing.head_file import load
from arbitrage_cli.routing.route import Route
from arbitrage_cli.system.files import user_folder


def add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pair", default="builtin")
    for name in ("--draft", "--target", "--head"):
        parser.add_argument(name, help="default: the pair's")


def chosen_pair(arguments: argparse.Namespace) -> Pair:
    """The pair of that name. If draft or target is replaced, its head and system prompt no longer apply."""
    pair = find_pair(arguments.pair, read_pairs(user_folder() / "pairs.toml"))
    if arguments.draft or arguments.target:
        return Pair("", arguments.draft or pair.draft, arguments.target or pair.target)
    return pair


def chosen_head(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    """The file of --head, else the pair's own. Ends the program if there is neither."""
    source: str | None = arguments.head or chosen_pair(arguments).head
    if not source:
        parser.error("these models have no head: give --head FILE")
    return source


def chosen_columns(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, policies: str
) -> tuple[list[Route], Head | None]:
    """Policies with their taus, written as for `arbitrage bench`, and the head if one of them needs it.

    Ends the program if a policy needs rewards.
    """
    head = load(head_file(chosen_head(parser, arguments))) if "arbitrage" in policies else None
    columns = make_routes(read_policies(policies), head, None)
    if any(column.policy.reward for column in columns):
        parser.error("policies that need rewards (rsd, judge, oracle) are not supported here")
    return columns, head

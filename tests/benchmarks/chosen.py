"""The models, the head and the policies that a benchmark is asked for on its command line."""

import argparse

from arbitrage_cli.cli.asked import parse_columns
from arbitrage_cli.evaluation.benchmark import PolicyAtTau
from arbitrage_cli.model_files.pairs import Pair, find_pair, head_file, read_pairs
from arbitrage_cli.routing.head import Head, load
from arbitrage_cli.system.paths import user_folder


def add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pair", default="builtin")
    for name in ("--draft", "--target", "--head"):
        parser.add_argument(name, help="default: the pair's")


def chosen_pair(arguments: argparse.Namespace) -> Pair:
    """The pair; with another draft or target, one without a head and a system prompt of its own, which are for both models."""
    pair = find_pair(arguments.pair, read_pairs(user_folder() / "pairs.toml"))
    if arguments.draft or arguments.target:
        return Pair("", arguments.draft or pair.draft, arguments.target or pair.target)
    return pair


def chosen_head(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    """The head that was named, else the pair's. Ends the program if there is none."""
    source: str | None = arguments.head or chosen_pair(arguments).head
    if not source:
        parser.error("no head is known for these models: give --head")
    return source


def chosen_columns(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, policies: str
) -> tuple[list[PolicyAtTau], Head | None]:
    """Policies at their taus, as `arbitrage bench` names them, and the head if one of them needs it.

    Ends the program for one that needs rewards, which nothing gives here.
    """
    head = load(head_file(chosen_head(parser, arguments))) if "arbitrage" in policies else None
    columns = parse_columns(policies, None, head)
    if any(column.policy.reward for column in columns):
        parser.error("policies that need rewards are not measured here")
    return columns, head

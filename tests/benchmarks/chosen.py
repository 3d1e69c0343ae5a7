"""The models and the head that a benchmark is asked for on its command line, named as arbitrage names them."""

import argparse

from arbitrage_cli.pairs import Pair, find_pair, read_pairs


def add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pair", default="builtin")
    for name in ("--draft", "--target", "--head"):
        parser.add_argument(name, help="default: the pair's")


def chosen_pair(arguments: argparse.Namespace) -> Pair:
    """The pair; with another draft or target, one without a head and a system prompt of its own, which are for both models."""
    pair = find_pair(arguments.pair, read_pairs())
    if arguments.draft or arguments.target:
        return Pair("", arguments.draft or pair.draft, arguments.target or pair.target)
    return pair


def chosen_head(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    """The head that was named, else the pair's. Ends the program if there is none."""
    source: str | None = arguments.head or chosen_pair(arguments).head
    if not source:
        parser.error("no head is known for these models: give --head")
    return source

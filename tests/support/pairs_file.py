"""Pairs in a file of the user."""

from pathlib import Path

from arbitrage_cli.model_files.pairs import KEYS, PairEntry, toml_lines


def add_pair(path: Path, pair: PairEntry) -> None:
    """Append a pair to the file, which is created if it does not exist."""
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("\n".join([*toml_lines(pair, KEYS), ""]))

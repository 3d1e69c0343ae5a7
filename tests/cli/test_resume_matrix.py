"""A run that continues is the run that began: wherever its models lie now, and whatever settings, variables and pairs say today.

A cell is one way to stop and continue a command. The cells contain all pairs of circumstances, and each option in each way with
each command. A run ends with each of its
rows once and with the texts of an uninterrupted run, or with one error that names what the user changed.
"""

import itertools
import json
import shutil
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cli import Result, run
from fake_server import HashServer, on_loopback
from faults import rows_of, run_json, write_problems
from made_up_tuning import make_tuned, unit_costs

from arbitrage_cli.costs.store import Loading, keep_tuned, machine_here
from arbitrage_cli.model_files.checksums import sha256_of

PLACES = ("same", "moved", "renamed", "another folder", "another file at the old place")
WAYS = ("typed", "settings", "variable", "pair", "nothing")
COMMANDS = ("solve", "bench", "collect", "advise")
STOPS = (0, 2, -1)  # rows that are left; -1: all
OPTIONS = ("seed", "limit", "samples", "temperature", "concurrency", "check", "target")
QUESTIONS = ("31 + 12", "5 * 7", "14 - 9 + 3", "27 + 2 * 6", "63 - 8", "9 * 4")
ADDED = ("41 + 2", "6 * 6", "80 - 7", "12 + 3 * 5", "54 - 9", "8 * 7", "23 + 39", "3 * 9")  # while the run is stopped

BEGUN: Mapping[str, Any] = {"seed": 7, "limit": 3, "samples": 2, "temperature": 0.7, "concurrency": 2, "reward": "rollout"}
NOW: Mapping[str, Any] = {"seed": 8, "limit": 5, "samples": 3, "temperature": 0.9, "concurrency": 3, "reward": "prm"}
HAVE: Mapping[str, Sequence[str]] = {  # the options of each command
    "solve": ("seed", "temperature", "concurrency", "check", "target"),
    "bench": (*OPTIONS, "reward"),
    "collect": ("seed", "limit", "temperature", "concurrency", "target", "reward"),
    "advise": ("seed", "temperature", "check", "target"),
}


@dataclass(frozen=True)
class Cell:
    """How a run is stopped, and what has changed when it continues: the place of its draft, and an option, in one way."""

    place: str
    way: str
    command: str
    stop: int
    option: str

    @property
    def parts(self) -> set[tuple[Any, ...]]:
        """What the cell covers: pairs of its circumstances, and its option, way and command together."""
        pairs = itertools.combinations(enumerate((self.place, self.way, self.command, self.stop, self.option)), 2)
        return {*pairs, (self.way, self.command, self.option)}

    @property
    def refused(self) -> str | None:
        """The option that the error names, or None if the run continues."""
        if self.stop == 0:  # without a row, no run has begun
            return None
        if self.option == "target":
            return "target" if self.way == "nothing" else None
        changes_answers = self.option in ("seed", "temperature", "check", "reward") or (self.option, self.command) == (
            "concurrency",
            "bench",
        )
        return self.option if self.way == "typed" and changes_answers else None


def cells() -> Iterator[Cell]:
    """Yield cells until each pair of circumstances has occurred."""
    possible = [
        cell
        for command in COMMANDS
        for parts in itertools.product(PLACES, WAYS, STOPS, HAVE[command])
        if (cell := Cell(*parts[:2], command, *parts[2:]))
    ]
    left = set[tuple[Any, ...]]().union(*(cell.parts for cell in possible))
    while left:
        best = max(possible, key=lambda cell: len(cell.parts & left))
        left -= best.parts
        yield best


@dataclass
class World:
    """A user's folder with models, problems and settings, in which commands run."""

    root: Path
    tiny: Mapping[str, Path]
    address: str
    settings: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("work", "elsewhere", "arbitrage"):
            (self.root / name).mkdir()
        write_problems(self.root / "problems.jsonl", QUESTIONS)
        self.draft = Path(shutil.copy(self.tiny["draft"], self.root / "work" / "draft.gguf"))
        costs = {"draft": unit_costs(0.1, prefill=0.01), "target": unit_costs(1.0, prefill=0.01)}
        made = [
            make_tuned(machine_here(), sha256_of([self.tiny[name]]), 1, costs.get(name, costs["draft"]), Loading(threads=1))
            for name in ("draft", "target", "base")
        ]
        keep_tuned(self.root / "arbitrage" / "tuned.json", made)  # at other costs, advise may have a verdict at once
        self.folder = self.root / "work"

    def name_pair(self, *, target: str, check: Path | None, system: str) -> None:
        entry = f'[mine]\ndraft.source = "{self.draft}"\ntarget.source = "{target}"\nsystem = "{system}"\n'
        (self.root / "arbitrage" / "pairs.toml").write_text(entry + (f'check.source = "{check}"\n' if check else ""))

    def run(self, *arguments: object) -> Result:
        content = "".join(f"{name} = {json.dumps(value)}\n" for name, value in self.settings.items())
        assert tomllib.loads(content) == self.settings
        (self.root / "arbitrage" / "config.toml").write_text(content)
        return run(*map(str, arguments), cwd=self.folder, env={"XDG_CONFIG_HOME": str(self.root), **self.variables})

    def move_draft(self, place: str) -> None:
        old = self.draft
        match place:
            case "moved":
                self.draft = old.rename(self.root / "elsewhere" / old.name)
            case "renamed":
                self.draft = old.rename(old.with_name("better-name.gguf"))
            case "another folder":
                self.folder = self.root / "elsewhere"
            case "another file at the old place":
                self.draft = old.rename(old.with_name("mine.gguf"))
                shutil.copy(self.tiny["spm"], old)


def words(cell: Cell, world: World, output: Path, values: Mapping[str, Any]) -> list[object]:
    """The command line of a cell with these values of its options."""
    problems = {"solve": "--input"}.get(cell.command, "--dataset")
    found: list[object] = [cell.command, problems, world.root / "problems.jsonl", "-o", output]
    found += ["--max-tokens", 12, "--ctx", 512, "--threads", 1]
    if cell.command == "collect" and cell.option != "reward":
        found += ["--reward", "rollout"]
    elif cell.command in ("solve", "bench"):
        policy = {"check": "agree", "target": "target", "reward": "oracle"}.get(cell.option, "draft")
        found += ["--policy", policy]
    if "pair" in values:
        found += ["--pair", "mine"]
    else:
        draft = world.draft.relative_to(world.folder) if world.draft.is_relative_to(world.folder) else world.draft
        found += ["--draft", draft]
    return found + [part for name, value in values.items() if name != "pair" for part in (f"--{name}", value)]


def texts(folder: Path, command: str) -> dict[tuple[Any, ...], Any]:
    """The text of each row; fails if a row comes twice."""
    name = "out.jsonl" if command == "solve" else "run/results.jsonl"
    found: dict[tuple[Any, ...], Any] = {}
    for row in rows_of((folder / name).parent, Path(name).name):
        key = tuple(row.get(part) for part in ("id", "sample", "policy", "tau"))
        assert key not in found, f"{key} twice"
        assert row["status"] == "done", row
        found[key] = row.get("text"), row.get("answer")
    return found


def begin_and_continue(cell: Cell, root: Path, tiny: Mapping[str, Path], address: str) -> None:
    world = World(root, tiny, address)
    is_served, has_check = cell.option == "target", cell.option == "check"
    target = address if is_served else str(tiny["target"])
    world.name_pair(target=target, check=tiny["base"] if has_check else None, system="Add.")
    begun = {name: BEGUN[name] for name in ("seed", "temperature") if name in HAVE[cell.command]}
    if "limit" in HAVE[cell.command]:
        begun["limit"] = BEGUN["limit"]
    if cell.option in BEGUN:
        begun[cell.option] = BEGUN[cell.option]
    models = {"pair": "mine"} if cell.way == "pair" else {"target": target, **({"check": tiny["base"]} if has_check else {})}
    output = {"solve": "out.jsonl"}.get(cell.command, "run")
    first, whole = root / "first", root / "whole"
    first.mkdir()
    whole.mkdir()

    made = world.run(*words(cell, world, first / output, models | begun))
    assert made.code == 0, made.err
    rows = first / "out.jsonl" if cell.command == "solve" else first / "run" / "results.jsonl"
    lines = rows.read_text().splitlines(keepends=True)
    rows.write_text("".join(lines if cell.stop < 0 else lines[: cell.stop]))

    now = {name: value for name, value in begun.items() if name != cell.option}
    later = {"target": address.replace("127.0.0.1", "localhost"), "check": str(tiny["target"]), **NOW}
    models_now = dict(models)
    if cell.way != "pair":
        models_now.pop(cell.option, None)
    match cell.way:
        case "typed" if cell.option in models:
            models_now[cell.option] = later[cell.option]
        case "typed":
            now[cell.option] = later[cell.option]
        case "settings":
            world.settings[cell.option] = later[cell.option]
        case "variable":
            world.variables[f"ARBITRAGE_{cell.option.upper()}"] = str(later[cell.option])
    world.move_draft(cell.place)
    world.name_pair(
        target=later["target"] if is_served else target,
        check=Path(later["check"]) if has_check and cell.way == "pair" else tiny["base"] if has_check else None,
        system="Add.",
    )
    if cell.way == "pair" and not is_served and not has_check:  # another prompt for new runs
        world.name_pair(target=target, check=None, system="Add these numbers.")
    if cell.stop == 0 and (cell.option, cell.way) == ("target", "nothing"):
        return  # nothing names a target: the built-in pair's is used
    if cell.stop == 0 and cell.option == "reward":
        return  # a new run with these rewards needs a process reward model
    adds_problems = cell.option == "limit" and cell.way == "typed"
    if cell.stop and cell.command in ("bench", "collect") and not adds_problems:
        write_problems(root / "problems.jsonl", QUESTIONS + ADDED)
    result = world.run(*words(cell, world, first / output, models_now | now))
    if cell.refused:
        assert (result.code, f"--{cell.refused}" in result.err) == (2, True), result.err
        return
    assert result.code == 0, result.err
    if cell.stop == 0:  # it is a new run
        expected = models_now | now
    else:
        world.settings.clear()
        world.variables.clear()
        world.name_pair(target=target, check=tiny["base"] if has_check else None, system="Add.")
        grown = {cell.option: NOW[cell.option]} if cell.way == "typed" and cell.option in ("limit", "samples") else {}
        expected = models | begun | grown
    write_problems(root / "problems.jsonl", QUESTIONS)
    reference = world.run(*words(cell, world, whole / output, expected))
    assert reference.code == 0, reference.err
    found, known = texts(first, cell.command), texts(whole, cell.command)
    if cell.command == "advise":  # it ends when its verdict is clear, not after fixed attempts
        assert run_json(first / "run")["levels"] == run_json(whole / "run")["levels"]
        known = {key: known[key] for key in known if key in found}
        assert len(known) > 2
        found = {key: found[key] for key in known}
    assert found == known


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with on_loopback(HashServer()) as address:
        yield address


@pytest.mark.slow
@pytest.mark.parametrize(
    "cell", [*cells()], ids=lambda cell: f"{cell.command}, {cell.option} {cell.way}, {cell.place}, {cell.stop}"
)
def test_a_run_that_continues_is_the_run_that_began(
    cell: Cell, quick_path: Path, tiny: Mapping[str, Path], address: str
) -> None:
    begin_and_continue(cell, quick_path, tiny, address)

"""Resumes a run: restores the options with which it began, and decides which policies and problems are added to it.

An option that is typed now must have the same value as in the run. All other options come from the run, whatever settings,
variables and pairs say today. They are restored once, before anything else. `app.asking.locate` then finds the models of the run.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, Self, TypeVarTuple, cast

from arbitrage_cli.app.options import Options, validated_option
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.errors import DamagedRunError, UsageError
from arbitrage_cli.model_files.checksums import OnProgress, no_progress
from arbitrage_cli.model_files.pairs import find_files, hub_name, local_files
from arbitrage_cli.problems.rows import Dataset
from arbitrage_cli.routing.route import AvailableRouter, ParsedRoute, Route, make_route, preset_or_budget
from arbitrage_cli.runs.records import BENCH
from arbitrage_cli.runs.run import Asked, DataSet, Run
from arbitrage_cli.types import Json, frozen

MODELS = ("pair", "draft", "target", "router", "prm", "check")
"""Options that say where models and the router lie. They are not restored, because these are found by their checksums."""

ROUTING = ("policy", "tau")
GROWING = ("limit", "ids", "samples", "dataset", "mapping")
"""Options that may differ from those of the run, which then gets further problems or samples. Problems have a checksum."""

NOT_ASKED = (
    "threads", "offline", "minutes", "timeout", "run_code", "output_folder", "fresh", "dry_run", "save", "costs", "reward",
    "concurrency", "config", "explicit", "command",
)  # fmt: skip
"""Options that run.json does not have among those that were asked. Rewards and concurrency are among its decisions."""

ELSEWHERE = "omit this option, or use another --output"

Groups = TypeVarTuple("Groups")
"""Groups of options: frozen records such as `Options` and `ProblemOptions`."""


def _refuse_missing(source: str) -> None:
    """Raise UsageError if a model is not on this machine, so that its checksum is unknown."""
    if hub_name(source) and not local_files(source):
        raise UsageError(
            f"{source} is not on this machine, so it cannot be compared with the model of this run",
            "download it first: omit --dry-run, or use arbitrage models pull",
        )


@frozen
class Resumed:
    """A run that a command resumes, the folder in which it was found, and the names of the options that are typed now.

    `fetch` downloads a model that was typed, if it is on the Hub and not on this machine.
    """

    run: Run
    folder: Path
    typed: frozenset[str] = frozenset()
    fetch: Callable[[str], object] = lambda source: None

    @classmethod
    def of(
        cls, run: Run | None, folder: Path, options: Options, display: Display | None, *, is_preview: bool = False
    ) -> Self | None:
        """Return the run that a command resumes, or None for a new run.

        The display shows downloads of its models. A preview downloads none.
        """
        if run is None:
            return None
        on_progress: OnProgress = display.fetching if display else no_progress

        def download(source: str) -> object:
            return find_files(source, offline=options.offline, on_progress=on_progress)

        return cls(run, folder, options.explicit, _refuse_missing if is_preview else download)

    @property
    def keeps_selection(self) -> bool:
        """Whether the problems are those of the run: it has a selection, and none is typed now."""
        selecting = {"limit", "ids"}
        return bool(selecting & self.run.asked.options.keys()) and not selecting & self.typed


# --- what was asked


def asked_of(command: Sequence[str], typed: frozenset[str], *groups: Any) -> Asked:
    """Return what was asked, for run.json: the command, and the options that were typed or set.

    The path of a data set is absolute, so that another folder finds it.
    """
    options: Json = {}
    for group in groups:
        for one in fields(group):
            value = getattr(group, one.name)
            if one.name not in NOT_ASKED and value != _default(group, one.name):
                is_file = one.name == "dataset" and Path(value).is_file()
                options[one.name] = str(Path(value).absolute()) if is_file else value
    return Asked(command=list(command), options=options, typed=sorted(typed & options.keys()))


def settings_of(options: Options) -> Json:
    """Return the options that were typed or set, and that affect answers, without those that choose models or policies."""
    asked = asked_of((), frozenset(), options).options
    return {name: value for name, value in asked.items() if name not in (*MODELS, *ROUTING)}


# --- the options of the run


def restore(resumed: Resumed | None, options: Options, *groups: *Groups) -> tuple[Options, *Groups]:
    """Return all groups of a command's options. Those that are not typed now have the values of the run to resume, if any.

    `explicit` then contains what was typed now and what was typed when the run began. Raises UsageError if an option is typed
    that has another value in the run; DamagedRunError if a value of the run is invalid.
    """
    if resumed is None:
        return options, *groups
    everything: tuple[Any, ...] = (options, *groups)
    kept = [_kept(group, resumed) for group in everything]
    found = [replace(group, **values) for group, values in zip(everything, kept, strict=True)]
    explicit = resumed.typed.union(name for name in resumed.run.asked.typed if name in kept[0])
    return cast("tuple[Options, *Groups]", (replace(found[0], explicit=explicit), *found[1:]))


def asked_value(run: Run, group: Any, name: str) -> Any:
    """Return the value of an option that was asked when the run began. Raises DamagedRunError if it is invalid."""
    value, default = run.asked.options.get(name), _default(group, name)
    if value is None or value == default:
        return default
    try:
        return validated_option(type(group), name, value)
    except UsageError as error:
        hint = "restore run.json from a backup, or use another --output"
        raise DamagedRunError(f"run.json: asked.options.{name}: {error.message}", hint) from error


def differs(option: str, before: object, now: object) -> UsageError:
    """Return the error that an option has another value than in the run to resume."""
    shown = "without this option" if before is None else f"with {before!s:.80}"
    return UsageError(f"this run began {shown}, not with {now!s:.80}", ELSEWHERE, option=option)


def _kept(group: Any, resumed: Resumed) -> Json:
    """Return the values that the options of a group have in the run, without those that are typed now."""
    kept: Json = {}
    for name, before in _values_in_run(group, resumed.run).items():
        if name not in resumed.typed:
            if not _is_replaced(name, group, resumed):
                kept[name] = before
        elif name not in (*GROWING, *ROUTING) and not _is_same(name, getattr(group, name), before, resumed.run):
            raise differs(name, before, getattr(group, name))
    return kept


def _values_in_run(group: Any, run: Run) -> Json:
    """Return the values of a group's options when the run began: what was asked or, for some options, what was decided.

    The times of a benchmark depend on its concurrency. Other runs may have another concurrency now.
    """
    names = [one.name for one in fields(group)]
    asked = {name: asked_value(run, group, name) for name in names if name not in (*NOT_ASKED, *MODELS)}
    decided = {
        "reward": run.decided.settings.reward,
        "concurrency": run.decided.concurrency if run.kind == BENCH else None,
    }
    return asked | {name: value for name, value in decided.items() if name in names and value is not None}


def _is_replaced(name: str, group: Any, resumed: Resumed) -> bool:
    """Return whether an option that is typed now takes the place of this one: a limit of ids, a data set of its mapping."""
    asked = resumed.run.asked.options
    if name == "ids":
        return "limit" in resumed.typed
    if name == "mapping":
        return "dataset" in resumed.typed and not _is_dataset(group.dataset, asked.get("dataset"))
    if name == "tau":
        return "policy" in resumed.typed and group.policy != asked.get("policy")
    return False


def _is_dataset(now: str, before: str | None) -> bool:
    return now == before or (before is not None and Path(now).absolute() == Path(before))


def _is_same(name: str, now: object, before: object, run: Run) -> bool:
    is_task_of_data = name == "task" and now == run.decided.settings.task
    return now == before or is_task_of_data


def _default(group: Any, name: str) -> Any:
    found = next(one.default for one in fields(group) if one.name == name)
    return None if found is MISSING else found


# --- its policies and problems


def added_policies(
    parsed: Sequence[ParsedRoute], resumed: Resumed, router: AvailableRouter, *, compares: bool
) -> list[ParsedRoute]:
    """Return the policies that were typed and that the run does not have.

    Raises UsageError if the run has a single policy, and another one was typed.
    """
    run = resumed.run
    if not resumed.typed.intersection(ROUTING):
        return []
    new = [one for one in parsed if find_route(one, run.routes, router) is None]
    if not new or compares:
        return new
    (policy, tau), route = new[0], run.routes[0]
    if policy is route.policy:
        raise differs("tau", route.label.partition("@")[2], tau)
    raise differs("policy", route.label, policy.name)


def find_route(parsed: ParsedRoute, routes: Iterable[Route], router: AvailableRouter) -> Route | None:
    """Return the route of a run that was written in the same way, or has the same tau."""
    known = [route for route in routes if route.policy is parsed[0]]
    name = preset_or_budget(*parsed)
    if named := [route for route in known if name and route.tau_name == name]:
        return named[0]
    return next((route for route in known if route == make_route(*parsed, router)), None)


def check_data_set(before: DataSet | None, now: Dataset) -> None:
    """Raise UsageError unless the data set is that of the run, possibly with more problems at its end."""
    if before and before.sha256 != now.sha256_of_first(before.count):
        begun, other = with_checksum(before.name, before.sha256), with_checksum(now.name, now.sha256)
        hint = "use the problems with which it began, in the same order, or another --output"
        raise UsageError(f"this run began with {begun}, not with {other}", hint, option="dataset")


def with_checksum(name: str, sha256: str | None) -> str:
    return f"{name} (sha256 {sha256[:12]})" if sha256 else name

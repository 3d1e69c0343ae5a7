"""What a benchmark was asked for, from text to values: policies and taus, problems, the name of its folder."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath

from arbitrage_cli.cli.routing import choose_policy, choose_tau, has_tau, name_of_tau, taus_named_here, taus_named_in
from arbitrage_cli.data.rows import Item
from arbitrage_cli.errors import UsageError
from arbitrage_cli.evaluation.benchmark import PolicyAtTau
from arbitrage_cli.model_files.pairs import Pair
from arbitrage_cli.routing.head import Head
from arbitrage_cli.routing.policies import POLICIES, Policy
from arbitrage_cli.routing.thresholds import Costs, NamedTaus
from arbitrage_cli.runs.folder import RunFolder
from arbitrage_cli.types import ModelRole

MAX_NAME = 60  # characters of each half of a folder's name
DIGEST = 8  # of them, where something was cut


def parse_columns(
    policies: str | None, taus: str | None, head: Head | None, named: NamedTaus | None = None
) -> list[PolicyAtTau]:
    """`target,entropy,logprob@0.2` and `0.5,1`: each policy that has a tau at its own, else at each of these, else at its default.

    Without a list both models alone, and what they are to be compared with: the head's policy, or that without one. The
    head's policy also knows its taus by name: `arbitrage@fast`, which stands for what is `named`, or else for what its card
    says. What is named twice counts once. UsageError for an unknown policy or tau.
    """

    def tau_of(policy: Policy, tau: str | None) -> float | None:
        name = name_of_tau(policy, tau)
        return named.taus[name] if named and name and name in named.taus else choose_tau(policy, tau, None, head)

    columns = dict.fromkeys(
        PolicyAtTau(policy, tau_of(policy, tau), name_of_tau(policy, tau)) for policy, tau in _wanted(policies, taus, head)
    )
    if not columns:
        raise UsageError("no policy is named", "known policies: " + ", ".join(POLICIES))
    return list(columns)


def share_taus(policies: str | None, taus: str | None, meant_for: str | None, head: Head | None) -> str:
    """The list of policies, each with those of these taus that it may go by: for where one of the lists is no flag.

    Of taus that are a setting `meant_for` are the policies, as a list of them; None for the default one.
    """
    meant = {part.partition("@")[0].strip() for part in _parts(_default_policies(head) if meant_for is None else meant_for)}
    meant &= POLICIES.keys()
    told = []
    for part in _parts(_default_policies(head) if policies is None else policies):
        own = [] if "@" in part or part not in meant else [tau for tau in _parts(taus or "") if has_tau(POLICIES[part], tau)]
        told += [f"{part}@{tau}" for tau in own] or [part]
    return ",".join(told)


def choose_names(
    policies: str | None, taus: str | None, head: Head | None, costs: Costs | None, folder: RunFolder | None = None
) -> NamedTaus | None:
    """What the names of taus in these lists stand for: in a run with rows, what they stood for before. None without a name."""
    if not _names(policies, taus, head):
        return None
    kept = taus_named_in(folder.run) if folder and folder.rows and folder.run else None
    return kept or taus_named_here(head, costs)


def about_names(
    policies: str | None, taus: str | None, head: Head | None, here: NamedTaus | None, named: NamedTaus | None
) -> list[str]:
    """What is to be told of names that are `named` otherwise than they would be `here`."""
    if not here or not named:
        return []
    return [
        f"{name} is tau {named.taus[name]:g} in this run, as when it began; by the costs of {here.costs_of} it would be "
        f"{here.taus[name]:g}: for that give it its own folder (--output)"
        for name in _names(policies, taus, head)
        if here.taus[name] != named.taus[name]
    ]


def _names(policies: str | None, taus: str | None, head: Head | None) -> list[str]:
    """The names of taus in these lists, each once."""
    names = (name_of_tau(policy, tau) for policy, tau in _wanted(policies, taus, head))
    return list(dict.fromkeys(filter(None, names)))


def _wanted(policies: str | None, taus: str | None, head: Head | None) -> Iterator[tuple[Policy, str | None]]:
    """Each policy with each of its taus as it was given; None for the default. UsageError."""
    for part in _parts(_default_policies(head) if policies is None else policies):
        name, at, own = part.partition("@")
        policy = choose_policy(name.strip(), head)
        if at and not policy.number:
            raise UsageError(f"policy {policy.name} has no tau", f"give it as it is: --policy {policy.name}")
        given: list[str | None] = [own.strip()] if at else [*_parts(taus or "")] if policy.number else []
        yield from ((policy, tau) for tau in given or [None])


def _default_policies(head: Head | None) -> str:
    return f"target,draft,{choose_policy(None, head).name}"


def choose_items(items: Sequence[Item], ids: str | None, limit: str | None) -> list[Item]:
    """The problems to solve, in the order of the data set. UsageError for an id that is none, or a limit that leaves none."""
    chosen = _named(items, ids)
    wanted = chosen[_slice(limit)] if limit is not None else chosen
    if chosen and not wanted:
        raise UsageError(f"--limit {limit} leaves no problem", f"there are {len(chosen)}")
    return wanted


def _slice(limit: str) -> slice:
    """`10`: the first ten. `10-20`: the tenth to the twentieth."""
    found = re.fullmatch(r"(?:([0-9]{1,9})-)?([0-9]{1,9})", limit.strip())
    first, last = (int(found[1] or 1), int(found[2])) if found else (0, 0)
    if not 1 <= first <= last:
        raise UsageError(f"'{limit}' is no limit", "the first ten: --limit 10; the 10th to the 20th: --limit 10-20")
    return slice(first - 1, last)


def _named(items: Sequence[Item], ids: str | None) -> list[Item]:
    if ids is None:
        return list(items)
    wanted = _parts(ids)
    unknown = [name for name in wanted if name not in {item.problem.id for item in items}]
    if unknown or not wanted:
        some = ", ".join(item.problem.id for item in items[:5])
        raise UsageError(f"no problem has the id '{', '.join(unknown)}'", f"ids of this data set: {some} ...")
    return [item for item in items if item.problem.id in wanted]


def folder_name(dataset: str, models: Mapping[ModelRole, str | None], pair: Pair | None, concurrency: str = "1") -> str:
    """A name for the run of this data set with these models, fit for any file system: `math500--qwen2.5-math`.

    A throughput run's ends in how many problems at once were asked for: `--throughput-auto`.
    """
    names = [PurePath(source).name.removesuffix(".gguf") for source in (models["draft"], models["target"]) if source]
    if pair and (models["draft"], models["target"]) == (pair.draft, pair.target):
        names = [pair.name]
    kind = "" if concurrency == "1" else f"--throughput-{_plain(concurrency)}"
    return f"{_plain(PurePath(dataset).stem)}--{_plain(*names)}{kind}"


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _plain(*names: str) -> str:
    """Names as one of a folder. Where that is too long, each is cut, and a digest tells it from others that begin so."""
    plain = [re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") for name in names]
    whole = "-".join(filter(None, plain)) or "run"
    if len(whole) <= MAX_NAME:
        return whole
    room = (MAX_NAME - DIGEST) // len(plain) - 1
    digest = hashlib.sha256(whole.encode()).hexdigest()[:DIGEST]
    return "-".join([*(name[:room].strip("-.") for name in plain), digest])

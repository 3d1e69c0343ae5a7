"""The policies that a pair's entry names, and those that `bench` and `advise` compare if the user names none."""

from arbitrage_cli.app.asking.naming import NamedModels
from arbitrage_cli.app.options import Options
from arbitrage_cli.errors import UsageError
from arbitrage_cli.model_files.pairs import PairEntry
from arbitrage_cli.problems.tasks import Task
from arbitrage_cli.routing.default_policy import usual_policy
from arbitrage_cli.routing.policies import DRAFT_ALONE, POLICIES, TARGET_ALONE, Policy
from arbitrage_cli.routing.presets import PRESETS
from arbitrage_cli.routing.route import DEFAULT_TAU, parse_route


def routing_of_pair(pair: PairEntry | None) -> tuple[Policy | None, str | None]:
    """Return the policy and the tau of a pair's entry. Raises UsageError if they are invalid, or if it has two taus."""
    if pair is None:
        return None, None
    if pair.policy is None:
        return None, pair.tau
    try:
        policy, tau = parse_route(pair.policy)
        if tau and pair.tau not in (None, tau):
            raise UsageError(f"policy {pair.policy} contains a tau, but tau is {pair.tau}", "specify tau only once")
    except UsageError as error:
        raise UsageError(f"pair {pair.name}: {error.message}", error.hint) from error
    return policy, tau or pair.tau


# --- comparisons


def policies_of_bench(named: NamedModels, options: Options, task: Task) -> str:
    """Return the policies that `bench` compares if the user names none."""
    names = [TARGET_ALONE.name, DRAFT_ALONE.name]
    if named.is_local and options.concurrency in (None, 1):
        names.append("speculative")
    names.append(usual_policy(task, has_router=named.has_router, is_local=named.is_local).name)
    return ",".join(dict.fromkeys(names))


def policies_of_quick_answers() -> str:
    """Return the policies that suit quick answers before thinking: thinking always, never, and only where it is needed."""
    names = [policy.name for policy in POLICIES.values() if not policy.mixes_models]
    return ",".join(sorted(names, key=[TARGET_ALONE.name, DRAFT_ALONE.name, *names].index))


def policies_of_advice(named: NamedModels, options: Options, task: Task) -> str:
    """Return the policies that `advise` compares. `draft` is included if its answers can be compared."""
    pair = named.pair
    preset = pair.tau if pair and pair.tau in PRESETS else DEFAULT_TAU
    tried = [policy for policy in POLICIES.values() if policy.is_advised and _is_possible(policy, named, task)]
    if task.name == "free" and tried != [DRAFT_ALONE]:
        tried.remove(DRAFT_ALONE)
    tried.sort(key=lambda policy: not policy.keeps_every_token)
    names = [f"{policy.name}@{preset}" if policy.needs_router else policy.name for policy in tried]
    return ",".join([TARGET_ALONE.name, *names])


def _is_possible(policy: Policy, named: NamedModels, task: Task) -> bool:
    if policy.needs_local_models and not named.is_local:
        return False
    if policy.needs_router and not named.has_router:
        return False
    return task.has_answers or not policy.compares_answers

"""The policies that commands use if the user names none: those of the pair, of the task, and of comparisons."""

from arbitrage_cli.app.naming import NamedModels
from arbitrage_cli.app.options import Options
from arbitrage_cli.errors import UsageError
from arbitrage_cli.model_files.pairs import PairEntry
from arbitrage_cli.problems.tasks import Task
from arbitrage_cli.routing.policies import DRAFT_ALONE, POLICIES, TARGET_ALONE, Policy
from arbitrage_cli.routing.presets import PRESETS
from arbitrage_cli.routing.route import DEFAULT_TAU, choose_policy, parse_route


def default_policy(named: NamedModels) -> Policy:
    """Return the default policy of these models, whatever the task is."""
    return choose_policy(None, has_router=named.has_router)


def policy_without_router(named: NamedModels, task: Task) -> str | None:
    """Return the task's default policy if there is no router, or `target` if a model on a server cannot speculate."""
    if named.has_router:
        return None
    if POLICIES[task.policy].needs_local_models and not named.is_local:
        return TARGET_ALONE.name
    return task.policy


def routing_of_pair(pair: PairEntry | None) -> tuple[str | None, str | None]:
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
    return policy.name, tau or pair.tau


# --- comparisons


def policies_of_bench(named: NamedModels, options: Options, task: Task) -> str:
    """Return the policies that `bench` compares if the user names none."""
    names = [TARGET_ALONE.name, DRAFT_ALONE.name]
    if named.is_local and options.concurrency in (None, 1):
        names.append("speculative")
    policy = policy_without_router(named, task) or default_policy(named).name
    names.append(policy)
    if POLICIES[policy].needs_router:
        names.append("logprob")
    return ",".join(dict.fromkeys(names))


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

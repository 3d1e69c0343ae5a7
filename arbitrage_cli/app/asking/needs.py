"""The needs of policies and tasks: models, rewards, both models on this machine, options, and permission to run programs."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from arbitrage_cli.app.asking.naming import Sources
from arbitrage_cli.app.options import Options, RunCode
from arbitrage_cli.errors import ProgramsNotAllowedError, UsageError
from arbitrage_cli.model_files.pairs import is_served
from arbitrage_cli.problems.code import find_sandbox
from arbitrage_cli.problems.tasks import Task, without_sandbox
from arbitrage_cli.routing.policies import Policy
from arbitrage_cli.routing.route import parse_route
from arbitrage_cli.types import WRITING, ModelRole


def needed_roles(policies: Iterable[Policy], reward: str | None) -> set[ModelRole]:
    """Return the roles of the models that the policies use. A checker is optional."""
    return {
        role for policy in policies for role in (*policy.models, *(("prm",) if policy.needs_prm(reward or "prm") else ()))
    }


def needed_models(policies: Iterable[Policy], sources: Sources, reward: str | None) -> dict[ModelRole, str]:
    """Return the models that the policies need. Raises UsageError if such a model was not named."""
    needed: dict[ModelRole, str] = {}
    for policy in policies:
        for role in (*policy.models, *(("prm",) if policy.needs_prm(reward or "prm") else ())):
            if role in sources:
                needed[role] = sources[role]
            elif role != "check":  # without a checker, the draft checks itself
                raise _missing_model(policy, role)
    return {role: needed[role] for role in sources if role in needed}


def refuse_on_servers(policies: Iterable[Policy], sources: Sources) -> None:
    """Raise UsageError if the draft or the target is on a server, and a policy needs both on this machine."""
    first = next((role for role in WRITING if is_served(sources.get(role, ""))), None)
    for policy in policies:
        if policy.needs_local_models and first:
            raise UsageError(
                f"policy {policy.name} needs both models on this machine, but the {first} is on a server",
                "use --policy target, and enable speculation on the server (vLLM: --speculative-config; llama-server: "
                "--spec-type)",
                option="policy",
            )


def refuse_useless(policies: Sequence[Policy], explicit: frozenset[str], task: Task, reward: str | None = None) -> None:
    """Raise UsageError if the task has no answers that a policy could compare, or if an explicit option has no effect."""
    for policy in policies:
        if policy.compares_answers and not task.has_answers:
            message = f"policy {policy.name} compares final answers, but solutions of task {task.name} have none"
            raise UsageError(message, "use another --policy, or another --task", option="policy")
    uses = {
        "tau": any(policy.has_tau for policy in policies),
        "router": any(policy.needs_router for policy in policies),
        "prm": any(policy.needs_prm(reward or "prm") for policy in policies),
        "check": any("check" in policy.models for policy in policies),
        "reward": any(policy.reward == "any" for policy in policies),
    }
    names = list(dict.fromkeys(policy.name for policy in policies))
    subject = f"policy {names[0]} does" if len(names) == 1 else f"policies {', '.join(names)} do"
    for name in (name for name, is_used in uses.items() if not is_used):
        refuse(explicit, name, f"{subject} not use this option", "omit this option, or choose another --policy")


def refuse_quick_answers(policies: Iterable[Policy], task: Task, *, in_conversation: bool) -> None:
    """Raise UsageError if answers cannot be compared, or if a policy lets both models write a solution."""
    if in_conversation or not task.has_answers:
        of_what = "a conversation has" if in_conversation else f"solutions of task {task.name} have"
        message = f"with auto, the final answers of quick solutions are compared, but {of_what} none"
        raise UsageError(message, "use --think on, off or N", option="think")
    for policy in policies:
        if policy.mixes_models:
            message = (
                f"with --think auto, only the target thinks, so the models of policy {policy.name} cannot work together"
            )
            raise UsageError(message, "use policy agree, target or draft, or another --think", option="policy")


def refuse(explicit: frozenset[str], name: str, reason: str, hint: str = "omit this option") -> None:
    """Raise UsageError if this option was set explicitly. In a settings file, it may be meant for other commands."""
    if name in explicit:
        raise UsageError(reason, hint, option=name)


def _missing_model(policy: Policy, role: ModelRole) -> UsageError:
    if role == "prm":
        rollouts = "; bench and collect also support --reward rollout" if policy.reward == "any" else ""
        hint = f"use --prm MODEL, or a --pair with a process reward model (builtin, llama3){rollouts}"
        return UsageError(f"policy {policy.name} needs a process reward model", hint)
    hint = f"use --{role} MODEL.gguf or --pair NAME (see arbitrage models list)"
    return UsageError(f"policy {policy.name} needs a {role} model", hint)


def with_tau_of_policy(options: Options) -> Options:
    """Return the options with a policy such as `logprob@0.5` as a policy and a tau."""
    if options.policy is None or "@" not in options.policy:
        return options
    policy, tau = parse_route(options.policy)
    if "tau" in options.explicit and options.tau != tau:
        raise UsageError(f"the policy has tau {tau}, but --tau is {options.tau}", "specify tau only once", option="tau")
    return replace(options, policy=policy.name, tau=tau, explicit=options.explicit | {"tau"})


def permitted(task: Task, run_code: RunCode | None) -> Task:
    """Return the task with the sandbox that `--run-code` selects.

    Raises ProgramsNotAllowedError if the task runs programs without permission; UsageError without bubblewrap.
    """
    if not task.runs_code:
        return task
    if run_code == "unprotected":
        return without_sandbox(task)
    find_sandbox()
    if run_code is None:
        hint = 'use --run-code, or set run-code = "sandboxed" in a settings file; for details, run arbitrage guide code'
        raise ProgramsNotAllowedError(f"task {task.name} runs model-written programs on this machine", hint)
    return task

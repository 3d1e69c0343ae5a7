"""Decides whether each model of a command or a call thinks, and what its limits are.

Models are known by their prompts. A model without a prompt is one whose chat template has no thinking format, or one that is
asked to think in any case.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from arbitrage_cli.errors import UsageError
from arbitrage_cli.inference.chat_template import ChatPrompt
from arbitrage_cli.types import WRITING, ByRole, Limits, RoleLimits, Thinking

Prompts = ByRole[ChatPrompt | None]


def limits_by_role(limits: Limits, asked: Thinking | None, prompts: Prompts, *, has_checker: bool) -> RoleLimits:
    """Return the limits of each role's solutions, which are these `limits` with the role's own thinking.

    The draft and the target write solutions together, so both think or none does. If `asked` is None, they think if the chat
    template of one of them makes it think by default.
    """
    by_itself = any(prompt.thinks_by_itself for role in WRITING if (prompt := prompts.get(role)))
    own = replace(limits, thinking=asked or Thinking(True if by_itself else None))
    found = RoleLimits(own, own)
    return with_checker(found, prompts.get("check")) if has_checker else found


def limits_of_quick_answers(limits: Limits, prompts: Prompts, *, has_checker: bool) -> RoleLimits:
    """Return the limits of roles of which only the target thinks."""
    quick, thorough = (replace(limits, thinking=Thinking(switch)) for switch in (False, True))
    found = RoleLimits(quick, thorough)
    return with_checker(found, prompts.get("check")) if has_checker else found


def with_checker(limits: RoleLimits, prompt: ChatPrompt | None) -> RoleLimits:
    """Return the limits with those of a checker.

    The checker thinks if its chat template makes it think by default. If thinking is turned off, it thinks only if it cannot
    answer without.
    """
    of_others = limits.draft.thinking
    thinks = prompt is not None and (prompt.always_thinks if of_others.is_off else bool(prompt.thinks_by_itself))
    if thinks == of_others.is_on:
        own = of_others
    elif thinks:
        own = Thinking(True)
    else:
        own = Thinking()
    return replace(limits, check=replace(limits.draft, thinking=own))


def refuse_without_thinking(prompts: Mapping[str, ChatPrompt]) -> None:
    """Raise UsageError if one of the models, given by name, always thinks."""
    for name, prompt in prompts.items():
        if prompt.always_thinks:
            hint = "use --think=on, a limit such as --think=500, or another model"
            raise UsageError(f"{name} cannot answer without thinking", hint, option="think")


def refuse_thinking(prompts: Mapping[str, ChatPrompt], thinking_pair: str | None) -> None:
    """Raise UsageError if one of the models, given by name, has no thinking format."""
    for name in _cannot_think(prompts):
        pair = f"which uses pair {thinking_pair}" if thinking_pair else "or use a model that thinks"
        hint = f"to turn thinking on, call open_pair with think=True, {pair}"
        raise UsageError(f"{name} cannot think", hint, option="think")


def _cannot_think(prompts: Mapping[str, ChatPrompt]) -> Iterable[str]:
    return (name for name, prompt in prompts.items() if not prompt.can_think)

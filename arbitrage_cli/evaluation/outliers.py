"""Attempts whose time cannot be that of their tokens: the machine was asleep, the process stopped, a server stalled.

A clock that counts what passes counts that too. Knows no accuracy.
"""

import statistics
from collections.abc import Sequence
from dataclasses import replace

from arbitrage_cli.runs.results import PolicyResults, Result, SampleKey

FACTOR = 10.0
"""An attempt that takes so many times its tokens' usual time is an outlier, if that is also MIN_SECONDS more."""
MIN_SECONDS = 1.0
MIN_RESULTS = 5
"""With fewer nothing is usual."""
FLAG = "--without-outliers"


def outliers(policy: PolicyResults) -> set[SampleKey]:
    """The attempts far beyond the policy's median time per token."""
    done = [result for result in policy.done if _tokens(result)]
    if len(done) < MIN_RESULTS:
        return set()
    usual = statistics.median(_seconds(result) / _tokens(result) for result in done)
    return {
        result.key
        for result in done
        if _seconds(result) > max(FACTOR * usual * _tokens(result), usual * _tokens(result) + MIN_SECONDS)
    }


def without_times(policy: PolicyResults, keys: set[SampleKey]) -> PolicyResults:
    """The policy as if these attempts had no time. Their answers count as before."""
    return replace(
        policy, results={key: replace(one, seconds=None) if key in keys else one for key, one in policy.results.items()}
    )


def note(found: Sequence[set[SampleKey]], *, are_left_out: bool) -> list[str]:
    """What a reader must know of the outliers of all policies."""
    count = sum(map(len, found))
    if not count:
        return []
    names = sorted({key[0] for keys in found for key in keys})
    what = f"{count} attempts took more than {FACTOR:g} times as long as their tokens usually take (problems: {', '.join(names[:3])}"
    what += ", ..." if len(names) > 3 else ""
    end = (
        "their times are left out."
        if are_left_out
        else f"was the machine asleep, or the run stopped? {FLAG} leaves their times out."
    )
    return [f"{what}): {end}"]


def _tokens(result: Result) -> int:
    return result.tally.drafted_tokens + result.tally.target_tokens


def _seconds(result: Result) -> float:
    return result.seconds or 0.0

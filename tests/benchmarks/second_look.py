"""Would a second look pay: the target only reads a drafted step of which the head is unsure, and a second head decides.

Usage: python tests/benchmarks/second_look.py RUN [RUN ...] [--target MODEL.gguf] [--costs DRAFT READ TARGET] [--kept FILE.npy]

RUN are folders of `arbitrage collect`. At each state the target reads prompt, kept steps and drafted step, and tells how likely
each drafted token is to it. Two heads are trained alike: on the draft's features, and on those with the target's numbers. What
a router would do with them is simulated on the test's problems, at the run's costs:

- *first*: as the program does. One tau; the target verifies an escalated step and keeps what it would have written itself.
- *second*: accept up to `low`, escalate above `high`; between them the target reads the step, and it is escalated if the
  second head's number is above a threshold. What was read stays read: the target goes on from where it disagrees, and has
  not to catch up later on a step that it read and accepted.
- *plain*: the same with the log-probability of the worst token in place of the second head; *bound*: with the truth.

Rules are chosen on the validation. Knows nothing of the states that such a router would lead to: it takes those of the runs.
A token of a look is taken to cost what reading costs, unless the run measured verifying; --costs gives other milliseconds.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from arbitrage_cli.errors import UsageError
from arbitrage_cli.inference.backend import MAX_DECODE, Backend, Floats, Options
from arbitrage_cli.inference.engine import Engine
from arbitrage_cli.inference.open import open_model
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.routing.features import LEAST_LOGPROB, MAX_LOG_ODDS, MAX_MARGIN
from arbitrage_cli.routing.head import Network
from arbitrage_cli.routing.thresholds import Costs, Outcomes, spread_taus
from arbitrage_cli.runs.folder import COLLECT, latest, read_run_folder
from arbitrage_cli.stats.intervals import bootstrap
from arbitrage_cli.stats.ranking import Truth, measure, selection_score
from arbitrage_cli.training.examples import TEST, TRAINING, VALIDATION, Collected, read_states, recorded
from arbitrage_cli.training.fit import MEMBERS, RECIPES, Examples, Recipe, balanced, fit
from arbitrage_cli.training.train import Candidate, Inputs, choose

Numbers = NDArray[np.float64]
Members = NDArray[np.bool_]

READINGS = ("first", "mean", "sum", "worst", "likeliest share", "agreed share", "margin")
"""What the target says of a step: log-probabilities (`first` and `worst` token as log-odds), the share of its tokens that are
the target's likeliest choice, the share before the first one that is not, and how many nats that one is behind."""

LEVELS = (("-0.5 points", 0.5, 0.0), ("9/10 of the gain", 0.0, 0.1), ("3/4 of it", 0.0, 0.25), ("half of it", 0.0, 0.5))
"""What may be lost: points, or a share of what the target is better by than the draft. The verdict is on the first two."""

NUM_BOUNDS, NUM_THRESHOLDS = 20, 16  # of the band, and of the second head's, that are tried


# --- what the target says of a step


class Reader:
    """Reads drafted steps with the target; what a text has in common with the one before is not read again."""

    def __init__(self, backend: Backend, instructions: str) -> None:
        self._backend = backend
        self._engine = Engine("target", backend, Sampler(), instructions=instructions)  # asked for token ids only
        self._ends = [token for token in range(backend.card.vocabulary_size) if backend.tokenizer.is_end(token)]
        self._held: list[int] = []

    def readings(self, question: str, kept: Sequence[str], draft: str, *, ends: bool) -> list[float]:
        """`READINGS` of the step `draft` after the `kept` ones. If it `ends` the solution, that counts as its last token."""
        before = self._engine._cache.prompt_ids(question)
        before += [token for text in kept for token in self._engine._cache.step_ids(text)]
        step = self._engine._cache.step_ids(draft)
        tokens = [[token] for token in step] + ([self._ends] if ends or not step else [])
        return summarised([said(row, ids) for row, ids in zip(self._rows(before, step), tokens, strict=False)])

    def _rows(self, before: list[int], step: list[int]) -> Iterator[Floats]:
        """Logits (n_vocab,) after `before`, and after each token of the step."""
        wanted, most = before + step, min(len(before) - 1, len(self._held))
        common = next((place for place in range(most) if wanted[place] != self._held[place]), most)
        self._backend.drop(0, common)
        self._backend.read(0, common, before[common:-1])
        self._held = wanted
        for start in range(len(before) - 1, len(wanted), MAX_DECODE):
            tokens = wanted[start : start + MAX_DECODE]
            yield from self._backend.decode([0] * len(tokens), range(start, start + len(tokens)), tokens).logits


def said(logits: Floats, ids: list[int]) -> tuple[float, float]:
    """Log-probability of the token being one of `ids`, and how many nats those are behind the likeliest token."""
    shifted = (logits - logits.max()).astype(np.float64)
    total = np.logaddexp.reduce(shifted[ids]) - np.log(np.exp(shifted).sum())
    return max(float(total), LEAST_LOGPROB), min(float(-shifted[ids].max()), MAX_MARGIN)


def summarised(tokens: Sequence[tuple[float, float]]) -> list[float]:
    log_probabilities, behind = np.array(tokens).T
    agreed = next((place for place, nats in enumerate(behind) if nats > 0), len(behind))
    margin = behind[agreed] if agreed < len(behind) else 0.0
    first, worst = log_odds(log_probabilities[0]), log_odds(log_probabilities.min())
    mean, total = log_probabilities.mean(), log_probabilities.sum()
    return [first, mean, total, worst, (behind == 0).mean(), agreed / len(behind), margin]


def log_odds(log_probability: float) -> float:
    return min(log_probability - float(np.log(max(-np.expm1(log_probability), 1e-12))), MAX_LOG_ODDS)


def read_run(folder: Path, source: str | None, threads: int | None) -> Iterator[list[float]]:
    """`READINGS` of all states of a run, in the order of `read_states`."""
    run, solutions = recorded(folder)
    questions = {row["id"]: row["question"] for row in latest(read_run_folder(folder, COLLECT).rows)}
    model, ends = run["models"]["target"], run["features"].index("ends_solution")
    options = Options(context_size=model["n_ctx"], threads=threads)
    with closing(open_model(source or model["source"], options)) as backend:
        reader = Reader(backend, run["prompt"]["system"])
        for name, states in solutions:
            kept: list[str] = []
            for state in states:
                yield reader.readings(questions[name], kept, state.draft_text, ends=bool(state.features[ends]))
                kept.append(state.draft_text if state.kept == "draft" else state.target_texts[0])


# --- two heads


def learn(collected: Collected, readings: Floats) -> Numbers:
    """Log-odds of all states by the network of features and readings that `arbitrage train` would choose."""
    labels, chosen = truth_of(collected.outcomes).is_better, collected.part == VALIDATION
    plain = np.concatenate((collected.features, readings), axis=1, dtype=np.float32)
    rows: dict[Inputs, Floats] = {"agnostic": plain}
    if collected.hidden is not None:
        rows["both"] = np.concatenate((plain, collected.hidden), axis=1, dtype=np.float32)

    def network(recipe: Recipe, inputs: Inputs, members: int) -> Network:
        learning, choosing = (
            Examples(rows[inputs][part], labels[part], balanced(labels[part]))
            for part in (collected.part == TRAINING, chosen)
        )
        return fit(recipe, learning, choosing, 0, members)

    truth = truth_of(collected.outcomes.take(chosen))
    candidates = []
    for recipe, inputs in product(RECIPES, rows):
        one = network(recipe, inputs, 1)
        found = one.log_odds(rows[inputs][chosen]).astype(np.float64)
        candidates.append(Candidate(recipe, inputs, one, found, selection_score(found, truth)))
    best = choose(candidates, truth)
    return network(best.recipe, best.inputs, MEMBERS).log_odds(rows[best.inputs]).astype(np.float64)


def truth_of(outcomes: Outcomes) -> Truth:
    return Truth(outcomes.advantage, outcomes.advantage > 0, outcomes.problem)


# --- what they would do


@dataclass(frozen=True, slots=True)
class Rule:
    """Accept up to `low`, escalate above `high`; look between them, and escalate above `threshold`. One tau is an empty band."""

    low: float
    high: float
    threshold: float = 0.0

    def apply(self, first: Numbers, second: Numbers) -> tuple[Members, Members]:
        """Of states with these two numbers: at which the target looks, and which are escalated."""
        looked = (first > self.low) & (first <= self.high)
        return looked, np.where(looked, second > self.threshold, first > self.high)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The states of one part of the split, with the numbers of both heads, and what tokens cost."""

    outcomes: Outcomes
    first: Numbers
    second: Numbers
    costs: Costs

    def columns(self, rule: Rule) -> Numbers:
        """What each state loses in reward and takes in seconds: (n, 2). The time is that of `TauTable.time`, and of looks."""
        states, costs = self.outcomes, self.costs
        looked, escalated = rule.apply(self.first, self.second)
        starts = np.flatnonzero(np.diff(states.solution, prepend=-1))
        places, lengths = np.arange(len(states)), np.diff(starts, append=len(states))
        last_call = np.maximum.reduceat(np.where(looked | escalated, places, -1), starts)
        caught_up = ~looked & ~escalated & (places < np.repeat(last_call, lengths))
        read = costs.target_prefill_seconds_per_token
        verify = read if costs.target_verify_seconds_per_token is None else costs.target_verify_seconds_per_token
        shared = np.minimum(states.shared_tokens, states.target_tokens)
        verified = np.where(looked, states.draft_tokens, np.where(escalated, shared, 0))
        seconds = states.draft_tokens * costs.draft_seconds_per_token + costs.router_seconds_per_step
        seconds += np.where(caught_up, states.draft_tokens, 0) * read + verified * verify
        seconds += np.where(escalated, states.target_tokens - shared, 0) * costs.target_seconds_per_token
        seconds += np.where(escalated, states.target_tokens, 0) * costs.draft_prefill_seconds_per_token
        prompts = costs.draft_prefill_seconds_per_token + np.where(last_call >= 0, read, 0)
        seconds[starts] += states.target_prefill_tokens[starts] * prompts
        return np.stack([np.where(escalated, 0.0, states.advantage), seconds], axis=1)

    def point(self, rule: Rule) -> tuple[float, float]:
        """Change of the reward against the target alone, in points a solution, and time as a share of the target's."""
        starts = np.diff(self.outcomes.solution, prepend=-1) != 0
        alone = self.outcomes.target_tokens.sum() * self.costs.target_seconds_per_token
        alone += self.outcomes.target_prefill_tokens[starts].sum() * self.costs.target_prefill_seconds_per_token
        loss, seconds = self.columns(rule).sum(axis=0)
        return float(0.0 - 100 * loss / starts.sum()), float(seconds / alone)


def one_tau(part: Part) -> list[Rule]:
    return [Rule(tau, tau) for tau in (-np.inf, *spread_taus(part.first), np.inf)]


def with_bands(part: Part) -> list[Rule]:
    """Rules of one tau, and those with a band."""
    bounds = (-np.inf, *spread_taus(part.first, NUM_BOUNDS), np.inf)
    found = product(bounds, bounds, spread_taus(part.second, NUM_THRESHOLDS))
    return one_tau(part) + [Rule(*values) for values in found if values[0] < values[1]]


def fastest(part: Part, rules: Sequence[Rule]) -> list[Rule]:
    """For each of `LEVELS` the rule that takes least on this part."""
    points = [(rule, *part.point(rule)) for rule in rules]
    lead = max(0.0, -part.point(Rule(np.inf, np.inf))[0])
    allowed = [[one for one in points if one[1] >= -lost - share * lead] for _, lost, share in LEVELS]
    return [min(some, key=lambda one: one[2])[0] for some in allowed]


def time_ratio(part: Part, rule: Rule, rival: Rule, curve: Sequence[Rule]) -> tuple[float, float, float]:
    """The rule's time by its rival's at equal reward, and the interval over problems.

    The time of each is taken as a multiple of the least that a tau of the curve needs for the same reward (between two taus on
    the line between them; for a reward that none reaches, of the best), so that both bear what was badly chosen.
    """
    problem = np.unique(part.outcomes.problem, return_inverse=True)[1]
    sums = np.zeros((int(problem.max()) + 1, 2 * len(curve) + 4))
    np.add.at(sums, problem, np.concatenate([part.columns(one) for one in (rule, rival, *curve)], axis=1))

    def ratios(drawn: Numbers) -> Numbers:
        losses, seconds = drawn[:, 0::2], drawn[:, 1::2]
        least = np.array([at_losses(loss[:2], loss[2:], row[2:]) for loss, row in zip(losses, seconds, strict=True)])
        multiples: Numbers = seconds[:, :2] / least
        return multiples[:, 0] / multiples[:, 1]

    low, high = bootstrap(sums, ratios) or (np.nan, np.nan)
    return float(ratios(sums.sum(axis=0, keepdims=True))[0]), low, high


def at_losses(wanted: Numbers, losses: Numbers, seconds: Numbers) -> Numbers:
    """The least seconds for each of the wanted losses, on a curve of these points."""
    order = np.lexsort((seconds, losses))
    return np.interp(wanted, losses[order], np.minimum.accumulate(seconds[order]))


# --- what is told


def tell_auc(name: str, number: Numbers, outcomes: Outcomes) -> None:
    auc = measure(number, truth_of(outcomes), 0.0)["auc"]
    told = [np.nan if value is None else value for value in (auc.value, auc.low, auc.high)]
    sys.stdout.write("  {:36} {:.3f} [{:.3f}, {:.3f}]\n".format(name, *told))


def tell_rules(
    name: str, rules: Sequence[Rule], rivals: Sequence[Rule], test: Part, curve: Sequence[Rule]
) -> list[tuple[float, float, float]]:
    """A line for each of `LEVELS`; returns the ratios of time to the rivals'."""
    ratios = [time_ratio(test, rule, rival, curve) for rule, rival in zip(rules, rivals, strict=True)]
    for (level, _, _), rule, ratio in zip(LEVELS, rules, ratios, strict=True):
        looked, escalated = rule.apply(test.first, test.second)
        rates = looked.mean(), (looked & escalated).mean(), escalated.mean()
        line = "  {:7} {:17} {:+7.2f} {:6.3f} {:7.1%} {:9.1%} {:10.1%}   {:.3f} [{:.3f}, {:.3f}]\n"
        sys.stdout.write(line.format(name, level, *test.point(rule), *rates, *ratio))
    return ratios


def verdict(ratios: Sequence[tuple[float, float, float]]) -> str:
    if any(low > 1 for _, low, _ in ratios):
        return "it takes longer for the same reward: leave it out"
    if any(high < 1 for _, _, high in ratios):
        return "it saves time for the same reward: keep it"
    return "no gain can be told from none on these problems: leave it out"


def tell(collected: Collected, costs: Costs, readings: Floats) -> None:
    better = truth_of(collected.outcomes).is_better
    first, plain = learn(collected, readings[:, :0]), -readings[:, READINGS.index("worst")].astype(np.float64)
    seconds = {"second": learn(collected, readings), "plain": plain, "bound": better.astype(np.float64)}

    def part(which: int, second: Numbers) -> Part:
        chosen = collected.part == which
        return Part(collected.outcomes.take(chosen), first[chosen], second[chosen], costs)

    choosing, test = part(VALIDATION, first), part(TEST, first)
    told = len(np.unique(test.outcomes.problem)), len(test.outcomes), better[collected.part == TEST].mean()
    sys.stdout.write("test: {} problems, {} states, {:.1%} worth escalating\n\nAUC\n".format(*told))
    tell_auc("first head", test.first, test.outcomes)
    tell_auc("second head", part(TEST, seconds["second"]).second, test.outcomes)
    tell_auc("worst log-probability alone", part(TEST, plain).second, test.outcomes)
    change, time = test.point(Rule(np.inf, np.inf))
    sys.stdout.write(f"\nreward (points) and time against the target alone; draft alone {change:+.2f} {time:.3f}\n")
    head = ("", "may lose", "reward", "time", "looked", "and then", "escalated", "time by first's, at equal reward")
    sys.stdout.write("  {:7} {:17} {:>7} {:>6} {:>7} {:>9} {:>10}   {}\n".format(*head))
    curve = one_tau(choosing)
    rivals = fastest(choosing, curve)
    tell_rules("first", rivals, rivals, test, curve)
    verdicts = {}
    for name, second in seconds.items():
        rules = fastest(part(VALIDATION, second), with_bands(part(VALIDATION, second)))
        verdicts[name] = verdict(tell_rules(name, rules, rivals, part(TEST, second), curve)[:2])
    sys.stdout.write("\n" + "".join(f"{name}: {found}\n" for name, found in verdicts.items() if name != "bound"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--target", help="where the target lies, if no longer where the runs had it")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--costs", type=float, nargs=3, metavar=("DRAFT", "READ", "TARGET"), help="milliseconds a token")
    parser.add_argument("--kept", type=Path, help="a file for what the target said: read if it is there, else written")
    arguments = parser.parse_args()
    collected = read_states(arguments.runs)
    costs = collected.costs
    if arguments.costs:
        draft, read, target = (number / 1000 for number in arguments.costs)
        costs = Costs(draft, target, read)
    if costs is None:
        raise UsageError("these runs do not tell what tokens cost", "give --costs")
    if arguments.kept and arguments.kept.exists():
        readings: Floats = np.load(arguments.kept)
    else:
        rows = [row for folder in arguments.runs for row in read_run(folder, arguments.target, arguments.threads)]
        readings = np.array(rows, np.float32)
        if arguments.kept:
            np.save(arguments.kept, readings)
    tell(collected, costs, readings)


if __name__ == "__main__":
    main()

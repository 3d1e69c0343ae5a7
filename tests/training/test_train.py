"""Training on states whose best possible scorer is known: results, data splits, and refusals."""

import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collected import DRAFT, TARGET, World, questions, write_run

from arbitrage_cli.errors import DamagedRunError, UsageError
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.learning.examples import FOLDS
from arbitrage_cli.learning.fitting import RECIPES
from arbitrage_cli.learning.learn import cross_validate
from arbitrage_cli.learning.quality import Truth, measure
from arbitrage_cli.problems.tasks import CODE
from arbitrage_cli.routing.features import FEATURES
from arbitrage_cli.routing.presets import TauTable
from arbitrage_cli.routing.router import Router, TrainedModel
from arbitrage_cli.training.collected import Collected, read_states
from arbitrage_cli.training.train import problems_needed, train, with_limit, with_taus

WORLD = World()


def train_on(collected: Collected) -> Router:
    return train(collected, name="made", command=("arbitrage", "train"), created="now")


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Collected:
    return read_states([write_run(tmp_path_factory.mktemp("runs") / "run", questions(600), WORLD)])


@pytest.fixture(scope="module", autouse=True)
def linear_only() -> Iterator[None]:
    """Train linear routers only, because networks take time and only slow tests depend on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("arbitrage_cli.learning.learn.RECIPES", tuple(recipe for recipe in RECIPES if not recipe.units))
        yield


@pytest.fixture(scope="module")
def router(collected: Collected) -> Router:
    return train_on(collected)


def truth_of(collected: Collected) -> Truth:
    return Truth(collected.outcomes.advantage > 0, collected.outcomes.problem)


def test_router_is_near_the_best_possible(collected: Collected, router: Router) -> None:
    best = np.array([WORLD.probability(row) for row in collected.features])
    truth = truth_of(collected)
    possible = measure(best, truth)["auc"].value
    assert possible is not None
    found = router.card.metrics["test"]
    assert found["arbitrage"]["auc"][0] > possible - 0.04
    for baseline in ("entropy", "lowest logprob", "mean logprob", "random"):
        assert found["arbitrage"]["auc"][0] > found[baseline]["auc"][0]
    assert found["arbitrage"]["ece"][0] < 0.05


def test_no_network_knows_the_problems_that_it_measures(collected: Collected) -> None:
    """Other features and rewards of a fold change neither the network that measures it nor that network's log-odds elsewhere."""
    outcomes, testing, recipe = collected.outcomes, collected.fold == 0, RECIPES[0]
    swapped = replace(
        outcomes,
        draft_reward=np.where(testing, outcomes.target_reward, outcomes.draft_reward),
        target_reward=np.where(testing, outcomes.draft_reward, outcomes.target_reward),
    )
    before, after = (cross_validate(one.examples, recipe, 0) for one in (collected, replace(collected, outcomes=swapped)))
    assert before.networks[0].output.tolist() == after.networks[0].output.tolist()
    assert before.measured[testing].tolist() == after.measured[testing].tolist()
    assert before.networks[1].output.tolist() != after.networks[1].output.tolist()


def test_card_says_what_it_was_made_of(collected: Collected, router: Router) -> None:
    card = router.card
    assert card.features == FEATURES
    assert card.pairs == ({"draft": DRAFT, "target": TARGET},)
    assert card.reward["kind"] == "prm"
    (size,) = card.data["parts"].values()
    assert size == {"problems": 600, "states": 3000, "improvable": int(truth_of(collected).labels.sum())}
    assert card.data["runs"][0]["problems"] == 600
    assert all(card.known(collected.questions))
    assert not any(card.known(questions(100, start=600)))
    assert (card.command, card.created) == (("arbitrage", "train"), "now")
    json.dumps(card.to_json(), allow_nan=False)


def test_figures_and_presets_are_those_of_the_last_pair(tmp_path: Path) -> None:
    """States of another pair change the network. They are in no figure, no preset and no cost."""
    others = {"draft": TrainedModel("other draft", "aa"), "target": TrainedModel("other target", "bb")}
    first = write_run(tmp_path / "first", questions(150), WORLD, changes={"models": others, "costs": {}})
    last = write_run(tmp_path / "last", questions(100, start=150), WORLD)
    both, alone = read_states([first, last]), read_states([last])
    assert both.is_measured.tolist() == [False] * 750 + [True] * 500
    card = train_on(both).card
    assert len(card.pairs) == 2
    (size,) = card.data["parts"].values()
    assert size == {"problems": 100, "states": 500, "improvable": int(truth_of(alone).labels.sum())}
    assert card.taus["num_solutions"] == 100
    assert card.metrics["test"]["lowest logprob"] == train_on(alone).card.metrics["test"]["lowest logprob"]


@pytest.mark.slow
def test_router_learns_from_thoughts_what_is_different_about_them(tmp_path: Path, router: Router) -> None:
    """Such a router routes thoughts. A router that was trained on answers leaves them to another score."""
    world = replace(WORLD, weights=(*WORLD.weights, ("is_thought", 2.0)), thoughts=2)
    of_both = read_states([write_run(tmp_path / "run", questions(600), world)])
    learned = train_on(of_both)
    assert learned.card.data["thoughts"] == 2 * 600
    assert (learned.card.knows_thoughts, router.card.knows_thoughts) == (True, False)
    assert (learned.scorer().routes_thoughts, router.scorer().routes_thoughts) == (True, False)
    thoughts = of_both.features[:, FEATURES.index("is_thought")] == 1
    assert thoughts.sum() == 1200
    for is_thought in (True, False):
        found, true = learned.probabilities(of_both.features), of_both.outcomes.advantage > 0
        assert found[thoughts == is_thought].mean() == pytest.approx(true[thoughts == is_thought].mean(), abs=0.05)


def test_split_is_by_the_problems_text(tmp_path: Path) -> None:
    asked = questions(300)
    first = write_run(tmp_path / "first", asked, ids=[f"a{number}" for number in range(300)])
    second = write_run(tmp_path / "second", list(reversed(asked)), ids=[f"b{number}" for number in range(300)])
    found = read_states([first, second])
    folds: dict[int, set[int]] = {}
    for problem, fold in zip(found.outcomes.problem.tolist(), found.fold.tolist(), strict=True):
        folds.setdefault(problem, set()).add(fold)
    assert len(folds) == 300
    assert all(len(of_problem) == 1 for of_problem in folds.values())
    shares = [list(folds.values()).count({fold}) / 300 for fold in range(FOLDS)]
    assert shares == pytest.approx([0.2] * FOLDS, abs=0.08)
    assert len(np.unique(found.outcomes.solution)) == 600


def test_no_solution_counts_twice(tmp_path: Path) -> None:
    """A folder that is passed twice, under any name, counts once. So do two runs of the same command."""
    made = {"settings": {"sampler": asdict(Sampler())}}
    run = write_run(tmp_path / "run", questions(20), changes=made)
    (tmp_path / "link").symlink_to(run)
    again = write_run(tmp_path / "again", questions(30, start=19), changes=made)
    for other in (run, tmp_path / "link", run / ".." / "run"):
        with pytest.raises(UsageError, match="with the same settings"):
            read_states([run, other])
    with pytest.raises(UsageError, match=r"problem \d+ is also in .*run"):
        read_states([run, again])
    longer = {**made, "dataset": {"name": "with more lines", "revision": None, "sha256": "1" * 64, "count": 31}}
    with pytest.raises(UsageError, match=r"problem \d+ is also in .*run"):
        read_states([run, write_run(tmp_path / "longer", questions(21), changes=longer)])
    more = write_run(tmp_path / "more", questions(30, start=20), changes=made)
    assert len(np.unique(read_states([run, more]).outcomes.problem)) == 50


def test_states_whose_steps_end_elsewhere_are_not_joined(tmp_path: Path) -> None:
    code = {"step_separator": CODE.step_end.separator, "step_min_chars": CODE.step_end.min_chars}
    runs = [
        write_run(tmp_path / "code", questions(5), changes={"settings": code}),
        write_run(tmp_path / "math", questions(5, start=5)),
    ]
    assert read_states(runs[:1]).runs[0].conditions.step_end == CODE.step_end
    with pytest.raises(UsageError, match="its steps end at a blank line"):
        read_states(runs)


def test_nothing_to_train_on_is_refused(tmp_path: Path, collected: Collected) -> None:
    with pytest.raises(UsageError, match="no states"):
        read_states([write_run(tmp_path / "empty", [])])
    facts = {"command": ["arbitrage", "collect", "--dataset", "a b.jsonl", "--limit", "10"]}
    with pytest.raises(UsageError, match="too few") as raised:
        train_on(read_states([write_run(tmp_path / "few", questions(10), changes=facts)]))
    assert "arbitrage collect --dataset 'a b.jsonl' --limit 19;" in str(raised.value.hint)
    even = replace(collected.outcomes, draft_reward=collected.outcomes.target_reward)
    with pytest.raises(UsageError, match="states to train on: 0"):
        train_on(replace(collected, outcomes=even))


@pytest.mark.parametrize(
    ("found", "needed"),
    [((60, 30, 30), None), ((10, 5, 20), 72), ((10, 40, 5), 72), ((9, 0, 40), 360), ((1000, 29, 4000), 1242)],
)
def test_the_number_of_problems_that_training_needs(found: tuple[int, int, int], needed: int | None) -> None:
    """It is in proportion to the rarer class, and a fifth more."""
    assert problems_needed(*found) == needed


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("collect --limit 3 -o run", "collect --limit 40 -o run"), ("collect --limit=3 -o run", "collect --limit 40 -o run"),
        ("collect -o run --limit 11-20", "collect -o run --limit 11-50"), ("collect -o run", None), ("collect --limit", None),
    ],
)  # fmt: skip
def test_the_command_that_collects_enough(command: str, expected: str | None) -> None:
    assert with_limit(command.split(), 40) == (expected.split() if expected else None)


def test_too_few_states_are_refused_with_the_command_that_collects_more(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", questions(10), changes={"command": ["arbitrage", "collect", "--limit", "10"]})
    found = read_states([run])
    with pytest.raises(UsageError) as refused:
        train_on(found)
    labels = found.outcomes.advantage > 0
    needed = problems_needed(10, int(labels.sum()), int((~labels).sum()))
    assert refused.value.hint
    assert f"arbitrage collect --limit {needed};" in refused.value.hint


def test_each_pair_counts_the_same(tmp_path: Path) -> None:
    other = {"draft": TrainedModel("Other", "0" * 64), "target": TARGET}
    few = write_run(tmp_path / "few", questions(60), changes={"models": other})
    found = read_states([few, write_run(tmp_path / "many", questions(300, start=60))])
    one, two = (found.examples.weight[found.pair == pair].sum() for pair in (0, 1))
    assert one == pytest.approx(two)
    assert found.examples.weight.mean() == pytest.approx(1)
    assert (read_states([few]).examples.weight == 1).all()


@pytest.mark.slow
def test_what_a_tau_does_is_told_of_whole_solutions(collected: Collected, tmp_path: Path) -> None:
    is_whole = collected.outcomes.solution % 3 > 0
    found = train_on(replace(collected, is_whole=is_whole))
    assert found.card.data["parts"]["cross-validation"]["states"] == 3000
    named = dict(found.card.taus["named"])
    others = read_states([write_run(tmp_path / "others", questions(600, start=1000), WORLD)])
    assert with_taus(found, replace(others, is_whole=is_whole)).card.taus != with_taus(found, others).card.taus
    assert named.keys() == {"careful", "balanced", "fast"}
    with pytest.raises(UsageError, match="no finished solution"):
        with_taus(found, replace(collected, is_whole=np.zeros_like(is_whole)))


def test_taus_for_other_states(collected: Collected, router: Router, tmp_path: Path) -> None:
    other = read_states([write_run(tmp_path / "run", questions(100, start=1000), World(bias=-4.0))])
    found = with_taus(router, other)
    assert found.network.arrays().keys() == router.network.arrays().keys()
    table = TauTable.from_json(found.card.taus)
    assert table.costs == other.costs
    assert table.steps == 5
    assert table.rows != TauTable.from_json(router.card.taus).rows


def pack(run: Path, path: Path) -> Path:
    script = Path(__file__).parents[2] / "models/recipe/pack_states.py"
    subprocess.run([sys.executable, script, run, path], check=True, stdout=subprocess.DEVNULL)
    return path


def test_packed_states_are_those_of_their_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", questions(20))
    packed = pack(run, tmp_path / "states.jsonl.xz")
    of_run, of_file = read_states([run]), read_states([packed])
    assert of_file.features.tolist() == of_run.features.tolist()
    assert (of_file.questions, of_file.pairs, of_file.costs) == (of_run.questions, of_run.pairs, of_run.costs)
    with pytest.raises(UsageError, match="is also in"):
        read_states([run, packed])
    with pytest.raises(UsageError, match="cannot be read"):
        read_states([tmp_path / "none.xz"])


@pytest.fixture(scope="module")
def lines_of_states(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The lines of a file of packed states: the conditions, then two problems."""
    folder = tmp_path_factory.mktemp("packed")
    packed = pack(write_run(folder / "run", questions(2)), folder / "states.jsonl.xz")
    return lzma.decompress(packed.read_bytes()).split(b"\n")


def changed(line: bytes, **changes: Any) -> bytes:
    """The line of a problem, with changes to its first state."""
    solution = json.loads(line)
    solution["states"][0] |= changes
    return json.dumps(solution).encode()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda lines: lzma.compress(b"\n".join(lines))[:-20], "incomplete"),
        (lambda lines: b"no states", "not a file of packed states"),
        (lambda lines: lzma.compress(b"{}\n"), "pair"),
        (lambda lines: lzma.compress(b"\n".join(lines)) + b"junk", "other data"),
        (lambda lines: 2 * lzma.compress(b"\n".join(lines)), "other data"),
        (lambda lines: lzma.compress(b"\n".join([*lines, lines[1]])), "line 4 repeats problem"),
        (lambda lines: lzma.compress(b"\n".join([lines[0], changed(lines[1], draft_reward=1.5)])), "draft_reward"),
        (lambda lines: lzma.compress(b"\n".join([lines[0], changed(lines[1], target_reward=-0.5)])), "target_reward"),
        (lambda lines: lzma.compress(b"\n".join([lines[0], changed(lines[1], advantage=0.123)])), "advantage"),
    ],
    ids=["cut", "text", "other JSON", "junk", "two files", "repeated", "reward", "negative reward", "advantage"],
)
def test_packed_states_that_are_damaged(
    tmp_path: Path, lines_of_states: list[bytes], damage: Callable[[list[bytes]], bytes], reason: str
) -> None:
    path = tmp_path / "states.xz"
    path.write_bytes(damage(lines_of_states))
    with pytest.raises(DamagedRunError, match=reason):
        read_states([path])


def test_pipe_is_no_file_of_packed_states(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.xz")
    with pytest.raises(UsageError, match="not a regular file"):
        read_states([tmp_path / "pipe.xz"])


def test_token_costs_are_those_of_the_largest_measured_run(tmp_path: Path) -> None:
    measured = write_run(tmp_path / "measured", questions(20))
    unmeasured = write_run(tmp_path / "unmeasured", questions(20, start=20), changes={"costs": {}})
    expected = read_states([measured]).costs
    assert expected is not None
    assert read_states([measured, unmeasured]).costs == read_states([unmeasured, measured]).costs == expected

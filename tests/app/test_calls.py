"""Calls of a pair that was opened from Python: which policy and models they use, whatever happens after the pair was opened."""

import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up_tuning import FAST_READER, NO_GAIN, pretend
from pairs_file import add_pair

from arbitrage_cli import ServerError, UsageError, open_pair
from arbitrage_cli.app.deciding.prepare import fetch
from arbitrage_cli.app.entries.pair import Pair
from arbitrage_cli.costs.store import tuned_file
from arbitrage_cli.model_files.pairs import ModelEntry, read_pairs

QUESTION = "What is 5 + 6?"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    pretend(tuned_file(), FAST_READER)
    return tmp_path


def route_of(pair: Pair, **options: Any) -> tuple[str, float | None]:
    record = pair.solve(QUESTION, **options).to_dict()
    return record["policy"], record["tau"]


def test_the_first_call_of_agree_changes_no_other_call() -> None:
    """Although the token costs, which decided the default policy and the presets, changed after the pair was opened."""
    with open_pair(pair="builtin", policy=None) as pair:
        before = [route_of(pair), route_of(pair, tau="fast"), route_of(pair, policy="arbitrage")]
        assert before[0][0] == "arbitrage"
        pretend(tuned_file(), NO_GAIN)
        assert route_of(pair, policy="agree")[0] == "agree"
        assert [route_of(pair), route_of(pair, tau="fast"), route_of(pair, policy="arbitrage")] == before
    with open_pair(pair="builtin") as another:
        assert route_of(another)[0] == "target"


def test_a_solution_warns_of_a_question_that_the_models_never_learned() -> None:
    with open_pair() as pair:
        assert [len(one.warnings) for one in pair.solve_many([QUESTION, "5!"])] == [0, 1]
        chat = pair.conversation()
        assert [len(chat.ask(question).warnings) for question in (QUESTION, QUESTION, "2.5 + 2.5")] == [0, 0, 1]


def test_a_second_thread_is_refused_while_a_call_loads_the_checker(monkeypatch: pytest.MonkeyPatch) -> None:
    loading, refused = threading.Event(), threading.Event()

    def slow(*given: Any, **options: Any) -> Any:
        loading.set()
        assert refused.wait(60)
        return fetch(*given, **options)

    monkeypatch.setattr("arbitrage_cli.app.deciding.plan.fetch", slow)
    with open_pair(pair="builtin") as pair:
        answers = list[str | None]()
        first = threading.Thread(target=lambda: answers.append(pair.solve(QUESTION, policy="agree").answer))
        first.start()
        assert loading.wait(60)
        with pytest.raises(UsageError, match="another problem"):
            pair.solve(QUESTION, policy="agree")
        refused.set()
        first.join()
        assert answers == ["11"]


@pytest.mark.parametrize("options", [{"temperature": 0.5}, {"max_tokens": 64}, {"seed": 1}, {"system": "Add."}], ids=str)
def test_options_that_choose_no_policy_keep_the_default(options: dict[str, Any]) -> None:
    pretend(tuned_file(), NO_GAIN)
    with open_pair(pair="builtin") as pair:
        assert [route_of(pair)[0], route_of(pair, **options)[0]] == ["target", "target"]


def test_a_conversation_skips_policy_agree_of_the_pair_as_chat_does(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_pair(home / "arbitrage" / "pairs.toml", replace(read_pairs()["builtin"], name="mine", policy="agree"))
    with open_pair(pair="mine") as pair, caplog.at_level(logging.WARNING, "arbitrage"):
        assert route_of(pair)[0] == "agree"
        assert pair.conversation().ask(QUESTION).to_dict()["policy"] == "arbitrage"
        assert [record.message for record in caplog.records if "is not used" in record.message]
        with pytest.raises(UsageError, match="agree"):
            pair.conversation(policy="agree")
    with open_pair(pair="mine", policy="agree") as pair, pytest.raises(UsageError, match="agree"):
        pair.conversation()


def test_an_interrupt_while_the_checker_is_loaded_leaves_the_pair_open(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    mine = replace(read_pairs()["builtin"], name="mine", policy="target", check=ModelEntry("builtin:draft"))
    add_pair(home / "arbitrage" / "pairs.toml", mine)
    with open_pair(pair="mine") as pair:
        with monkeypatch.context() as patched:
            patched.setattr("arbitrage_cli.app.opening.open_models.OpenModels.load", interrupted)
            with pytest.raises(KeyboardInterrupt):
                pair.solve(QUESTION, policy="agree")
        assert pair.solve(QUESTION).answer
        assert pair.solve(QUESTION, policy="agree").check


def test_a_checker_that_cannot_be_used_stops_no_other_call(home: Path) -> None:
    mine = replace(read_pairs()["builtin"], name="mine", policy="target", check=ModelEntry("http://127.0.0.1:1/v1"))
    add_pair(home / "arbitrage" / "pairs.toml", mine)
    with open_pair(pair="mine") as pair:
        for _ in range(2):
            with pytest.raises(ServerError):
                pair.solve(QUESTION, policy="agree")
            assert route_of(pair)[0] == "target"

"""`arbitrage chat`: turns, commands, what is remembered, and Ctrl-C."""

import re
from collections.abc import Sequence

import pytest
from cli import MODELS, QUESTION, RIGHT, WRONG, Result, Terminal, flat, run
from fake_chat import Api, ChatServer
from fake_server import Answer, on_loopback

LONG = "+".join(["1"] * 90)  # a step for each sign


def chat(*lines: str, flags: tuple[str, ...] = (), models: Sequence[str] = MODELS) -> Result:
    result = run("chat", *models, *flags, stdin="".join(f"{line}\n" for line in lines).encode())
    assert result.code == 0, result.err
    return result


def test_each_line_is_answered_as_its_policy_says() -> None:
    result = chat(QUESTION, "", "/policy target", QUESTION, "/policy draft", QUESTION, "/quit", QUESTION)
    assert result.out.split() == [RIGHT, RIGHT, WRONG]
    result = chat("/policy entropy@inf", QUESTION, "/tau 0.5", QUESTION)
    assert result.out.split() == [WRONG, RIGHT]


def test_the_target_alone_is_compared() -> None:
    result = chat("/policy draft", QUESTION, "/target")
    assert result.out.split() == [WRONG, RIGHT]
    assert f"{WRONG}; the target alone: {RIGHT}" in result.err
    assert not re.search("^;", result.err, re.MULTILINE)


BUILT_IN = ("--pair", "builtin")


def test_an_explanation_is_of_the_decisions_that_were_made() -> None:
    result = chat("/policy arbitrage@0.5", "What is 23 * 47 - 88?", "/policy target", "/explain", models=BUILT_IN)
    assert len(re.findall(r"  0\.\d+ (?:≤|>) 0\.5", result.out)) == result.out.count("log-odds") >= 2
    result = chat("/policy random@0.5", "What is 23 * 47 - 88?", "/policy arbitrage@0.5", "/explain", models=BUILT_IN)
    assert len(re.findall(r"  0\.\d+ (?:≤|>) 0\.5", result.out)) >= 2
    assert "log-odds" not in result.out


def test_the_built_in_pair_answers_each_question_alone() -> None:
    result = chat("What is 37 * 12 - 95?", "What is 23 * 47 - 88?", "What is 31 * 12 - 95?", models=BUILT_IN)
    assert result.out.split() == ["349", "993", "277"]
    assert result.err.count("each question is answered separately") == 1


def test_the_answer_is_what_the_task_finds() -> None:
    result = chat("/policy target", QUESTION, flags=("--task", "free"))
    assert (result.out.count("=") > 1, "no answer found" in result.err) == (True, False)


def test_a_command_that_takes_no_value_ignores_one() -> None:
    assert chat("/policy target", QUESTION, "/quit now", QUESTION).out.split() == [RIGHT]


def test_tau_without_a_value_changes_nothing() -> None:
    result = chat("/policy entropy@inf", "/tau", QUESTION)
    assert (result.out.split(), "/tau: " in result.err) == ([WRONG], True)


@pytest.mark.parametrize("lines", [["/polcy"], ["/tau 3", "/policy nobody"], ["/target"], ["/explain"], ["\0"]])
def test_a_line_that_cannot_be_followed_does_not_end_the_chat(lines: list[str]) -> None:
    result = chat("/policy target", *lines, QUESTION)
    assert result.out.split() == [RIGHT]
    assert "Traceback" not in result.err


def test_a_policy_that_a_conversation_cannot_use_is_refused_alike_in_the_chat_and_before_it() -> None:
    _, _, before = run("chat", *MODELS, "--policy", "agree").err.partition("--policy: ")
    assert before.splitlines()[0] in chat("/policy agree", models=MODELS).err
    assert "policy 'nobody'" in chat("/policy nobody").err


@pytest.mark.parametrize("line", ["/policy arbitrage@0", "/tau 0"])
def test_a_choice_that_is_slower_than_the_target_gets_the_note_of_the_command_line(line: str) -> None:
    notes = [
        [note for note in result.err.splitlines() if "policy target" in note]
        for result in (
            chat(flags=("--policy", "arbitrage", "--tau", "0"), models=BUILT_IN),
            chat(line, "/policy target", flags=("--policy", "arbitrage"), models=BUILT_IN),
        )
    ]
    assert notes[0] == notes[1]
    assert len(notes[0]) == 1


def test_a_refusal_of_a_server_does_not_end_the_chat() -> None:
    server, refusal = ChatServer(Api()), Answer([{"error": "input was flagged"}], 401)
    server.faults = lambda: refusal if "a bad question" in str(server.bodies[-1]) else None
    with on_loopback(server) as address:
        result = chat("a bad question", QUESTION, models=(*MODELS[:3], address), flags=("--policy", "target"))
    assert ("flagged" in result.err, bool(result.out.strip())) == (True, True)


def test_help_fits_a_terminal() -> None:
    lines = chat("/help").out.splitlines()
    assert max(map(len, lines)) < 80
    assert {line[:15].strip() for line in lines} >= {"", "/target", "/quit"}


def test_what_is_remembered() -> None:
    flags, numbers = ("--ctx", "300"), range(31, 37)
    turns = [f"{number} * 12 - 95" for number in numbers]
    remembered = chat(*turns, flags=flags).out.split()
    assert 2 <= len(remembered) < len(turns)
    renewed = [line for turn in turns for line in (turn, "/new")]
    assert chat(*renewed, flags=flags).out.split() == [str(number * 12 - 95) for number in numbers]


def test_what_is_typed_while_an_answer_is_written_waits_for_the_prompt() -> None:
    with Terminal("chat", *MODELS) as terminal:
        terminal.wait_until(lambda: terminal.text.endswith("entropy@1>"))
        terminal.process.sendline(LONG)
        for number in range(2, 9):
            terminal.wait_until(lambda number=number: f"{number} + 1 = {number + 1}" in terminal.text)  # type: ignore[misc]
            terminal.process.send("\r" if number < 6 else str(number))  # line breaks would move the region
        terminal.wait_until(lambda: terminal.text.endswith("entropy@1> 678"))
        assert terminal.text.count("678") == 1
        steps = terminal.text.partition("2 + 1 = 3")[2].partition("89 + 1 = 90")[0]
        assert [line for line in steps.splitlines()[1:-1] if not re.search(r"\d \+ 1 = \d|accept|escalate", line)] == []
        terminal.process.send("\x15")  # Ctrl-U erases the line
        terminal.process.sendeof()
        assert terminal.wait() == 0


def test_ctrl_c_stops_a_turn_and_keeps_the_chat() -> None:
    with Terminal("chat", *MODELS) as terminal:
        terminal.wait_until(lambda: terminal.text.endswith("entropy@1>"))
        terminal.process.sendline(LONG)
        terminal.wait_until(lambda: "2 + 1 = 3" in terminal.text)
        terminal.process.sendintr()
        terminal.wait_until(lambda: terminal.text.endswith("entropy@1>"))
        assert "answer" not in flat(terminal.text).partition("> ")[2]
        terminal.process.send("nonsense")
        terminal.wait_until(lambda: terminal.text.endswith("nonsense"))  # readline listens
        terminal.process.sendintr()
        terminal.wait_until(
            lambda: terminal.text.replace("\n", "").count("stopped;") == 2 and terminal.text.endswith("entropy@1>")
        )
        assert "nonsensestopped" not in terminal.text
        terminal.process.sendline(QUESTION)
        terminal.wait_until(lambda: f"answer {RIGHT}" in terminal.text and terminal.text.endswith("entropy@1>"))
        assert terminal.text.count("scripted:draft") == 1
        terminal.process.sendeof()
        assert terminal.wait() == 0
    assert not terminal.screen.cursor.hidden

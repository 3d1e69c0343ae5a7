"""`arbitrage chat`: a conversation with a pair in the terminal."""

import contextlib
import signal
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from arbitrage_cli.app.options import Options
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.output import OutputOptions, command_display
from arbitrage_cli.cli.streams import show_cursor
from arbitrage_cli.display import wording
from arbitrage_cli.display.decisions import decision_lines
from arbitrage_cli.display.text import safe, width_of, wrapped, write_lines
from arbitrage_cli.errors import ProblemError, UsageError, unknown
from arbitrage_cli.system.signals import Interruption, interruptible
from arbitrage_cli.types import Finished

if TYPE_CHECKING:
    from arbitrage_cli.app.calls.conversation import RoutedConversation


HELP, QUIT = "/help", "/quit"
COMMANDS = """\
/policy NAME   use another policy, such as entropy, target or arbitrage@fast; without NAME, list them
/tau TAU       use another tau: a number, a share of the steps (30%), careful, balanced or fast
/target        answer the last question with the target alone, and compare
/explain       explain the decisions of the last answer
/new           start a new conversation
/quit          leave (or Ctrl-D)"""


@command(without=["prm", "check", "concurrency"])
def chat(*, options: Options, output: OutputOptions) -> None:
    """Chat with a pair, and see which model writes each step.

    Each line is a question, and the pair remembers the conversation. With the commands that /help lists, you can change the
    policy or tau, compare an answer with the target's, or have an answer explained. Ctrl-C stops an answer, and Ctrl-D ends
    the chat.

    \b
    Examples:
      arbitrage chat --pair llama3
      arbitrage chat --tau fast
    """
    from arbitrage_cli.app.asking.request import ask
    from arbitrage_cli.app.calls.conversation import RoutedConversation
    from arbitrage_cli.app.entries.start import open_session
    from arbitrage_cli.problems.tasks import find_task

    with contextlib.ExitStack() as stack:
        display = stack.enter_context(command_display(output))
        request = ask(options, find_task(options.task), use="chat")
        session = stack.enter_context(open_session(request, display, max_concurrency=1))
        session.load()
        conversation = RoutedConversation(session)
        conversation.show_route()
        prompt = _Prompt(conversation, display, shows_answers=output.quiet or not sys.stdout.isatty())
        with contextlib.suppress(ImportError):  # some builds of Python lack it
            import readline  # noqa: F401 - gives `input` line editing and a history
        while prompt.follow_line():
            pass


class _Prompt:
    """The command loop of a chat. If `shows_answers` is true, answers are printed to standard output."""

    def __init__(self, conversation: "RoutedConversation", display: Display, *, shows_answers: bool) -> None:
        self._conversation = conversation
        self._display = display
        self._shows_answers = shows_answers
        self._commands: Mapping[str, Callable[[str], None]] = {
            "/policy": self._choose_policy,
            "/tau": self._choose_tau,
            "/target": lambda rest: self._compare(),
            "/explain": lambda rest: self._explain(),
            "/new": lambda rest: self._conversation.clear(),
            HELP: lambda rest: _say(COMMANDS, COMMANDS.index("use")),
        }

    def follow_line(self) -> bool:
        """Answer the next line, or run it if it is a command.

        Return False at the end. Ctrl-C stops only the current answer.
        """
        try:
            with interruptible(show_cursor):
                line = _read_line(f"{self._conversation.route.name}> ")
                if line is None or line.split()[:1] == [QUIT]:
                    return False
                if line:
                    self._follow(line)
        except Interruption as interruption:
            if interruption.number != signal.SIGINT:
                raise
            self._conversation.close_view()
            self._display.note("stopped; to leave, use /quit or Ctrl-D")
        except (ProblemError, UsageError) as error:
            self._display.note(": ".join(filter(None, (error.message, error.hint))))
        return True

    def _follow(self, line: str) -> None:
        first, _, rest = line.partition(" ")
        if not first.startswith("/"):
            self._answer(self._conversation.ask(line))
        elif first in self._commands:
            self._commands[first](rest.strip())
        else:
            raise unknown("command", first, [*self._commands, QUIT])

    def _answer(self, finished: Finished) -> None:
        if self._shows_answers and finished.trace.decisions:
            self._display.result(safe(self._conversation.answer(finished)))

    def _choose_policy(self, name: str) -> None:
        if name:
            self._conversation.choose(name)
        else:
            _say(", ".join(self._conversation.menu.names))

    def _choose_tau(self, tau: str) -> None:
        if not tau:
            raise UsageError("/tau: the value is missing", f"see {HELP}")
        self._conversation.choose(f"{self._conversation.route.policy.name}@{tau}")

    def _compare(self) -> None:
        self._answer(alone := self._conversation.ask_target())
        if alone.error is None:
            self._display.note(wording.compared(self._conversation.last[0], alone, self._conversation.answer))

    def _explain(self) -> None:
        finished, run = self._conversation.last
        trace = finished.trace
        lines = (line for index, _ in enumerate(trace.decisions) for line in decision_lines(trace, index, run))
        _say("\n".join(map(str, lines)), 5)


def _say(text: str, indent: int = 2) -> None:
    lines = (part for line in text.split("\n") for part in wrapped(line, width_of(sys.stdout), indent) or [""])
    write_lines(sys.stdout, lines)


def _read_line(prompt: str) -> str | None:
    """Return the next line without surrounding white space, or None at the end of input. Shows a prompt in a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        line = sys.stdin.readline()
        return line.strip() if line else None
    try:
        return input(prompt).strip()
    except EOFError:
        _say("")
        return None
    except Interruption:
        _say("")
        raise

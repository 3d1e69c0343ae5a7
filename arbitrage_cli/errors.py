"""The errors that are reported to users. Each class has an exit code, and each error has a message and a hint.

Only `cli.main` prints errors.
"""

import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches


class ArbitrageError(Exception):
    """The base class of all errors. `message` describes the problem in one line; `hint` suggests what to do."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ArbitrageError):
    """The command line, a settings file or an input is invalid.

    `option` is the Python name of the invalid argument, such as `max_tokens`. On the command line, the error names the flag,
    environment variable or settings file that set the argument.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str = "", *, option: str | None = None) -> None:
        super().__init__(message, hint)
        self.option = option

    def __str__(self) -> str:
        return f"{self.option}: {self.message}" if self.option else self.message


class PairNotSavedError(UsageError):
    """A pair cannot be added to the user's file. `lines` are its table."""

    def __init__(self, message: str, hint: str = "", *, lines: Sequence[str] = ()) -> None:
        super().__init__(message, hint, option="save")
        self.lines = lines


class ProgramsNotAllowedError(UsageError):
    """A task runs model-written programs, which the user has not allowed."""


class ModelError(ArbitrageError):
    """A model cannot be used."""

    exit_code = 3


class ModelFileError(ModelError):
    """The file is missing, unreadable, or not a GGUF model."""


class ModelUnsupportedError(ModelError):
    """The model runs in llama.cpp, but lacks a feature that this program needs."""


class ModelMemoryError(ModelError):
    """The model's weights, or the weights with its context, do not fit in memory."""


class HubError(ModelError):
    """The model cannot be fetched from the Hugging Face Hub."""


class ServerError(ModelError):
    """The model's server cannot be used: it is unreachable, rejects the API key or many problems in a row, or lacks a function."""


class RouterError(ModelError):
    """The router file is damaged, has an unknown format, or was trained on different steps."""


class TemplateError(ModelError):
    """The chat template inside the model file cannot be rendered."""


class ComputeError(ArbitrageError):
    """A computation failed or produced a result that is not a number. The model's state is lost."""

    exit_code = 4


class ProblemError(ArbitrageError):
    """One problem cannot be solved. The other problems of the run are not affected."""


class ContextFullError(ProblemError):
    """The problem and its partial solution do not fit in the model's context."""


class TimedOutError(ProblemError):
    """The problem reached its time limit."""


class ConversationError(ProblemError):
    """The model's chat template cannot render this conversation or system prompt."""


class ServerRequestError(ProblemError):
    """A request to the model's server failed.

    `status` is the HTTP status: 408 after a timeout, 403 after a content filter, and 0 if the server sent no status.
    `retry_after` is the number of seconds after which the server asks to repeat the request, or 0.
    """

    def __init__(self, message: str, hint: str = "", *, status: int = 0, retry_after: float = 0.0) -> None:
        super().__init__(message, hint)
        self.status = status
        self.retry_after = retry_after


class OutputError(ArbitrageError):
    """Results cannot be written, for example because the disk is full."""


class ReaderGoneError(OutputError):
    """The program that reads the output closed the pipe, as `head` does. This is not a failure, so nothing is printed."""

    exit_code = 141

    def __init__(self) -> None:
        super().__init__("")


class DamagedRunError(ArbitrageError):
    """A file in a run folder was changed after it was written."""

    exit_code = 5


class InterruptedRunError(ArbitrageError):
    """The run was stopped by Ctrl-C or SIGTERM."""

    def __init__(self, message: str, hint: str = "", *, exit_code: int = 130) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code


class DefectError(ArbitrageError):
    """A bug in arbitrage."""

    exit_code = 70


PLAIN_WORDS = {
    "Input should be": "must be",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "a valid integer": "a whole number",
    "a valid string": "text",
    "a valid list": "a list",
    "a valid boolean": "true or false",
    "List should have": "must have",
    "String should have": "must have",
    "Field required": "is required",
    " after validation": "",
}


def in_plain_words(message: str) -> str:
    """Return a message of pydantic in this program's words, such as `must be at least 1`."""
    message = message.removeprefix("Value error, ").partition(", unable to parse")[0]
    for words, plain in PLAIN_WORDS.items():
        message = message.replace(words, plain)
    return message


MAX_SHOWN = 100
"""The maximum length of an unknown name that is quoted in an error."""


def unknown(kind: str, name: str, known: Iterable[str], *, option: str | None = None, more: str = "") -> UsageError:
    """Return the error for an unknown name. The hint lists the most similar name first, then all known names."""
    names = list(known)
    similar = get_close_matches(name[:MAX_SHOWN], names, n=1)
    guess = f"did you mean '{similar[0]}'? " if similar else ""
    shown = name if len(name) <= MAX_SHOWN else f"{name[:MAX_SHOWN]}..."
    return UsageError(f"unknown {kind} '{shown}'", f"{guess}choose from: {', '.join(names)}{more}", option=option)


@contextmanager
def os_errors(kind: type[ArbitrageError], message: str, hint: str) -> Iterator[None]:
    """Convert each OSError to an error of this kind. The system's reason is added to the message."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and "free disk space" not in hint:
            hint = "free disk space, then rerun the command"
        raise kind(f"{message} ({error.strerror or error})", hint) from error

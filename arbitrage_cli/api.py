"""The public names of `arbitrage_cli`."""

from arbitrage_cli.app.calls.call import CallOptions, Question, Solution, StreamEvent, Token, Usage
from arbitrage_cli.app.calls.conversation import Conversation
from arbitrage_cli.app.entries.pair import Pair, open_pair
from arbitrage_cli.errors import (
    ArbitrageError,
    ComputeError,
    ContextFullError,
    ConversationError,
    HubError,
    ModelError,
    ModelFileError,
    ModelMemoryError,
    ModelUnsupportedError,
    ProblemError,
    RouterError,
    ServerError,
    ServerRequestError,
    TemplateError,
    UsageError,
)
from arbitrage_cli.types import Check, Cost, Decision, Problem, Step

__all__ = (
    "ArbitrageError",
    "CallOptions",
    "Check",
    "ComputeError",
    "ContextFullError",
    "Conversation",
    "ConversationError",
    "Cost",
    "Decision",
    "HubError",
    "ModelError",
    "ModelFileError",
    "ModelMemoryError",
    "ModelUnsupportedError",
    "Pair",
    "Problem",
    "ProblemError",
    "Question",
    "RouterError",
    "ServerError",
    "ServerRequestError",
    "Solution",
    "Step",
    "StreamEvent",
    "TemplateError",
    "Token",
    "Usage",
    "UsageError",
    "open_pair",
)

"""What a server reports about its requests, beside the events of their problems."""

from dataclasses import dataclass

from arbitrage_cli.types import Event, Finished, Trace


@dataclass(frozen=True, slots=True)
class RequestBegun:
    """A request has a slot. `model` is the name that it asked for."""

    trace: Trace
    model: str


@dataclass(frozen=True, slots=True)
class RequestEnded:
    """A request has ended, `seconds` after it arrived. `is_cancelled`: its client did not wait for the end."""

    model: str
    finished: Finished
    seconds: float
    is_cancelled: bool


ServingEvent = Event | RequestBegun | RequestEnded

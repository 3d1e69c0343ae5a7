"""Limits on the requests that run and wait. Each model's server has limits of its own.

Requests that wait for a server that is slow or down therefore do not keep others from running, or from being accepted.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import field

from arbitrage_cli.routing.policies import Policy
from arbitrage_cli.types import ByRole, Json, ModelRole, frozen

THIS_MACHINE = ""  # needed by requests whose models are all in this process


@frozen
class RequestLimits:
    """At most `running` requests that need the same server run at once, and `waiting` more may wait.

    The same limits apply to all requests that need no server. `servers` contains the servers of models that are not in this
    process. A request needs the servers of all models of its policy.
    """

    running: int = 1
    waiting: int = 64
    servers: ByRole[str] = field(default_factory=dict)

    def needs(self, policy: Policy) -> Collection[str]:
        return {self.servers[role] for role in policy.models if role in self.servers} or {THIS_MACHINE}

    def to_json(self, load: "Load") -> Json:
        """Return the limits and the load of each server, without its address, which only the operator may see."""
        models: dict[str, list[ModelRole]] = {}
        for role, server in self.servers.items():
            models.setdefault(server, []).append(role)
        servers = [
            {"models": roles, "running": load.running[server], "waiting": load.waiting[server]}
            for server, roles in models.items()
        ]
        return {"limits": {"running": self.running, "waiting": self.waiting}, "servers": servers}


@frozen
class Load:
    """The numbers of requests that run and wait, by the server that they need."""

    running: Counter[str] = field(default_factory=Counter)
    waiting: Counter[str] = field(default_factory=Counter)

    def num_open(self, server: str) -> int:
        return self.running[server] + self.waiting[server]

"""`arbitrage` with one more row in the table of policies: `begin`, whose first step is the target's, and the rest the draft's."""

import sys
from types import MappingProxyType

from arbitrage_cli.arbitrage import Flow, WriteStep
from arbitrage_cli.cli.main import main
from arbitrage_cli.routing import policies
from arbitrage_cli.routing.flows import FlowSettings
from arbitrage_cli.routing.policies import Policy
from arbitrage_cli.types import WRITING, Decision, ModelRole, Step, Trace


def begin(trace: Trace, settings: FlowSettings) -> Flow:
    model: ModelRole = "target"
    while not trace.finished:
        step: Step = yield WriteStep(model, trace)
        trace.add(Decision(step, target=step) if model == "target" else Decision(step, draft=step))
        model = "draft"


BEGIN = Policy("begin", WRITING, begin, routes_steps=True, keeps_every_token=True, is_advised=True)


def add() -> None:
    """Add the policy in every module that has the table."""
    table = policies.POLICIES
    longer = MappingProxyType({**table, BEGIN.name: BEGIN})
    for module in [*sys.modules.values()]:
        if vars(module).get("POLICIES") is table:
            vars(module)["POLICIES"] = longer


if __name__ == "__main__":
    add()
    sys.exit(main(sys.argv[1:]))

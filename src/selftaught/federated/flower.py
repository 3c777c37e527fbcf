"""The rounds of `Federation` over Flower (extra `flower`): a ServerApp and a ClientApp made of the same parts.

Flower brings transport, processes and nodes; what is corrected, averaged, refused and counted is ours, so a run
over Flower and one in process give the same numbers for the same answers. Flower's simulation (`flwr[simulation]`)
takes the same two apps.
"""

from selftaught.federated.federation import Federation
from selftaught.federated.flower_client import Plan, client_app, kept_state, one_round, state_file
from selftaught.federated.flower_server import CorrectedStrategy, server_app


def plan_of(federation: Federation) -> Plan:
    """The part of a `Federation` that server and clients must agree on."""
    return Plan(federation.net, federation.model, federation.correction, federation.local, federation.seed)


__all__ = [
    "CorrectedStrategy",
    "Plan",
    "client_app",
    "kept_state",
    "one_round",
    "plan_of",
    "server_app",
    "state_file",
]

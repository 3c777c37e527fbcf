"""Personalised federated learning (PFL): local steps, their correction, what travels and what stays with a client.

Acar et al., "Debiasing Model Updates for Improving Personalized Federated Training", ICML 2021. `Federation` runs
all clients in one process; `selftaught.federated.flower` runs the same rounds with Flower (extra `flower`).
"""

from selftaught.federated.clients import UNLABELLED, ClientData, Clients, as_clients, choose, generator_of
from selftaught.federated.corrections import Correction, Dyn, NoCorrection, Scaf
from selftaught.federated.federation import (
    FederatedState,
    Federation,
    mean_accuracy,
    personal_accuracies,
    rounds_together,
    usable,
)
from selftaught.federated.local import Broadcast, LocalSteps, Trained, train_locally
from selftaught.federated.meta_models import FineTuneModel, MAMLModel, MetaModel, ProtoModel
from selftaught.federated.networks import Classifier, FlatMLP, classifier, mlp_classifier
from selftaught.federated.partitions import acid, alid, by_alphabet, by_drawer, by_owner, dirichlet
from selftaught.federated.self_supervised import SelfSupervised
from selftaught.federated.server import Record, ServerState, Update, aggregate, first_state

__all__ = [
    "UNLABELLED",
    "Broadcast",
    "Classifier",
    "ClientData",
    "Clients",
    "Correction",
    "Dyn",
    "FederatedState",
    "Federation",
    "FineTuneModel",
    "FlatMLP",
    "LocalSteps",
    "MAMLModel",
    "MetaModel",
    "NoCorrection",
    "ProtoModel",
    "Record",
    "Scaf",
    "SelfSupervised",
    "ServerState",
    "Trained",
    "Update",
    "acid",
    "aggregate",
    "alid",
    "as_clients",
    "by_alphabet",
    "by_drawer",
    "by_owner",
    "choose",
    "classifier",
    "dirichlet",
    "first_state",
    "generator_of",
    "mean_accuracy",
    "mlp_classifier",
    "personal_accuracies",
    "rounds_together",
    "train_locally",
    "usable",
]

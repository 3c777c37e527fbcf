"""Where corrected and uncorrected rounds come to rest: quadratic clients, whose best common start is known.

Client i has f_i(w) = (w - a_i)' H_i (w - a_i) / 2 and F_i(w) = f_i(w - r grad f_i(w)), one inner step of size r.
The meta-gradients grad F_i sum to zero at the start that is best for all together.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selftaught.core.functional import params_of
from selftaught.core.types import Aux, Examples, Params, Task
from selftaught.federated import ClientData, Correction, Federation, LocalSteps, generator_of
from selftaught.federated.local import gradients, stacked


class Point(nn.Module):
    """Parameters `w` [D] and nothing else."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(width, dtype=torch.float64))


@dataclass(frozen=True)
class Quadratic:
    """The meta-objective above; a client's x_train is H [D D], its x_test a [1 D]."""

    rate: float = 0.1

    @property
    def batched(self) -> bool:
        return True

    def refusal(self, data: ClientData) -> str | None:
        return None

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        return params_of(net), {}

    def draw(self, data: ClientData, generator: torch.Generator) -> Task:
        return Task(Examples(data.x_train), Examples(data.x_test), 1)

    def loss(self, net: nn.Module, params: Params, slow: Params, task: Task) -> tuple[Tensor, Aux]:
        h, a = task.support.x, task.query.x[0]
        w = params["w"] - self.rate * h @ (params["w"] - a)
        return (w - a) @ h @ (w - a) / 2, Aux()

    def refresh(self, net: nn.Module, slow: Params, params: Params, task: Task, aux: Aux) -> Params:
        return slow

    def personal_logits(self, net: nn.Module, weights: Params, x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
        raise NotImplementedError("points on a quadratic have no classes")


def quadratic_clients(clients: int = 5, width: int = 4, seed: int = 0) -> dict[str, ClientData]:
    """Strongly convex, of different curvature and place."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for c in range(clients):
        root = torch.randn(width, width, generator=generator, dtype=torch.float64)
        h = root @ root.T / width + 0.5 * torch.eye(width, dtype=torch.float64)
        a = torch.randn(1, width, generator=generator, dtype=torch.float64)
        found[str(c)] = ClientData(h, torch.zeros(width).long(), a, torch.zeros(1).long())
    return found


def on_quadratics(correction: Correction, fraction: float = 1.0, seed: int = 0) -> Federation:
    """Five clients, K = 5 steps of 0.3."""
    return Federation(
        Point(4), quadratic_clients(seed=seed), Quadratic(), correction, LocalSteps(5, 0.3), fraction
    )


def meta_gradients(federation: Federation, at: Params) -> Tensor:
    """[M D] of all clients at one point."""
    data = [federation.clients[n] for n in federation.names]
    tasks = [federation.model.draw(d, generator_of(0, 0)) for d in data]
    found, _, _ = gradients(federation.net, federation.model, stacked([at] * len(data)), [{}] * len(data), tasks)
    return found["w"]


def left_over(correction: Correction, rounds: int, fraction: float, seed: int) -> float:
    """|sum of the meta-gradients| at the average after `rounds` rounds."""
    federation = on_quadratics(correction, fraction, seed)
    state = federation.start()
    for _ in range(rounds):
        state, _ = federation.round(state)
    return float(meta_gradients(federation, state.server.average).sum(0).norm())

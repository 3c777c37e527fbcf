"""Small clients and objectives that the tests of this folder share."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selftaught.core.functional import params_of
from selftaught.core.types import Aux, Examples, Params, Task
from selftaught.federated import ClientData, mlp_classifier


def blobs(
    clients: int = 5, per_class: int = 8, classes: int = 3, width: int = 6, seed: int = 0, own_labels: bool = True
) -> dict[str, ClientData]:
    """Clients "a", "b", ... of separable vectors in float64, labels in an order of each client's own or not."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(classes, width, generator=generator, dtype=torch.float64)
    found = {}
    for c in range(clients):
        y = torch.arange(classes).repeat(per_class)
        x = centres[y] + torch.randn(len(y), width, generator=generator, dtype=torch.float64)
        own = torch.randperm(classes, generator=generator)[y] if own_labels else y
        cut = 2 * len(y) // 3
        found[chr(97 + c)] = ClientData(x[:cut], own[:cut], x[cut:], own[cut:])
    return found


def small_net(seed: int = 0, width: int = 6, classes: int = 3) -> nn.Module:
    return mlp_classifier(width, 8, 5, classes, seed).double()


class Point(nn.Module):
    """Parameters `w` [D] and nothing else."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(width, dtype=torch.float64))


@dataclass(frozen=True)
class Quadratic:
    """f_i(w) = (w - a)' H (w - a) / 2 with x_train = H, x_test = a; F_i(w) = f_i(w - rate * grad f_i(w))."""

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
        raise NotImplementedError


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

"""Small clients and objectives that the tests of this folder share."""

import torch
from torch import nn

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

"""Small networks for clients: an encoder under the library's name, and one row of the head for each class."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.nets.heads import MLP, width_of


class Classifier(nn.Module):
    """[B ...] -> [B N]: `encoder`, then `head` with a row of its own for each of N classes.

    Clients agree on what the rows mean (ACID) or do not (ALID); MAML's one shared row (`WithClassifier`) would
    leave nothing in the head to disagree about.
    """

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width_of(encoder), classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


class FlatMLP(nn.Module):
    """[B ...] -> [B width]: all inputs side by side, layers of `widths`, each with ReLU."""

    def __init__(self, inputs: int, *widths: int) -> None:
        super().__init__()
        self.layers = MLP([inputs, *widths])
        self.width = self.layers.width

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layers(x.flatten(1)))


def classifier(encoder: nn.Module, classes: int, seed: int) -> Classifier:
    """A `Classifier` whose head is drawn from `seed`; torch's own generator keeps its state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(encoder, classes)


def mlp_classifier(inputs: int, hidden: int, width: int, classes: int, seed: int) -> Classifier:
    """[B ...] of `inputs` numbers -> hidden -> width -> classes, drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(FlatMLP(inputs, hidden, width), classes)

"""Heads on top of an encoder, and the networks that carry them."""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from selftaught.core.errors import ConfigError


def width_of(encoder: nn.Module) -> int:
    """D of an encoder [B C H W] -> [B D]. Raises ConfigError for a module that does not say."""
    width = getattr(encoder, "width", None)
    if not isinstance(width, int):
        raise ConfigError(f"{type(encoder).__name__} is no encoder here: give it an integer attribute `width`")
    return width


class MLP(nn.Module):
    """[B D] -> [B out]: linear layers with ReLU between; `norm` puts batch normalisation before each ReLU."""

    def __init__(self, widths: Sequence[int], norm: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(widths)):
            inner = i < len(widths) - 2
            layers.append(nn.Linear(a, b, bias=not (norm and inner)))
            if inner:
                layers += [nn.BatchNorm1d(b)] * norm + [nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.width = widths[-1]

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B E"]:
        return self.layers(x)


class WithProjector(nn.Module):
    """An encoder and the projector that the pretext loss sees; the projector is dropped for use."""

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector

    def forward(self, x: Tensor) -> Tensor:
        return self.projector(self.encoder(x))


class WithPredictor(nn.Module):
    """Encoder, projector and the online network's predictor (BYOL, SimSiam)."""

    def __init__(self, encoder: nn.Module, projector: nn.Module, predictor: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.predictor = predictor

    def forward(self, x: Tensor) -> Tensor:
        return self.predictor(self.projector(self.encoder(x)))


class EncoderOnly(nn.Module):
    """An encoder without heads, under the name every method shares."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


class WithClassifier(nn.Module):
    """An encoder and a linear classifier `head`, built with one row that is repeated for every class."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))

"""Encoders of sets of points, in the order (batch, points, dim)."""

from jaxtyping import Float
from torch import Tensor, nn

from selftaught.core.errors import ConfigError
from selftaught.nets.heads import MLP, width_of


class SetEncoder(nn.Module):
    """[B P I+O] -> [B D], D = `width`: the mean over points of an MLP of each; the order of points is of no
    effect.

    The encoder of (conditional) neural processes (Garnelo et al. 2018, arXiv 1807.01613) and of FCRL. Any number
    of points; the mean over two sets of one size is the mean of their two outputs. Raises ConfigError for points
    of another width than `inputs` + `outputs`.
    """

    def __init__(
        self, inputs: int = 1, outputs: int = 1, hidden: int = 128, width: int = 64, depth: int = 2
    ) -> None:
        super().__init__()
        self.points = MLP([inputs + outputs, *[hidden] * depth, width])
        self.inputs, self.outputs, self.width = inputs, outputs, width

    def forward(self, x: Float[Tensor, "B P E"]) -> Float[Tensor, "B D"]:
        if x.ndim != 3 or x.shape[-1] != self.inputs + self.outputs or not x.shape[-2]:
            raise ConfigError(
                f"a set encoder for {self.inputs} inputs and {self.outputs} outputs needs [B P "
                f"{self.inputs + self.outputs}] with a point or more, got {tuple(x.shape)}; use the order "
                "(batch, points, dim), see with_points_first"
            )
        return self.points(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)


class WithPointDecoder(nn.Module):
    """A set encoder and what predicts outputs at new inputs: `decoder` [... code+I] -> [... 2 O].

    With `latent` numbers, `posterior` [B D] -> [B 2 L] makes a Gaussian of the encoder's output, and the decoder
    has its draws for code in place of it.
    """

    def __init__(self, encoder: nn.Module, hidden: int, latent: int = 0) -> None:
        super().__init__()
        if not isinstance(encoder, SetEncoder):
            raise ConfigError(f"{type(encoder).__name__} takes no sets of points; use nets.sets.SetEncoder")
        self.encoder = encoder
        self.posterior = nn.Linear(width_of(encoder), 2 * latent) if latent else nn.Identity()
        self.decoder = MLP([(latent or encoder.width) + encoder.inputs, hidden, hidden, 2 * encoder.outputs])

    def forward(self, x: Tensor) -> Tensor:
        return self.posterior(self.encoder(x))

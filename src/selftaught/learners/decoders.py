"""Decoders on a frozen encoder of functions: numbers from numbers, apart from the encoder by construction."""

import warnings
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from selftaught.core.errors import ConfigError, DataError
from selftaught.core.functional import in_batches, part
from selftaught.core.types import Params
from selftaught.data.functions import Functions

Kind = Literal["mlp", "linear"]


def represent(net: nn.Module, weights: Params, functions: Functions) -> Float[Tensor, "F D"]:
    """What `net.encoder` says of each function from all its points, without gradient or projector."""
    return in_batches(net.get_submodule("encoder"), part(weights, "encoder"), functions.sets)


@dataclass(frozen=True)
class Decoder:
    """A fitted map [F D] -> [F R]."""

    fitted: Any

    def __call__(self, z: Float[Tensor, "F D"]) -> Float[Tensor, "F R"]:
        found = torch.from_numpy(self.fitted.predict(z.detach().double().cpu().numpy()))
        return found.reshape(len(z), -1)


def fit_decoder(
    z: Float[Tensor, "F D"],
    targets: Float[Tensor, "F R"],
    kind: Kind = "mlp",
    *,
    hidden: int = 128,
    epochs: int = 60,
    seed: int = 0,
) -> Decoder:
    """scikit-learn's ridge regression ("linear") or one hidden layer under Adam for `epochs`, the last of them
    ("mlp").

    Features and targets are standardised by those given. Raises DataError for shapes that do not match or numbers
    that are not finite, ConfigError for another `kind`.
    """
    if kind not in get_args(Kind):
        raise ConfigError(f"a decoder is mlp or linear, not {kind!r}")
    if z.ndim != 2 or targets.ndim != 2 or len(z) != len(targets) or not len(z):
        raise DataError(f"need features [F D] and targets [F R], got {list(z.shape)} and {list(targets.shape)}")
    if not (z.isfinite().all() and targets.isfinite().all()):
        raise DataError("features or targets hold NaN or infinite numbers: look at the functions, or train again")
    plain = Ridge(1.0) if kind == "linear" else MLPRegressor(
        hidden_layer_sizes=(hidden,), max_iter=epochs, n_iter_no_change=epochs, random_state=seed
    )  # fmt: skip
    model = TransformedTargetRegressor(make_pipeline(StandardScaler(), plain), transformer=StandardScaler())
    with warnings.catch_warnings():
        # A fixed number of epochs is what is wanted.
        warnings.simplefilter("ignore", ConvergenceWarning)
        y = targets[:, 0] if targets.shape[1] == 1 else targets
        model.fit(z.detach().double().cpu().numpy(), y.detach().double().cpu().numpy())
    return Decoder(model)


def normalised_error(found: Float[Tensor, "F R"], targets: Float[Tensor, "F R"]) -> float:
    """Mean over R of mean square error over variance: 1 is what predicting each target's mean gets."""
    targets = targets.to(found)
    return float(((found - targets).square().mean(0) / targets.var(0, correction=0)).mean())

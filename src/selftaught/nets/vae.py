"""A small variational autoencoder for pictures of any size."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class VAE(nn.Module):
    """Pictures [B C H W] in 0..1 <-> codes [B Z] (Kingma, Welling 2014, arXiv 1312.6114).

    Encoder and decoder are perceptrons with one layer of `hidden` units, as in that paper; here with ReLU.
    """

    def __init__(self, channels: int, height: int, width: int, hidden: int = 256, latent: int = 20) -> None:
        super().__init__()
        self.shape = (channels, height, width)
        pixels = math.prod(self.shape)
        self.encoder = nn.Sequential(nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, pixels))

    def encode(self, x: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """Mean and logarithm of the variance of the posterior."""
        mean, log_var = self.encoder(x.flatten(1)).chunk(2, dim=1)
        return mean, log_var

    def decode(self, z: Float[Tensor, "B Z"]) -> Float[Tensor, "B C H W"]:
        """Logits of the pixels; their sigmoid is the picture."""
        return self.decoder(z).unflatten(1, self.shape)

    def forward(self, x: Float[Tensor, "B C H W"], noise: Float[Tensor, "B Z"]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of one sample's pixels, posterior mean and log variance; `noise` is standard normal."""
        mean, log_var = self.encode(x)
        return self.decode(mean + torch.exp(log_var / 2) * noise), mean, log_var

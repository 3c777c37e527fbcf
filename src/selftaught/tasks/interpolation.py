"""Episodes of pictures that do not exist: a class is a neighbourhood in the code of a variational autoencoder.

LASIUM: Khodadadeh, Zehtabian, Vahidian, Wang, Lin, Boloni, "Unsupervised Meta-Learning through Latent-Space
Interpolation in Generative Models", ICLR 2021, arXiv 2006.10236.
"""

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.adam import adam

from selftaught.core.errors import ConfigError, TooFewPicturesError
from selftaught.core.functional import to_float
from selftaught.core.types import Examples, Task
from selftaught.data.augment import augment
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.losses.variational import negative_elbo
from selftaught.nets.vae import VAE
from selftaught.tasks.views import distinct, labels

_log = logging.getLogger(__name__)
_LINES = 10  # of the log, at most one an epoch

Anchors = Literal["pictures", "prior"]
Towards = Literal["prior", "classes"]


@dataclass(frozen=True)
class VAEPlan:
    """How a `VAE` is trained: `epochs` passes over the pictures with Adam; all that is random follows from `seed`.

    Raises ConfigError for sizes below 1 and fewer than 0 epochs.
    """

    hidden: int = 256
    latent: int = 20
    epochs: int = 30
    batch: int = 64
    rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.hidden, self.latent, self.batch) < 1 or self.epochs < 0:
            raise ConfigError(f"{self}: use at least 1 of hidden, latent and batch, and epochs of 0 or more")


def trained_vae(pictures: Pictures, plan: VAEPlan) -> VAE:
    """A VAE of these pictures, without gradients. The same arguments give the same bits on one machine.

    The global generators keep their states. About every tenth of the epochs is logged with its last loss.
    """
    generator = torch.Generator().manual_seed(plan.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        vae = VAE(*pictures.shape, plan.hidden, plan.latent)
    weights: list[Tensor] = list(vae.parameters())
    means, squares = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    counts = [torch.zeros(()) for _ in weights]
    for epoch in range(1, plan.epochs + 1):
        for index in torch.randperm(len(pictures), generator=generator).split(plan.batch):
            x = to_float(pictures.x[index])
            with torch.enable_grad():
                logits, mean, log_var = vae(x, torch.randn(len(x), plan.latent, generator=generator))
                loss = negative_elbo(logits, x, mean, log_var)
                slopes = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                # The function, not the class, whose first use imports a compiler.
                adam(
                    weights, list(slopes), means, squares, [], counts, foreach=True, amsgrad=False, beta1=0.9,
                    beta2=0.999, lr=plan.rate, weight_decay=0.0, eps=1e-8, maximize=False,
                )  # fmt: skip
        if epoch * _LINES // plan.epochs > (epoch - 1) * _LINES // plan.epochs:
            loss_now = float(loss.detach())
            _log.info("VAE of %d pictures: epoch %d of %d, loss %.1f", len(pictures), epoch, plan.epochs, loss_now)
    return vae.requires_grad_(False)


@dataclass(frozen=True)
class InterpolationTasks:
    """Meta-batches of decoded pictures. Pure in the generator; the VAE is trained at the first draw.

    A class is an anchor z: the posterior mean of a picture (`anchors` "pictures", each picture once a task) or a
    draw from N(0, 1) ("prior"). Every member is decoded from z + `amount` * (n - z), where n is a new draw from
    N(0, 1) (`towards` "prior") or the anchor of another class of the task ("classes"), and moved by up to `shift`
    of its side. `support.x` [T N*K C H W] and `query.x` [T N*Q C H W] float in 0..1; `index` [T N] names the
    anchors' pictures. Raises TooFewPicturesError for fewer pictures than `ways` (2 for the prior), ConfigError for
    an amount outside 0..1.
    """

    pictures: Pictures
    plan: VAEPlan
    amount: float = 0.4
    shift: float = 0.15
    anchors: Anchors = "pictures"
    towards: Towards = "prior"
    ways: int = 5
    shots: int = 1
    queries: int = 5
    tasks: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.amount <= 1:
            raise ConfigError(f"amount={self.amount} leaves the line between two codes; use an amount from 0 to 1")
        need = self.ways if self.anchors == "pictures" else 2
        if len(self.pictures) < need:
            raise TooFewPicturesError(
                f"{len(self.pictures)} pictures give too few anchors for {self.ways} ways; ask for fewer ways or "
                "add pictures"
            )

    @cached_property
    def vae(self) -> VAE:
        """Trained where it is first asked for, so that a source which only is looked at costs nothing."""
        return trained_vae(self.pictures, self.plan)

    @torch.no_grad()
    def __call__(self, generator: torch.Generator) -> Task:
        z, index = self._anchors(generator)
        support, query = (self._members(z, count, generator) for count in (self.shots, self.queries))
        return Task(support, query, self.ways, index)

    def _anchors(self, generator: torch.Generator) -> tuple[Float[Tensor, "T N Z"], Tensor | None]:
        if self.anchors == "prior":
            return torch.randn(self.tasks, self.ways, self.plan.latent, generator=generator), None
        rows = [distinct(len(self.pictures), self.ways, generator) for _ in range(self.tasks)]
        index = torch.stack(rows)
        mean, _ = self.vae.encode(to_float(self.pictures.x[index.flatten()]))
        return mean.unflatten(0, index.shape), index

    def _members(self, z: Float[Tensor, "T N Z"], count: int, generator: torch.Generator) -> Examples:
        """`count` pictures of every class, rows by shot, then class."""
        centre = z[:, None].expand(-1, count, -1, -1)  # [T K N Z]
        codes = torch.lerp(centre, self._ends(centre, generator), self.amount)
        x = torch.sigmoid(self.vae.decode(codes.flatten(0, 2)))
        if self.shift:
            x = augment(x, Views(translate=self.shift), generator)
        return Examples(x.unflatten(0, (self.tasks, -1)), labels(self.tasks, self.ways, count))

    def _ends(self, centre: Float[Tensor, "T K N Z"], generator: torch.Generator) -> Tensor:
        """n, what each member is moved towards."""
        if self.towards == "prior":
            return torch.randn(centre.shape, generator=generator)
        step = torch.randint(1, self.ways, centre.shape[:3], generator=generator)
        other = (torch.arange(self.ways) + step) % self.ways  # any class but its own
        return centre.gather(2, other[..., None].expand(centre.shape))

"""LASIUM: meta-learn on pictures that a generative model makes up, a class being a neighbourhood of its code.

Paper: Khodadadeh, Zehtabian, Vahidian, Wang, Lin, Boloni, "Unsupervised Meta-Learning through Latent-Space
Interpolation in Generative Models", ICLR 2021, arXiv 2006.10236.

    VAE trained on the unlabelled pictures: encoder q(z | x), decoder p(x | z), prior N(0, 1)
    task: N anchors z_1 .. z_N; member of class i: decode(z_i + a (n - z_i)), n random, then moved by a few pixels
    then any learner of labelled episodes on these tasks: MAML or ProtoNet

The paper's: classes from latent codes, members by interpolation towards a random code or towards other classes, a
VAE with 20 latent numbers for Omniglot, a = 0.4 and the small shift, MAML and prototypical networks as base
learners. Our choice: anchors are posterior means of different pictures (the paper's random codes are
`anchors="prior"`, without its least distance between them); ANIL and R2D2 as base learners; the VAE's network,
trained for `vae_epochs` from a seed of its own. GANs are left out. Written from notes on the paper and its
recipes; its full text was not at hand.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from selftaught.core.types import Aux, Learner, Method, Params, Task
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.methods.cactus import Base, base_method
from selftaught.tasks.interpolation import Anchors, InterpolationTasks, Towards, VAEPlan


@dataclass(frozen=True)
class LASIUM:
    """`amount` is a, `latent` the numbers of a code, `shift` the largest move as a share of the side.

    The VAE is trained before the first step, from `vae_seed` alone, and again where a run is continued: the same
    bits on the same machine, so nothing of it is saved. `inner_*` and `test_steps` are those of MAML.
    """

    base: Base = "protonet"
    amount: float = 0.4
    shift: float = 0.15
    anchors: Anchors = "pictures"
    towards: Towards = "prior"
    latent: int = 20
    vae_hidden: int = 256
    vae_epochs: int = 30
    vae_batch: int = 64
    vae_rate: float = 1e-3
    vae_seed: int = 0
    inner_steps: int = 5
    inner_rate: float = 0.4
    test_steps: int = 50
    tasks: int = 4
    ways: int = 5
    shots: int = 1
    queries: int = 5

    def source(self, pictures: Pictures, views: Views) -> InterpolationTasks:
        """Episodes of decoded pictures; the views are not used."""
        plan = VAEPlan(self.vae_hidden, self.latent, self.vae_epochs, self.vae_batch, self.vae_rate, self.vae_seed)
        how = (self.amount, self.shift, self.anchors, self.towards)
        return InterpolationTasks(pictures, plan, *how, self.ways, self.shots, self.queries, self.tasks)

    def network(self, encoder: nn.Module) -> nn.Module:
        """The base learner's; the VAE is no part of it."""
        return self._base().network(encoder)

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """The base learner's."""
        return self._base().init(net)

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """The base learner's, for which made-up classes are classes."""
        return self._base().loss(net, params, slow, tasks)

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """The base learner's."""
        return self._base().refresh(net, slow, params, tasks, aux)

    def learner(self, net: nn.Module) -> Learner:
        """That of `base`: prototype, gradient or ridge."""
        return self._base().learner(net)

    def _base(self) -> Method:
        return base_method(self.base, self.inner_steps, self.inner_rate, self.test_steps)

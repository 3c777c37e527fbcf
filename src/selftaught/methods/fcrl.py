"""FCRL: two disjoint sets of points belong together where they are of one function.

Paper: Gondal, Joshi, Rahaman, Bauer, Wuethrich, Schoelkopf, "Function Contrastive Learning of Transferable
Meta-Representations", ICML 2021, arXiv 2010.07093.

    function k: its points (x_i, y_i) dealt out to J disjoint sets O_k^1 .. O_k^J
    r = mean over the points of a set of phi(x_i, y_i),   z = projector(r)
    loss = - mean over a != b and k of  log exp s(z_k^a, z_k^b) / sum_m exp s(z_k^a, z_m^b),   s = cos / tau
    afterwards: phi is frozen, the projector dropped, and every task trains a decoder of its own on r

The paper's: disjoint sets of one function as the only views, other functions as negatives, an encoder that has
never seen a reconstruction, decoders apart from it. Only its first page and notes on it were read, and no code of
its authors is known; the formula is after these. Our choice: sizes, tau, and that a set of pictures is taken too:
a picture is a function from places to colours, and an encoder of pictures sees its own pixels with all others
blank. Then the mean over points is whatever that encoder does instead.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selftaught.core.functional import apply_update, buffers_of, params_of
from selftaught.core.types import Aux, Params, Task
from selftaught.data.functions import Functions
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.learners.prototype import PrototypeLearner
from selftaught.losses.function_contrast import cross_view_info_nce
from selftaught.nets.heads import MLP, WithProjector, width_of
from selftaught.tasks.disjoint import DisjointPixels, DisjointSets


@dataclass(frozen=True)
class FCRL:
    """`batch` functions in `views` disjoint sets (J); `hidden` and `out` are the projector's widths.

    `points` of every function are used in a step (0: all), of `Functions` only.
    """

    temperature: float = 0.07
    hidden: int = 128
    out: int = 64
    batch: int = 64
    views: int = 2
    points: int = 0

    def source(self, pictures: Pictures | Functions, views: Views | None = None) -> DisjointSets | DisjointPixels:
        """One task: a batch of functions or pictures in disjoint sets of points; view recipes are not used."""
        if isinstance(pictures, Functions):
            return DisjointSets(pictures, self.views, self.batch, self.points)
        return DisjointPixels(pictures, self.views, self.batch)

    def network(self, encoder: nn.Module) -> nn.Module:
        """An encoder of sets (`nets.sets.SetEncoder`), or of pictures, and the projector."""
        return WithProjector(encoder, MLP([width_of(encoder), self.hidden, self.out]))

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """The skeleton's numbers; `slow` holds only normalisation statistics."""
        return params_of(net), buffers_of(net)

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """Of the one task: sets [1 V*B p I+O], or pictures [1 V*B C H W] with blanks, by view, then function."""
        x = torch.cat([tasks.support.x, tasks.query.x], 1)[0]
        z, buffers = apply_update(net, params, slow, x)
        return cross_view_info_nce(z.unflatten(0, (-1, tasks.ways)), self.temperature), Aux(buffers=buffers)

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Statistics as the forward pass left them."""
        return aux.buffers

    def learner(self, net: nn.Module) -> PrototypeLearner:
        """Nearest class mean by cosine on the encoder's output."""
        return PrototypeLearner(net, distance="cosine")

"""R2D2: the classifier of a task is solved, not trained, and the gradient passes through the solution.

Paper: Bertinetto, Henriques, Torr, Vedaldi, "Meta-learning with differentiable closed-form solvers", ICLR 2019,
arXiv 1805.08136.

    Z = encoder(support) [S D],  Y one-hot labels [S N]
    W = argmin || Z W - Y ||^2 + lambda || W ||^2 = Z^T (Z Z^T + lambda I)^-1 Y
    loss = mean over queries of CE(alpha * encoder(query) W; y)
    learned: the encoder, alpha and lambda

The paper's: ridge regression onto labels as the base learner, the S x S system where that is the smaller one,
the cross-entropy of scaled outputs, alpha and lambda learned with the encoder, more ways in training.
Our choice: an intercept free of the penalty (the paper's second learned number, one bias for all outputs, changes
no posterior and is left out); alpha and lambda as logarithms, and where they start; all tasks go through the
encoder in one pass, so batch statistics are shared; Conv4 instead of the paper's wider network.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selftaught.core.functional import apply_update, buffers_of, params_of
from selftaught.core.types import Aux, Params, Task
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.learners.ridge import RidgeLearner, WithRidge, solve_ridge
from selftaught.losses.contrastive import cross_entropy
from selftaught.tasks.episodes import EpisodeSource


@dataclass(frozen=True)
class R2D2:
    """`penalty` is lambda and `scale` alpha at the start, both above 0; `tasks` episodes a step. Needs labels."""

    penalty: float = 1.0
    scale: float = 5.0
    tasks: int = 1
    ways: int = 20
    shots: int = 1
    queries: int = 5

    def source(self, pictures: Pictures, views: Views) -> EpisodeSource:
        """Labelled episodes; the views are not used."""
        return EpisodeSource(pictures, self.ways, self.shots, self.queries, self.tasks)

    def network(self, encoder: nn.Module) -> nn.Module:
        """The encoder and the logarithms of scale and penalty."""
        return WithRidge(encoder, self.scale, self.penalty)

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """The skeleton's numbers; `slow` holds only normalisation statistics."""
        return params_of(net), buffers_of(net)

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """Mean cross-entropy of the queries under each task's solved head."""
        return ridge_loss(net, params, slow, tasks)

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Statistics as the forward pass left them."""
        return aux.buffers

    def learner(self, net: nn.Module) -> RidgeLearner:
        """The same solution with the learned scale and penalty."""
        return RidgeLearner(net)


def ridge_loss(net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
    """The loss above for labelled episodes and for view tasks alike; all tasks go through `net` at once."""
    assert tasks.query.y is not None
    x = torch.cat([tasks.support.x, tasks.query.x], 1)
    z, buffers = apply_update(net, params, slow, x.flatten(0, 1))
    rows = tasks.support.x.shape[1]
    support, query = z.unflatten(0, x.shape[:2]).split([rows, x.shape[1] - rows], 1)
    logits = solve_ridge(params, support, tasks.ways, tasks.support.y).logits(query)
    figures = {
        "query_accuracy": (logits.argmax(-1) == tasks.query.y).float().mean(),
        "scale": params["log_scale"].detach().exp(),
        "penalty": params["log_penalty"].detach().exp(),
    }
    return cross_entropy(logits, tasks.query.y), Aux(figures, buffers)

"""What CLIP's claim trains: two towers on captions, and a rival supervised by the same words; both by one loop."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.core.functional import apply, apply_update, buffers_of, in_batches, params_of
from selftaught.core.types import Aux, Params, Task
from selftaught.data.tokens import words_of
from selftaught.learners.heads import normalise, prototypes
from selftaught.learners.zero_shot import PLAIN, prompts
from selftaught.methods.clip import CLIP
from selftaught.nets.heads import width_of
from selftaught.nets.text import clamped_scale
from selftaught.optimizers.gradient import Gradient
from selftaught.tasks.captions import CaptionTasks


@dataclass(frozen=True)
class Setting:
    """`train` and `test` pictures of shapes, `unseen` pairs held out, steps in each world; `checks` on the way."""

    train: int = 3000
    test: int = 600
    unseen: int = 12
    size: int = 24
    width: int = 16
    steps: int = 400
    emoji_width: int = 24
    emoji_steps: int = 400
    emoji_classes: int | None = None
    batch: int = 96
    rate: float = 4e-3
    emoji_rate: float = 2e-3
    checks: int = 6
    shots: tuple[int, ...] = (0, 1, 2, 5)
    seeds: tuple[int, ...] = (0, 1, 2)


Loss = Callable[[Params, Params, Task], tuple[Tensor, Aux]]


def fit(
    s: Setting, net: nn.Module, loss: Loss, source: CaptionTasks, steps: int, rate: float, seed: int, shown: str
) -> list[Params]:
    """Weights at `checks` even places of one training, the last step among them."""
    params, slow = params_of(net), buffers_of(net)
    optimizer = Gradient(rate, steps, warmup=min(20, steps))
    opt, generator, kept = optimizer.init(params), torch.Generator().manual_seed(seed), []
    marks = {round(steps * k / s.checks) for k in range(1, s.checks + 1)}
    for step in track(range(1, steps + 1), shown, console=Console(stderr=True), transient=True):
        tasks = source(generator)

        def value(params: Params, tasks: Task = tasks, slow: Params = slow) -> tuple[Tensor, Aux]:
            return loss(params, slow, tasks)

        params, opt, aux = optimizer.step(value, params, opt)
        slow = aux.buffers
        if step in marks:
            kept.append(params | slow)
    return kept


def best_of(scores: Sequence[float], kept: Sequence[Params]) -> Params:
    """The first of the best checkpoints by validation."""
    return kept[list(scores).index(max(scores))]


@dataclass(frozen=True)
class Captions:
    """CLIP: names by their text."""

    method: CLIP
    net: nn.Module

    def loss(self, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """The method's own."""
        return self.method.loss(self.net, params, slow, tasks)

    def matrix(self, weights: Params, names: Sequence[str], templates: Sequence[str] = PLAIN) -> Tensor:
        """[D M]."""
        tokens = self.method.tokenizer()(prompts(names, templates))
        with torch.no_grad():
            z = normalise(apply(self.net, weights, tokens))
        return normalise(prototypes(z, len(names))).mT

    def features(self, weights: Params, x: Tensor) -> Tensor:
        """[B D], of length one."""
        return normalise(in_batches(self.net, weights, x))

    def scale(self, weights: Params) -> float:
        """The factor of the cosines."""
        return float(clamped_scale(weights["log_scale"]))

    def scores(self, weights: Params, x: Tensor, names: Sequence[str], templates: Sequence[str] = PLAIN) -> Tensor:
        """[B M] cosines."""
        return self.features(weights, x) @ self.matrix(weights, names, templates)


class WithWords(nn.Module):
    """An encoder and a score for every word."""

    def __init__(self, encoder: nn.Module, words: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width_of(encoder), words)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


@dataclass(frozen=True)
class Heads:
    """Supervised by words: `truth` [M W] says which words are true of each class of the training set.

    `groups` are sets of columns, trained by a softmax each whose target is shared evenly by the true words (as
    Joulin et al. 2016, arXiv 1511.02251, learn from the words around photographs): colours and shapes, or all
    words. A name's score is the mean of the log-probabilities of its words, each less `prior` times its
    log-frequency.
    """

    net: nn.Module
    words: Mapping[str, int]
    truth: Tensor
    groups: Sequence[slice] = (slice(None),)
    prior: float = 0.0

    def loss(self, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """Cross-entropy, summed over groups."""
        assert tasks.query.y is not None
        logits, buffers = apply_update(self.net, params, slow, tasks.query.x[0])
        truth = self.truth[tasks.query.y[0]]
        target = [truth[:, g] / truth[:, g].sum(-1, keepdim=True) for g in self.groups]
        each = [F.cross_entropy(logits[:, g], t) for g, t in zip(self.groups, target, strict=True)]
        return torch.stack(each).sum(), Aux(buffers=buffers)

    def scores(self, weights: Params, x: Tensor, names: Sequence[str], templates: Sequence[str] = PLAIN) -> Tensor:
        """[B M]; templates are for models that read."""
        logits = in_batches(self.net, weights, x)
        log_p = torch.cat([logits[:, g].log_softmax(-1) for g in self.groups], -1)
        log_p = log_p - self.prior * self.truth.mean(0).clamp_min(1e-9).log()
        return torch.stack([log_p[:, [self.words[w] for w in words_of(n)]].mean(-1) for n in names], -1)


def accuracy(scores: Tensor, y: Tensor) -> float:
    """Share of rows whose largest score is at y."""
    return float((scores.argmax(-1) == y).float().mean())


def reciprocal_rank(scores: Tensor, y: Tensor) -> float:
    """Mean of 1 / place of the right name."""
    place = (scores >= scores.gather(1, y[:, None])).sum(-1)
    return float((1 / place).mean())


def reader(method: CLIP, encoder: nn.Module, seed: int) -> Captions:
    """Towers and projections from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Captions(method, method.network(encoder))


def rival(
    encoder: nn.Module,
    words: Mapping[str, int],
    truth: Tensor,
    seed: int,
    groups: Sequence[slice] = (slice(None),),
) -> Heads:
    """Heads from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Heads(WithWords(encoder, len(words)), words, truth, groups)

"""Do labels made for the primary task help it more than labels by chance, by clusters or by people?

Paper: Liu, Davison, Johns, "Self-Supervised Generalisation with Meta Auxiliary Learning", NeurIPS 2019,
arXiv 1901.08933, whose comparison on CIFAR-100 (a figure without numbers) this repeats on drawn characters.

    pictures    characters of random strokes; a primary class is a set of characters that have nothing in common
    alone       the primary head by itself
    all alike   every sub-class of the primary class equally likely: an auxiliary task that says nothing new
    by chance, by k-means on pixels, by character: fixed sub-classes for the auxiliary head
    MAXL        `methods.maxl`, with the look-ahead asked on the training batch or on held-out pictures

The paper's: the comparison. Our choice: pictures, network, sizes, Adam; k-means in place of the paper's
prototypical clustering. All seeds train in one stack of networks, each with characters, splits and batches of its
own; all rows of a seed share these and the starting numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from rich.progress import track
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

from selftaught.claims.outcome import Estimate, Outcome, estimate
from selftaught.core.functional import apply, params_of
from selftaught.core.types import Aux, Examples, Params, Task
from selftaught.data.strokes import draw_strokes
from selftaught.losses.auxiliary import subclass_mask
from selftaught.methods.maxl import MAXL
from selftaught.nets.heads import MLP
from selftaught.optimizers.gradient import Gradient

FIXED = ("alone", "all alike", "by chance", "by k-means", "by character")
SILENT = ("alone", "all alike")
GENERATED = ("MAXL, same batch", "MAXL, held out")


@dataclass(frozen=True)
class Setting:
    """`classes` of `characters` each, `train` drawings a seed; alpha = `inner_rate`, Adam's `rates` are tried."""

    classes: int = 2
    characters: int = 10
    train: int = 800
    validation: int = 400
    test: int = 600
    size: int = 14
    hidden: int = 64
    layers: int = 3
    subclasses: int = 10
    inner_rate: float = 1.0
    steps: int = 500
    batch: int = 50
    rates: tuple[float, ...] = (3e-3, 1e-2)
    seeds: tuple[int, ...] = (10, 11, 12, 13, 14, 15, 16, 17)

    @property
    def method(self) -> MAXL:
        """MAXL with the paper's lambda and gamma."""
        return MAXL(classes=self.classes, subclasses=self.subclasses, inner_rate=self.inner_rate, batch=self.batch)


@dataclass(frozen=True)
class Drawings:
    """A row for each seed: pictures `x` [R n 1 H W], primary `y` [R n], `character` [R n] inside its class."""

    x: Tensor
    y: Tensor
    character: Tensor

    def part(self, start: int, count: int) -> "Drawings":
        """Rows `start` to `start + count` of every seed."""
        return Drawings(*(v[:, start : start + count] for v in vars(self).values()))


class PixelMLP(nn.Module):
    """[B 1 H W] -> [B hidden], all layers with ReLU."""

    def __init__(self, size: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.layers = MLP([size * size, *[hidden] * layers])
        self.width = hidden

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layers(x.flatten(1)))


def draw(s: Setting) -> Drawings:
    """Characters of each seed's own, assigned to primary classes in the order drawn (which means nothing)."""
    rows = []
    for seed in s.seeds:
        every, kinds = s.train + s.validation + s.test, s.classes * s.characters
        found = draw_strokes(kinds, -(-every // kinds), size=s.size, seed=seed)
        assert found.y is not None
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))[:every]
        kind = found.y[order]
        rows.append((found.x[order].float() / 255, kind % s.classes, kind // s.classes))
    return Drawings(*(torch.stack(column) for column in zip(*rows, strict=True)))


def networks(s: Setting) -> tuple[nn.Module, Params]:
    """A skeleton, and the starting numbers of every seed stacked [R ...]."""
    made = []
    for seed in s.seeds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made.append(s.method.network(PixelMLP(s.size, s.hidden, s.layers)))
    starts = [params_of(net) for net in made]
    return made[0], {k: torch.stack([start[k] for start in starts]) for k in starts[0]}


def fixed_labels(s: Setting, arm: str, train: Drawings) -> Tensor:
    """[R n K] auxiliary labels, each a distribution; zeros, which teach nothing, for the primary task alone."""
    if arm in SILENT:
        mask = subclass_mask(train.y, s.classes, s.subclasses).float()
        return mask / s.subclasses if arm == "all alike" else torch.zeros_like(mask)
    if arm == "by character":
        within = train.character % s.subclasses
    elif arm == "by chance":
        draws = [torch.Generator().manual_seed(seed) for seed in s.seeds]
        within = torch.stack([torch.randint(s.subclasses, (train.y.shape[1],), generator=g) for g in draws])
    else:
        each = zip(train.x, train.y, s.seeds, strict=True)
        within = torch.stack([_clusters(s, x, y, seed) for x, y, seed in each])
    return F.one_hot(train.y * s.subclasses + within, s.classes * s.subclasses).float()


def _clusters(s: Setting, x: Tensor, y: Tensor, seed: int) -> Tensor:
    """[n] k-means on the pixels of each primary class."""
    within = torch.zeros_like(y)
    for n in y.unique().tolist():
        own = (y == n).nonzero()[:, 0]
        kmeans = KMeans(min(s.subclasses, len(own)), n_init=4, random_state=seed)
        within[own] = torch.from_numpy(kmeans.fit_predict(x[own].flatten(1).numpy())).long()
    return within


Batches = Callable[[list[torch.Generator]], tuple[Tensor, ...]]
"""One generator a seed -> tensors stacked [arms*R ...]."""
RunLoss = Callable[..., Tensor]
"""(params, batch tensors) of one network -> scalar."""


def optimise(s: Setting, start: Params, rate: float, batches: Batches, loss: RunLoss, shown: str) -> Params:
    """Adam on a stack of networks at once: the gradient of a sum of losses is each network's own."""
    generators = [torch.Generator().manual_seed(seed) for seed in s.seeds]
    adam = Gradient(rate, s.steps)
    params, moments = start, adam.init(start)
    for _ in track(range(s.steps), shown, console=Console(stderr=True), transient=True):
        tensors = batches(generators)

        def total(params: Params, tensors: tuple[Tensor, ...] = tensors) -> tuple[Tensor, Aux]:
            return vmap(loss)(params, *tensors).sum(), Aux()

        params, moments, _ = adam.step(total, params, moments)
    return params


def train_fixed(s: Setting, net: nn.Module, start: Params, train: Drawings, labels: Tensor, rate: float) -> Params:
    """All arms with fixed labels [A R n K] in one stack [A*R ...]."""
    method, arms = s.method, len(labels)

    def batches(generators: list[torch.Generator]) -> tuple[Tensor, ...]:
        where = _draw_rows(0, train.y.shape[1], s.batch, generators)
        x, y = _rows(train.x, where), _rows(train.y, where)
        auxiliary = torch.cat([_rows(each, where) for each in labels])
        return _repeated(x, arms), _repeated(y, arms), auxiliary

    def loss(params: Params, x: Tensor, y: Tensor, auxiliary: Tensor) -> Tensor:
        logits = apply(net, params, x)
        return method.primary(logits, y) + method.auxiliary(logits, auxiliary)

    stacked = {k: _repeated(v, arms) for k, v in start.items()}
    return optimise(s, stacked, rate, batches, loss, f"fixed labels, rate {rate:g}")


def train_generated(s: Setting, net: nn.Module, start: Params, train: Drawings, rate: float) -> Params:
    """Both arms of MAXL in one stack [2*R ...]; the first tenth of the drawings is the held-out part."""
    method, every = s.method, train.y.shape[1]
    held = max(every // 10, 2)

    def batches(generators: list[torch.Generator]) -> tuple[Tensor, ...]:
        same = _draw_rows(0, every, s.batch, generators)
        mine = _draw_rows(held, every, s.batch, generators)
        asked = _draw_rows(0, held, s.batch, generators)
        sides = [(same, same), (mine, asked)]
        return tuple(
            torch.cat([_rows(values, side[k]) for side in sides]) for k in (0, 1) for values in (train.x, train.y)
        )

    def loss(params: Params, x: Tensor, y: Tensor, asked_x: Tensor, asked_y: Tensor) -> Tensor:
        support, query = Examples(x[None], y[None]), Examples(asked_x[None], asked_y[None])
        return method.loss(net, params, {}, Task(support, query, s.classes))[0]

    stacked = {k: _repeated(v, 2) for k, v in start.items()}
    return optimise(s, stacked, rate, batches, loss, f"MAXL, rate {rate:g}")


def _draw_rows(first: int, last: int, count: int, generators: Sequence[torch.Generator]) -> Tensor:
    """[R count] different rows from `first` to `last` - 1; where there are fewer than `count`, they come again."""
    orders = [torch.randperm(last - first, generator=g) + first for g in generators]
    times = -(-count // (last - first))
    return torch.stack([order.repeat(times)[:count] for order in orders])


def _rows(values: Tensor, where: Tensor) -> Tensor:
    """values [R n ...] at rows [R B] -> [R B ...]."""
    return values[torch.arange(len(values))[:, None], where]


def _repeated(values: Tensor, times: int) -> Tensor:
    return values.repeat(times, *[1] * (values.ndim - 1))


def accuracies(s: Setting, net: nn.Module, params: Params, part: Drawings) -> list[float]:
    """Of the primary task, for each seed."""
    with torch.no_grad():
        logits = vmap(lambda p, x: apply(net, p, x))(params, part.x)[..., : s.classes]
    return (logits.argmax(-1) == part.y).float().mean(1).tolist()


def agreement(s: Setting, labels: Tensor, train: Drawings) -> list[float]:
    """Adjusted mutual information of auxiliary labels [R n K] with the characters inside each primary class."""
    found = []
    for label, y, character in zip(labels.argmax(-1), train.y, train.character, strict=True):
        each = [adjusted_mutual_info_score(character[y == n], label[y == n]) for n in range(s.classes)]
        found.append(sum(each) / len(each))
    return found


@dataclass(frozen=True)
class Arm:
    """One row: the rate that validation chose, and figures for each seed; `surest`: mean largest probability."""

    rate: float
    validation: list[float]
    test: list[float]
    agreement: list[float]
    surest: list[float]


def compare(s: Setting) -> dict[str, Arm]:
    """Every arm at every rate, each shown at the rate with the best mean validation accuracy."""
    data, (net, start) = draw(s), networks(s)
    train, validation = data.part(0, s.train), data.part(s.train, s.validation)
    test = data.part(s.train + s.validation, s.test)
    labels = torch.stack([fixed_labels(s, arm, train) for arm in FIXED])
    best: dict[str, Arm] = {}
    for rate in s.rates:
        fixed = train_fixed(s, net, start, train, labels, rate)
        generated = train_generated(s, net, start, train, rate)
        for params, arms in ((fixed, FIXED), (generated, GENERATED)):
            for k, name in enumerate(arms):
                own = {n: v[k * len(s.seeds) : (k + 1) * len(s.seeds)] for n, v in params.items()}
                made = labels[k] if arms is FIXED else generate(s, net, own, train)
                arm = Arm(
                    rate,
                    accuracies(s, net, own, validation),
                    accuracies(s, net, own, test),
                    agreement(s, made, train),
                    made.amax(-1).mean(1).tolist(),
                )
                if name not in best or sum(arm.validation) > sum(best[name].validation):
                    best[name] = arm
    return {name: best[name] for name in (*FIXED, *GENERATED)}


def generate(s: Setting, net: nn.Module, params: Params, train: Drawings) -> Tensor:
    """[R n K] labels that the generators have come to."""
    method = s.method
    with torch.no_grad():
        return vmap(lambda p, x, y: method.generate(net, p, {}, x, y)[0])(params, train.x, train.y)


def ahead(arm: Arm, other: Arm) -> Estimate:
    """Paired difference of test accuracy over seeds."""
    return estimate([a - b for a, b in zip(arm.test, other.test, strict=True)])


def table(found: Mapping[str, Arm], pictures: int) -> list[Mapping[str, Estimate | str]]:
    """A row for each arm; `ahead by` is against the first."""
    return [
        {
            "auxiliary labels": name,
            "pictures": str(pictures),
            "rate": f"{arm.rate:g}",
            "test accuracy": estimate(arm.test),
            "ahead by": "" if name == "alone" else ahead(arm, found["alone"]),
            "agreement": estimate(arm.agreement) if name not in SILENT else "",
            "surest label": estimate(arm.surest) if name != "alone" else "",
        }
        for name, arm in found.items()
    ]


def clear(difference: Estimate) -> bool:
    """Whether all of the interval lies above zero (never for a single seed)."""
    return difference.mean - difference.half_width > 0


def verdict(found: Mapping[str, Arm]) -> str:
    """Shown where a form of MAXL, chosen on validation, is ahead of every rival but people's labels."""
    best = max(GENERATED, key=lambda name: sum(found[name].validation))
    rivals = {name: ahead(found[best], found[name]) for name in FIXED[:-1]}
    word = "Shown" if all(clear(d) for d in rivals.values()) else "Not shown"
    parts = ", ".join(f"{d} against {name}" for name, d in rivals.items())
    people = ahead(found[best], found["by character"])
    return f"{word}: {best} is ahead by {parts}; by {people} against the characters' own labels."


def losing(few: Mapping[str, Arm], pictures: int) -> str:
    """What is left with fewer pictures."""
    best = max(GENERATED, key=lambda name: sum(few[name].validation))
    gain, people = ahead(few[best], few["alone"]), ahead(few["by character"], few["alone"])
    word = "helps" if clear(gain) else "does not help"
    return (
        f"With {pictures} pictures {best} {word}: {gain} against the primary task alone, where the characters' "
        f"own labels give {people}. A step costs several plain ones, and the generator is as large as the network."
    )


def show(quick: bool = False) -> Outcome:
    """All arms with many pictures and with few."""
    usual = Setting()
    if quick:
        usual = replace(
            usual, train=160, validation=60, test=100, steps=8, rates=usual.rates[-1:], seeds=usual.seeds[:2]
        )
    fewer = replace(usual, train=usual.train // 4)
    many, few = compare(usual), compare(fewer)
    return Outcome(
        "maxl",
        "Liu, Davison, Johns, NeurIPS 2019, arXiv 1901.08933",
        "Auxiliary labels made by a meta-learned generator help the primary task more than none, than random ones "
        "and than those by clustering, and about as much as those made by people.",
        f"{usual}; lambda 0.2, gamma 2; equal steps, batches and starting numbers in each row of a seed; each "
        f"row's rate is the best on validation drawings; {len(usual.seeds)} seeds, each with its own characters; "
        "last step; 95 % intervals by Student's t over seeds. Ahead by: of the row alone, paired by seed. "
        "Agreement: of labels and characters, adjusted mutual information. Surest: mean largest probability.",
        table(many, usual.train) + table(few, fewer.train),
        verdict(many),
        losing(few, fewer.train),
    )

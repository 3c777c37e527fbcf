"""Does a bootstrapped target help to learn from few unlabelled pictures? BMSSL beside SimCLR, ProtoCLR and UMTRA.

Paper: Wang, Song, Qiang, Zheng, "Bootstrapped Meta Self-Supervised Learning", arXiv 2308.14267.

The paper's: the claim, from abstract and introduction; its tables were not at hand, so nothing here repeats them.
Our choice: pictures, network, budgets, competitors and measures. Equal views counts what the encoder is fed;
equal time gives each method the steps that fit into the processor time of BMSSL's run, by a calibration in which
the methods take turns. Settings are those chosen on Omniglot's tuning alphabets; none was tried on what is
reported here.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from selftaught.claims.outcome import Estimate, Outcome, estimate
from selftaught.core.functional import buffers_of, in_batches, params_of, part
from selftaught.core.train import outer_step, start, train
from selftaught.core.types import Method, merged
from selftaught.data.cifar10 import read_cifar10
from selftaught.data.download import data_folder
from selftaught.data.emoji import read_emoji
from selftaught.data.pictures import Pictures
from selftaught.data.views import FLAT, PHOTO, Views
from selftaught.evaluate.baselines import estimated_statistics, raw_pixels
from selftaught.evaluate.fewshot import few_shot
from selftaught.evaluate.probes import knn, linear_probe
from selftaught.methods import BMSSL, UMTRA, ProtoCLR, SimCLR
from selftaught.nets import build_encoder
from selftaught.optimizers.gradient import Gradient
from selftaught.tasks.episodes import EpisodePlan

Embed = Callable[[Tensor], Tensor]
"""uint8 pictures [B C H W] -> features [B D]."""
Scores = Mapping[str, float]
"""Measure -> fraction of correct answers."""

METHODS: Mapping[str, tuple[Method, float]] = {
    "bmssl": (BMSSL(ways=16), 1e-3),
    "simclr": (SimCLR(batch=32, temperature=0.1), 1e-3),
    "protoclr": (ProtoCLR(ways=16), 3e-3),
    "umtra": (UMTRA(inner_rate=0.4), 1e-3),
}
"""Each with its rate of Adam."""

MEASURES = ("5-way 1-shot", "20-way 1-shot", "linear probe", "20 neighbours")
LEAD = "BMSSL ahead by"
_NAMED = "SELFTAUGHT_CIFAR10"


@dataclass(frozen=True)
class Sizes:
    """`emoji` and `cifar` are numbers of unlabelled pictures, `scored` of CIFAR-10's test pictures, `rounds` of
    the calibration of time.
    """

    emoji: int = 300
    cifar: int = 500
    scored: int = 2000
    views: int = 9600
    width: int = 32
    episodes: int = 1000
    seeds: tuple[int, ...] = (0, 1, 2)
    rounds: int = 5


@dataclass(frozen=True, eq=False)
class Arm:
    """Rows that belong together: `equal` is what the methods have the same of, `steps` the outer steps of each."""

    pictures: Pictures
    label: str
    equal: str
    recipe: Views
    steps: Mapping[str, int]
    score: Callable[[Embed], Scores]
    baselines: bool = True


def show(quick: bool = False) -> Outcome:
    """Emoji never trained on at equal views and equal time, and CIFAR-10 where its file is at hand."""
    few = Sizes(emoji=60, cifar=60, scored=100, views=128, width=8, episodes=40, seeds=(0, 1), rounds=1)
    sizes = few if quick else Sizes()
    place = cifar_file()
    found: dict[Arm, dict[str, list[Scores]]] = {}
    for arm in arms(sizes, place):
        found[arm] = measured(arm, sizes, found)
    used = [
        m for m in MEASURES if any(m in s for scores in found.values() for each in scores.values() for s in each)
    ]
    rows = [_row(arm, name, scores, used) for arm, scores in found.items() for name in scores]
    return Outcome(
        "bmssl",
        "Wang, Song, Qiang, Zheng, arXiv 2308.14267",
        "From few unlabelled pictures, tasks built of them and a target that is the model's own future give "
        "better representations than contrastive learning and earlier unsupervised meta-learning.",
        protocol(sizes, place),
        rows,
        verdict(rows),
        losing(rows),
    )


def protocol(sizes: Sizes, place: Path | None) -> str:
    """What must be known to compare the figures."""
    cifar = f"CIFAR-10 was not given (set {_NAMED} to cifar-10-binary.tar.gz)."
    if place:
        cifar = (
            f"CIFAR-10 ({place.name}): {sizes.cifar} training pictures without labels; probes fitted on the same "
            f"with their labels and scored on {sizes.scored} test pictures; UMTRA left out for its time."
        )
    return (
        f"Packaged emoji: classes of the test part, {sizes.episodes} episodes of 2 queries a class (a class is "
        f"one picture in each of three drawing styles), the same list for every row. {cifar} Conv4-{sizes.width}, "
        f"32x32, inductive; nearest class mean by cosine. {sizes.views} views, or the processor time that BMSSL "
        "takes for them; Adam, last checkpoint; settings chosen on Omniglot's tuning alphabets. Fractions of "
        f"correct answers; {len(sizes.seeds)} seeds, 95 % intervals by Student's t over seeds; '{LEAD}' is over "
        "differences of equal seed, of a row's first measure."
    )


def arms(sizes: Sizes, place: Path | None) -> list[Arm]:
    """What is compared, with the steps of every method."""
    known, unseen = read_emoji(split="train"), read_emoji(split="test")
    few = some(known, sizes.emoji)
    score = partial(few_shot_scores, unseen, sizes.episodes)
    steps = {name: steps_for(name, few, sizes.views) for name in METHODS}
    cost = seconds_per_step(few, sizes.width, sizes.rounds)
    seconds = steps["bmssl"] * cost["bmssl"]
    timed = {name: max(1, round(seconds / cost[name])) for name in METHODS} | {"bmssl": steps["bmssl"]}
    pair = {name: steps_for(name, known, sizes.views) for name in ("bmssl", "simclr")}
    found = [
        Arm(few, f"{len(few)} emoji", "views", FLAT, steps, score),
        Arm(few, f"{len(few)} emoji", "time", FLAT, timed, score, baselines=False),
        Arm(known, f"{len(known)} emoji", "views", FLAT, pair, score, baselines=False),
    ]
    if place is None:
        return found
    own, scored = some(read_cifar10(place, split="train"), sizes.cifar), read_cifar10(place, split="test")
    most = {name: steps_for(name, own, sizes.views) for name in METHODS if name != "umtra"}
    judge = partial(probe_scores, own, some(scored, sizes.scored))
    return [*found, Arm(own, f"{len(own)} of CIFAR-10", "views", PHOTO, most, judge)]


def measured(
    arm: Arm, sizes: Sizes, before: Mapping[Arm, Mapping[str, Sequence[Scores]]]
) -> dict[str, list[Scores]]:
    """Scores by method and seed and, where asked, of pixels and the network as it starts.

    A run that an earlier arm made of the same pictures with as many steps is not made again.
    """
    made: dict[str, list[Scores]] = {}
    work = [(name, seed) for name in arm.steps for seed in sizes.seeds]
    title = f"{arm.label}, equal {arm.equal}"
    for name, seed in track(work, title, console=Console(stderr=True), transient=True):
        same = [b for b in before if b.label == arm.label and b.steps.get(name) == arm.steps[name]]
        if same:
            made[name] = list(before[same[0]][name])
            continue
        method, rate = METHODS[name]
        embed = trained(method, rate, arm.pictures, arm.recipe, arm.steps[name], seed, sizes.width)
        made.setdefault(name, []).append(arm.score(embed))
    if arm.baselines:
        made["untrained encoder"] = [arm.score(untrained(arm.pictures, s, sizes.width)) for s in sizes.seeds]
        made["raw pixels"] = [arm.score(raw_pixels)]
    return made


def _row(
    arm: Arm, name: str, scores: Mapping[str, Sequence[Scores]], used: Sequence[str]
) -> Mapping[str, Estimate | str]:
    mine, own = scores[name], scores["bmssl"]
    first = next(iter(mine[0]))
    paired = list(mine) * (len(own) if len(mine) == 1 else 1)  # raw pixels know no seed
    lead = estimate([a[first] - b[first] for a, b in zip(own, paired, strict=True)])
    cells = {m: estimate([s[m] for s in mine]) if m in mine[0] else "-" for m in used}
    return {
        "pictures": f"{arm.label}, equal {arm.equal}",
        "method": name,
        "steps": str(arm.steps.get(name, "-")),
        **cells,
        LEAD: "-" if name == "bmssl" else lead,
    }


def trained(
    method: Method, rate: float, pictures: Pictures, recipe: Views, steps: int, seed: int, width: int
) -> Embed:
    """The encoder after `steps` outer steps; everything random follows from `seed`."""
    net = _network(method, pictures, seed, width)
    optimizer = Gradient(rate, steps)
    state = start(method, net, optimizer, seed)
    for state, _ in train(method, net, method.source(pictures, recipe), optimizer, state, steps):  # noqa: B007, B020
        pass
    encoder = net.get_submodule("encoder")
    return partial(in_batches, encoder, part(merged(state.params, state.slow), "encoder"))


def untrained(pictures: Pictures, seed: int, width: int) -> Embed:
    """The encoder that training with `seed` starts from; its statistics are those of the pictures."""
    encoder = _encoder(pictures, seed, width)
    weights = merged(params_of(encoder), buffers_of(encoder))
    return partial(
        in_batches, encoder, merged(weights, estimated_statistics(encoder, weights, pictures.x[:2048], 64))
    )


def _network(method: Method, pictures: Pictures, seed: int, width: int) -> nn.Module:
    encoder = _encoder(pictures, seed, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2000 + seed)
        return method.network(encoder)


def _encoder(pictures: Pictures, seed: int, width: int) -> nn.Module:
    channels, size, _ = pictures.shape
    return build_encoder("conv4", channels, size, 1000 + seed, width=width)


def few_shot_scores(unseen: Pictures, episodes: int, embed: Embed) -> Scores:
    """One labelled picture a class, the other two drawings as queries."""
    assert unseen.y is not None
    z = embed(unseen.x)
    plans = {f"{ways}-way 1-shot": EpisodePlan(ways, 1, 2, episodes) for ways in (5, 20)}
    return {name: few_shot(z, unseen.y, plan).mean / 100 for name, plan in plans.items()}


def probe_scores(known: Pictures, scored: Pictures, embed: Embed) -> Scores:
    """Both probes, fitted on the pictures that were trained on and their labels."""
    assert known.y is not None and scored.y is not None
    z, q = embed(known.x), embed(scored.x)
    found = {"linear probe": linear_probe(z, known.y, q, scored.y), "20 neighbours": knn(z, known.y, q, scored.y)}
    return {name: accuracy.mean / 100 for name, accuracy in found.items()}


def steps_for(name: str, pictures: Pictures, views: int) -> int:
    """Outer steps in which the encoder is fed `views` pictures."""
    task = METHODS[name][0].source(pictures, Views())(torch.Generator().manual_seed(0))
    return max(1, round(views / sum(x.shape[0] * x.shape[1] for x in (task.support.x, task.query.x))))


def seconds_per_step(pictures: Pictures, width: int, rounds: int) -> dict[str, float]:
    """Median processor seconds of one outer step; the methods take turns, so a busy machine hits all alike."""
    nets = {name: _network(method, pictures, 0, width) for name, (method, _) in METHODS.items()}
    times: dict[str, list[float]] = {name: [] for name in METHODS}
    for _ in range(rounds + 1):
        for name, (method, rate) in METHODS.items():
            state = start(method, nets[name], Gradient(rate), 0)
            began = time.process_time()
            outer_step(method, nets[name], Gradient(rate), state, method.source(pictures, FLAT)(state.generator))
            times[name].append(time.process_time() - began)
    return {name: statistics.median(spent[1:]) for name, spent in times.items()}


def some(pictures: Pictures, count: int) -> Pictures:
    """`count` pictures in an order that depends on nothing but how many there are."""
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(10))
    return pictures.take(order[:count])


def cifar_file() -> Path | None:
    """The file or folder named by SELFTAUGHT_CIFAR10, else a download made earlier, else None."""
    if named := os.environ.get(_NAMED):
        return Path(named)
    kept = data_folder() / "cifar-10-binary.tar.gz"
    return kept if kept.is_file() else None


def leads(rows: Sequence[Mapping[str, Estimate | str]]) -> dict[str, Estimate]:
    """BMSSL's lead over each other method, by competitor, pictures and budget; baselines left out."""
    return {
        f"{r['method']} ({r['pictures']})": lead
        for r in rows
        if r["method"] in METHODS and isinstance(lead := r[LEAD], Estimate)
    }


def verdict(rows: Sequence[Mapping[str, Estimate | str]]) -> str:
    """Shown only where every interval of BMSSL's lead over another method lies above zero."""
    found = leads(rows)
    ahead = [f"{k}, by {e}" for k, e in found.items() if e.mean - e.half_width > 0]
    behind = sum(e.mean + e.half_width < 0 for e in found.values())
    word = "Shown" if len(ahead) == len(found) else "Not shown"
    which = f" ({'; '.join(ahead)})" if ahead else ""
    return (
        f"{word}: of {len(found)} comparisons BMSSL is clearly ahead in {len(ahead)}{which}, behind in {behind}."
    )


def losing(rows: Sequence[Mapping[str, Estimate | str]]) -> str:
    """Where BMSSL is behind, clearly or on average; and where the larger table stands."""
    behind = {k: e for k, e in leads(rows).items() if e.mean < 0}
    clear = [k for k, e in behind.items() if e.mean + e.half_width < 0]
    found = "It is behind on average of no other method here"
    if behind:
        found = "Behind on average of " + ", ".join(behind)
        found += "; clearly, by the interval, of " + (", ".join(clear) or "none")
    return (
        f"{found}. On Omniglot, from 20 to 16,260 pictures, see docs/results.md: "
        "python -m benchmarks omniglot --data omniglot_images_background.zip"
    )

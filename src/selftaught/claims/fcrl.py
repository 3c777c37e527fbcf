"""Encoders of functions that never reconstruct: FCRL against CNP and NP under noise in the outputs.

Paper: Gondal, Joshi, Rahaman, Bauer, Wuethrich, Schoelkopf, "Function Contrastive Learning of Transferable
Meta-Representations", ICML 2021, arXiv 2010.07093. Claimed there: a contrastive encoder of functions serves later
tasks better than those of neural processes, and noise in the outputs harms it less.

Ours: sinusoids at 20 points; amplitude and phase from the frozen encoder by a network and by a linear map;
pictures as functions of the pixel's place, 5-way 1-shot across drawing styles. The three share encoder, its start,
the sets it is shown, and steps. What is simplest stands beside them: the encoder untrained, the points in order of
x, and a sine fitted by least squares, which knows what family it is.
"""

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.claims.outcome import Estimate, Line, Outcome, estimate
from selftaught.core.train import start, train
from selftaught.core.types import Params
from selftaught.data.emoji import read_emoji
from selftaught.data.functions import Functions, draw_sinusoids, picture_functions
from selftaught.evaluate.fewshot import few_shot
from selftaught.learners.decoders import Kind, fit_decoder, normalised_error, represent
from selftaught.methods.fcrl import FCRL
from selftaught.methods.neural_processes import CNP, NP
from selftaught.nets.sets import SetEncoder
from selftaught.optimizers.gradient import Gradient
from selftaught.tasks.episodes import EpisodePlan

OURS, OTHERS = "FCRL", ("CNP", "NP")
UNTRAINED, POINTS, FITTED = "untrained encoder", "points in order of x", "sine by least squares"
KINDS: tuple[Kind, ...] = ("mlp", "linear")
PICTURES = "emoji, %"
_SIDE = 16


@dataclass(frozen=True)
class Setting:
    """What all rows share; `noises` are standard deviations of white noise in the outputs, everywhere the same."""

    noises: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0)
    functions: int = 4000
    asked: int = 1000
    steps: int = 1000
    pixel_steps: int = 400
    pixels: int = 32
    width: int = 64
    batch: int = 48
    rate: float = 1e-3
    epochs: int = 40
    episodes: int = 200
    seeds: tuple[int, ...] = (0, 1, 2)


QUICK = Setting((0.0, 1.0), 100, 60, 8, 4, 8, 16, 16, epochs=5, episodes=5, seeds=(0, 1))
Errors = dict[tuple[Kind, float], list[float]]


@dataclass
class Found:
    """Of one row: errors by decoder and noise, percent correct on pictures, processor seconds of training."""

    errors: Errors
    correct: list[float]
    seconds: list[float]


def methods(s: Setting, points: int = 0) -> dict[str, Any]:
    """The three, with one width everywhere."""
    common: dict[str, int] = {"hidden": s.width, "batch": s.batch, "points": points}
    return {"FCRL": FCRL(**common), "CNP": CNP(**common), "NP": NP(latent=s.width // 2, **common)}


def trained(
    s: Setting, method: Any, functions: Functions, steps: int, seed: int
) -> tuple[nn.Module, Params, float]:
    """The network, its numbers after the last step, and what they took. No steps: as it starts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = SetEncoder(functions.x.shape[-1], functions.y.shape[-1], s.width, s.width)
        net = method.network(encoder)
    optimizer = Gradient(s.rate, max(1, steps))
    state = start(method, net, optimizer, seed)
    began = time.process_time()
    for after, _ in train(method, net, method.source(functions), optimizer, state, steps):
        state = after
    return net, state.params | state.slow, time.process_time() - began


def errors(s: Setting, z: Tensor, asked: Tensor, truth: Tensor, wanted: Tensor, seed: int) -> dict[Kind, float]:
    """Of both decoders, from features [F D] of training functions, at features [Q D] of others."""
    fitted = {k: fit_decoder(z, truth, k, hidden=2 * s.width, epochs=s.epochs, seed=seed) for k in KINDS}
    return {k: normalised_error(decoder(asked), wanted) for k, decoder in fitted.items()}


def in_order(functions: Functions) -> Tensor:
    """The points themselves as features [F 2 P], by growing x."""
    order = functions.x.argsort(1)
    return torch.cat([functions.x.gather(1, order), functions.y.gather(1, order)], 1).flatten(1)


def least_squares(functions: Functions) -> Tensor:
    """Amplitude and phase [F 2] of a sin(x - b) = a cos(b) sin(x) - a sin(b) cos(x), kept to the known ranges."""
    design = torch.cat([functions.x.sin(), -functions.x.cos()], -1).double()
    c, s = torch.linalg.lstsq(design, functions.y.double()).solution[..., 0].T
    # A phase outside 0..pi is put to the nearer end, round the circle.
    phase = torch.atan2(s, c)
    phase = torch.where(phase < -math.pi / 2, math.pi, phase).clamp(min=0)
    return torch.stack([torch.hypot(c, s).clamp(0.1, 5), phase], 1)


def on_sinusoids(s: Setting, found: dict[str, Found]) -> None:
    """Errors of every row at every noise, under every seed."""
    cases = [(noise, seed) for noise in s.noises for seed in s.seeds]
    for noise, seed in track(cases, "sinusoids", console=Console(stderr=True), transient=True):
        own = draw_sinusoids(s.functions, noise=noise, seed=0)
        others = draw_sinusoids(s.asked, noise=noise, seed=1)
        assert own.truth is not None and others.truth is not None
        known = methods(s)
        for name in (*known, UNTRAINED):
            steps = s.steps if name in known else 0
            net, weights, seconds = trained(s, known.get(name, known[OURS]), own, steps, seed)
            features = represent(net, weights, own), represent(net, weights, others)
            _add(found[name], noise, errors(s, *features, own.truth, others.truth, seed))
            if steps:
                found[name].seconds.append(seconds)
        _add(found[POINTS], noise, errors(s, in_order(own), in_order(others), own.truth, others.truth, seed))
        if seed == s.seeds[0]:
            # Nothing in it is drawn.
            found[FITTED].errors[("mlp", noise)] = [normalised_error(least_squares(others), others.truth)]


def _add(found: Found, noise: float, more: Mapping[Kind, float]) -> None:
    for kind, value in more.items():
        found.errors.setdefault((kind, noise), []).append(value)


def emoji(split: Literal["train", "test"]) -> Functions:
    """Packaged emoji in grey, [F 256 3]: row, column and brightness of each of 16 x 16 pixels."""
    pictures = read_emoji(split=split)
    grey = pictures.x.float().mean(1, keepdim=True)
    small = F.avg_pool2d(grey, grey.shape[-1] // _SIDE).round().to(torch.uint8)
    return picture_functions(replace(pictures, x=small))


def on_pictures(s: Setting, found: dict[str, Found]) -> None:
    """5-way 1-shot by the nearest class mean of features standardised by the training pictures."""
    own, asked = emoji("train"), emoji("test")
    plan = EpisodePlan(5, 1, 2, s.episodes)
    assert asked.labels is not None
    labels = asked.labels

    def percent(z: Tensor, other: Tensor) -> float:
        return few_shot((other - z.mean(0)) / (z.std(0) + 1e-6), labels, plan).mean

    for seed in track(s.seeds, "pictures", console=Console(stderr=True), transient=True):
        known = methods(s, s.pixels)
        for name in (*known, UNTRAINED):
            steps = s.pixel_steps if name in known else 0
            net, weights, _ = trained(s, known.get(name, known[OURS]), own, steps, seed)
            found[name].correct.append(percent(represent(net, weights, own), represent(net, weights, asked)))
    found[POINTS].correct.append(percent(own.y.flatten(1), asked.y.flatten(1)))


def show(quick: bool = False) -> Outcome:
    """Train all three under every seed and noise, and on pictures."""
    s = QUICK if quick else Setting()
    found = {name: Found({}, [], []) for name in (OURS, *OTHERS, UNTRAINED, POINTS, FITTED)}
    on_sinusoids(s, found)
    on_pictures(s, found)
    return Outcome(
        "fcrl",
        "Gondal, Joshi, Rahaman, Bauer, Wuethrich, Schoelkopf, ICML 2021, arXiv 2010.07093",
        "An encoder of functions trained by contrast serves later tasks better than those of CNP and NP, and "
        "noise in the outputs harms it less.",
        protocol(s),
        [row(s, name, each) for name, each in found.items()],
        verdict(s, found),
        losing(s, found),
        lines=[
            Line(f"{kind} decoder's error against noise", name, s.noises, curve)
            for kind in KINDS
            for name, f in found.items()
            if (curve := [estimate(f.errors[kind, n]) for n in s.noises if (kind, n) in f.errors])
        ],
    )


def row(s: Setting, name: str, found: Found) -> dict[str, Estimate | str]:
    """Means over seeds; what a row does not have is empty."""
    cells: dict[str, Estimate | str] = {"encoder": name}
    for kind in KINDS:
        for noise in s.noises:
            values = found.errors.get((kind, noise))
            cells[f"{kind}, noise {noise:g}"] = estimate(values) if values else ""
    cells[PICTURES] = estimate(found.correct) if found.correct else ""
    # A mean over seeds and noises: an interval over so many runs would pass for one over as many seeds.
    cells["CPU s"] = f"{statistics.mean(found.seconds):.1f}" if found.seconds else ""
    return cells


def lead(found: Mapping[str, Found], other: str, kind: Kind, noise: float) -> Estimate:
    """How much smaller FCRL's error is, seed by seed."""
    pairs = zip(found[OURS].errors[kind, noise], found[other].errors[kind, noise], strict=True)
    return estimate([theirs - ours for ours, theirs in pairs])


def clear(gain: Estimate) -> bool:
    """Whether the interval lies above zero; one seed has none."""
    return gain.mean - gain.half_width > 0


def verdict(s: Setting, found: Mapping[str, Found]) -> str:
    """Shown where the network decoder's error is clearly smaller than both others' at every noise above 0."""
    noisy = [n for n in s.noises if n > 0]
    gains = {(o, n): lead(found, o, "mlp", n) for o in OTHERS for n in noisy}
    word = "Shown" if all(clear(g) for g in gains.values()) else "Not shown"
    said = "; ".join(f"{g} below {o} at noise {n:g}" for (o, n), g in gains.items())
    return f"{word}: with a network as decoder FCRL's error is {said} (paired by seed)."


def losing(s: Setting, found: Mapping[str, Found]) -> str:
    """The linear decoder, no noise, the pictures, and the estimator that knows the family."""
    linear = {(o, n): lead(found, o, "linear", n) for o in OTHERS for n in s.noises}
    kept = [f"{o} at noise {n:g}" for (o, n), g in linear.items() if clear(g)]
    behind = [f"{o} at noise {n:g} ({-g.mean:.3f} behind)" for (o, n), g in linear.items() if g.mean < 0]
    still = [f"{o} ({g})" for o in OTHERS for g in [lead(found, o, "mlp", s.noises[0])] if not clear(g)]
    last = s.noises[-1]
    fitted, ours = found[FITTED].errors["mlp", last][0], estimate(found[OURS].errors["mlp", last])
    shots = {name: estimate(f.correct) for name, f in found.items() if f.correct}
    seen = ", ".join(f"{'raw pixels' if name == POINTS else name} {value}" for name, value in shots.items())
    return (
        f"With a linear decoder it is clearly ahead of {', '.join(kept) or 'neither at any noise'}"
        f"{', and behind ' + ', '.join(behind) if behind else ''}. Without noise its network decoder is "
        f"{'not clearly ahead of ' + ' or '.join(still) if still else 'clearly ahead of both'}. Least squares, "
        f"told the family, has an error of {fitted:.3f} at noise {last:g} (FCRL {ours}). Pictures, "
        f"% correct: {seen}."
    )


def protocol(s: Setting) -> str:
    """What every row shares."""
    return (
        f"a sin(x - b), a in 0.1..5, b in 0..pi, 20 points in -5..5; {s.functions:,} functions to train on, "
        f"{s.asked:,} others asked, with the same noise in both. Set encoder of two layers of {s.width}, two "
        f"disjoint sets of ten points a function and step, {s.batch} functions, {s.steps:,} steps of Adam "
        f"{s.rate:g} with a cosine; encoder, its start, sets and steps are the same for all three. Decoders on "
        f"the frozen encoder's output for all 20 points: one hidden layer of {2 * s.width} ({s.epochs} epochs), "
        "or linear; error: mean square over variance, mean of amplitude and phase, 1 is a constant. Pictures: "
        f"packaged emoji, grey, {_SIDE} x {_SIDE}, {s.pixels} random pixels a step in two sets, {s.pixel_steps} "
        f"steps, all pixels at test, 5-way 1-shot across drawing styles on new emoji, {s.episodes} episodes, "
        f"features standardised by the training pictures. Nothing was tuned; last step; {len(s.seeds)} seeds, "
        "95 % intervals by Student's t. CPU s: training on sinusoids. The paper's own tables were not read."
    )

"""Networks whose neurons and synapses have several states and learn by local rules in both directions.

Paper: Sandler, Vladymyrov, Zhmoginov, Miller, Jackson, Madams, Agueera y Arcas, "Meta-Learning Bidirectional
Update Rules", ICML 2021, arXiv 2104.04657, eq. 5-8. a_i^c is state c of neuron i, w_ij^c of the synapse i -> j:

    forward    a_j^c <- sigma( eta sum_{i,d} w_ij^c nu^{dc} a_i^d )                 neurons start each step at zero
    feedback   last layer: state 0 the prediction, state 1 the label as +1 / -1, others 0   no loss or gradient
    backward   a_i^c <- sigma( f a_i^c + eta sum_{j,d} w_ji^c mu^{dc} a_j^d )
    synapses   w_ij^c <- f~ w_ij^c + eta~ sum_{e,d} a_i^e nu~^{ec} mu~^{cd} a_j^d           for i -> j and j -> i

The genome is {f, eta, f~, eta~, nu, mu, nu~, mu~}, 4 k^2 + 4 numbers for k states, shared by all layers, sizes and
tasks. The paper's: the rules, a constant bias in the forward direction only, pre-activations of both directions
normalised over the batch with learnable mean and deviation, synapses normalised where activations are computed.
Our choice: mean and deviation for every state; backward synapses follow the same rule with the neurons' roles
exchanged; the deviation of starting synapses belongs to the genome; whether the update is averaged or summed over
the batch is part of the rule and kept with it; new pictures are normalised by the last batch learned from, not
by each other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, final

import torch
from torch import Tensor
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.core.types import Examples, Params

Synapses = Params
"""`forward.l` [k n_l+1 n_l+1'] (the last row is the bias), `backward.l` [k n_l+1' n_l] unless symmetric, and
`reference` [B D], the inputs of the last step (none before the first)."""

_EPSILON = 1e-5


@final
@dataclass(frozen=True)
class Rule:
    """How the numbers of a genome are used. k = `states`; `synapse_states` single: all channels share one weight.

    `symmetric`: the way back uses the forward synapses. `backward` multiplicative: states beyond the first are
    multiplied with what comes back, without activation, and the first passes through. `activation` slopes: the
    first state has tanh, the others its derivative, and the last layer neither. `feedback` error: softmax minus
    label instead of the label.

    Raises ConfigError below two states: the second one carries the label.
    """

    states: int = 2
    synapse_states: Literal["multi", "single"] = "multi"
    symmetric: bool = False
    backward: Literal["additive", "multiplicative"] = "additive"
    activation: Literal["tanh", "slopes"] = "tanh"
    feedback: Literal["label", "error"] = "label"
    normalise: bool = True
    normalise_synapses: bool = False
    reduction: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        if self.states < 2:
            raise ConfigError(f"a genome needs states >= 2, got {self.states}: the second one carries the label")

    @property
    def channels(self) -> int:
        """Weights of one synapse."""
        return self.states if self.synapse_states == "multi" else 1

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the numbers, in the order of the flat vector."""
        k, c = self.states, self.channels
        out: dict[str, tuple[int, ...]] = dict.fromkeys(("f", "eta", "f_synapse", "eta_synapse"), ())
        out |= {"nu": (k, k), "mu": (k, k), "nu_synapse": (k, c), "mu_synapse": (c, k), "scale": ()}
        if self.normalise:
            out |= {f"{way}_{what}": (k,) for way in ("forward", "backward") for what in ("mean", "deviation")}
        return out

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(math.prod(shape) for shape in self.shapes().values())


@final
@dataclass(frozen=True)
class Genome:
    """A rule and its numbers, by the names and shapes of `Rule.shapes`.

    Raises ConfigError where names or shapes differ.
    """

    rule: Rule
    numbers: Params

    def __post_init__(self) -> None:
        wanted = self.rule.shapes()
        found = {k: tuple(v.shape) for k, v in self.numbers.items()}
        if found != wanted:
            raise ConfigError(f"the numbers of this genome are {wanted}, got {found}; use `from_vector`")


def to_vector(genome: Genome) -> Tensor:
    """All numbers [P], in the order of `Rule.shapes`."""
    return torch.cat([genome.numbers[k].reshape(-1) for k in genome.rule.shapes()])


def from_vector(rule: Rule, vector: Tensor) -> Genome:
    """The inverse of `to_vector`. Raises ConfigError for another length than `rule.size`."""
    if vector.shape != (rule.size,):
        raise ConfigError(f"a genome of this rule is a vector of {rule.size} numbers, got {list(vector.shape)}")
    shapes = rule.shapes()
    parts = vector.split([math.prod(shape) for shape in shapes.values()])
    return Genome(rule, {k: v.reshape(s) for (k, s), v in zip(shapes.items(), parts, strict=True)})


def backprop_genome(
    rate: float, reduction: Literal["mean", "sum"] = "sum", dtype: torch.dtype | None = None
) -> Genome:
    """The genome that is gradient descent on the cross-entropy of a tanh network (paper, section 3)."""
    rule = Rule(
        synapse_states="single", symmetric=True, backward="multiplicative", activation="slopes", feedback="error",
        normalise=False, reduction=reduction,
    )  # fmt: skip
    scalars, nu, mu = [0.0, 1.0, 1.0, -rate], [1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0]
    nu_synapse, mu_synapse, scale = [1.0, 0.0], [0.0, 1.0], 1.0
    vector = torch.tensor([*scalars, *nu, *mu, *nu_synapse, *mu_synapse, scale], dtype=dtype)
    return from_vector(rule, vector)


def raw_synapses(sizes: Sequence[int], rule: Rule, generator: torch.Generator) -> Params:
    """Standard normal numbers over the square root of the inputs, for `started`; both directions differ.

    Raises ConfigError for fewer than two layers.
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ConfigError(f"sizes names inputs, hidden layers and classes, each at least 1; got {list(sizes)}")
    out: Params = {}
    for layer, (a, b) in enumerate(pairwise(sizes)):
        out[f"forward.{layer}"] = torch.randn(rule.channels, a + 1, b, generator=generator) / math.sqrt(a)
        if not rule.symmetric:
            out[f"backward.{layer}"] = torch.randn(rule.channels, b, a, generator=generator) / math.sqrt(b)
    return out


def started(raw: Params, genome: Genome) -> Synapses:
    """The state before the first step: `raw` with the genome's deviation, biases at zero."""
    scaled = {k: v * genome.numbers["scale"] for k, v in raw.items()}
    for name in [k for k in raw if k.startswith("forward.")]:
        scaled[name] = torch.cat([scaled[name][:, :-1], torch.zeros_like(scaled[name][:, -1:])], 1)
    first = raw["forward.0"]
    return scaled | {"reference": first.new_zeros(0, first.shape[1] - 1)}


def init_state(sizes: Sequence[int], genome: Genome, generator: torch.Generator) -> Synapses:
    """Random synapses for a network of `sizes` = inputs, hidden layers, classes."""
    raw = raw_synapses(sizes, genome.rule, generator)
    return started({k: v.to(genome.numbers["nu"]) for k, v in raw.items()}, genome)


def step(state: Synapses, genome: Genome, x: Tensor, y: Tensor) -> Synapses:
    """The synapses after one batch x [B D] with labels y [B] int64; nothing handed in is changed.

    Raises ConfigError where x has another width than the network's inputs.
    """
    _check(state, x)
    neurons = run_forward(state, genome, x)
    last = neurons[-1]
    label = F.one_hot(y, last.shape[-1]).to(x.dtype)
    told = 2 * label - 1 if genome.rule.feedback == "label" else last[0].softmax(-1) - label
    back = run_backward(state, genome, neurons, told)
    return updated(state, genome, back) | {"reference": x}


def predict(state: Synapses, genome: Genome, x: Tensor) -> Tensor:
    """State 0 of the last layer [B M], normalised by the last batch that was learned from.

    Rows of x do not see each other, except before the first step, where x is all there is.
    Raises ConfigError where x has another width than the network's inputs.
    """
    _check(state, x)
    seen = len(state["reference"])
    return run_forward(state, genome, torch.cat([state["reference"], x]), seen)[-1][0, seen:]


@final
@dataclass(frozen=True)
class BidirectionalLearner:
    """Learns by a genome alone: no number of it has or needs a gradient. Starting synapses follow from `seed`."""

    genome: Genome
    hidden: tuple[int, ...] = (20,)
    steps: int = 10
    seed: int = 0

    @torch.no_grad()
    def adapt(self, support: Examples, ways: int) -> Synapses:
        """Synapses after `steps` passes over all of support.x [S D].

        Raises ConfigError without labels and for labels outside 0 to `ways` - 1.
        """
        if support.y is None:
            raise ConfigError("a learned update rule is told labels: give support.y")
        if not len(support.y) or int(support.y.min()) < 0 or int(support.y.max()) >= ways:
            raise ConfigError(f"labels of {ways} classes count from 0 to {ways - 1}, and there is at least one")
        generator = torch.Generator().manual_seed(self.seed)
        state = init_state((support.x.shape[-1], *self.hidden, ways), self.genome, generator)
        for _ in range(self.steps):
            state = step(state, self.genome, support.x, support.y)
        return state

    @torch.no_grad()
    def predict(self, adapted: Synapses, x: Tensor) -> Tensor:
        """Logits [Q M]."""
        return predict(adapted, self.genome, x)


def run_forward(state: Synapses, genome: Genome, x: Tensor, counted: int = 0) -> list[Tensor]:
    """Neurons [k B n] of every layer; statistics are those of the first `counted` rows (0: of all)."""
    rule, g = genome.rule, genome.numbers
    # The derivative at the inputs is one: they have no activation.
    rest = torch.ones_like(x) if rule.backward == "multiplicative" else torch.zeros_like(x)
    neurons = [torch.stack([x, *[rest] * (rule.states - 1)])]
    layers = _layers(state)
    for layer in range(layers):
        sender = F.pad(neurons[-1], (0, 1), value=1.0)
        z = g["eta"] * (_mixed(sender, g["nu"]) @ _weights(state[f"forward.{layer}"], rule))
        if rule.normalise:
            z = _normalised(z, g["forward_mean"], g["forward_deviation"], counted)
        neurons.append(_activated(z, rule, last=layer == layers - 1))
    return neurons


def run_backward(state: Synapses, genome: Genome, neurons: Sequence[Tensor], told: Tensor) -> list[Tensor]:
    """Neurons [k B n] of every layer after the way back; the last layer's second state is `told` [B M]."""
    rule, g = genome.rule, genome.numbers
    prediction = neurons[-1][0]
    out = [torch.stack([prediction, told, *[torch.zeros_like(told)] * (rule.states - 2)])]
    for layer in reversed(range(_layers(state))):
        came = g["eta"] * (_mixed(out[0], g["mu"]) @ _weights(_way_back(state, rule, layer), rule))
        if rule.normalise:
            came = _normalised(came, g["backward_mean"], g["backward_deviation"], 0)
        own = neurons[layer]
        if rule.backward == "additive":
            out.insert(0, torch.tanh(g["f"] * own + came))
        else:
            out.insert(0, torch.cat([own[:1], own[1:] * came[1:]]))
    return out


def updated(state: Synapses, genome: Genome, neurons: Sequence[Tensor]) -> Synapses:
    """The Hebbian update of every synapse, summed or averaged over the batch as the rule says."""
    rule, g = genome.rule, genome.numbers
    out = dict(state)
    for layer in range(_layers(state)):
        pre, post = neurons[layer : layer + 2]
        forward, backward = f"forward.{layer}", f"backward.{layer}"
        out[forward] = _hebbian(state[forward], F.pad(pre, (0, 1), value=1.0), post, g, rule)
        if not rule.symmetric:
            out[backward] = _hebbian(state[backward], post, pre, g, rule)
    return out


def _hebbian(weight: Tensor, pre: Tensor, post: Tensor, g: Params, rule: Rule) -> Tensor:
    left, right = _mixed(pre, g["nu_synapse"]), _mixed(post, g["mu_synapse"].T)
    rate = g["eta_synapse"] / (pre.shape[1] if rule.reduction == "mean" else 1)
    return g["f_synapse"] * weight + rate * (left.transpose(1, 2) @ right)


def _mixed(neurons: Tensor, matrix: Tensor) -> Tensor:
    """[d B n] by [d c] -> [c B n]."""
    return torch.einsum("dbn,dc->cbn", neurons, matrix)


def _weights(weight: Tensor, rule: Rule) -> Tensor:
    if rule.normalise_synapses:
        weight = weight / (weight.square().sum(1, keepdim=True) + _EPSILON).sqrt()
    return weight


def _way_back(state: Synapses, rule: Rule, layer: int) -> Tensor:
    return state[f"forward.{layer}"][:, :-1].transpose(1, 2) if rule.symmetric else state[f"backward.{layer}"]


def _normalised(z: Tensor, mean: Tensor, deviation: Tensor, counted: int) -> Tensor:
    """Every neuron's state over the batch; mean and deviation [k]."""
    seen = z[:, :counted] if counted else z
    centre = seen.mean(1, keepdim=True)
    spread = ((seen - centre).square().mean(1, keepdim=True) + _EPSILON).sqrt()
    return mean[:, None, None] + deviation[:, None, None] * (z - centre) / spread


def _activated(z: Tensor, rule: Rule, last: bool) -> Tensor:
    if rule.activation == "tanh":
        return torch.tanh(z)
    if last:
        return z
    return torch.cat([torch.tanh(z[:1]), 1 - torch.tanh(z[1:]).square()])


def _layers(state: Synapses) -> int:
    return sum(k.startswith("forward.") for k in state)


def _check(state: Synapses, x: Tensor) -> None:
    wanted = state["forward.0"].shape[1] - 1
    if x.ndim != 2 or x.shape[1] != wanted:
        raise ConfigError(f"this network takes inputs [B {wanted}], got {list(x.shape)}: flatten pictures first")

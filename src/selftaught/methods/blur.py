"""BLUR: meta-learn the rule by which a network learns, then learn new tasks by it without gradients.

Paper: Sandler, Vladymyrov, Zhmoginov, Miller, Jackson, Madams, Agueera y Arcas, "Meta-Learning Bidirectional
Update Rules", ICML 2021, arXiv 2104.04657. The rule itself is `learners.bidirectional`.

    synapses_0 random;  synapses_{t+1} = step(synapses_t, G, batch t of the task),  t < T
    loss(G) = mean over tasks of cross-entropy( sharpness * state 0 of the last layer, for unseen inputs )
    G <- Adam, with the gradient through all T steps, or CMA-ES, which needs values alone

The paper's: unrolling from fresh random synapses, cross-entropy of the last layer's first state on unseen inputs,
descent or CMA-ES on the same genome. Our choice: the activations end in tanh and are multiplied by `sharpness`
(cross-entropy of numbers in [-1, 1] cannot come near zero); cross-entropy, not accuracy, as the fitness of CMA-ES;
a start near the delta rule with normal `noise`. BLUR is no `Method`: decision 0015 says why.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from selftaught.artifacts.tensors import load_tensors, save_tensors
from selftaught.core.errors import ConfigError, RunError
from selftaught.core.types import Aux, Optimizer, Params, State, Task
from selftaught.learners.bidirectional import (
    BidirectionalLearner,
    Genome,
    Rule,
    predict,
    raw_synapses,
    started,
    step,
)


@dataclass(frozen=True)
class BLUR:
    """`steps` batches are learned before the question; `hidden` are the widths between inputs and classes."""

    rule: Rule = field(default_factory=Rule)
    hidden: tuple[int, ...] = (20,)
    steps: int = 10
    sharpness: float = 2.0
    noise: float = 0.02

    def start(self, generator: torch.Generator) -> Params:
        """Numbers near the delta rule: hidden neurons are told label minus prediction by random synapses."""
        k, c = self.rule.states, self.rule.channels
        numbers = {name: torch.zeros(shape) for name, shape in self.rule.shapes().items()}
        for name, value in (("f", 1.0), ("eta", 1.0), ("f_synapse", 1.0), ("eta_synapse", 0.2), ("scale", 1.0)):
            numbers[name] += value
        numbers["nu"][0] = 1
        numbers["mu"][:2, :2] = torch.tensor([[1.0, -0.5], [0.0, 1.0]])
        numbers["nu_synapse"] += torch.eye(k)[:, :c]
        numbers["mu_synapse"] += torch.eye(k).roll(1, 0)[:c]
        numbers["mu_synapse"][0, 0] = -0.5
        if self.rule.normalise:
            # Features of mean zero would all be odd, and cannot tell xor. Deviations of zero keep a state out at
            # first; a signal of zero instead, divided by its deviation, would be noise.
            numbers["forward_mean"][0], numbers["forward_deviation"][0] = 1, 2
            numbers["backward_deviation"][1] = 1
        return {n: v + self.noise * torch.randn(v.shape, generator=generator) for n, v in numbers.items()}

    def draw(self, source: Callable[[torch.Generator], Task], generator: torch.Generator) -> tuple[Task, Params]:
        """Tasks, and the raw synapses [T ...] they start from: all that is random in a meta-step."""
        task = source(generator)
        sizes = (task.support.x.shape[-1], *self.hidden, task.ways)
        raw = [raw_synapses(sizes, self.rule, generator) for _ in task.support.x]
        return task, {k: torch.stack([r[k] for r in raw]) for k in raw[0]}

    def loss(self, params: Params, tasks: Task, raw: Params) -> tuple[Tensor, Aux]:
        """Mean over tasks; the figure is the accuracy on the queries."""

        def one(task: Task, raw: Params) -> tuple[Tensor, Tensor]:
            genome = Genome(self.rule, params)
            state = started(raw, genome)
            batches = (task.support.x, task.support.y)
            for x, y in zip(*(b.unflatten(0, (self.steps, -1)) for b in batches if b is not None), strict=True):
                state = step(state, genome, x, y)
            logits = self.sharpness * predict(state, genome, task.query.x)
            assert task.query.y is not None
            return F.cross_entropy(logits, task.query.y), (logits.argmax(-1) == task.query.y).float().mean()

        losses, right = vmap(one)(tasks, raw)
        return losses.mean(), Aux({"query_accuracy": right.mean().detach()})

    def learner(self, genome: Genome) -> BidirectionalLearner:
        """How the finished genome meets a new data set."""
        return BidirectionalLearner(genome, self.hidden)


def meta_start(method: BLUR, optimizer: Optimizer, seed: int) -> State:
    """The state before the first meta-step; the generator makes numbers, tasks and synapses."""
    generator = torch.Generator().manual_seed(seed)
    params = method.start(generator)
    return State(params, {}, optimizer.init(params), generator, 0)


def meta_train(
    method: BLUR, source: Callable[[torch.Generator], Task], optimizer: Optimizer, state: State, steps: int
) -> Iterator[tuple[State, dict[str, float]]]:
    """Yield state and log after every meta-step until `state.step` is `steps`; the state given is not changed."""
    generator = torch.Generator()
    generator.set_state(state.generator.get_state())
    while state.step < steps:
        tasks, raw = method.draw(source, generator)

        def loss(params: Params, tasks: Task = tasks, raw: Params = raw) -> tuple[Tensor, Aux]:
            return method.loss(params, tasks, raw)

        params, opt, aux = optimizer.step(loss, state.params, state.opt)
        kept = torch.Generator()
        kept.set_state(generator.get_state())
        state = State(params, state.slow, opt, kept, state.step + 1)
        yield state, {k: float(v) for k, v in aux.metrics.items()}


def save_genome(path: str | Path, genome: Genome) -> None:
    """Numbers and rule (also whether updates are averaged or summed) as one safetensors file; raises SaveError."""
    save_tensors(path, genome.numbers, {"selftaught.genome": json.dumps(asdict(genome.rule))})


def load_genome(path: str | Path) -> Genome:
    """What `save_genome` wrote. Raises RunError for anything else."""
    numbers, metadata = load_tensors(path)
    try:
        return Genome(Rule(**json.loads(metadata["selftaught.genome"])), numbers)
    except (KeyError, ValueError, TypeError, ConfigError) as error:
        raise RunError(f"{path} holds no genome ({error}). Write one with `save_genome`.") from error

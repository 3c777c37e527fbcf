"""Meta-learning an update rule: the loss by hand, resuming, both optimisers, the file of a genome."""

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from selftaught.artifacts.checkpoint import load_state, save_state
from selftaught.artifacts.tensors import save_tensors
from selftaught.core.errors import ConfigError, RunError
from selftaught.core.types import Examples, Optimizer, Params, State
from selftaught.learners.bidirectional import Genome, Rule, backprop_genome, predict, started, step, to_vector
from selftaught.methods.blur import BLUR, load_genome, meta_start, meta_train, save_genome
from selftaught.optimizers.evolution import CMAES
from selftaught.optimizers.gradient import Gradient
from selftaught.optimizers.skipping import SkipNotFinite
from selftaught.tasks.lessons import Lessons
from selftaught.tasks.planes import planes, region

SMALL = BLUR(hidden=(6,), steps=3)
SOURCE = Lessons(planes("and", "two-moon"), 2, 3, 16, 16, every=True)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def after(optimizer: Optimizer, steps: int, state: State | None = None) -> State:
    begun = state or meta_start(SMALL, optimizer, 0)
    return [state for state, _ in meta_train(SMALL, SOURCE, optimizer, begun, steps)][-1]


def same(a: Params, b: Params) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_loss_is_that_of_each_task_by_itself() -> None:
    tasks, raw = SMALL.draw(SOURCE, generator())
    params = {k: v.double() for k, v in SMALL.start(generator(1)).items()}
    tasks = replace(tasks, support=Examples(tasks.support.x.double(), tasks.support.y),
                    query=Examples(tasks.query.x.double(), tasks.query.y))  # fmt: skip
    raw = {k: v.double() for k, v in raw.items()}
    losses = []
    for t in range(2):
        genome = Genome(SMALL.rule, params)
        state = started({k: v[t] for k, v in raw.items()}, genome)
        assert tasks.support.y is not None and tasks.query.y is not None
        for rows in torch.arange(48).split(16):
            state = step(state, genome, tasks.support.x[t, rows], tasks.support.y[t, rows])
        losses.append(F.cross_entropy(2.0 * predict(state, genome, tasks.query.x[t]), tasks.query.y[t]))
    loss, _ = SMALL.loss(params, tasks, raw)
    assert torch.allclose(loss, torch.stack(losses).mean(), rtol=1e-10)


def test_the_loss_has_a_gradient_for_every_number_and_the_differences_agree() -> None:
    tasks, raw = SMALL.draw(SOURCE, generator())
    tasks = replace(tasks, support=Examples(tasks.support.x.double(), tasks.support.y),
                    query=Examples(tasks.query.x.double(), tasks.query.y))  # fmt: skip
    raw = {k: v.double() for k, v in raw.items()}
    params = {k: v.double().requires_grad_() for k, v in SMALL.start(generator(1)).items()}
    slopes = torch.autograd.grad(SMALL.loss(params, tasks, raw)[0], list(params.values()))
    for (name, value), slope in zip(params.items(), slopes, strict=True):
        assert slope.isfinite().all() and slope.any(), name
        flat = torch.zeros(value.numel()).double()
        flat[0] = 1e-6
        ends = [
            SMALL.loss({**params, name: value.detach() + s * flat.view_as(value)}, tasks, raw)[0] for s in (1, -1)
        ]
        assert torch.allclose((ends[0] - ends[1]) / 2e-6, slope.flatten()[0], rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("optimizer", [Gradient(5e-3, 4, clip=1.0), CMAES(4, 0.05)])
def test_resumed_is_uninterrupted_to_the_same_bits(optimizer: Optimizer, tmp_path: Path) -> None:
    if isinstance(optimizer, CMAES):
        pytest.importorskip("cma")
    whole = after(optimizer, 4)
    save_state(tmp_path / "half.safetensors", after(optimizer, 2))
    fresh = replace(optimizer) if isinstance(optimizer, Gradient) else CMAES(4, 0.05)
    resumed = after(fresh, 4, load_state(tmp_path / "half.safetensors"))
    assert resumed.step == whole.step == 4 and same(resumed.params, whole.params) and same(resumed.opt, whole.opt)


def test_meta_training_leaves_the_given_state_and_global_numbers_alone() -> None:
    optimizer = Gradient(5e-3, 2)
    state = meta_start(SMALL, optimizer, 0)
    before, drawn, everyone = (
        {k: v.clone() for k, v in state.params.items()},
        state.generator.get_state(),
        torch.get_rng_state(),
    )
    after(optimizer, 2, state)
    assert same(state.params, before) and torch.equal(state.generator.get_state(), drawn)
    assert torch.equal(torch.get_rng_state(), everyone)


def test_meta_training_helps() -> None:
    """On the tasks it is trained on, with others' synapses; from a start that is far from good."""
    method = BLUR(hidden=(8,), steps=4)
    optimizer = SkipNotFinite(Gradient(2e-2, 30, clip=1.0))
    state = meta_start(method, optimizer, 0)
    poor = replace(state, params=state.params | {"eta_synapse": torch.tensor(0.01)})
    source = Lessons(planes("and", "two-moon"), 2, 4, 32, 64, tasks=4)
    better = poor
    for better, _ in meta_train(method, source, optimizer, poor, 30):  # noqa: B007
        pass
    tasks, raw = method.draw(Lessons(planes("and", "two-moon"), 2, 4, 32, 256, tasks=8), generator(5))
    assert method.loss(better.params, tasks, raw)[0] < method.loss(poor.params, tasks, raw)[0] - 0.1


def test_the_learner_needs_no_gradient_and_names_new_points() -> None:
    learner = replace(BLUR(hidden=(20,)).learner(Genome(Rule(), BLUR().start(generator()))), steps=20)
    draw = region(lambda p: p[:, 0] + 0.5 * p[:, 1] > 0)
    support, query = draw(100, generator(1)), draw(200, generator(2))
    adapted = learner.adapt(support, 2)
    logits = learner.predict(adapted, query.x)
    assert not any(v.requires_grad for v in [*adapted.values(), logits, to_vector(learner.genome)])
    assert support.y is not None and query.y is not None and (logits.argmax(-1) == query.y).float().mean() > 0.8
    assert torch.equal(learner.adapt(support, 2)["forward.0"], adapted["forward.0"])
    for wrong in (Examples(support.x), Examples(support.x, support.y + 1), Examples(support.x[:0], support.y[:0])):
        with pytest.raises(ConfigError):
            learner.adapt(wrong, 2)


@pytest.mark.parametrize(
    "rule", [Rule(), Rule(states=3, symmetric=True, normalise=False), backprop_genome(0.1).rule]
)
def test_every_rule_starts_finite(rule: Rule) -> None:
    method = BLUR(rule, hidden=(6,), steps=3)
    tasks, raw = method.draw(SOURCE, generator())
    params = method.start(generator())
    assert {k: tuple(v.shape) for k, v in params.items()} == rule.shapes()
    assert method.loss(params, tasks, raw)[0].isfinite()


def test_a_genome_s_file_says_how_its_updates_are_reduced(tmp_path: Path) -> None:
    for rule in (Rule(reduction="sum"), Rule(states=3, symmetric=True)):
        genome = Genome(rule, BLUR(rule).start(generator()))
        save_genome(tmp_path / "genome.safetensors", genome)
        again = load_genome(tmp_path / "genome.safetensors")
        assert again.rule == rule and same(again.numbers, genome.numbers)
    save_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(2)}, {})
    with pytest.raises(RunError, match="holds no genome"):
        load_genome(tmp_path / "other.safetensors")
    save_tensors(tmp_path / "short.safetensors", {"a": torch.zeros(2)}, {"selftaught.genome": "{}"})
    with pytest.raises(RunError, match="from_vector"):
        load_genome(tmp_path / "short.safetensors")


@pytest.mark.parametrize("kind", [BLUR, Rule])
def test_the_page_s_tables_of_options_are_the_dataclasses(kind: type[BLUR] | type[Rule]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "blur.md").read_text(encoding="utf-8").partition("## Options")[2]
    own, _, structure = text.partition("Options of `Rule`")
    written = dict(
        re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", own if kind is BLUR else structure, flags=re.MULTILINE)
    )
    defaults = {f.name: getattr(kind(), f.name) for f in fields(kind)}
    assert written == {k: "Rule()" if k == "rule" else repr(v) for k, v in defaults.items()}

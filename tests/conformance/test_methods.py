"""The laws every method keeps. A method in the table, or a class added to KINDS, passes them unchanged."""

import dataclasses
import inspect
import itertools
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from alignment_uniformity import AlignmentUniformity
from tiny_methods import Toy, build, choices, labelled_task, tiny
from torch import Tensor

from selftaught.artifacts.checkpoint import load_state, save_state
from selftaught.core.errors import ConfigError
from selftaught.core.precision import has_bfloat16
from selftaught.core.train import outer_step, train
from selftaught.core.types import Examples, Params, State, Task, merged
from selftaught.methods import METHODS

KINDS: dict[str, type[Any]] = {**METHODS, "outsider": AlignmentUniformity}
STEPS = 10
WITH_PATH = [name for name, kind in KINDS.items() if "path" in choices(kind)]
each_method = pytest.mark.parametrize("name", KINDS)
each_norm = pytest.mark.parametrize("norm", ["batch", "group"])


def clones(weights: Params) -> Params:
    return {k: v.clone() for k, v in weights.items()}


def same(a: Params, b: Params) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def same_state(a: State, b: State) -> bool:
    draws = torch.equal(a.generator.get_state(), b.generator.get_state())
    return draws and a.step == b.step and same(a.params, b.params) and same(a.slow, b.slow) and same(a.opt, b.opt)


@pytest.fixture
def threads() -> Iterator[None]:
    """Lets a test change the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# ---------------------------------------------------------------------------------------------- training


@each_norm
@each_method
def test_loss_is_a_finite_scalar_with_finite_gradients(name: str, norm: str) -> None:
    toy = build(tiny(KINDS[name]), norm)
    loss, gradients = toy.loss_and_gradients(toy.tasks())
    assert loss.shape == () and loss.isfinite()
    assert gradients.keys() == toy.state.params.keys(), "a parameter that the loss does not know"
    assert all(g.isfinite().all() for g in gradients.values())
    encoder = [k for k in gradients if k.startswith("encoder.")]
    assert encoder and all(gradients[k].any() for k in encoder)


@each_norm
@each_method
def test_loss_falls(name: str, norm: str) -> None:
    """On the same meta-batch again and again."""
    toy = build(tiny(KINDS[name]), norm)
    tasks, state, losses = toy.tasks(), toy.state, []
    for _ in range(STEPS):
        state, aux = outer_step(toy.method, toy.net, toy.optimizer, state, tasks)
        losses.append(float(aux.metrics["loss"]))
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.02, losses


@each_method
def test_same_seed_same_bits_other_seed_other_bits(name: str) -> None:
    once, again = (build(tiny(KINDS[name])).after(3) for _ in range(2))
    assert same_state(once, again)
    toy, other = build(tiny(KINDS[name])), build(tiny(KINDS[name]), seed=1)
    assert not same(toy.after(1).params, other.after(1).params)


@each_method
def test_resumed_is_uninterrupted_to_the_same_bits(name: str, tmp_path: Path) -> None:
    whole = build(tiny(KINDS[name])).after(4)
    save_state(tmp_path / "half.safetensors", build(tiny(KINDS[name])).after(2))
    # The skeleton of the second half starts from other numbers: all that counts must be in the state.
    second = build(tiny(KINDS[name]), skeleton=9)
    resumed = dataclasses.replace(second, state=load_state(tmp_path / "half.safetensors")).after(4)
    assert same_state(resumed, whole)


@each_method
def test_a_saved_state_is_the_state(name: str, tmp_path: Path) -> None:
    state = build(tiny(KINDS[name])).after(1)
    save_state(tmp_path / "state.safetensors", state)
    loaded = load_state(tmp_path / "state.safetensors")
    assert same_state(loaded, state) and list(loaded.params) == list(state.params)


@each_method
def test_log_figures_are_scalars_and_finite(name: str) -> None:
    toy = build(tiny(KINDS[name]))
    _, figures = next(train(toy.method, toy.net, toy.source, toy.optimizer, toy.state, 1))
    assert {"loss", "gradient_norm"} <= figures.keys()
    assert all(np.isfinite(value) for value in figures.values())


@each_method
def test_the_encoders_statistics_move_once_a_step(name: str) -> None:
    for adapt in choices(KINDS[name]).get("adapt", (None,)):
        toy = build(tiny(KINDS[name], **({} if adapt is None else {"adapt": adapt})))
        before, after = toy.state.slow, toy.after(2).slow
        counts = [k for k in after if k.startswith("encoder.") and k.endswith("num_batches_tracked")]
        assert counts and all(after[k] == before[k] + 2 for k in counts), adapt
        means = [k for k in after if k.startswith("encoder.") and k.endswith("running_mean")]
        assert len(means) == len(counts) and not any(torch.equal(after[k], before[k]) for k in means), adapt


# ----------------------------------------------------------------------------------------- nothing aside


@each_norm
@each_method
def test_nothing_handed_in_is_changed(name: str, norm: str) -> None:
    toy = build(tiny(KINDS[name]), norm)
    params, slow, tasks = toy.state.params, toy.state.slow, toy.tasks()
    watched: list[Params] = [params, slow, dict(toy.net.state_dict()), tensors_of(tasks)]
    before = [clones(w) for w in watched]

    def check(who: str) -> None:
        assert all(same(a, b) for a, b in zip(watched, before, strict=True)), f"{who} changed a tensor"

    _, aux = toy.method.loss(toy.net, params, slow, tasks)
    check("loss")
    fresh = toy.method.refresh(toy.net, slow, params, tasks, aux)
    check("refresh")
    assert fresh.keys() == slow.keys() and not any(v.requires_grad for v in fresh.values())
    support, query = labelled_task()
    learner, weights = toy.method.learner(toy.net), merged(params, slow)
    adapted = learner.adapt(weights, support, 3)
    check("adapt")
    logits = learner.predict(adapted, query)
    check("predict")
    assert logits.shape == (6, 3) and not logits.requires_grad


def tensors_of(tasks: Task) -> Params:
    parts = {"sx": tasks.support.x, "sy": tasks.support.y, "qx": tasks.query.x, "qy": tasks.query.y}
    return {k: v for k, v in parts.items() if v is not None}


@each_method
def test_a_step_leaves_the_global_generators_alone(name: str) -> None:
    toy = build(tiny(KINDS[name]))
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    toy.after(1)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


# ------------------------------------------------------------------------------------------ the learner


@each_norm
@each_method
def test_permuting_the_classes_permutes_the_logits(name: str, norm: str) -> None:
    toy = build(tiny(KINDS[name]), norm, double=True)
    state = dataclasses.replace(toy, source=lambda generator: toy.tasks()).after(2)
    support, query = labelled_task(double=True)
    assert support.y is not None
    learner, weights = toy.method.learner(toy.net), merged(state.params, state.slow)
    logits = learner.predict(learner.adapt(weights, support, 3), query)
    assert not torch.allclose(logits, logits[:, :1])
    order = torch.tensor([2, 0, 1])
    renamed = learner.adapt(weights, Examples(support.x, order[support.y]), 3)
    assert torch.allclose(learner.predict(renamed, query)[:, order], logits, rtol=1e-9, atol=1e-10)
    rows = torch.randperm(len(support.x), generator=torch.Generator().manual_seed(0))
    shuffled = learner.adapt(weights, Examples(support.x[rows], support.y[rows]), 3)
    assert torch.allclose(learner.predict(shuffled, query), logits, rtol=1e-9, atol=1e-10)


# -------------------------------------------------------------------------------------- how tasks are run


@pytest.mark.parametrize("path", ["threads", "batched"])
@pytest.mark.parametrize("name", WITH_PATH)
def test_every_path_gives_the_loop(name: str, path: str, threads: None) -> None:
    torch.set_num_threads(3)  # so that `threads` has some
    for adapt in choices(KINDS[name]).get("adapt", (None,)):
        more = {} if adapt is None else {"adapt": adapt}
        toys = [build(tiny(KINDS[name], path=p, **more), "group", double=True) for p in ("loop", path)]
        (loss, slope), (other, found) = (toy.loss_and_gradients(toy.tasks()) for toy in toys)
        assert torch.allclose(loss, other, rtol=1e-10, atol=0)
        assert slope.keys() == found.keys()
        for k in slope:
            assert torch.allclose(slope[k], found[k], rtol=1e-9, atol=1e-10), (adapt, k)


@pytest.mark.parametrize("name", WITH_PATH)
def test_the_number_of_workers_does_not_change_bits(name: str, threads: None) -> None:
    """Two workers or three; one alone keeps torch's own threads, whose sums may round otherwise."""
    everything = {"adapt": "all"} if "adapt" in choices(KINDS[name]) else {}
    found = []
    for workers in (2, 3, 1):
        torch.set_num_threads(workers)
        toy = build(tiny(KINDS[name], path="threads", tasks=3, **everything))
        loss, gradients = toy.loss_and_gradients(toy.tasks())
        found.append({"loss": loss, **gradients})
    assert same(found[0], found[1])
    assert all(torch.allclose(found[0][k], found[2][k], rtol=1e-3, atol=1e-5) for k in found[0])


@each_method
def test_every_named_option_trains_or_says_why_not(name: str) -> None:
    options = choices(KINDS[name])
    single = [{field: value} for field, values in options.items() for value in values]
    pairs = [
        {"graph": g, "path": p} for g, p in itertools.product(options.get("graph", ()), options.get("path", ()))
    ]
    for changes in [{}, *single, *pairs]:
        trained = [norm for norm in ("group", "batch") if _trains(name, norm, changes)]
        absent = changes.get("precision") == "bfloat16" and not has_bfloat16(torch.device("cpu"))
        assert trained or absent or len(changes) == 2, f"{changes} alone is refused for every network"


def _trains(name: str, norm: str, changes: dict[str, Any]) -> bool:
    """False where the option is refused in words; anything but finite numbers fails."""
    toy = build(tiny(KINDS[name], **changes), norm)
    try:
        loss, gradients = toy.loss_and_gradients(toy.tasks())
    except ConfigError as error:
        assert "Use" in str(error) or "use" in str(error), f"{changes}: {error} names no way out"
        return False
    assert loss.isfinite() and all(g.isfinite().all() for g in gradients.values()), changes
    return True


# ---------------------------------------------------------------------------------------------- the file


@each_method
def test_a_method_is_its_own_configuration(name: str) -> None:
    method = tiny(KINDS[name])
    again = KINDS[name](**json.loads(json.dumps(dataclasses.asdict(method))))
    assert again == method and hash(again) == hash(method)
    assert KINDS[name]() == KINDS[name](**dataclasses.asdict(KINDS[name]()))
    field = dataclasses.fields(method)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(method, field, getattr(method, field))


@each_method
def test_the_file_says_what_is_the_papers_and_what_is_ours(name: str) -> None:
    module = inspect.getmodule(KINDS[name])
    assert module is not None and module.__doc__
    text = " ".join(module.__doc__.split())
    assert "Paper: " in text and "The paper's" in text and "Our choice" in text
    assert re.search(r"arXiv \d{4}\.\d{4,5}|(NeurIPS|ICML|ICLR|CVPR|ICCV|ECCV|AAAI|TPAMI|TMLR) \d{4}", text)
    assert len(inspect.getsource(module).splitlines()) <= 150


def test_the_table_names_each_class_once() -> None:
    assert len(set(METHODS.values())) == len(METHODS)
    assert all(name == name.lower() for name in METHODS)


def test_the_laws_can_fail(tmp_path: Path) -> None:
    """A method that remembers in the skeleton, and one whose loss writes into `slow`, are caught."""

    class Forgetful(AlignmentUniformity):
        def loss(self, net: Any, params: Params, slow: Params, tasks: Task) -> Any:
            loss, aux = super().loss(net, params, slow, tasks)
            return loss * next(net.parameters()).detach().abs().sum(), aux

    whole = build(tiny(Forgetful)).after(4)
    half = dataclasses.replace(build(tiny(Forgetful), skeleton=9), state=build(tiny(Forgetful)).after(2))
    assert not same_state(half.after(4), whole)

    class Writes(AlignmentUniformity):
        def loss(self, net: Any, params: Params, slow: Params, tasks: Task) -> Any:
            slow["encoder.blocks.0.norm.running_mean"].add_(1)
            return super().loss(net, params, slow, tasks)

    toy: Toy = build(tiny(Writes))
    before: dict[str, Tensor] = clones(toy.state.slow)
    toy.method.loss(toy.net, toy.state.params, toy.state.slow, toy.tasks())
    assert not same(before, toy.state.slow)

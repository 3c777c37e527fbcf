"""A checkpoint is the whole state, bit for bit, or an error that says what to do."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from selftaught.artifacts.checkpoint import load_extra, load_state, save_state
from selftaught.artifacts.tensors import load_tensors, save_tensors
from selftaught.core.errors import RunError
from selftaught.core.types import State


def a_state(step: int = 7) -> State:
    generator = torch.Generator().manual_seed(3)
    torch.randn(5, generator=generator)  # odd number of normals: the cached second one belongs to the state
    return State(
        params={"z.weight": torch.randn(3, 4), "a.bias": torch.randn(4).double(), "m": torch.randn(2).half()},
        slow={"teacher/z.weight": torch.randn(3, 4), "count": torch.tensor(9)},
        opt={"step": torch.tensor(7), "exp_avg.z.weight": torch.randn(3, 4).bfloat16()},
        generator=generator,
        step=step,
    )


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(
        one[k].dtype == other[k].dtype and torch.equal(one[k], other[k]) for k in one
    )


def rewritten(path: Path, drop: str = "", **metadata: str | None) -> None:
    """The checkpoint at `path` with tensors below `drop` left out and metadata changed (None: left out)."""
    tensors, had = load_tensors(path)
    kept = {k: v for k, v in tensors.items() if not (drop and k.startswith(drop))}
    save_tensors(path, kept, {k: v for k, v in (had | metadata).items() if v is not None})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_state(tmp_path / "x.safetensors", a_state(), {"seed": "3"})
    return tmp_path / "x.safetensors"


def test_round_trip_is_bit_exact(tmp_path: Path) -> None:
    state = a_state()
    save_state(tmp_path / "x.safetensors", state, {"seed": "3", "step": "not ours"})
    loaded = load_state(tmp_path / "x.safetensors")
    assert loaded.step == 7
    assert same(loaded.params, state.params) and same(loaded.slow, state.slow) and same(loaded.opt, state.opt)
    assert load_extra(tmp_path / "x.safetensors") == {"seed": "3", "step": "not ours"}


def test_the_generator_draws_on_as_if_nothing_happened(tmp_path: Path) -> None:
    state = a_state()
    save_state(tmp_path / "x.safetensors", state)
    here, there = state.generator, load_state(tmp_path / "x.safetensors").generator
    for _ in range(3):
        assert torch.equal(torch.randn(17, generator=here), torch.randn(17, generator=there))
        assert torch.equal(torch.randperm(99, generator=here), torch.randperm(99, generator=there))


def test_saving_changes_nothing(tmp_path: Path) -> None:
    state = a_state()
    before = state.generator.get_state()
    save_state(tmp_path / "x.safetensors", state)
    assert torch.equal(state.generator.get_state(), before)


def test_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Ten steps at once, and five, a checkpoint, five more."""

    def steps(state: State, count: int) -> State:
        w, m = state.params["w"].clone(), state.opt["m"].clone()
        for _ in range(count):
            x = torch.randn(8, 3, generator=state.generator)
            m = 0.9 * m + x.T @ (x @ w)
            w = w - 0.01 * m
        return State({"w": w}, {}, {"m": m}, state.generator, state.step + count)

    def start() -> State:
        return State({"w": torch.ones(3, 1)}, {}, {"m": torch.zeros(3, 1)}, torch.Generator().manual_seed(0), 0)

    save_state(tmp_path / "x.safetensors", steps(start(), 5))
    resumed, whole = steps(load_state(tmp_path / "x.safetensors"), 5), steps(start(), 10)
    assert resumed.step == whole.step
    assert torch.equal(resumed.params["w"], whole.params["w"]) and torch.equal(resumed.opt["m"], whole.opt["m"])


def test_empty_parts_are_no_missing_parts(tmp_path: Path) -> None:
    save_state(tmp_path / "x.safetensors", State({}, {}, {}, torch.Generator(), 0))
    loaded = load_state(tmp_path / "x.safetensors")
    assert (loaded.params, loaded.slow, loaded.opt, loaded.step) == ({}, {}, {}, 0)


def test_another_format_names_its_writer(saved: Path) -> None:
    rewritten(saved, format="2", writer="selftaught 9.9")
    for read in (load_state, load_extra):
        with pytest.raises(RunError, match=r"x\.safetensors.*selftaught 9\.9.*format 2.*Install the version"):
            read(saved)


@pytest.mark.parametrize("part", ["params/", "slow/", "opt/", "params/z", "generator"])
def test_missing_parts_are_noticed(saved: Path, part: str) -> None:
    rewritten(saved, drop=part)
    with pytest.raises(RunError, match=r"x\.safetensors.*(holds|lacks).*Use an intact checkpoint"):
        load_state(saved)


@pytest.mark.parametrize("key", ["kind", "format", "step", "counts"])
@pytest.mark.parametrize("value", [None, "-1", "[]", "²"])
def test_broken_metadata_is_noticed(saved: Path, key: str, value: str | None) -> None:
    rewritten(saved, **{key: value})
    with pytest.raises(RunError, match=r"x\.safetensors.*train again into a new folder"):
        load_state(saved)


@pytest.mark.parametrize("device", ["abacus", "meta"])
def test_a_generator_of_a_device_that_is_not_here(saved: Path, device: str) -> None:
    rewritten(saved, generator_device=device)
    with pytest.raises(RunError, match=f"generator for '{device}'"):
        load_state(saved)


@pytest.mark.parametrize("wrong", [torch.zeros(3, dtype=torch.uint8), torch.zeros(5056), torch.tensor(1)])
def test_a_broken_generator_state(saved: Path, wrong: Tensor) -> None:
    tensors, metadata = load_tensors(saved)
    save_tensors(saved, tensors | {"generator": wrong}, metadata)
    with pytest.raises(RunError, match="random generator"):
        load_state(saved)


def test_a_model_is_no_checkpoint(tmp_path: Path) -> None:
    save_tensors(tmp_path / "m.safetensors", {"a": torch.ones(1)}, {})
    with pytest.raises(RunError, match="no checkpoint of selftaught"):
        load_state(tmp_path / "m.safetensors")

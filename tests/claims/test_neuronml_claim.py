"""NeuronML's claim: its network against masks on weights, its tasks, its verdict, and all of it at toy size."""

import pytest
import torch

from selftaught.app.cli import main
from selftaught.claims import CLAIMS
from selftaught.claims.neuronml import EMOJI_QUERIES, Mixed, PixelNetwork, Trained, gain, losing, pictures, verdict
from selftaught.core.functional import apply, params_of
from selftaught.nets.gates import Gated, layers_of, masked, masks, with_gates
from selftaught.tasks.episodes import EpisodeSource

NARROW = "MAML, 8 units a layer"


def trained(strokes: float, emoji: float, seconds: float = 1.0) -> Trained:
    return Trained({"strokes": strokes, "emoji": emoji}, 0.5, 0.9, 0.1, seconds)


def test_masks_on_weights_are_gates_on_its_units() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = with_gates(PixelNetwork(9, 6), per_task=True).double()
        x, gates = torch.rand(4, 1, 3, 3).double(), (torch.rand(12) > 0.5).double()
        net.get_parameter("head.weight").data.normal_()
    weights, gated = params_of(net), Gated(net)
    layers = layers_of(net.get_submodule("encoder"))
    by_units = apply(gated, gated.own(weights) | {"open": gates}, x)
    assert torch.allclose(apply(net, masked(weights, masks(gates, layers, weights)), x), by_units, rtol=1e-12)
    everything = apply(gated, gated.own(weights) | {"open": torch.ones(12).double()}, x)
    assert torch.allclose(everything, apply(net, weights, x), rtol=1e-12)
    assert not torch.allclose(everything, by_units)


def test_half_of_the_tasks_are_of_each_kind_and_no_class_is_in_two_splits() -> None:
    own, other = pictures("train"), pictures("test")
    source = Mixed(tuple(EpisodeSource(p, 5, 1, EMOJI_QUERIES, 2) for p in own.values()))
    tasks = source(torch.Generator().manual_seed(0))
    assert tasks.support.x.shape == (4, 5, 1, 16, 16) and tasks.query.x.shape == (4, 10, 1, 16, 16)
    light = tasks.support.x.flatten(1).mean(1)
    assert light[:2].max() < light[2:].min(), "characters are ink on black, emoji stand on white"
    assert not set(own["emoji"].classes) & set(other["emoji"].classes)
    assert not torch.equal(own["strokes"].x[:100], other["strokes"].x[:100])


def test_verdict_can_go_both_ways_and_the_losing_kind_is_what_was_found() -> None:
    low, high = ([trained(40 + d + up, 50 + d + up) for d in (0.0, 1.0, 2.0)] for up in (0.0, 5.0))
    better = {"NeuronML": high, "MAML": low, NARROW: low}
    assert verdict(better, NARROW).startswith("Shown: 5.000 ± 0.000")
    assert verdict({**better, NARROW: high}, NARROW).startswith("Not shown")
    assert verdict({"NeuronML": low, "MAML": high, NARROW: low}, NARROW).startswith("Not shown")
    mixed = [trained(45, 48, 2.0)] * 3
    said = losing({"NeuronML": mixed, "MAML": [trained(40, 50)] * 3})
    assert said.startswith("Behind MAML on emoji: -2.000") and "2.00 times" in said
    assert losing(better).startswith("Least ahead")
    assert gain(high, low).mean == pytest.approx(5) and gain(high, low, "emoji").mean == pytest.approx(5)


def test_the_quick_claim_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert "neuronml" in CLAIMS
    assert main(["claim", "neuronml", "--quick"]) == 0
    text = capsys.readouterr().out
    for word in ("paper:", "protocol:", "verdict:", "where it fails:", "validation", "raw", "2 seeds"):
        assert word in text

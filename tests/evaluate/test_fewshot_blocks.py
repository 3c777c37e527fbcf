"""Episodes in blocks from normalised features: what a loop over episodes with the public heads gives."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from selftaught.evaluate import fewshot
from selftaught.learners import heads
from selftaught.tasks.episodes import EpisodePlan, draw_episodes


def features(width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(9).repeat_interleave(12)
    centre = torch.randn(9, width, generator=generator)
    z = centre[y] + 1.5 * torch.randn(len(y), width, generator=generator)
    z[3] = 0.0  # a row without a direction
    return z * torch.linspace(0.1, 10, len(z)).unsqueeze(1), y


def loop(z: Tensor, y: Tensor, plan: EpisodePlan, head: str, distance: heads.Distance) -> Tensor:
    """One episode after the other."""
    episodes = draw_episodes(y, plan)
    correct = []
    for s, q in zip(episodes.support, episodes.query, strict=True):
        if head == "ridge":
            logits = heads.ridge_logits(z[s], z[q], plan.ways)
        else:
            logits = heads.prototype_logits(z[s], z[q], plan.ways, distance=distance)
        correct.append((logits.argmax(-1) == episodes.query_y).double().mean() * 100)
    return torch.stack(correct)


@pytest.mark.parametrize("at_once", [1, 5_000, 1_000_000])
@pytest.mark.parametrize(
    ("head", "distance"), [("prototype", "cosine"), ("prototype", "squared"), ("ridge", "cosine")]
)
def test_as_a_loop_over_episodes(
    head: fewshot.Head, distance: heads.Distance, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fewshot, "_NUMBERS_AT_ONCE", at_once)
    for width, shots in ((16, 1), (16, 5), (4, 5)):  # the last one solves ridge in the primal form
        z, y = features(width)
        plan = EpisodePlan(5, shots, 6, episodes=60)
        found = fewshot.few_shot(z.double(), y, plan, head, distance=distance)
        assert torch.equal(found.per_episode, loop(z.double(), y, plan, head, distance))
        assert 25 < found.mean < 99


def test_features_are_left_as_they_are() -> None:
    z, y = features(8)
    before = z.clone()
    fewshot.few_shot(z, y, EpisodePlan(5, 1, 5, episodes=3), "ridge")
    assert torch.equal(z, before)


def test_training_does_not_wait_for_scikit_learn() -> None:
    """It takes as long to load as torch, and only classifiers of the command line need it."""
    code = "import sys, selftaught; selftaught.pretrain; print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

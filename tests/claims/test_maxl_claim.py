"""MAXL's claim: fixed labels, the stack of networks against one network alone, and verdicts that go both ways."""

from dataclasses import replace

import pytest
import torch

from selftaught.app.cli import main
from selftaught.claims.maxl import (
    FIXED,
    GENERATED,
    Arm,
    Drawings,
    Setting,
    accuracies,
    agreement,
    ahead,
    draw,
    fixed_labels,
    losing,
    networks,
    train_fixed,
    train_generated,
    verdict,
)
from selftaught.claims.outcome import Estimate
from selftaught.core.functional import apply

SMALL = Setting(
    inner_rate=0.1,
    characters=3, train=60, validation=20, test=30, size=10, hidden=16, layers=2, subclasses=3, steps=4, batch=20,
    seeds=(1, 2, 3),
)  # fmt: skip


def test_every_seed_has_its_own_characters_and_its_own_order() -> None:
    data = draw(SMALL)
    assert data.x.shape == (3, 110, 1, 10, 10) and data.y.shape == data.character.shape == (3, 110)
    assert data.y.unique().tolist() == [0, 1] and data.character.unique().tolist() == [0, 1, 2]
    assert not torch.equal(data.x[0], data.x[1]) and not torch.equal(data.y[0], data.y[1])
    parts = [data.part(0, 60), data.part(60, 20), data.part(80, 30)]
    assert torch.equal(torch.cat([p.x for p in parts], 1), data.x)
    alone = draw(replace(SMALL, seeds=(2,)))
    assert torch.equal(alone.x[0], data.x[1])


@pytest.mark.parametrize("arm", FIXED)
def test_fixed_labels_lie_in_the_primary_class(arm: str) -> None:
    train = draw(SMALL).part(0, 60)
    labels = fixed_labels(SMALL, arm, train)
    inside = labels.unflatten(-1, (2, 3)).sum(-1)
    expected = torch.nn.functional.one_hot(train.y, 2).float() * (arm != "alone")
    assert torch.allclose(inside, expected)


def test_agreement_knows_the_characters_from_chance() -> None:
    train = draw(SMALL).part(0, 60)
    known, chance = (fixed_labels(SMALL, arm, train) for arm in ("by character", "by chance"))
    assert agreement(SMALL, known, train) == pytest.approx([1.0] * 3)
    assert max(agreement(SMALL, chance, train)) < 0.3


def test_a_network_in_the_stack_is_the_network_alone() -> None:
    one = replace(SMALL, seeds=(2,))
    found = []
    for s, row in ((SMALL, 1), (one, 0)):
        train, (net, start) = draw(s).part(0, 60), networks(s)
        labels = torch.stack([fixed_labels(s, arm, train) for arm in FIXED])
        fixed = train_fixed(s, net, start, train, labels, 1e-2)
        made = train_generated(s, net, start, train, 1e-2)
        last = len(FIXED) - 1
        found.append(
            ({k: v[last * len(s.seeds) + row] for k, v in fixed.items()}, {k: v[row] for k, v in made.items()})
        )
    for stacked, alone in zip(*found, strict=True):
        assert all(torch.allclose(stacked[k], alone[k], atol=1e-5) for k in alone)


def test_training_learns_and_the_accuracy_is_of_the_primary_head() -> None:
    s = replace(SMALL, steps=60, seeds=(1,))
    data, (net, start) = draw(s), networks(s)
    train = data.part(0, 60)
    labels = torch.stack([fixed_labels(s, "by character", train)])
    after = train_fixed(s, net, start, train, labels, 1e-2)
    (accuracy,) = accuracies(s, net, after, train)
    logits = apply(net, {k: v[0] for k, v in after.items()}, train.x[0])[:, :2]
    assert accuracy == pytest.approx(float((logits.argmax(-1) == train.y[0]).float().mean()))
    assert accuracy > 0.9


def arms(**means: float) -> dict[str, Arm]:
    """Every arm at 0.5 with small changes between three seeds, but those named."""
    names = [*FIXED, *GENERATED]
    level = {name: means.get(name.split()[-1].replace("-", ""), 0.5) for name in names}
    spread = {name: [level[name] + d * (k + 1) for d in (-1e-3, 0, 1e-3)] for k, name in enumerate(names)}
    return {n: Arm(1e-3, v, v, [0.0] * 3, [0.5] * 3) for n, v in spread.items()}


def test_the_verdict_can_go_both_ways() -> None:
    good = verdict(arms(batch=0.7, character=0.8))
    assert good.startswith("Shown: MAXL, same batch") and "-0.100" in good
    assert verdict(arms()).startswith("Not shown")
    assert verdict(arms(batch=0.7, kmeans=0.8)).startswith("Not shown")
    assert verdict(arms(batch=0.7, alike=0.7)).startswith("Not shown")


def test_the_losing_regime_is_what_was_found() -> None:
    assert "does not help" in losing(arms(), 50) and " helps" in losing(arms(out=0.7), 50)


def test_differences_are_paired_by_seed() -> None:
    a, b = (Arm(1e-3, [], [x, x + 0.1, x + 0.3], [], []) for x in (0.6, 0.5))
    assert ahead(a, b).mean == pytest.approx(0.1) and ahead(a, b).half_width < 1e-9


def test_drawings_are_cut_together() -> None:
    x = torch.arange(8).reshape(2, 4)
    cut = Drawings(x, x + 1, x + 2).part(1, 2)
    assert cut.x.tolist() == [[1, 2], [5, 6]] and torch.equal(cut.character, cut.x + 2)


def test_the_quick_claim_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claim", "maxl", "--quick"]) == 0
    text = capsys.readouterr().out
    for word in ("paper:", "protocol:", "verdict:", "where it fails:", "alike", "k-means", "MAXL"):
        assert word in text, word
    assert isinstance(ahead(*[arms()["alone"]] * 2), Estimate)

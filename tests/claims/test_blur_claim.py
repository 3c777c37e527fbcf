"""BLUR's claim: its tasks share no class, descent is descent, and the verdict can go both ways."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from selftaught.app.cli import main
from selftaught.claims import CLAIMS
from selftaught.claims.blur import EVOLVED, RULE, START, Setting, chosen, gap, losing, meta_learned, verdict
from selftaught.claims.blur_tasks import (
    KNOWN,
    UNSEEN,
    Descent,
    digit_domain,
    learned_by_descent,
    learned_by_rule,
    plane_domain,
)
from selftaught.claims.outcome import Estimate, from_json
from selftaught.core.types import Examples, Task
from selftaught.learners.bidirectional import backprop_genome, raw_synapses
from selftaught.tasks.lessons import Lessons

TINY = Setting(
    horizon=2, looks=(1, 2, 4), batch=8, queries=20, tasks=2, meta_steps=1, generations=1, population=4,
    evolved_tasks=2, rates=(0.01, 1.0), repeats=1, seeds=(0, 1),
)  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_what_is_unseen_was_not_seen() -> None:
    assert not set(KNOWN) & set(UNSEEN)
    domain = digit_domain()
    assert len(domain.known) == len(domain.unseen) == 10 and domain.other is not None
    assert not set("".join(domain.known)) & set("".join([*domain.unseen, *domain.other]))
    for sets, ways in ((domain.known, 3), (domain.other, 5)):
        for to_learn, to_ask in sets.values():
            parts = [draw(300, generator()) for draw in (to_learn, to_ask)]
            assert all(p.y is not None and p.y.unique().tolist() == list(range(ways)) for p in parts)
            rows = [{tuple(r) for r in p.x.tolist()} for p in parts]
            assert not rows[0] & rows[1], "a picture that was learned from is asked about"


def batches(steps: int) -> Task:
    domain = plane_domain()
    return Lessons(domain.unseen, 2, steps, 8, 50, every=True)(generator())


def test_descent_is_torch_s_for_every_task_by_itself() -> None:
    """Six tasks side by side learn what each of them learns alone."""
    task, looks = batches(4), (2, 4)
    for algorithm in ("SGD", "Adam"):
        how = Descent(algorithm, 0.1, norm=False)
        together = learned_by_descent(how, task, (2, 5, 2), looks, 8, generator(1))
        first = [torch.randn(6, a, b, generator=g) / a**0.5 for g in [generator(1)] for a, b in ((2, 5), (5, 2))]
        weights = [w[3].clone().requires_grad_() for w in first]
        biases = [torch.zeros(n, requires_grad=True) for n in (5, 2)]
        leaves = [*weights, *biases]
        alone = (
            torch.optim.Adam(leaves, 0.1) if algorithm == "Adam" else torch.optim.SGD(leaves, 0.1, momentum=0.9)
        )
        assert task.support.y is not None and task.query.y is not None
        for t in range(4):
            rows = slice(8 * t, 8 * t + 8)
            hidden = torch.tanh(task.support.x[3, rows] @ weights[0] + biases[0])
            alone.zero_grad()
            F.cross_entropy(hidden @ weights[1] + biases[1], task.support.y[3, rows]).backward()
            alone.step()
        hidden = torch.tanh(task.query.x[3] @ weights[0] + biases[0])
        right = ((hidden @ weights[1] + biases[1]).argmax(-1) == task.query.y[3]).float().mean()
        assert together.shape == (6, 2) and torch.allclose(together[3, 1], right)


def test_the_backprop_genome_learns_as_descent_without_momentum_would() -> None:
    """The two ways to measure agree: one step from equal weights."""
    task = batches(1)
    genome = backprop_genome(0.1, "mean")
    raw = [raw_synapses((2, 5, 2), genome.rule, generator(s)) for s in range(6)]
    found = learned_by_rule(genome, task, {k: torch.stack([r[k] for r in raw]) for k in raw[0]}, (1,), 8)
    for t, mine in enumerate(raw):
        leaves = {k: torch.cat([v[0, :-1], torch.zeros_like(v[0, -1:])]).requires_grad_() for k, v in mine.items()}

        def logits(x: torch.Tensor, w: dict[str, torch.Tensor]) -> torch.Tensor:
            hidden = torch.tanh(x @ w["forward.0"][:-1] + w["forward.0"][-1])
            return hidden @ w["forward.1"][:-1] + w["forward.1"][-1]

        assert task.support.y is not None and task.query.y is not None
        F.cross_entropy(logits(task.support.x[t], leaves), task.support.y[t]).backward()
        moved = {k: v.detach() - 0.1 * v.grad for k, v in leaves.items() if v.grad is not None}
        right = (logits(task.query.x[t], moved).argmax(-1) == task.query.y[t]).float().mean()
        assert torch.allclose(found[t, 0], right)


def test_normalised_descent_does_not_look_at_the_other_queries() -> None:
    task, how = batches(2), Descent("SGD", 0.3, norm=True)
    whole = learned_by_descent(how, task, (2, 5, 2), (2,), 8, generator(1))
    assert task.query.y is not None
    halves = [
        Task(task.support, Examples(task.query.x[:, rows], task.query.y[:, rows]), 2)
        for rows in (slice(0, 25), slice(25, 50))
    ]
    parts = [learned_by_descent(how, h, (2, 5, 2), (2,), 8, generator(1)) for h in halves]
    assert torch.allclose((parts[0] + parts[1]) / 2, whole, atol=1e-6)


def test_rates_are_chosen_on_known_tasks() -> None:
    domain = plane_domain()
    tuned = chosen(TINY, domain)
    assert list(tuned) == [f"{a}, tuned for {n} steps" for a in ("SGD", "Adam") for n in (2, 4)]
    without = chosen(TINY, type(domain)(**{**vars(domain), "unseen": {}}))
    assert tuned == without


def test_a_genome_follows_from_its_seed() -> None:
    one, again, other = (meta_learned(TINY, plane_domain(), RULE, seed).numbers for seed in (0, 0, 1))
    assert all(torch.equal(one[k], again[k]) for k in one) and not torch.equal(one["nu"], other["nu"])


def test_the_words_follow_the_intervals() -> None:
    up, down, wide = Estimate(0.1, 0.05, 3), Estimate(-0.1, 0.05, 3), Estimate(0.1, 0.2, 3)
    assert verdict(TINY, [("a", up, "SGD"), ("b", up, "SGD")]).startswith("Shown.")
    assert verdict(TINY, [("a", up, "SGD"), ("b", wide, "SGD")]).startswith("Shown for a only")
    assert verdict(TINY, [("a", down, "SGD")]).startswith("Not shown")
    assert losing(TINY, [("a", down, "Adam"), ("b", up, "SGD")]).startswith("Overtaken on a after 4 steps")
    assert losing(TINY, [("a", up, "Adam")]).startswith("Not clearly overtaken")
    found = {RULE: [[0.5, 0.9, 0.9], [0.5, 0.8, 0.9]], "SGD, x": [[0.5, 0.7, 1.0], [0.5, 0.7, 1.0]],
             "Adam, x": [[0.5, 0.6, 1.0], [0.5, 0.6, 0.9]]}  # fmt: skip
    assert gap(TINY, found, 2)[1] == "SGD, x" and gap(TINY, found, 2)[0].mean == pytest.approx(0.15)


def test_the_quick_claim_is_whole(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("cma", reason="the extra `blur`")
    kept = tmp_path / "blur.json"
    assert "blur" in CLAIMS and main(["claim", "blur", "--quick", "--json", str(kept)]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("protocol:", "verdict:", "where it fails:"))
    done = from_json(json.loads(kept.read_text(encoding="utf-8")))
    assert len({tuple(row) for row in done.rows}) == 1
    assert {"shapes", "digits", "digits, 5 classes"} == {row["unseen tasks"] for row in done.rows}
    assert {RULE, EVOLVED, START, "the larger class"} < {row["learned by"] for row in done.rows}
    assert {line.label for line in done.lines} >= {RULE, "SGD, tuned for 3 steps"}
    seeds = [str(row["each seed, 3 steps"]).split() for row in done.rows if row["learned by"] == RULE]
    assert all(len(each) == 2 for each in seeds), "every seed is shown"

"""MoSS's claim: unseen tasks are unseen, its verdict can go both ways, and all of it at toy size."""

import pytest
import torch

from selftaught.claims.moss import (
    ORACLE,
    OURS,
    PLAIN,
    RECURRENT,
    SAC,
    Found,
    Setting,
    along,
    drawn,
    lead,
    losing,
    points,
    show,
    verdict,
)
from selftaught.claims.outcome import as_json

S = Setting()


def found(last: float, changed: float, pure: float = 0.5) -> Found:
    around = (0.0, 0.1, 0.2)
    return Found([[0.0, last + d] for d in around], [changed + d for d in around], [pure] * 3, [1.0])


def table(recurrent: Found) -> dict[tuple[str, str], Found]:
    rows = {OURS: found(4, 2, 0.9), PLAIN: found(4, 2, 0.8), SAC: found(0, 0), ORACLE: found(6, 3)}
    return {(w, a): f for w in S.worlds for a, f in (rows | {RECURRENT: recurrent}).items()}


def test_tasks_asked_are_no_training_tasks_and_changes_change_the_class() -> None:
    for world in S.worlds.values():
        train, asked, later = drawn(S, world.family)
        seen_before = [drawn(Setting(asked=k), world.family)[1] for k in range(S.asked)]
        for other in (train, *seen_before):
            assert not (asked[:, None] == other[None]).all(-1).any()
        assert (world.family.classes(asked) != world.family.classes(later)).all()
        assert torch.equal(drawn(S, world.family)[1], asked)


def test_agents_differ_by_their_option_only() -> None:
    agents = S.agents()
    assert list(agents) == [OURS, PLAIN, RECURRENT, SAC, ORACLE]
    assert agents[PLAIN].contrast == 0 < agents[OURS].contrast
    sizes = {(a.hidden, a.recurrent, a.worlds, a.updates, a.batch, a.rate, a.change) for a in agents.values()}
    assert len(sizes) == 1 and len({a.context for a in agents.values()}) == 4


def test_the_verdict_and_where_it_fails_are_what_was_found() -> None:
    better = table(found(3, 2.5))
    assert verdict(S, better).startswith("Shown")
    assert "directions, 1.000 ± 0.000 above recurrence (after RL2)" in verdict(S, better)
    said = losing(S, better)
    assert "directions after a change against recurrence (after RL2) (-0.500 ± 0.000)" in said
    assert "by: directions 2.000" in said
    assert "Purity: directions 0.900 ± 0.000" in said and "one cluster 0.25" in said
    worse = table(found(5, 1))
    assert verdict(S, worse).startswith("Not shown") and "-1.000" in verdict(S, worse)
    assert "goals against recurrence" in losing(S, worse)
    assert lead(worse, "goals", SAC, changed=True).mean == pytest.approx(2)


def test_curves_have_a_place_for_each_value() -> None:
    assert len(along(S, "goals")) == S.points and along(S, "directions")[-1] == 16 * 20 * 31
    assert [p.mean for p in points(found(1, 1))] == pytest.approx([0.0, 1.1])


def test_the_quick_claim_is_whole() -> None:
    done = show(quick=True)
    kept = as_json(done)
    assert done.name == "moss" and len(kept["rows"]) == 10 and len(kept["lines"]) == 10
    assert done.verdict.startswith(("Shown", "Not shown")) and "Purity" in done.losing
    for said in ("2 seeds", "another list of tasks", "middle of the policy"):
        assert said in done.protocol

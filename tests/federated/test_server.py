"""What the server refuses, and that refusing costs the others nothing."""

import re

import pytest
import torch

from selftaught.federated import LocalSteps, Scaf, Update, aggregate, first_state

START = {"w": torch.zeros(2), "b": torch.zeros(1)}
GOOD = {"w": torch.tensor([2.0, 4.0]), "b": torch.ones(1)}


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"w": torch.zeros(3), "b": torch.zeros(1)}, r"w is float32 \[3\]"),
        ({"w": torch.zeros(2).double(), "b": torch.zeros(1)}, "w is float64"),
        ({"w": torch.zeros(2)}, "'b' is missing"),
        ({**GOOD, "z": torch.zeros(1)}, "'z' is strange"),
        ({"w": torch.tensor([1.0, float("nan")]), "b": torch.zeros(1)}, "w holds numbers that are not finite"),
        ({"w": torch.tensor([1.0, float("inf")]), "b": torch.zeros(1)}, "not finite"),
    ],
)
def test_an_update_that_does_not_fit_is_refused_by_name(params: dict[str, torch.Tensor], reason: str) -> None:
    server = first_state(Scaf(), START, {})
    updates = {"a": Update(GOOD, loss=1.0), "bad": Update(params, loss=9.0)}
    after, record = aggregate(Scaf(), LocalSteps(2, 0.5), server, ["a", "bad"], updates, 4)
    assert list(record.refused) == ["bad"] and record.accepted == ("a",) and record.loss == 1.0
    assert re.search(reason, record.refused["bad"])
    alone, _ = aggregate(Scaf(), LocalSteps(2, 0.5), server, ["a"], {"a": updates["a"]}, 4)
    for k in START:
        assert torch.equal(after.average[k], GOOD[k]) and torch.equal(after.shared[k], alone.shared[k])
        # (w - w_i) / (K beta), over all four clients.
        assert torch.allclose(after.shared[k], -GOOD[k] / 4)


def test_clients_without_an_answer_are_counted_one_way() -> None:
    server = first_state(Scaf(), START, {})
    after, record = aggregate(Scaf(), LocalSteps(), server, ["a", "b"], {"a": Update(GOOD)}, 2, {"b": "no answer"})
    assert record.models == 2 * 2 + 1 and record.refused == {"b": "no answer"} and after.round == 1


def test_statistics_are_averaged_and_counters_are_not() -> None:
    slow = {"mean": torch.zeros(2), "seen": torch.tensor(0)}
    server = first_state(Scaf(), START, slow)
    updates = {
        n: Update(GOOD, {"mean": torch.full((2,), v), "seen": torch.tensor(int(v))})
        for n, v in (("a", 1.0), ("b", 3.0))
    }
    after, record = aggregate(Scaf(), LocalSteps(), server, ["a", "b"], updates, 2)
    assert not record.refused and after.slow["mean"].tolist() == [2.0, 2.0] and after.slow["seen"].item() == 3

"""Clients at the door and how pictures are shared out among them."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from selftaught.core.errors import ConfigError, DataError
from selftaught.data.pictures import Pictures
from selftaught.data.strokes import draw_strokes
from selftaught.federated import ClientData, acid, alid, as_clients, by_alphabet, by_drawer, by_owner, dirichlet
from selftaught.federated.clients import Clients

X = torch.rand(6, 2)
Y = torch.tensor([0, 1, 0, 1, 0, 1])


def rows(data: ClientData) -> set[float]:
    return set(data.x_train[:, 0].tolist()) | set(data.x_test[:, 0].tolist())


def numbered(n: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(float(n))[:, None], torch.arange(n) % classes


def test_arrays_become_clients_in_order() -> None:
    found = as_clients({"b": (X.numpy(), Y.numpy(), X, Y), "a": (X, Y, X[:0], Y[:0])})
    assert list(found) == ["a", "b"] and isinstance(found["b"], ClientData)
    assert torch.equal(found["b"].x_train, X) and found["b"].y_train.dtype == torch.int64


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((X, Y, X), "3 parts"),
        ((X, Y.float(), X, Y), "whole numbers"),
        ((X, Y[:4], X, Y), "do not fit"),
        ((X[:0], Y[:0], X, Y), "no training pictures"),
        ((torch.tensor([[float("nan")], [1.0]]), Y[:2], X[:0], Y[:0]), "1 rows of x_train hold NaN"),
        ((X, Y, X / 0, Y), "x_test hold NaN"),
        ((X, Y, torch.rand(6, 3), Y), "x_test is"),
        ((X, Y - 2, X[:0], Y[:0]), "below -1"),
        ((X[::2], Y[::2], X, Y), r"classes \[1\] of which it has no training"),
    ],
)
def test_bad_clients_are_refused_by_name(parts: tuple[torch.Tensor, ...], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        as_clients({"odd": parts})
    assert "'odd'" in str(caught.value)


def test_no_clients_and_clients_of_two_shapes() -> None:
    with pytest.raises(DataError, match="no clients"):
        as_clients({})
    with pytest.raises(DataError, match="one shape and type"):
        as_clients({"a": (X, Y, X, Y), "b": (torch.rand(6, 3), Y, torch.rand(6, 3), Y)})


def test_acid_and_alid_share_out_classes() -> None:
    x, y = numbered(400, 10)
    one, two = (f(x, y, 20, 4, 3) for f in (acid, alid))
    assert len(one) == 20 and len({len(d.y_train) for d in one.values()}) == 1
    seen: list[float] = []
    for i, (name, data) in enumerate(one.items()):
        assert name == f"device {i:03d}"
        assert set(data.y_train.tolist()) == set(data.y_test.tolist()) == {(i + j) % 10 for j in range(4)}
        assert torch.equal(y[data.x_train[:, 0].long()], data.y_train)
        seen += rows(data)
        other = two[name]
        assert torch.equal(other.x_train, data.x_train) and set(other.y_train.tolist()) == {0, 1, 2, 3}
        pairs = set(zip(data.y_train.tolist(), other.y_train.tolist(), strict=True))
        assert len(pairs) == 4  # a permutation
    assert len(seen) == len(set(seen)) == 400
    orders = {tuple(d.y_train[d.x_train[:, 0].argsort()].tolist()) for d in two.values()}
    assert len(orders) > 10
    assert all(
        torch.equal(a.y_train, b.y_train) for a, b in zip(two.values(), alid(x, y, 20, 4, 3).values(), strict=True)
    )


def test_dirichlet_shares_grow_uneven_as_the_concentration_falls() -> None:
    digits = load_digits()
    x, y = torch.tensor(digits.data), torch.tensor(digits.target)

    def largest(clients: Clients) -> float:
        shares = [torch.bincount(d.y_train, minlength=10).max() / len(d.y_train) for d in clients.values()]
        return float(torch.stack(shares).mean())

    even, uneven = dirichlet(x, y, 8, 100.0, 0), dirichlet(x, y, 8, 0.2, 0)
    assert largest(even) < 0.15 and largest(uneven) > 0.3
    for found in (even, uneven):
        assert sum(len(d.y_train) + len(d.y_test) for d in found.values()) == len(y)
    with pytest.raises(DataError, match="fewer"):
        dirichlet(x[:20], y[:20], 8, 0.1, 0)


def test_owners_keep_their_pictures() -> None:
    x, y = numbered(24, 4)
    found = by_owner(x, y, [i // 12 for i in range(24)], 0, local=True)
    assert rows(found["0"]) == set(range(12)) and rows(found["1"]) == set(range(12, 24))


def omniglot_like(characters: int = 6, drawers: int = 20) -> Pictures:
    drawn = draw_strokes(characters, drawers, size=16)
    assert drawn.y is not None
    kinds = drawn.y.tolist()
    names = tuple(f"Greek/character{n + 1:02d}/{n:04d}_{i % drawers + 1:02d}.png" for i, n in enumerate(kinds))
    return Pictures(drawn.x, names, drawn.y, drawn.classes, tuple("Greek" if n < 4 else "Tifinagh" for n in kinds))


def test_alphabets_and_drawers_are_clients() -> None:
    pictures = omniglot_like()
    alphabets = by_alphabet(pictures, 0)
    assert {n: len(set(d.y_train.tolist())) for n, d in alphabets.items()} == {"Greek": 4, "Tifinagh": 2}
    assert len(alphabets["Greek"].y_train) == 60 and len(alphabets["Greek"].y_test) == 20
    fewer = by_alphabet(pictures, 0, characters=2)
    assert {len(set(d.y_train.tolist())) for d in fewer.values()} == {2}
    people = by_drawer(pictures, 0, together=5)
    assert len(people) == 8 and "Greek/drawers 06-10" in people
    assert np.bincount(people["Greek/drawers 06-10"].y_train).tolist() == [4] * 4
    alone = by_drawer(pictures, 0, together=1)
    assert len(alone) == 40 and all(len(d.y_test) == 0 for d in alone.values())


def test_partitions_that_cannot_be() -> None:
    x, y = numbered(20, 4)
    with pytest.raises(ConfigError, match="do not fit"):
        acid(x, y, 5, 6, 0)
    with pytest.raises(DataError, match="use fewer"):
        acid(x, y, 30, 4, 0)
    with pytest.raises(ConfigError, match="test_share"):
        alid(x, y, 2, 2, 0, test_share=1.0)
    with pytest.raises(ConfigError, match="concentration"):
        dirichlet(x, y, 2, 0.0, 0)
    with pytest.raises(DataError, match="owners"):
        by_owner(x, y, ["a"], 0)
    with pytest.raises(ConfigError, match="drawer"):
        by_drawer(omniglot_like(), 0, together=0)
    with pytest.raises(DataError, match="groups"):
        by_alphabet(Pictures(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), ("a",)), 0)

"""What a client holds, checked at the door: `client_id -> (x_train, y_train, x_test, y_test)`."""

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from selftaught.core.errors import DataError

UNLABELLED = -1
"""The label of a picture whose class is not known; self-supervised clients may hold such."""


class ClientData(NamedTuple):
    """One client's pictures or vectors: `x_train` [n ...], `y_train` [n] int64, `x_test` [m ...], `y_test` [m].

    uint8 is read as 0..1. A training label of -1 says that the class is not known; classes count from 0.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


Clients = Mapping[str, ClientData]


def as_clients(given: Mapping[str, Sequence[Any]]) -> dict[str, ClientData]:
    """Tensors or arrays as checked clients, in the order of their names.

    Raises DataError, naming the clients, where there is none, a part is missing or of another shape or type than
    with the others, a number is not finite, or a test class has no training picture on the same client.
    """
    if not given:
        raise DataError("no clients: give at least one client_id -> (x_train, y_train, x_test, y_test)")
    clients = {name: _tensors(name, given[name]) for name in sorted(given)}
    first_name, first = next(iter(clients.items()))
    for name, data in clients.items():
        _check_parts(name, data)
        if (data.x_train.shape[1:], data.x_train.dtype) != (first.x_train.shape[1:], first.x_train.dtype):
            raise DataError(
                f"client {name!r} holds {_form(data.x_train)} and client {first_name!r} {_form(first.x_train)}: "
                "one model needs inputs of one shape and type"
            )
    return clients


def _tensors(name: str, parts: Sequence[Any]) -> ClientData:
    if len(parts) != 4:
        raise DataError(f"client {name!r} has {len(parts)} parts; give (x_train, y_train, x_test, y_test)")
    x_train, y_train, x_test, y_test = (torch.as_tensor(part) for part in parts)
    for y in (y_train, y_test):
        if y.is_floating_point() or y.is_complex():
            raise DataError(f"client {name!r} has labels of type {y.dtype}; give whole numbers from 0")
    return ClientData(x_train, y_train.long(), x_test, y_test.long())


def _check_parts(name: str, data: ClientData) -> None:
    for part, x, y in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        if y.ndim != 1 or len(x) != len(y):
            raise DataError(f"client {name!r}: x_{part} {list(x.shape)} and y_{part} {list(y.shape)} do not fit")
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x.flatten(1))).any(1).sum())
            raise DataError(f"client {name!r}: {bad} rows of x_{part} hold NaN or infinity; mend or remove them")
    if not len(data.x_train):
        raise DataError(f"client {name!r} has no training pictures; leave it out")
    if data.x_test.shape[1:] != data.x_train.shape[1:] and len(data.x_test):
        raise DataError(f"client {name!r}: x_test is {_form(data.x_test)}, x_train {_form(data.x_train)}")
    if min(int(data.y_train.min()), int(data.y_test.min()) if len(data.y_test) else 0) < UNLABELLED:
        raise DataError(f"client {name!r} has labels below -1; classes count from 0, -1 is for unknown ones")
    strange = sorted(set(data.y_test.tolist()) - set(data.y_train.tolist()) - {UNLABELLED})
    if strange:
        raise DataError(
            f"client {name!r} is tested on classes {strange} of which it has no training picture: "
            "split each client's own classes into training and test"
        )


def _form(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape[1:])}"


def generator_of(seed: int, turn: int, name: str = "") -> torch.Generator:
    """The generator of one client in round `turn`: the same on every machine and for any set of other clients."""
    mixed = np.random.SeedSequence([seed, turn, zlib.crc32(name.encode())]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0] >> np.uint64(1)))


def choose(names: Sequence[str], fraction: float, seed: int, turn: int) -> tuple[str, ...]:
    """Who takes part in round `turn`: `fraction` of all, rounded up, in the order of their names."""
    count = min(len(names), math.ceil(fraction * len(names) - 1e-9))
    order = torch.randperm(len(names), generator=generator_of(seed, turn))[:count]
    every = sorted(names)
    return tuple(every[i] for i in sorted(order.tolist()))

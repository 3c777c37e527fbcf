"""Which client gets which pictures: ACID, ALID, Dirichlet, and clients as they are found (alphabets, drawers).

ACID and ALID as in the public code of Acar et al. (ICML 2021): device i owns classes i, i + 1, ... modulo their
number, in equal shares; under ACID labels are the true ones and one head serves all, under ALID every device
numbers its classes by a permutation of its own. Dirichlet shares of each class are common practice. Ours: test
pictures are a share of every class of a client, so no client is tested on a class it never had.
"""

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from selftaught.core.errors import ConfigError, DataError
from selftaught.data.omniglot import drawers
from selftaught.data.pictures import Pictures
from selftaught.federated.clients import ClientData, as_clients

_TRIES = 100


def acid(
    x: Tensor, y: Tensor, devices: int, classes_each: int, seed: int, test_share: float = 0.25
) -> dict[str, ClientData]:
    """`devices` clients of `classes_each` classes of x [n ...], y [n]; labels as they are.

    Raises ConfigError for counts that do not fit, DataError where a class has too few pictures to share out.
    """
    kinds = sorted(set(y.tolist()))
    if devices < 1 or not 1 <= classes_each <= len(kinds):
        raise ConfigError(f"{devices} devices of {classes_each} classes each do not fit {len(kinds)} classes")
    rng = np.random.default_rng(seed)
    owned = [[kinds[(i + j) % len(kinds)] for j in range(classes_each)] for i in range(devices)]
    parts: list[list[np.ndarray]] = [[] for _ in range(devices)]
    for kind in kinds:
        owners = [i for i in range(devices) if kind in owned[i]]
        pictures = rng.permutation(np.flatnonzero(y.numpy() == kind))
        if len(pictures) < len(owners):
            raise DataError(
                f"class {kind} has {len(pictures)} pictures for {len(owners)} devices; use fewer devices"
            )
        share = len(pictures) // max(1, len(owners))
        for k, owner in enumerate(owners):
            parts[owner].append(pictures[k * share : (k + 1) * share])
    return _clients(x, y, {_device(i): np.concatenate(p) for i, p in enumerate(parts)}, rng, test_share)


def alid(
    x: Tensor, y: Tensor, devices: int, classes_each: int, seed: int, test_share: float = 0.25
) -> dict[str, ClientData]:
    """The same pictures for the same seed, with labels 0 .. `classes_each` - 1 permuted on every device."""
    found = acid(x, y, devices, classes_each, seed, test_share)
    rng = np.random.default_rng((seed, 1))
    return {name: _renumbered(data, rng) for name, data in found.items()}


def dirichlet(
    x: Tensor,
    y: Tensor,
    devices: int,
    concentration: float,
    seed: int,
    test_share: float = 0.25,
    least: int = 4,
) -> dict[str, ClientData]:
    """Each class shared out by a Dirichlet draw: a small `concentration` gives a device few classes.

    Labels are as they are. Drawn again until every device has `least` pictures; DataError after a hundred times.
    """
    if devices < 1 or not concentration > 0:
        raise ConfigError(f"need devices >= 1 and concentration > 0, got {devices} and {concentration}")
    rng = np.random.default_rng(seed)
    for _ in range(_TRIES):
        parts: list[list[np.ndarray]] = [[] for _ in range(devices)]
        for kind in sorted(set(y.tolist())):
            pictures = rng.permutation(np.flatnonzero(y.numpy() == kind))
            shares = rng.dirichlet(np.full(devices, concentration))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(pictures)).astype(int)
            for part, own in zip(parts, np.split(pictures, cuts), strict=True):
                part.append(own)
        joined = [np.concatenate(p) for p in parts]
        if min(len(p) for p in joined) >= least:
            return _clients(x, y, {_device(i): p for i, p in enumerate(joined)}, rng, test_share)
    raise DataError(
        f"{_TRIES} draws left some of {devices} devices with fewer than {least} of {len(y)} pictures: use fewer "
        "devices, a larger concentration or a smaller `least`"
    )


def by_owner(
    x: Tensor, y: Tensor, owners: Sequence[Hashable], seed: int, test_share: float = 0.25, local: bool = False
) -> dict[str, ClientData]:
    """One client for each of `owners` [n]; `local` numbers classes from 0 on each client, in their order."""
    if len(owners) != len(y):
        raise DataError(f"{len(owners)} owners for {len(y)} pictures: give one for each")
    rng = np.random.default_rng(seed)
    parts: dict[str, list[int]] = {}
    for row, owner in enumerate(owners):
        parts.setdefault(str(owner), []).append(row)
    found = _clients(x, y, {name: np.array(rows) for name, rows in parts.items()}, rng, test_share)
    return {name: _renumbered(data, None) for name, data in found.items()} if local else found


def by_alphabet(
    pictures: Pictures, seed: int, test_share: float = 0.25, characters: int | None = None
) -> dict[str, ClientData]:
    """Omniglot's natural clients: an alphabet each, its characters numbered from 0.

    `characters` keeps the first so many of each alphabet. Raises DataError for pictures without groups or labels.
    """
    y, groups = _labelled_groups(pictures)
    if characters is not None:
        each: dict[str, set[int]] = {}
        for n, g in zip(y.tolist(), groups, strict=True):
            each.setdefault(g, set()).add(n)
        kept = {n for own in each.values() for n in sorted(own)[:characters]}
        rows = torch.tensor([n in kept for n in y.tolist()]).nonzero()[:, 0]
        pictures = pictures.take(rows)
        y, groups = _labelled_groups(pictures)
    return by_owner(pictures.x, y, groups, seed, test_share, local=True)


def by_drawer(pictures: Pictures, seed: int, together: int = 4, test_share: float = 0.25) -> dict[str, ClientData]:
    """People as clients: `together` drawers of an alphabet, "Greek/drawers 01-04", characters numbered from 0.

    Each person drew each character once, so `together=1` gives clients for self-supervision only.
    """
    if together < 1:
        raise ConfigError(f"a client needs at least one drawer, got together={together}")
    y, groups = _labelled_groups(pictures)
    first = ((drawers(pictures) - 1) // together * together + 1).tolist()
    owners = [f"{g}/drawers {d:02d}-{d + together - 1:02d}" for g, d in zip(groups, first, strict=True)]
    return by_owner(pictures.x, y, owners, seed, test_share, local=True)


def _labelled_groups(pictures: Pictures) -> tuple[Tensor, tuple[str, ...]]:
    if pictures.y is None or pictures.groups is None:
        raise DataError("natural clients need labelled pictures with groups (alphabets); use read_omniglot")
    return pictures.y, pictures.groups


def _clients(
    x: Tensor, y: Tensor, parts: dict[str, np.ndarray], rng: np.random.Generator, test_share: float
) -> dict[str, ClientData]:
    """Training and test pictures of each client; the rows of a class are cut at `test_share`, rounded down."""
    if not 0 <= test_share < 1:
        raise ConfigError(f"test_share must be at least 0 and below 1, got {test_share}")
    found: dict[str, tuple[Tensor, ...]] = {}
    for name, rows in parts.items():
        train, test = [], []
        for kind in np.unique(y.numpy()[rows]):
            own = rng.permutation(rows[y.numpy()[rows] == kind])
            cut = int(len(own) * test_share)
            test.append(own[:cut])
            train.append(own[cut:])
        chosen = [torch.from_numpy(np.sort(np.concatenate(part))) for part in (train, test)]
        found[name] = (x[chosen[0]], y[chosen[0]], x[chosen[1]], y[chosen[1]])
    return as_clients(found)


def _renumbered(data: ClientData, rng: np.random.Generator | None) -> ClientData:
    kinds = sorted(set(data.y_train.tolist()))
    order = range(len(kinds)) if rng is None else rng.permutation(len(kinds)).tolist()
    number = torch.zeros(max(kinds) + 1, dtype=torch.int64)
    number[torch.tensor(kinds)] = torch.tensor(list(order))
    return ClientData(data.x_train, number[data.y_train], data.x_test, number[data.y_test])


def _device(i: int) -> str:
    return f"device {i:03d}"

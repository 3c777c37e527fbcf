"""Training HEGR, what it wrote and how much of it is right, and the model as a file."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from selftaught.artifacts.files import writer
from selftaught.artifacts.tensors import load_tensors, save_tensors
from selftaught.core.errors import RunError, SelftaughtError
from selftaught.graphs.events import EventBatch, written
from selftaught.graphs.model import HEGR, HEGRNet
from selftaught.optimizers.gradient import NotFiniteError

_FORMAT = "selftaught.hegr.1"


def fit(
    net: HEGRNet, events: EventBatch, steps: int, *,
    rate: float = 2e-3, weight_decay: float = 0.0, batch: int = 64, seed: int = 0,
) -> float:  # fmt: skip
    """Train in place by AdamW with a cosine schedule and a gradient norm of at most 1; the last loss.

    Batches are drawn with replacement from `seed`. Raises NotFiniteError, DataError (tags, no texts).
    """
    generator = torch.Generator().manual_seed(seed)
    params = list(net.parameters())
    # One kernel instead of ten for each of the many small tensors.
    adam = torch.optim.AdamW(params, rate, weight_decay=weight_decay, fused=True)
    last = math.nan
    for step in range(steps):
        part = events.take(torch.randint(len(events), (batch,), generator=generator))
        loss = net.loss(part)
        last = float(loss.detach())
        if not math.isfinite(last):
            raise NotFiniteError(f"loss {last} at step {step}: lower the rate, or look for NaN in the features")
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
        adam.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        adam.step()
    return last


def write_texts(net: HEGRNet, events: EventBatch, portion: int = 256) -> list[tuple[str, ...]]:
    """The text of each moment for each event."""
    tokenizer = net.config.tokenizer()
    rows = [net.write(events.take(i)) for i in torch.arange(len(events)).split(portion)]
    return [tuple(written(moment, tokenizer) for moment in row) for rows_ in rows for row in rows_]


def exact_match(found: Sequence[str], wanted: Sequence[str]) -> float:
    """Share of texts that are right word by word. Raises ValueError for lists of other lengths or none."""
    return sum(a == b for a, b in _pairs(found, wanted)) / len(wanted)


def token_f1(found: Sequence[str], wanted: Sequence[str]) -> float:
    """Mean over texts of the harmonic mean of precision and recall of words, repeated ones counted, order not.

    As in SQuAD's evaluation (Rajpurkar et al., EMNLP 2016), without its cleaning of articles and punctuation.
    """
    return sum(_f1(a.split(), b.split()) for a, b in _pairs(found, wanted)) / len(wanted)


def save_hegr(path: str | Path, net: HEGRNet) -> None:
    """One safetensors file with configuration and vocabulary, atomically. Raises SaveError."""
    head = {"format": _FORMAT, "written by": writer(), "config": json.dumps(net.config.options())}
    save_tensors(path, net.state_dict(), head)


def load_hegr(path: str | Path) -> HEGRNet:
    """What `save_hegr` wrote. Raises RunError for anything else."""
    tensors, head = load_tensors(path)
    if head.get("format") != _FORMAT:
        raise RunError(f"{path} holds no HEGR model of this version: it says {head.get('format', 'nothing')!r}")
    try:
        options: Mapping[str, Any] = json.loads(head["config"])
        net = HEGR(**options).network(0)
        net.load_state_dict(tensors)
    except (KeyError, ValueError, TypeError, RuntimeError, SelftaughtError) as error:
        raise RunError(f"{path} is no whole HEGR model ({error}): use an intact copy or train again") from error
    return net


def _pairs(found: Sequence[str], wanted: Sequence[str]) -> list[tuple[str, str]]:
    if not wanted or len(found) != len(wanted):
        raise ValueError(f"{len(found)} texts cannot be compared with {len(wanted)}")
    return list(zip(found, wanted, strict=True))


def _f1(found: Sequence[str], wanted: Sequence[str]) -> float:
    common = (Counter(found) & Counter(wanted)).total()
    return 2 * common / (len(found) + len(wanted)) if common else float(found == wanted)

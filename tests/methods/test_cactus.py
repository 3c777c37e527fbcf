"""CACTUs: its base learners to the bit, what is clustered, and a trained model's folder as embedding."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from small_tasks import VIEWS, distance, gradient, pictures, small
from torch import nn

from selftaught.artifacts.model import save_model
from selftaught.core.errors import ConfigError, RunError, TooFewPicturesError
from selftaught.core.functional import buffers_of, in_batches, params_of, prefixed
from selftaught.methods.cactus import CACTUs, base_method, embedding
from selftaught.methods.maml import MAML
from selftaught.methods.protonet import ProtoNet
from selftaught.methods.r2d2 import R2D2
from selftaught.nets import build_encoder

SMALL: dict[str, Any] = {"clusters": 5, "partitions": 2, "tasks": 2, "ways": 3, "queries": 2}


def cactus(**changes: Any) -> CACTUs:
    return CACTUs(**(SMALL | changes))


@pytest.mark.parametrize(
    ("base", "same"),
    [
        ("protonet", ProtoNet()),
        ("r2d2", R2D2()),
        ("maml", MAML(inner_steps=2, inner_rate=0.3, test_steps=4)),
        ("anil", MAML(inner_steps=2, inner_rate=0.3, test_steps=4, moving="head")),
    ],
)
def test_it_is_its_base_learner_on_other_tasks(base: Any, same: Any) -> None:
    method = cactus(base=base, inner_steps=2, inner_rate=0.3, test_steps=4)
    net, params, slow, tasks = small(method)
    (loss, slope), (other, found) = (gradient(m, net, params, slow, tasks) for m in (method, same))
    assert torch.equal(loss, other) and distance(slope, found) == 0
    assert {k: v.shape for k, v in same.network(net.encoder).state_dict().items()} == {
        k: v.shape for k, v in net.state_dict().items()
    }
    aux = method.loss(net, params, slow, tasks)[1]
    moved, expected = (m.refresh(net, slow, params, tasks, aux) for m in (method, same))
    assert all(torch.equal(moved[k], expected[k]) for k in expected)
    assert method.learner(net) == same.learner(net)


def test_clusters_by_default_follow_the_number_of_pictures() -> None:
    source = CACTUs(ways=2, partitions=1, queries=1).source(pictures(), VIEWS)
    assert int(source.partitions.max()) + 1 == 9  # 36 pictures / (2 * 2)
    with pytest.raises(TooFewPicturesError, match="5 clusters of"):
        CACTUs(partitions=1).source(pictures(), VIEWS)(torch.Generator())  # three clusters


def test_labels_are_not_looked_at() -> None:
    seen = pictures()
    blind = dataclasses.replace(seen, y=None, classes=())
    one, two = (cactus().source(p, VIEWS).partitions for p in (seen, blind))
    assert torch.equal(one, two)


def test_partitions_have_a_seed_of_their_own() -> None:
    one, other = (cactus(partition_seed=s).source(pictures(), VIEWS).partitions for s in (0, 1))
    assert not torch.equal(one, other)


# ------------------------------------------------------------------------------------- what is clustered


def saved(folder: Path, **changes: Any) -> nn.Module:
    """An encoder in a model folder, as a run leaves it."""
    encoder = build_encoder("conv4", 1, 16, 3, width=8)
    config = {"encoder": "conv4", "channels": 1, "size": 16, "options": {"width": 8}} | changes
    save_model(folder, prefixed("encoder", params_of(encoder) | buffers_of(encoder)), config, "card")
    return encoder


def test_pixels_are_the_pictures_themselves() -> None:
    assert torch.equal(embedding("pixels", pictures())(), pictures().x.flatten(1).float() / 255)


def test_a_models_folder_gives_its_features(tmp_path: Path) -> None:
    encoder = saved(tmp_path / "model")
    expected = in_batches(encoder, params_of(encoder) | buffers_of(encoder), pictures().x)
    assert torch.equal(embedding(str(tmp_path / "model"), pictures())(), expected)
    other = cactus(embeddings=str(tmp_path)).source(pictures(), VIEWS)  # the run that holds it
    assert not torch.equal(other.partitions, cactus().source(pictures(), VIEWS).partitions)


def test_folders_that_do_not_fit_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Give the folder of a model"):
        embedding(str(tmp_path / "nowhere"), pictures())
    saved(tmp_path / "larger", size=32)
    with pytest.raises(ConfigError, match="use the same size and channels"):
        cactus(embeddings=str(tmp_path / "larger")).source(pictures(), VIEWS)
    encoder = build_encoder("conv4", 1, 16, 3, width=8)
    save_model(tmp_path / "bare", prefixed("encoder", params_of(encoder)), {"size": 16}, "card")
    with pytest.raises(RunError, match="give the folder of another model"):
        embedding(str(tmp_path / "bare"), pictures())


def test_an_unknown_base_learner_is_refused() -> None:
    with pytest.raises(ConfigError, match="use protonet, maml, anil or r2d2"):
        base_method("svm", 1, 0.1, 1)  # type: ignore[arg-type]

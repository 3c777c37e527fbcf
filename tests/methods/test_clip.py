"""CLIP's own laws: the loss of a batch by hand, collisions, the limit of the scale, and that it learns names."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conformance.tiny_methods import build, tiny
from selftaught.core.errors import ConfigError, DataError
from selftaught.core.train import start, train
from selftaught.core.types import Examples
from selftaught.data.pictures import Pictures
from selftaught.data.tokens import vocabulary_of
from selftaught.data.views import Views
from selftaught.losses.image_text import symmetric_info_nce
from selftaught.methods.clip import CLIP
from selftaught.nets.heads import MLP
from selftaught.nets.text import TwoTowers
from selftaught.optimizers.gradient import Gradient


def test_the_loss_is_the_formula_on_both_towers() -> None:
    toy = build(tiny(CLIP, collisions="negatives"), "group", double=True)
    tasks = toy.tasks()
    loss, aux = toy.method.loss(toy.net, toy.state.params, toy.state.slow, tasks)
    assert isinstance(toy.net, TwoTowers)
    image = F.normalize(toy.net.encode_image(tasks.query.x[0]), dim=-1)
    text = F.normalize(toy.net.encode_text(tasks.support.x[0]), dim=-1)
    logits, right = image @ text.mT / 0.07, torch.arange(8)
    wanted = (F.cross_entropy(logits, right) + F.cross_entropy(logits.mT, right)) / 2
    assert torch.allclose(loss, wanted, atol=1e-6) and float(aux.metrics["scale"]) == pytest.approx(1 / 0.07)


def test_pictures_of_one_class_are_no_negatives() -> None:
    """Eight pictures of six classes collide; with eight different ones, nothing would change."""
    left_out, negatives = (
        build(tiny(CLIP, collisions=c), "group", double=True) for c in ("left out", "negatives")
    )
    tasks = left_out.tasks()
    y = tasks.query.y
    assert y is not None and len(y.unique()) < 8
    less, more = (t.method.loss(t.net, t.state.params, t.state.slow, tasks)[0] for t in (left_out, negatives))
    assert less < more
    net = left_out.net
    assert isinstance(net, TwoTowers)
    same = y[0][:, None] == y[0][None]
    z = net.encode_image(tasks.query.x[0]), net.encode_text(tasks.support.x[0])
    assert torch.allclose(less, symmetric_info_nce(*z, 1 / 0.07, same), atol=1e-6)


def test_the_scale_stays_below_its_limit() -> None:
    toy = build(tiny(CLIP))
    toy.state.params["log_scale"].fill_(6.0)
    steps = list(train(toy.method, toy.net, toy.source, toy.optimizer, toy.state, 3))
    assert all(figures["scale"] <= 100 + 1e-4 for _, figures in steps)
    assert float(steps[-1][0].params["log_scale"]) != 6.0


def test_chunks_are_the_same_training() -> None:
    whole, parts = (build(tiny(CLIP, chunk=c), double=True) for c in (0, 3))
    a, b = (toy.loss_and_gradients(toy.tasks()) for toy in (whole, parts))
    assert torch.allclose(a[0], b[0]) and all(torch.allclose(a[1][k], b[1][k], atol=1e-10) for k in a[1])


class Colours(nn.Module):
    """The mean colour of a picture, through two layers."""

    width = 32

    def __init__(self) -> None:
        super().__init__()
        self.layers = MLP([3, 32, 32])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.mean((-1, -2)) - 0.5)


def test_pictures_are_named_by_words_it_was_trained_on() -> None:
    y = torch.arange(6).repeat(4)
    shades = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])[y % 3] * torch.tensor([0.5, 1])[y // 3][:, None]
    x = (shades * 255).to(torch.uint8)[..., None, None].expand(-1, -1, 4, 4).contiguous()
    classes = ("dark red", "dark green", "dark blue", "bright red", "bright green", "bright blue")
    method = CLIP(vocabulary=vocabulary_of(classes), context=4, batch=12, text_width=16, text_depth=1, out=16)
    torch.manual_seed(0)
    net, optimizer = method.network(Colours()), Gradient(rate=1e-2, steps=60)
    source = method.source(Pictures(x, tuple(map(str, y.tolist())), y, classes), Views())
    *_, (state, _) = train(method, net, source, optimizer, start(method, net, optimizer, 0), 60)
    adapted = method.learner(net).adapt(state.params, Examples(method.tokenizer()(classes)), 6)
    assert torch.equal(method.learner(net).predict(adapted, x.float() / 255).argmax(-1), y)


def test_words_and_contexts_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="context"):
        CLIP(context=2)
    with pytest.raises(DataError, match="'teal'"):
        CLIP(vocabulary="red square").tokenizer()(["teal square"])

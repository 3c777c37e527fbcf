"""Zero-shot classifiers: the ensemble's formula, anything with the two functions, and a start for few shots."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.core.functional import params_of
from selftaught.core.types import Examples
from selftaught.data.tokens import ByteTokenizer
from selftaught.learners.zero_shot import ZeroShotLearner, few_shot_classifier, prompts, zero_shot_classifier
from selftaught.nets import build_encoder
from selftaught.nets.text import Plugged, TextTransformer, TwoTowers

NAMES, TEMPLATES = ("red square", "blue circle", "cat"), ("a {}", "the {} of a {}")


def towers() -> TwoTowers:
    torch.manual_seed(0)
    return TwoTowers(build_encoder("conv4", 1, 16, 0, width=8, norm="group"), TextTransformer(259, 40), 6).double()


class Elsewhere(nn.Module):
    """A model as others write it."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(259, 5)
        self.pixels = nn.Linear(16, 5)

    def encode_image(self, image: Tensor) -> Tensor:
        return self.pixels(image.flatten(1))

    def encode_text(self, text: Tensor) -> Tensor:
        return self.words(text).sum(1)


def test_prompts_are_ordered_by_template_then_name() -> None:
    said = prompts(NAMES, TEMPLATES)
    assert said[:3] == ["a red square", "a blue circle", "a cat"] and said[5] == "the cat of a cat"
    for names, templates, match in (
        ((), TEMPLATES, "at least one"),
        (NAMES, ("a photo",), r"'a photo' has no \{\}"),
        (("a", "a"), TEMPLATES, "differ"),
        (("a", " "), TEMPLATES, "empty"),
    ):
        with pytest.raises(ConfigError, match=match):
            prompts(names, templates)


@pytest.mark.parametrize("model", [towers(), Elsewhere()], ids=["ours", "elsewhere"])
def test_a_class_is_the_normalised_mean_of_normalised_prompts(model: TwoTowers | Elsewhere) -> None:
    tokenizer = ByteTokenizer(40)
    found = zero_shot_classifier(model, tokenizer, NAMES, TEMPLATES)
    assert found.shape == (6 if isinstance(model, TwoTowers) else 5, 3) and not found.requires_grad
    for m, name in enumerate(NAMES):
        each = [model.encode_text(tokenizer([t.replace("{}", name)]))[0] for t in TEMPLATES]
        mean = torch.stack([z / z.norm() for z in each]).mean(0)
        assert torch.allclose(found[:, m], mean / mean.norm(), atol=1e-6)


def test_the_learner_is_the_matrix_and_is_protonet_for_pictures() -> None:
    net = towers()
    weights, learner, tokenizer = params_of(net), ZeroShotLearner(net), ByteTokenizer(40)
    adapted = learner.adapt(weights, Examples(tokenizer(prompts(NAMES, TEMPLATES))), 3)
    matrix = zero_shot_classifier(net, tokenizer, NAMES, TEMPLATES)
    assert torch.allclose(adapted.classifier, matrix, atol=1e-12)
    x = torch.rand(4, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = F.normalize(net.encode_image(x), dim=-1)
    logits = learner.predict(adapted, x)
    assert torch.allclose(logits, z @ matrix / 0.07, atol=1e-6)
    shots = learner.adapt(weights, Examples(x), 2)
    assert torch.allclose(shots.classifier, F.normalize(z.unflatten(0, (2, 2)).mean(0), dim=-1).mT, atol=1e-12)


def test_few_shots_start_at_zero_shots() -> None:
    generator = torch.Generator().manual_seed(0)
    start = F.normalize(torch.randn(6, 3, generator=generator), dim=0)
    z, y = F.normalize(torch.randn(9, 6, generator=generator), dim=-1), torch.arange(9) % 3
    assert few_shot_classifier(start, z[:0], y[:0]) is start
    assert torch.allclose(few_shot_classifier(start, z, y, steps=0), start, atol=1e-6)
    held = few_shot_classifier(start, z, y, keep=9.0)
    free = few_shot_classifier(start, z, y, keep=0.0, steps=200)
    assert (held - start).norm() < (free - start).norm()

    def right(w: Tensor) -> float:
        return float(((z @ w).argmax(-1) == y).float().mean())

    assert right(free) > right(start)
    with pytest.raises(ConfigError, match="labels"):
        few_shot_classifier(start, z, y + 1)


def test_one_small_step_is_the_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    start = F.normalize(torch.randn(6, 3, generator=generator, dtype=torch.float64), dim=0)
    z = F.normalize(torch.randn(4, 6, generator=generator, dtype=torch.float64), dim=-1)
    y, scale, rate = torch.tensor([0, 2, 1, 2]), 8.0, 1e-3
    w = start.mT.clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(scale * z @ w.mT, y) / scale * 3, w)
    moved = F.normalize(start.mT - rate * slope, dim=-1).mT
    assert torch.allclose(few_shot_classifier(start, z, y, scale, steps=1, rate=rate), moved, atol=1e-12)


def test_a_model_from_elsewhere_is_plugged_in() -> None:
    net = Plugged(Elsewhere())
    learner, weights = ZeroShotLearner(net), params_of(net)
    adapted = learner.adapt(weights, Examples(ByteTokenizer(8)(["a", "b"])), 2)
    assert learner.predict(adapted, torch.rand(3, 1, 4, 4)).shape == (3, 2)
    with pytest.raises(ConfigError, match="encode_image"):
        Plugged(nn.Linear(2, 2))

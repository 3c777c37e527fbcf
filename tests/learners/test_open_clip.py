"""A real open_clip model, randomly initialised, saved and loaded: classifier, loss and training beside its own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from selftaught.artifacts.tensors import load_tensors, save_tensors
from selftaught.core.functional import params_of
from selftaught.core.types import Examples
from selftaught.learners.zero_shot import ZeroShotLearner, prompts, zero_shot_classifier
from selftaught.losses.image_text import symmetric_info_nce
from selftaught.nets.text import Plugged, clamped_scale

NAMES, TEMPLATES = ["cat", "red square", "blue circle"], ["a photo of a {}.", "the {}"]
SIZES: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture
def open_clip() -> Iterator[Any]:
    """torchvision's wheel registers kernels for two operators that a CPU torch does not know."""
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield pytest.importorskip("open_clip", exc_type=ImportError)
    library._destroy()


def saved_and_loaded(open_clip: Any, folder: Path) -> Any:
    torch.manual_seed(0)
    save_tensors(folder / "open_clip.safetensors", open_clip.model.CLIP(**SIZES).state_dict(), {})
    torch.manual_seed(1)
    model = open_clip.model.CLIP(**SIZES)
    tensors, _ = load_tensors(folder / "open_clip.safetensors")
    model.load_state_dict(tensors)
    return model.eval()


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_an_open_clip_model_plugs_in(open_clip: Any, tmp_path: Path) -> None:
    model, tokenizer = saved_and_loaded(open_clip, tmp_path), open_clip.SimpleTokenizer()
    found = zero_shot_classifier(model, tokenizer, NAMES, TEMPLATES)
    theirs = open_clip.build_zero_shot_classifier(
        model, tokenizer, NAMES, [lambda c, t=t: t.replace("{}", c) for t in TEMPLATES]
    )
    assert found.shape == (16, 3) and torch.allclose(found, theirs, atol=1e-6)

    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    texts = tokenizer(["a cat", "a red square", "a dog", "two circles"])
    image, text, scale = model(x, texts)
    loss = symmetric_info_nce(image, text, clamped_scale(model.logit_scale))
    assert torch.allclose(loss, open_clip.loss.ClipLoss()(image, text, scale), atol=1e-6)

    net = Plugged(model)
    weights = params_of(net) | {k: v.clone() for k, v in net.named_buffers()}
    learner = ZeroShotLearner(net)
    adapted = learner.adapt(weights, Examples(tokenizer(prompts(NAMES, TEMPLATES))), len(NAMES))
    with torch.no_grad():
        wanted = scale * F.normalize(model.encode_image(x), dim=-1) @ theirs
    assert torch.allclose(learner.predict(adapted, x), wanted, atol=1e-4)

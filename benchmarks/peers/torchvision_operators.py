"""Lets torchvision's wheel be imported on a torch without CUDA: import this before a peer that imports it.

The wheel registers a fake kernel for `torchvision::nms`, an operator that its own compiled part would define but
which does not load here; declaring the operator is enough, as no peer calls it.
"""

import torch

LIBRARY = torch.library.Library("torchvision", "DEF")
LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

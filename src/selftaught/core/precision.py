"""The number format of an encoder's forward and backward pass in first-order methods.

`bfloat16` is torch's autocast: convolutions and linear layers in bfloat16, weights, statistics and the loss in
float32. It changes results (on untrained encoders a gradient differs by a tenth of its norm and more, see
tests/core/test_precision.py), so it is asked for by name. Methods that differentiate through gradient steps do not
offer it, since every step adds such an error to the next, or only for what stands below the steps (BMSSL).
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

from selftaught.core.errors import ConfigError

Precision = Literal["float32", "bfloat16"]
"""`float32`: as the tensors are (float64 stays float64). `bfloat16`: 8 bits of mantissa in the encoder."""

_CPU_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def encoding(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """The context to run an encoder in; turn its output back to the pictures' type before the loss.

    Raises ConfigError for an unknown name and for `bfloat16` on a device that would only imitate it (on a CPU
    without the instructions a convolution takes about ten times as long as in float32).
    """
    if precision == "float32":
        return nullcontext()
    if precision != "bfloat16":
        raise ConfigError(f"precision must be 'float32' or 'bfloat16', got {precision!r}")
    if not has_bfloat16(device):
        raise ConfigError(
            f"this {device.type} reports no bfloat16 instructions, so precision='bfloat16' would be slower than "
            "float32; use precision='float32', or run on a CPU with AVX-512 BF16, AMX or ARM BF16, or on a GPU"
        )
    return torch.autocast(device.type, torch.bfloat16)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 itself. A torch that cannot tell counts as no."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    ask = getattr(torch.cpu, "get_capabilities", None)
    return ask is not None and any(ask().get(name, False) for name in _CPU_INSTRUCTIONS)

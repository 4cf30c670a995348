"""A fault of bfloat16 on CPUs to survive: the gradient of 3D convolutions over thin images.

On a CPU with AVX512-BF16 (oneDNN as in torch 2.13), the weight gradient of a 3D convolution reads memory that nobody
has written where the image has fewer planes than the kernel spans: sometimes right, sometimes 1e30 or NaN. The deepest
levels of small 3D networks are such images; there these convolutions run in float32.
"""

from __future__ import annotations

from types import MethodType

import torch
from torch import Tensor, nn


def guard_thin_convolutions(model: nn.Module) -> None:
    """Let every 3D convolution of the model run in float32 where autocast on a CPU meets fewer planes than taps."""
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            module._conv_forward = MethodType(_conv_forward, module)  # type: ignore[method-assign]


def _conv_forward(self: nn.Conv3d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    taps = self.dilation[0] * (self.kernel_size[0] - 1) + 1
    if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu") or x.shape[-3] >= taps:
        return nn.Conv3d._conv_forward(self, x, weight, bias)
    with torch.autocast("cpu", enabled=False):
        y = nn.Conv3d._conv_forward(self, x.float(), weight, bias)
    return y.to(torch.get_autocast_dtype("cpu"))

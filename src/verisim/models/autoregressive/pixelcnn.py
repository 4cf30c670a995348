"""PixelCNN as source 004 ran it (`ar_literal`, X-A0): masked convolutions, batch norm, 256-way softmax.

Kept with its faults, which the gated model mends: the stacked masks leave a blind spot above right of
each pixel, batch norm in training mode lets every pixel see the later ones and the other images, and
the reach is 3 pixels a layer.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models.autoregressive.heads import Categorical
from verisim.models.autoregressive.model import AutoregressiveModel
from verisim.models.autoregressive.raster import Stepper


class MaskedConv2d(nn.Conv2d):
    """k x k convolution, no bias, that sees earlier pixels only; kind "B" also sees the pixel itself."""

    mask: Tensor

    def __init__(self, kind: Literal["A", "B"], inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        mask = torch.ones(kernel, kernel)
        mask[kernel // 2, kernel // 2 + (kind == "B") :] = 0  # to the right of the centre
        mask[kernel // 2 + 1 :] = 0  # below it
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, padding=self.padding)


class MaskedStack(nn.Sequential):
    """Mask A, then mask B layers, each with batch norm and ReLU, then 1x1 to logits."""

    def __init__(self, layers: int, channels: int, kernel: int, outputs: int) -> None:
        blocks: list[nn.Module] = []
        for i in range(layers):
            conv = MaskedConv2d("B" if i else "A", channels if i else 1, channels, kernel)
            blocks += [conv, nn.BatchNorm2d(channels), nn.ReLU()]
        super().__init__(*blocks, nn.Conv2d(channels, outputs, 1))

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """x (B, 1, H, W) in [0, 1] -> logits (B, outputs, H, W); there are no classes."""
        return super().forward(x)


class MaskedStackStepper:
    """Eval-mode MaskedStack, one pixel at a time: each layer keeps its features of the earlier pixels.

    A layer's feature at a pixel needs the layer below at earlier pixels, all of which are final, so the
    whole image costs as much as about one forward pass.
    """

    def __init__(self, net: MaskedStack, n: int, size: tuple[int, int]) -> None:
        height, width = size
        convs = [m for m in net if isinstance(m, MaskedConv2d)]
        norms = [m for m in net if isinstance(m, nn.BatchNorm2d)]
        k = convs[0].kernel_size[0]
        self.half = k // 2
        self.weights: list[Tensor] = []  # (taps * inputs, outputs), taps = (k // 2 + 1) * k
        self.shifts: list[Tensor] = []  # (outputs,)
        self.maps: list[Tensor] = []  # input of each layer, (n, H + k // 2, W + k - 1, inputs), zero padded
        for conv, norm in zip(convs, norms):
            assert norm.running_mean is not None and norm.running_var is not None
            gain = norm.weight * torch.rsqrt(norm.running_var + norm.eps)  # eval-mode batch norm is affine
            taps = (conv.weight * conv.mask)[:, :, : self.half + 1]  # (outputs, inputs, k // 2 + 1, k)
            flat = taps.permute(2, 3, 1, 0).flatten(0, 2)  # (taps * inputs, outputs)
            self.weights.append((flat * gain).contiguous())
            self.shifts.append(norm.bias - norm.running_mean * gain)
            padded = (n, height + self.half, width + k - 1, conv.in_channels)
            self.maps.append(torch.zeros(padded, dtype=flat.dtype, device=flat.device))
        final = net[-1]
        assert isinstance(final, nn.Conv2d)
        self.out_weight, self.out_bias = final.weight[:, :, 0, 0], final.bias

    def begin_row(self, row: int) -> None:
        """Nothing to prepare."""

    def params(self, row: int, col: int) -> Tensor:
        for i, (weight, shift) in enumerate(zip(self.weights, self.shifts)):
            window = self.maps[i][:, row : row + self.half + 1, col : col + 2 * self.half + 1]
            f = torch.addmm(shift, window.flatten(1), weight).relu_()  # (B, outputs)
            if i + 1 < len(self.maps):
                self.maps[i + 1][:, row + self.half, col + self.half] = f
        return F.linear(f, self.out_weight, self.out_bias)  # (B, levels)

    def write(self, row: int, col: int, value: Tensor) -> None:
        self.maps[0][:, row + self.half, col + self.half, 0] = value


class PixelCNN(AutoregressiveModel):
    """The source's PixelCNN: defaults are what its code ran; its text claims layers=10, channels=400.

    Images (B, 1, H, W) in [-1, 1], rounded to 8 bit; the network sees them in [0, 1]. Any 2D size.
    Source 004, section 3 A (X-A0). Raises VerisimError for classes, several channels or 3D.
    """

    def __init__(
        self,
        spec: ImageSpec,  # 2D, one channel
        num_classes: int = 0,  # must be 0: the source's model has no classes
        *,
        layers: int = 8,  # masked convolutions: one of mask A, then mask B
        channels: int = 64,  # features of every layer
        kernel: int = 7,  # side of every masked convolution, odd
        lr: float = 1e-4,  # Adam's learning rate
        beta1: float = 0.9,  # Adam's decay of the mean gradient
        beta2: float = 0.999,  # Adam's decay of the squared gradient
    ) -> None:
        super().__init__(spec, num_classes, Categorical(256), low=0.0)
        if num_classes:
            raise VerisimError(
                "The literal PixelCNN has no classes. Train it without a label, or use 'gated_pixelcnn'."
            )
        if layers < 1 or channels < 1 or kernel < 3 or kernel % 2 == 0:
            raise VerisimError(
                f"PixelCNN cannot be built with layers={layers}, channels={channels}, kernel={kernel}: it "
                "takes layers >= 1, channels >= 1 and an odd kernel >= 3."
            )
        self.net = MaskedStack(layers, channels, kernel, self.head.channels)
        self.lr, self.betas = lr, (beta1, beta2)

    def cached_stepper(self, net: nn.Module, n: int, label: Tensor | None) -> Stepper:
        assert isinstance(net, MaskedStack)
        return MaskedStackStepper(net, n, (self.spec.size[0], self.spec.size[1]))

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr, betas=self.betas)

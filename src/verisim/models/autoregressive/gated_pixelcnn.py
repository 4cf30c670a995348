"""Gated PixelCNN (X-A-fix): what source 004's autoregressive model lacked, with exact likelihood.

No blind spot, no batch norm, gates with skip connections, global reach, ordered grey levels by a
discretised logistic mixture, dropout, classes in every gate, and sampling that costs about one forward
pass for a whole image. Source 004, section 3 A (fix).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models.autoregressive.gated_cache import GatedStackStepper
from verisim.models.autoregressive.gated_stack import FIRST_SIDE, GatedStack, covering_dilations
from verisim.models.autoregressive.heads import LogisticMixture
from verisim.models.autoregressive.model import AutoregressiveModel
from verisim.models.autoregressive.raster import Stepper


class GatedPixelCNN(AutoregressiveModel):
    """Images (B, 1, H, W) float32 in [-1, 1], any 2D size; likelihood is exact for the rounded image.

    Fewer `levels` make the task easier: 32 grey levels are 5-bit images. Then samples have 32 levels and
    bits/dim is that of the 5-bit image (at most log2(levels)): not comparable with 8-bit figures.
    Raises VerisimError for several channels, 3D and impossible settings.
    """

    def __init__(
        self,
        spec: ImageSpec,  # 2D, one channel
        num_classes: int = 0,  # 0 = unconditional; else classes 0 ... num_classes - 1, embedded in every gate
        *,
        layers: int = 10,  # gated layers, each with a vertical and a horizontal part
        channels: int = 64,  # width of both stacks
        dilations: tuple[int, ...] = (),  # per layer, in pixels; empty = the shortest cycle that sees all
        components: int = 10,  # K, logistics in the mixture of each pixel
        levels: int = 256,  # grey levels: 256 = 8 bit, 32 = 5 bit
        dropout: float = 0.1,  # probability, of whole channels of the gates; more for fewer images
        lr: float = 1e-3,  # AdamW's learning rate
        beta1: float = 0.9,  # AdamW's decay of the mean gradient
        beta2: float = 0.99,  # AdamW's decay of the squared gradient
        weight_decay: float = 0.0,  # AdamW's weight decay
    ) -> None:
        if layers < 1 or channels < 1 or not 0 <= dropout < 1:
            raise VerisimError(
                f"GatedPixelCNN cannot be built with layers={layers}, channels={channels}, "
                f"dropout={dropout}: it takes layers >= 1, channels >= 1 and 0 <= dropout < 1."
            )
        if dilations and (len(dilations) != layers or min(dilations) < 1):
            raise VerisimError(
                f"GatedPixelCNN: dilations {tuple(dilations)} do not fit layers={layers}. Give {layers} "
                "numbers of at least 1, or leave them empty to have them chosen."
            )
        head = LogisticMixture(components, levels)
        super().__init__(spec, num_classes, head, low=-1.0)
        self.net = GatedStack(
            inputs=1,
            outputs=head.channels,
            channels=channels,
            dilations=tuple(dilations) or covering_dilations(layers, spec.size),
            num_classes=num_classes,
            dropout=dropout,
        )
        self.start_simple(head)
        self.lr, self.betas, self.weight_decay = lr, (beta1, beta2), weight_decay

    @torch.no_grad()
    def start_simple(self, head: LogisticMixture) -> None:
        """Start from broad logistics around the mean of the pixels to the left and above."""
        net, k = self.net, head.components
        assert isinstance(net, GatedStack) and net.final.bias is not None
        net.final.weight.mul_(0.1)
        net.final.bias.copy_(head.initial_bias())
        net.final.bias[k : 2 * k].mul_(0.5)
        means = slice(net.channels + k, net.channels + 2 * k)
        net.first_v.weight[means, 0, -1, FIRST_SIDE] = 0.5
        net.first_h.weight[means, 0, 0, -1] = 0.5

    def cached_stepper(self, net: nn.Module, n: int, label: Tensor | None) -> Stepper:
        assert isinstance(net, GatedStack)
        return GatedStackStepper(net, n, (self.spec.size[0], self.spec.size[1]), label)

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self.parameters(), lr=self.lr, betas=self.betas, weight_decay=self.weight_decay
        )

"""The patch discriminator: real or made, asked of every patch of an image. Isola 2017, appendix 6.1.2.

C64-C128-C256-C512-1 for three layers: 4x4 convolutions, the first `layers` of them of stride 2. One score looks
at 9 * 2^layers - 2 pixels per axis (70 for three layers), so it judges texture and edges, not anatomy.
Group norm stands where the source has batch norm: the same number of parameters, but what an image scores
does not depend on the other images of its batch, and nothing is left to hold when the other player moves.
"""

from __future__ import annotations

from torch import Tensor, nn

from verisim.errors import VerisimError
from verisim.nets.blocks import CONV
from verisim.nets.norm import GroupNorm

MOST_DOUBLINGS = 3  # of the width
SLOPE = 0.2  # of LeakyReLU
INITIAL_STD = 0.02  # of the weights


def patch_side(layers: int) -> int:
    """Pixels per axis that one score looks at: 9 * 2^layers - 2."""
    return 9 * 2**layers - 2


def score_grid(size: tuple[int, ...], layers: int) -> tuple[int, ...]:
    """Scores per axis for images of `size` pixels; VerisimError if there would be none along an axis."""
    grid = tuple(n // 2**layers - 2 for n in size)
    if layers < 1 or min(grid) < 1:
        most = (min(size) // 3).bit_length() - 1
        fits = f"1 to {most} fit" if most > 0 else "a side of 6 pixels is the least"
        raise VerisimError(
            f"A patch discriminator with {layers} layers needs sides of {3 * 2 ** max(layers, 1)} pixels or more and "
            f"at least 1 layer; these images have {'x'.join(map(str, size))}: {fits}. Set "
            f"--model.discriminator_layers."
        )
    return grid


class PatchDiscriminator(nn.Module):
    """x (B, C, *S) -> logits (B, 1, *P), larger = more real; P = score_grid(S), 2D and 3D."""

    def __init__(
        self,
        spatial_dims: int,  # 2 or 3
        channels: int,  # C
        width: int = 64,  # channels of the first layer; doubled three times at most
        layers: int = 3,  # of stride 2
    ) -> None:
        super().__init__()
        conv = CONV[spatial_dims]
        steps: list[nn.Module] = [conv(channels, width, 4, 2, 1), nn.LeakyReLU(SLOPE)]
        before = width
        for k in range(1, layers + 1):
            after = width * 2 ** min(k, MOST_DOUBLINGS)
            stride = 2 if k < layers else 1
            steps += [conv(before, after, 4, stride, 1, bias=False), GroupNorm(after), nn.LeakyReLU(SLOPE)]
            before = after
        self.layers = nn.Sequential(*steps, conv(before, 1, 4, 1, 1))
        for module in self.layers:
            if isinstance(module, conv):
                nn.init.normal_(module.weight, 0.0, INITIAL_STD)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).float()

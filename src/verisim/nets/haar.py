"""The orthonormal Haar transform of images and volumes: a fold of 2 x 2 (x 2) blocks, then a rotation of them.

Per axis L = (even + odd) / sqrt 2, H = (even - odd) / sqrt 2 (spec 003, section 16-H). The low band is
2^(d/2) times the mean of its block, energy is kept, and white noise stays white.

What follows from "fold and rotate": a network on the bands is a network on folded pixels (nets.unet.fold,
`patch` 2) whose first and last convolution have their channels rotated. Without a scale on the low band,
wavelet diffusion is thus diffusion with patch 2 in another basis: the same noise, the same loss, the same
memory. The scale is what makes it another model: the low band then meets the noise at another
signal-to-noise ratio than the details do, i.e. each band has a noise schedule of its own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from verisim.errors import VerisimError
from verisim.nets.unet import fold, unfold


def haar(x: Tensor, levels: int = 1) -> Tensor:
    """Bands (B, C 2^(d levels), *S / 2^levels) of images x (B, C, *S); one tensor at any number of levels.

    The first C channels are the low band, one per channel of x. At one level the others follow band by
    band (3D: LLL, LLH, LHL, LHH, HLL, ...; the last axis varies fastest). With more levels the low band is
    transformed again, and the details, which are larger, are folded to the size of the coarsest level.
    VerisimError where a side is no multiple of 2^levels.
    """
    check_haar_size(tuple(x.shape[2:]), levels)
    b, c, *size = x.shape
    d = len(size)
    blocks = fold(x, 2).reshape(b, c, 2**d, -1)  # (B, C, 2^d, N)
    bands = torch.einsum("kj,bcjn->bkcn", mixing(d).to(x), blocks)  # (B, 2^d, C, N)
    y = bands.reshape(b, 2**d * c, *[s // 2 for s in size])
    if levels == 1:
        return y
    return torch.cat([haar(y[:, :c], levels - 1), fold(y[:, c:], 2 ** (levels - 1))], dim=1)


def inverse_haar(y: Tensor, levels: int = 1) -> Tensor:
    """Images (B, C, *S) of bands y (B, C 2^(d levels), *S / 2^levels): the inverse, and the transpose, of haar."""
    b, channels, *size = y.shape
    d = len(size)
    c = channels // 2 ** (d * levels)  # channels of the image
    if levels < 1 or d not in (2, 3) or c * 2 ** (d * levels) != channels:
        raise VerisimError(
            f"Haar: {channels} bands of {d} axes are not those of {levels} level(s); an image of C channels "
            f"has C times 2^(axes times levels), with levels of 1 or more and 2 or 3 axes."
        )
    if levels > 1:
        n = c * 2 ** (d * (levels - 1))  # channels that the coarser levels have
        details = unfold(y[:, n:], 2 ** (levels - 1))
        y = torch.cat([inverse_haar(y[:, :n], levels - 1), details], dim=1)
        size = list(y.shape[2:])
    bands = y.reshape(b, 2**d, c, -1)  # (B, 2^d, C, N)
    blocks = torch.einsum("kj,bkcn->bcjn", mixing(d).to(y), bands)  # (B, C, 2^d, N)
    return unfold(blocks.reshape(b, c * 2**d, *size), 2)


def mixing(dims: int) -> Tensor:
    """The rotation (2^dims, 2^dims) float64 of a folded block into its bands; orthogonal and symmetric."""
    one = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / math.sqrt(2)
    m = one
    for _ in range(dims - 1):
        m = torch.kron(m, one)
    return m


def check_haar_size(size: tuple[int, ...], levels: int) -> None:
    """Raise VerisimError, naming the nearest sizes that can, for images that cannot be halved `levels` times."""
    if levels < 1 or len(size) not in (2, 3):
        raise VerisimError(
            f"Haar: levels={levels} on {len(size)} axes; it takes 1 or more levels and 2 or 3 axes."
        )
    unit = 2**levels
    if all(s > 0 and s % unit == 0 for s in size):
        return
    below = tuple(max(unit, s // unit * unit) for s in size)
    above = tuple(-(-s // unit) * unit for s in size)
    nearest = " or ".join(dict.fromkeys("x".join(map(str, s)) for s in (below, above)))
    raise VerisimError(
        f"Haar: images of {'x'.join(map(str, size))} cannot be halved {levels} time(s); every side must be a "
        f"multiple of {unit}. Nearest sizes: {nearest}. Resize or pad the images (--data.size), or use fewer "
        f"levels."
    )

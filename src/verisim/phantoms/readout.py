"""Linear readouts of chest anatomy, fitted once in closed form to phantoms whose factors are known.

Ridge regression: w = (X'X + lambda N I)^-1 X't, in float64, from a fixed seed: the same on every machine
up to rounding. Nothing is stored and nothing is downloaded; the fit takes about two seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from verisim.phantoms import chest

GRID = 64  # pixels a side of the grid on which chests are measured
FIT_IMAGES = 1500
FIT_SEED = 20_240_611  # reserved: no other phantom set should use it
RIDGE_RATIO, RIDGE_SIDE = 0.01, 1.0  # lambda; the larger, the less the readout trusts single pixels


@dataclass(frozen=True)
class Readout:
    """Weights of the two linear readouts."""

    weight: Tensor  # (256,) picture features -> cardiothoracic ratio
    mean: Tensor  # (256,) of the picture features
    offset: float  # mean cardiothoracic ratio
    template: Tensor  # (240,) left half minus right half -> side, about 1 for an unmirrored phantom

    def ratio(self, picture: Tensor) -> Tensor:
        """(B, 256) -> cardiothoracic ratio (B,)."""
        return (picture - self.mean) @ self.weight + self.offset

    def side(self, both: Tensor) -> Tensor:
        """(B, 2, 240) -> side (B,), odd under mirroring."""
        return (both[:, 1] - both[:, 0]) @ self.template


@lru_cache(maxsize=1)
def fitted() -> Readout:
    """The readouts, fitted at the first call."""
    phantom = chest.make(FIT_IMAGES, FIT_SEED, GRID)
    grid = (phantom.images.pixels[:, 0].double() + 1) / 2
    x = picture_features(grid)
    t = phantom.factors["cardiothoracic_ratio"].double()
    mean = x.mean(0)
    weight = _ridge(x - mean, t - t.mean(), RIDGE_RATIO)
    both = halves_features(grid, midline(smooth(grid, 1.0))[0])
    template = _ridge(both[:, 1] - both[:, 0], torch.ones_like(t), RIDGE_SIDE)
    return Readout(weight, mean, float(t.mean()), template)


def _ridge(x: Tensor, t: Tensor, strength: float) -> Tensor:
    n, d = x.shape
    return torch.linalg.solve(x.T @ x + strength * n * torch.eye(d, dtype=x.dtype), x.T @ t)


def picture_features(grid: Tensor) -> Tensor:
    """(B, 64, 64) -> (B, 256): the picture at 16 x 16, standardised to mean 0 and deviation 1."""
    z = F.avg_pool2d(smooth(grid, 1.5)[:, None], 4).flatten(1)
    return (z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True).clamp(min=1e-3)


def halves_features(grid: Tensor, middle: Tensor) -> Tensor:
    """(B, 64, 64) and midline (B,) -> (B, 2, 240): both halves from the midline outwards, every 4th row.

    Grey values are put on the scale lung = 0, central shadow = 1.
    """
    both = halves(smooth(grid, 1.5), middle, torch.full_like(middle, 30.0), 15)[:, :, ::4]  # (B, 2, 16, 15)
    low = torch.quantile(both[:, :, 4:11, 1:10].flatten(1), 0.1, dim=1)
    high = torch.quantile(both[:, :, 4:11].flatten(1), 0.9, dim=1)
    scale = (high - low).clamp(min=0.05)
    return ((both - low[:, None, None, None]) / scale[:, None, None, None]).clamp(-0.5, 1.5).flatten(2)


def to_grid(x: Tensor) -> Tensor:
    """(B, 1, H, W) -> (B, 64, 64): averaged down or interpolated up."""
    if min(x.shape[2:]) >= GRID:
        return F.adaptive_avg_pool2d(x, GRID)[:, 0]
    return F.interpolate(x, (GRID, GRID), mode="bilinear", align_corners=False)[:, 0]


def smooth(y: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (B, 64, 64), sigma in pixels, borders repeated."""
    blur = _blur(sigma)
    return blur @ y @ blur.T


@lru_cache
def _blur(sigma: float) -> Tensor:
    """(64, 64) matrix of the blur along one axis; rows sum to 1."""
    r = math.ceil(3 * sigma)
    offset = torch.arange(-r, r + 1)
    k = torch.exp(-0.5 * (offset.double() / sigma).square())
    source = (torch.arange(GRID)[:, None] + offset).clamp(0, GRID - 1)  # (64, 2 r + 1)
    return torch.zeros(GRID, GRID, dtype=torch.float64).scatter_add_(
        1, source, (k / k.sum()).expand(GRID, -1)
    )


def halves(y: Tensor, middle: Tensor, reach: Tensor, steps: int) -> Tensor:
    """Rows walked outwards from the midline: (B, 2, R, steps), [:, 0] to the image left.

    y (B, R, 64); middle, reach (B,) in pixels; points lie at reach * (k + 1/2) / steps.
    """
    s = (torch.arange(steps, dtype=y.dtype) + 0.5) / steps
    sides = []
    for sign in (-1, 1):  # image left = the patient's right, image right = the patient's left
        column = (middle[:, None] + sign * reach[:, None] * s).clamp(0, GRID - 1)  # (B, steps)
        low = column.floor().clamp(max=GRID - 2)
        part = (column - low)[:, None]
        index = low.long()[:, None].expand(-1, y.shape[1], -1)
        sides.append(y.gather(2, index) * (1 - part) + y.gather(2, index + 1) * part)
    return torch.stack(sides, 1)


def midline(y: Tensor, reach: int = 20, search: float = 10.0) -> tuple[Tensor, Tensor]:
    """Axis of mirror symmetry of the upper chest: column (B,) in pixels and correlation there (B,)."""
    shifts = torch.arange(-search, search + 0.25, 0.5, dtype=y.dtype)
    scores = []
    upper = y[:, 12:34]
    for shift in shifts:
        middle = torch.full((len(y),), (GRID - 1) / 2, dtype=y.dtype) + shift
        both = halves(upper, middle, torch.full_like(middle, float(reach)), reach).flatten(2)
        both = both - both.mean((1, 2), keepdim=True)
        energy = both.square().sum((1, 2))
        scores.append(2 * (both[:, 0] * both[:, 1]).sum(1) / energy.clamp(min=1e-9))
    score = torch.stack(scores, 1)  # (B, shifts)
    best = (score - 0.002 * shifts.square()).argmax(1)  # patients stand near the middle
    return (GRID - 1) / 2 + shifts[best], score.gather(1, best[:, None])[:, 0]

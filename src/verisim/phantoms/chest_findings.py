"""The ruler for what a chest report states: heart size and pleural effusion, from pixels alone.

Ridge regression on both halves of the chest, walked outwards from the midline (readout.halves_features), fitted once
to phantoms with known factors: the height of fluid on each side, and the cardiothoracic ratio. Thresholds between
states are those of the report, moved by what the shrinkage of the fit takes away.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.phantoms import chest
from verisim.phantoms.chest_report import NORMAL_RATIO, effusion_state
from verisim.phantoms.readout import GRID, _ridge, halves_features, midline, picture_features, smooth, to_grid

FIT_IMAGES, FIT_SEED, FIT_RATE = 2000, 20_240_612, 5.0  # reserved: no other phantom set should use this seed
RIDGE = 1e-3
CHUNK = 512  # images measured at a time


@dataclass(frozen=True)
class FindingsReadout:
    """Linear weights from the features of a chest to its factors, and the thresholds between states."""

    weight: Tensor  # (K, 3) -> fluid right, fluid left, cardiothoracic ratio
    mean: Tensor  # (K,) of the features
    offset: Tensor  # (3,)
    least: float  # height of fluid from which there is an effusion
    large: float  # from which it is large
    ratios: Tensor  # (2,) between normal, borderline and enlarged

    def estimate(self, features: Tensor) -> Tensor:
        """(B, K) -> (B, 3)."""
        return (features - self.mean) @ self.weight + self.offset


def measure_states(images: Images) -> dict[str, Tensor]:
    """Class indices (N,) int64 into chest_report.STATES of "heart" and "effusion", from pixels (N, 1, H, W).

    Raises VerisimError unless the images are 2D with one channel and at least 16 x 16 pixels.
    """
    spec = images.spec
    if spec.spatial_dims != 2 or spec.channels != 1 or min(spec.size) < 16:
        raise VerisimError(
            f"phantoms.chest_findings: images of shape {spec.shape} (channels, *size); chest X-rays of one channel "
            f"and at least 16 x 16 pixels can be measured. Convert to grey values or resize first."
        )
    fit = fitted()
    x = images.to_range(0.0, 1.0).pixels
    y = torch.cat([fit.estimate(features(to_grid(part.double()))) for part in x.split(CHUNK)])  # (N, 3)
    return {
        "heart": torch.bucketize(y[:, 2].contiguous(), fit.ratios),
        "effusion": effusion_state(y[:, 0], y[:, 1], fit.least, fit.large),
    }


def features(grid: Tensor) -> Tensor:
    """(B, 64, 64) in [0, 1] -> (B, 736): both halves on the scale of lung and shadow, and the picture at 16 x 16."""
    both = halves_features(grid, midline(smooth(grid, 1.0))[0])
    return torch.cat([both.flatten(1), picture_features(grid)], 1)


@lru_cache(maxsize=1)
def fitted() -> FindingsReadout:
    """The readout, fitted at the first call (some seconds)."""
    p = chest.make(FIT_IMAGES, FIT_SEED, GRID, rate=FIT_RATE)
    x = features((p.images.pixels[:, 0].double() + 1) / 2)
    f = {k: p.factors[k].double() for k in ("effusion_size", "effusion_side", "cardiothoracic_ratio")}
    fluid = [f["effusion_size"] * (f["effusion_side"] * s > 0) for s in (-1, 1)]
    t = torch.stack([*fluid, f["cardiothoracic_ratio"]], 1)  # (N, 3)
    mean, offset = x.mean(0), t.mean(0)
    weight = _ridge(x - mean, t - offset, RIDGE)
    slope = (((x - mean) @ weight) * (t - offset)).sum(0) / (t - offset).square().sum(
        0
    )  # (3,) below 1: shrinkage
    edges = torch.tensor([NORMAL_RATIO, chest.CARDIOMEGALY], dtype=torch.float64)
    shrunk = offset[2] + slope[2] * (edges - offset[2])
    return FindingsReadout(weight, mean, offset, least=0.10, large=0.28, ratios=shrunk)

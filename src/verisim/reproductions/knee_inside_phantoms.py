"""Fresh knee phantoms to look into autoencoders with, and what reads their factors off decoded images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from verisim.data.spec import Images
from verisim.phantoms import knee
from verisim.phantoms.base import Phantom
from verisim.phantoms.knee_measure import measure

SEEDS = {
    "probe": 101,
    "moved": 102,
    "calibration": 103,
    "normal": 104,
    "planted": 105,
    "reader": 106,
    "selection": 107,
}
TRAINED = 0  # the seed that models are trained on, and none of the above
PROBED = (
    "grade", "side", "joint_space", "asymmetry", "femur_width", "tilt", "shift_x", "bone_level", "sclerosis", "gain",
)  # fmt: skip
MIXED = (
    *PROBED,
    "shift_y",
    "tibia_ratio",
    "tissue_level",
    "gamma",
    "vignetting",
    "patella",
    "texture",
)  # for MIG
SIDE = 16  # pixels a side that the reader sees
LEGIBLE = 0.5  # R^2 on fresh phantoms below which the reader is not believed


@dataclass(frozen=True)
class Looks:
    """How many phantoms are looked at, all of seeds that no model was trained on."""

    probe: int  # whose codes are probed
    moved: int  # whose latents are moved, and between which codes are swapped
    latents: int  # busiest ones, moved one at a time
    calibration: int  # without a planted finding, to set thresholds
    normal: int  # others without, to test with
    planted: int  # in which findings are planted
    selection: int  # that the curve of a run is drawn with


LOOKS = {
    "smoke": Looks(120, 8, 2, 40, 60, 12, 60),
    "small": Looks(800, 24, 6, 400, 600, 60, 800),
    "full": Looks(4000, 100, 10, 1000, 2000, 400, 4000),
}


def fresh(name: str, n: int, size: int) -> Phantom:
    """n phantoms of one of SEEDS, in 8-bit levels."""
    made = knee.make(n, SEEDS[name], size)
    return Phantom(made.images.quantise(), made.factors)


class Reader:
    """Linear readouts of the factors from 16 x 16 pixels, and the phantom's ruler; fitted to phantoms of their own."""

    def __init__(self, size: int, n: int = 1500) -> None:
        made = fresh("reader", n, size)
        self.names = tuple(f for f in PROBED if f != "grade")
        self.spread = {k: float(made.factors[k].double().std()) for k in self.names}
        y = torch.stack([made.factors[k].double() / self.spread[k] for k in self.names], 1)  # (n, K)
        x = _pooled(made.images.pixels)
        self.mean, self.offset = x.mean(0), y.mean(0)
        d = x.shape[1]
        gram = (x - self.mean).T @ (x - self.mean) + 1e-3 * n * torch.eye(d, dtype=x.dtype)
        self.weight = torch.linalg.solve(gram, (x - self.mean).T @ (y - self.offset))  # ridge regression

    def read(self, pixels: Tensor) -> dict[str, Tensor]:
        """Factors of images (N, 1, S, S) in [-1, 1], each (N,) in standard deviations over phantoms."""
        told = (_pooled(pixels) - self.mean) @ self.weight + self.offset
        return dict(zip(self.names, told.T))

    def ruler(self, images: Images) -> Tensor:
        """(N,) mean joint space as the phantom's ruler has it, in standard deviations over phantoms."""
        return measure(images)["joint_space"] / self.spread["joint_space"]

    def legible(self, known: Phantom) -> dict[str, float]:
        """R^2 of each factor on other phantoms, and of the ruler ("ruler")."""
        told: dict[str, Any] = {**self.read(known.images.pixels), "ruler": self.ruler(known.images)}
        found = {}
        for name, value in told.items():
            factor = "joint_space" if name == "ruler" else name
            truth = known.factors[factor].double() / self.spread[factor]
            found[name] = 1 - float((value - truth).square().mean() / truth.var(correction=0))
        return found


def _pooled(pixels: Tensor) -> Tensor:
    """(N, 256) float64 means over blocks of images (N, 1, S, S)."""
    return F.adaptive_avg_pool2d(pixels.double(), SIDE).flatten(1)

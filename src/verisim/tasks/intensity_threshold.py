"""The baseline that must always be reported: skull strip, normalise, threshold, drop small pieces (spec 002, 1.5; B-S5).

No learning. Blood is brighter than brain on native CT, a crack darker than bone: within the skull the map says how much
brighter a pixel is than the brain's median, within the skull's closed shell how much darker than the bone's.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from verisim.tasks.head_parts import dilated, head_parts

STEPS = 32  # thresholds at which pieces are counted, in equal ratios
LOWEST = 0.5  # the lowest of them, in robust standard deviations
RIM = 1  # pixels beside the bone that are left out: they hold some of it


class IntensityThreshold:
    """Role: AnomalyDetector, for head CT (B, 1, *S) in [-1, 1] with the brain inside of a bright skull."""

    def __init__(
        self,
        bone: float = 0.95,  # grey value from which a pixel is bone
        least: int = 5,  # pixels of the smallest piece that counts
    ) -> None:
        self.bone, self.least = bone, least

    def normalised(self, x: Tensor) -> Tensor:
        """(B, 1, *S) >= 0: brightness inside of the skull and darkness in its shell, in robust standard deviations."""
        parts = head_parts(x, self.bone)
        shell = parts["skull"][:, 0]
        inside = (parts["left"] | parts["right"])[:, 0] & (dilated(shell.float(), RIM) == 0)
        maps = []
        for image, brain, bone in zip(x[:, 0].double(), inside, shell):
            z = torch.zeros_like(image)
            if brain.any() and bone.any():
                middle = image[brain].median()
                spread = 1.4826 * (image[brain] - middle).abs().median().clamp(min=1e-3)
                z = torch.where(brain, (image - middle) / spread, z)
                z = torch.where(bone, (self.bone - image) / spread, z)
            maps.append(z.clamp(min=0))
        return torch.stack(maps)[:, None].float()

    def anomaly_map(self, x: Tensor) -> Tensor:
        """(B, 1, *S) >= 0: the highest threshold at which a pixel still lies in a piece of `least` pixels or more."""
        return torch.from_numpy(np.stack([opened(z, self.least) for z in self.normalised(x)[:, 0].numpy()]))[
            :, None
        ]

    def segment(self, x: Tensor, threshold: float = 3.0) -> Tensor:
        """(B, 1, *S) bool: what lies above `threshold` robust standard deviations, without small pieces."""
        return self.anomaly_map(x) >= threshold


def opened(z: np.ndarray, least: int) -> np.ndarray:
    """z (*S) >= 0 lowered so that at each of STEPS thresholds only pieces of `least` pixels or more remain."""
    out = np.zeros_like(z)
    for level in np.geomspace(LOWEST, max(2 * LOWEST, float(z.max())), STEPS):
        pieces, n = ndimage.label(z >= level)
        if n:
            large = np.bincount(pieces.ravel()) >= least
            large[0] = False
            out[large[pieces]] = level
    return out

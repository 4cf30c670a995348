"""Left half, right half and skull of a head CT from its grey values (spec 002, A.6): where a detector is asked.

Bone is what is brighter than `bone`, its largest piece; small gaps in it (fractures, sutures) are closed. What it
encloses is the inside, cut in two at the middle column. For scoring alone: nothing here enters training.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from verisim.errors import VerisimError
from verisim.phantoms.head_ct_measure import enclosed

BONE_HU = 300.0  # Hounsfield units above which a pixel is bone
NAMES = ("left", "right", "skull")
POOL = {2: F.max_pool2d, 3: F.max_pool3d}


def bone_level(window: tuple[float, float]) -> float:
    """The grey value in [-1, 1] of bone where `window` (low, high) in HU is shown; just below white if it ends before."""
    low, high = window
    return min(2 * (BONE_HU - low) / (high - low) - 1, 0.95)


def head_parts(x: Tensor, bone: float = 0.95, gap: int = 2) -> dict[str, Tensor]:
    """Boolean masks (B, 1, *S) "left", "right" and "skull" of heads x (B, 1, *S) in [-1, 1].

    bone: grey value from which a pixel is bone; gap: pixels on both sides over which gaps in it are closed. "left" is
    the patient's where that is at the right of the image; see left_is_right. Masks are empty where no skull is found.
    """
    if x.ndim not in (4, 5) or x.shape[1] != 1:
        raise VerisimError(
            f"head_parts: images of shape {tuple(x.shape)}; (B, 1, H, W) or (B, 1, D, H, W) are meant."
        )
    solid = torch.stack([largest_piece(b) for b in x[:, 0] >= bone])
    closed = -dilated(-dilated(solid.float(), gap), gap) > 0
    inside = enclosed(closed)  # (B, *S)
    columns = inside.double().flatten(1, -2).sum(1)
    axis = torch.arange(x.shape[-1], dtype=torch.float64)
    middle = (columns * axis).sum(1) / columns.sum(1).clamp(min=1e-9)
    high = (axis > middle[:, None]).view(-1, *[1] * (x.ndim - 3), x.shape[-1])
    return {
        k: v[:, None] for k, v in {"left": inside & high, "right": inside & ~high, "skull": closed}.items()
    }


def dilated(mask: Tensor, by: int) -> Tensor:
    """Greatest value within `by` pixels along every axis, of mask (B, *S)."""
    return POOL[mask.ndim - 1](mask[:, None], 2 * by + 1, 1, by)[:, 0]


def largest_piece(mask: Tensor) -> Tensor:
    """The largest connected piece of mask (*S) bool."""
    pieces, n = ndimage.label(mask.numpy())
    if n == 0:
        return mask
    return torch.from_numpy(pieces == 1 + np.bincount(pieces.ravel())[1:].argmax())


def left_is_right(affine: np.ndarray | None) -> bool:
    """Whether the patient's left is at the right of the image (larger column); True for images without an affine.

    affine (4, 4): (d, h, w, 1) -> mm RAS+. VerisimError if columns do not run from one side of the patient to the other.
    """
    if affine is None:
        return True
    across = affine[0, :3]
    if np.abs(across).argmax() != 2:
        raise VerisimError(
            "Left and right cannot be told: the image's columns do not run across the patient. Reorient the scan so "
            "that its first NIfTI axis is left-right."
        )
    return bool(across[2] < 0)

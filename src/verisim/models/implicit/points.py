"""Scans as sets of points: where voxels lie, which of them a training step sees, and what a scan must be."""

from __future__ import annotations

import torch
from torch import Tensor

from verisim.data.spec import Images, ImageSpec
from verisim.errors import VerisimError

AGE_UNIT = 100.0  # weeks: the network sees age / 100, 0.26 to 0.45 for newborns (spec 002, K.2)
DARK = -0.9  # voxels up to here are background where no mask is given: 5 % of the range


def grid(spec: ImageSpec, size: tuple[int, ...] | None = None) -> Tensor:
    """Centres of the voxels of a grid of `size` over the field of view of `spec`, (prod(size), d) float32.

    Voxel i of a trained axis of S lies at (i - S / 2) / max(sizes) (spec 002, K.2), so that the longest axis is
    [-0.5, 0.5). A grid of another size divides the same field of view: its voxel j lies at
    i = (j + 1/2) S / S' - 1/2.
    """
    size = spec.size if size is None else tuple(size)
    if len(size) != spec.spatial_dims or min(size) < 1:
        raise VerisimError(
            f"A grid of {size} was asked for; this model was trained in {spec.spatial_dims}D on {spec.size}. "
            f"Give {spec.spatial_dims} sides of at least 1."
        )
    longest = max(spec.size)
    axes = []
    for s, new in zip(spec.size, size):
        i = (torch.arange(new, dtype=torch.float64) + 0.5) * s / new - 0.5
        axes.append((i - s / 2) / longest)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2).float()


def mirrored(size: tuple[int, ...], axis: int) -> Tensor:
    """(prod(size),) int64: index of the voxel that voxel k comes to lie on when `axis` is mirrored."""
    return torch.arange(torch.Size(size).numel()).view(size).flip(axis).flatten()


def draw_points(mask: Tensor, share: float, foreground: float, generator: torch.Generator) -> Tensor:
    """Indices (P,) int64 of share * V voxels of mask (V,), none twice, `foreground` of them where it is True.

    Where one side has too few voxels the other makes up for it, so that P never varies.
    """
    inside, outside = mask.nonzero().flatten(), (~mask).nonzero().flatten()
    p = min(len(mask), max(1, round(share * len(mask))))
    n = min(round(foreground * p), len(inside))
    n = max(n, p - len(outside))
    picked = [
        pool[torch.randperm(len(pool), generator=generator)[:k]]
        for pool, k in ((inside, n), (outside, p - n))
    ]
    return torch.cat(picked)


def brain_masks(images: Images, masks: Tensor | None) -> Tensor:
    """(N, V) bool: `masks` (N, 1, *S) bool, or what is brighter than DARK in any channel."""
    if masks is None:
        return (images.pixels > DARK).any(1).flatten(1)
    want = (len(images), 1, *images.spec.size)
    if tuple(masks.shape) != want:
        raise VerisimError(
            f"Masks of shape {tuple(masks.shape)} for scans that need {want}; give one per scan."
        )
    return masks.bool().flatten(1)


def check_scans(images: Images, ages: Tensor, spec: ImageSpec, where: str) -> Tensor:
    """ages as (N,) float32; VerisimError unless there is one, finite and positive, per scan of this spec."""
    a = images.spec
    if (a.shape, a.low, a.high) != (spec.shape, -1.0, 1.0):
        raise VerisimError(
            f"{where}: scans of shape {a.shape} (channels, *size) in [{a.low:g}, {a.high:g}]; this model takes "
            f"{spec.shape} in [-1, 1]. Register and resample them to its grid, and convert with Images.to_range(-1, 1)."
        )
    ages = torch.as_tensor(ages, dtype=torch.float32).flatten()
    if len(ages) != len(images):
        raise VerisimError(
            f"{where}: {len(images)} scans but {len(ages)} ages; give each scan its age in weeks."
        )
    bad = ~(torch.isfinite(ages) & (ages > 0))
    if bad.any():
        k = int(bad.nonzero()[0])
        raise VerisimError(
            f"{where}: the age of scan {k} is {float(ages[k]):g}; ages are postmenstrual weeks above 0."
        )
    return ages

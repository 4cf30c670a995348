"""Rigid registration of two scans of one contrast, 2D and 3D, by their correlation; needs nothing but torch.

For repeated scans of a person, also where the two see different parts of the head: several starts, only pixels that both
see are compared. Where contrasts differ, `verisim.data.register` (mutual information, needs SimpleITK) is the right one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from verisim.data.register import Registered
from verisim.errors import VerisimError
from verisim.seeding import generator

LEVELS = (
    (4, 30, 0.08),
    (2, 30, 0.08),
    (1, 50, 0.06),
)  # averaged over so many pixels a side, steps, step size
LEAST_SIDE = 10  # pixels; levels that leave fewer are left out, but not the last
SHIFTS, TURNS = (
    (-0.3, -0.1, 0.1, 0.3),
    (-0.4, -0.2, 0.0, 0.2, 0.4),
)  # half sides of axis 0; radians in plane (0, 1)
KEPT = 5  # starts that go on after the first level
LEAST_OVERLAP = 0.4  # share of the fixed image's pixels; starts that see less come last
APART = 0.08  # in any turn (radians) or shift (half longest sides): poses closer than that are one
MOST_POINTS = 12_000  # pixels of the fixed image that a step compares
POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}


@dataclass(frozen=True)
class Aligned(Registered):
    """A scan on the pixels of another, and how well it fits."""

    inside: Tensor  # (1, *S of the fixed image) bool: where the moving scan reaches
    correlation: float  # of the two there

    @property
    def overlap(self) -> float:
        """Share of the fixed image's pixels that the moving scan reaches."""
        return float(self.inside.float().mean())


def align_rigid(
    moving: Tensor,  # (C, *S) the scan that is turned and shifted
    fixed: Tensor,  # (C, *S') the reference
    spacing: Sequence[float] | None = None,  # mm per pixel of both, order of S; None = 1 along all axes
    *,
    background: float = -1.0,  # value where the moving scan does not reach
) -> Aligned:
    """The moving scan, turned and shifted onto the fixed one; their first channels are compared.

    The same every time. VerisimError if shapes do not fit or an image is constant.
    """
    dims = fixed.ndim - 1
    if moving.ndim != fixed.ndim or dims not in (2, 3):
        raise VerisimError(
            f"align_rigid: shapes {tuple(moving.shape)} and {tuple(fixed.shape)}; both must be (C, H, W) or both "
            f"(C, D, H, W)."
        )
    for name, x in (("moving", moving), ("fixed", fixed)):
        if not float(x[0].max()) > float(x[0].min()):
            raise VerisimError(
                f"align_rigid: the {name} scan is constant, so nothing can be aligned. Is it empty?"
            )
    mm = torch.tensor(tuple(spacing) if spacing else (1.0,) * dims)
    pose = _best_pose(moving[:1].float(), fixed[:1].float(), mm)
    first = 3 - dims
    matrix = np.eye(4)
    a, b = _index_map(pose, mm, fixed.shape[1:], moving.shape[1:])
    matrix[first:3, first:3], matrix[first:3, 3] = a[0].double().numpy(), b[0].double().numpy()
    pixels, inside = carried(moving, matrix, tuple(fixed.shape[1:]), background=background)
    return Aligned(pixels, matrix, inside, correlation(pixels, fixed, inside))


def carried(
    pixels: Tensor,  # (C, *S)
    matrix: np.ndarray,  # (4, 4): (d, h, w, 1) of the new grid -> of the old one; d = 0 in 2D
    size: tuple[int, ...],  # of the new grid
    *,
    finer: int = 1,  # points per axis that a new pixel is the mean of; more where the new grid is coarser
    background: float = -1.0,  # where the old image does not reach
    nearest: bool = False,  # the nearest pixel in place of linear interpolation: thin structures keep their grey value
) -> tuple[Tensor, Tensor]:
    """The image on another grid by linear interpolation, (C, *size) float32, and where it is known, (1, *size) bool."""
    dims = len(size)
    first = 3 - dims
    axes = [(torch.arange(n * finer, dtype=torch.float64) + 0.5) / finer - 0.5 for n in size]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)  # (V, d)
    a, b = torch.from_numpy(matrix[first:3, first:3].copy()), torch.from_numpy(matrix[first:3, 3].copy())
    values, seen = _look(pixels.float()[None], (points @ a.T + b).float()[None], nearest)
    fine = tuple(n * finer for n in size)
    values = torch.where(seen[:, None], values, torch.tensor(background)).view(1, -1, *fine)
    pool = POOL[dims]
    known = pool(seen.float().view(1, 1, *fine), finer)[0] > 0.999
    return pool(values, finer)[0], known


def correlation(x: Tensor, y: Tensor, inside: Tensor) -> float:
    """Pearson's r of the first channels of x and y (C, *S) where `inside` (1, *S); nan if one is constant there."""
    at = inside[0]
    return (
        float(torch.corrcoef(torch.stack([x[0][at], y[0][at]]).double())[0, 1]) if at.any() else float("nan")
    )


def motion_of(matrix: np.ndarray, spacing: Sequence[float], size: Sequence[int]) -> tuple[float, float]:
    """(degrees, mm): total turn of a rigid map of pixels, and shift of the grid's middle. mm of both grids, 3D."""
    mm = np.asarray(spacing, dtype=np.float64)
    turn = mm[:, None] * matrix[:3, :3] / mm
    angle = np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
    middle = (np.asarray(size) - 1) / 2
    shift = (matrix[:3, :3] @ middle + matrix[:3, 3] - middle) * mm
    return float(angle), float(np.linalg.norm(shift))


# --- the search -----------------------------------------------------------------------------------


def _best_pose(moving: Tensor, fixed: Tensor, mm: Tensor) -> Tensor:
    """(1, turns + shifts) of images (1, *S): descent from many starts at the coarsest level, from the best on later ones."""
    dims = len(mm)
    pose = _starts(moving, fixed, mm)
    levels = [v for v in LEVELS if min(*fixed.shape[1:], *moving.shape[1:]) // v[0] >= LEAST_SIDE] or [
        LEVELS[-1]
    ]
    for k, (factor, steps, lr) in enumerate(levels):
        a, b = (_smooth(POOL[dims](x[None], factor)) for x in (moving, fixed))
        pose, cost = _descend(pose, a, b, mm, factor, steps, lr)
        pose = _distinct(pose[cost.argsort()])[: KEPT if k + 1 < len(levels) else 1]
    return pose


def _smooth(x: Tensor) -> Tensor:
    """Means of 3 pixels along every axis: without it linear interpolation favours poses on the pixels' own grid."""
    return POOL[x.ndim - 2](x, 3, 1, 1, count_include_pad=False)


def _distinct(poses: Tensor) -> Tensor:
    """Poses (K, p), best first, without those close to a better one."""
    kept: list[Tensor] = []
    for pose in poses:
        if all(float((pose - other).abs().max()) > APART for other in kept):
            kept.append(pose)
    return torch.stack(kept)


def _starts(moving: Tensor, fixed: Tensor, mm: Tensor) -> Tensor:
    """(K, turns + shifts): centres of mass on each other, then shifted along axis 0 and turned in its plane."""
    dims = len(mm)
    turns = dims * (dims - 1) // 2
    half = _half(fixed.shape[1:], mm)
    centres = []
    for x in (moving, fixed):
        weight = (x[0] - x.min()).double()
        each = [
            (weight.sum([k for k in range(dims) if k != axis]) * torch.arange(n)).sum() / weight.sum()
            - (n - 1) / 2
            for axis, n in enumerate(x.shape[1:])
        ]
        centres.append(torch.stack(each).float() * mm)
    starts = []
    for along, turn in product(SHIFTS, TURNS):
        pose = torch.zeros(turns + dims)
        pose[0] = turn
        pose[turns:] = (centres[0] - centres[1]) / half
        pose[turns] += along * fixed.shape[1] * float(mm[0]) / 2 / half
        starts.append(pose)
    return torch.stack(starts)


def _descend(
    pose: Tensor, moving: Tensor, fixed: Tensor, mm: Tensor, factor: int, steps: int, lr: float
) -> tuple[Tensor, Tensor]:
    """Poses (K, p) after so many steps of Adam, the step size falling to 0, and their costs (K,)."""
    sizes = [tuple(x.shape[2:]) for x in (fixed, moving)]
    axes = [torch.arange(n, dtype=torch.float32) for n in sizes[0]]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)  # (V, d)
    some = torch.randperm(len(points), generator=generator("align", factor))[:MOST_POINTS]
    points, values = points[some], fixed.flatten()[some]
    leaf = pose.clone().requires_grad_()
    adam = torch.optim.Adam([leaf], lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        adam.zero_grad()
        _cost(leaf, moving, values, points, mm * factor, sizes)[0].sum().backward()
        adam.step()
        schedule.step()
    with torch.no_grad():
        cost, overlap = _cost(leaf, moving, values, points, mm * factor, sizes)
    return leaf.detach(), cost + 2.0 * (overlap < LEAST_OVERLAP)


def _cost(
    pose: Tensor, moving: Tensor, values: Tensor, points: Tensor, mm: Tensor, sizes: list[tuple[int, ...]]
) -> tuple[Tensor, Tensor]:
    """1 - correlation (K,) over those points (V, d), values (V,) of the fixed image, that the moving one reaches; their share (K,)."""
    a, b = _index_map(pose, mm, *sizes)
    at = points @ a.transpose(1, 2) + b[:, None]  # (K, V, d)
    y, seen = _look(moving.expand(len(pose), *moving.shape[1:]), at)
    w = seen.float() / seen.sum(1, keepdim=True).clamp(min=1)  # (K, V)
    x = values.expand(len(pose), -1)
    y = y[:, 0]
    x, y = x - (w * x).sum(1, keepdim=True), y - (w * y).sum(1, keepdim=True)
    r = (w * x * y).sum(1) / ((w * x * x).sum(1) * (w * y * y).sum(1)).clamp(min=1e-12).sqrt()
    return 1 - r, seen.float().mean(1)


def _half(size: Sequence[int], mm: Tensor) -> float:
    """mm: half the longest side; a shift of 1 moves by as much as a turn of 1 moves the rim."""
    return max(n * float(s) for n, s in zip(size, mm)) / 2


def _index_map(
    pose: Tensor, mm: Tensor, fixed: Sequence[int], moving: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Matrices (K, d, d) and offsets (K, d): pixel of the fixed image -> pixel of the moving one.

    In mm from the images' middles: x -> R x + s. R = exp of the skew matrix of the turns.
    """
    dims = len(mm)
    planes = list(combinations(range(dims), 2))
    skew = torch.zeros(len(pose), dims, dims)
    for k, (i, j) in enumerate(planes):
        unit = torch.zeros(dims, dims)
        unit[i, j], unit[j, i] = -1.0, 1.0
        skew = skew + pose[:, k, None, None] * unit
    turn = torch.linalg.matrix_exp(skew) * mm / mm[:, None]  # R_ij mm_j / mm_i
    shift = pose[:, len(planes) :] * _half(fixed, mm) / mm
    a, b = ((torch.tensor(s, dtype=torch.float32) - 1) / 2 for s in (fixed, moving))
    return turn, b + shift - turn @ a


def _look(images: Tensor, at: Tensor, nearest: bool = False) -> tuple[Tensor, Tensor]:
    """Values (K, C, V) of images (K, C, *S) at pixels (K, V, d), linear or nearest, and (K, V) whether inside."""
    k, v, dims = at.shape
    size = torch.tensor(images.shape[2:], dtype=torch.float32)
    scaled = (2 * at / (size - 1).clamp(min=1) - 1).flip(-1)  # grid_sample: x first
    view = scaled.view(k, v, *[1] * (dims - 1), dims)
    mode = "nearest" if nearest else "bilinear"
    found = F.grid_sample(images, view, mode, align_corners=True, padding_mode="border")
    inside = ((at >= -0.5) & (at <= size - 0.5)).all(-1)
    return found.view(k, -1, v), inside

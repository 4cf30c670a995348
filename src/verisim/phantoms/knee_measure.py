"""Measures a frontal knee X-ray from its pixels alone: which side, how wide the joint space, which grade.

Each image is brought to a grid of 64 x 64. The condyles are the widest bright band in the middle; below
the middle of each one, columns are walked through the joint and what is missing there between bone and
soft tissue is added up, which resolves a joint space narrower than a pixel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.phantoms.knee import JOINT_SPACE
from verisim.phantoms.measure import sharpness
from verisim.phantoms.readout import GRID, smooth, to_grid

CHUNK = 512  # images measured at a time
CONDYLES = slice(20, 27)  # rows that always cross the condyles
JOINT = slice(26, 39)  # rows in which the joint is looked for
SHAFT = slice(2, 10)  # rows of the femoral shaft
# what the ramp of an edge and the bright cortex take from the sum; fitted at 64 pixels, seed 5
SLOPE, OFFSET = 0.945, 0.0015
BELOW = slice(44, 62)  # rows of the fibula


def measure(images: Images) -> dict[str, Tensor]:
    """Numbers per image, each (N,) float64, from pixels (N, 1, S, S).

    side: signed score in [-1, 1]; > 0 = left knee (fibula at the image right). Mirroring changes its sign.
    joint_space_right, joint_space_left: width of the two halves of the joint at the image's right and
        left, as fractions of the image's side; joint_space: their mean.
    joint_space_medial, joint_space_lateral: the same two by the measured side.
    asymmetry: (medial - lateral) / (medial + lateral).
    grade: 0 to 4, the one whose mean joint space is nearest.
    condyles: width of the femur across the condyles, as a fraction of the image's side.
    sharpness: energy of the finest detail / total energy, as in the chest.
    Raises VerisimError unless the images are 2D, square, with one channel and at least 16 x 16 pixels.
    """
    spec = images.spec
    if spec.spatial_dims != 2 or spec.channels != 1 or min(spec.size) < 16 or len(set(spec.size)) != 1:
        raise VerisimError(
            f"phantoms.knee_measure: images of shape {spec.shape} (channels, *size); square knee X-rays of "
            f"one channel and at least 16 x 16 pixels can be measured. Convert or resize first."
        )
    parts = [_measure(x) for x in images.to_range(0.0, 1.0).pixels.split(CHUNK)]
    return {name: torch.cat([p[name] for p in parts]) for name in parts[0]}


def _measure(x: Tensor) -> dict[str, Tensor]:
    """x (B, 1, S, S) in [0, 1]."""
    grid = to_grid(x.double())  # (B, 64, 64)
    middle, half, soft, level = _condyles(smooth(grid, 0.7))
    left, right = _spaces(grid, middle, half, soft, level)
    side = _side(grid, middle, half, soft, level)
    medial, lateral = torch.where(side > 0, left, right), torch.where(side > 0, right, left)
    mean = (left + right) / 2
    typical = torch.tensor(JOINT_SPACE, dtype=grid.dtype)
    return {
        "side": side,
        "joint_space": mean,
        "joint_space_left": left,
        "joint_space_right": right,
        "joint_space_medial": medial,
        "joint_space_lateral": lateral,
        "asymmetry": (medial - lateral) / (medial + lateral).clamp(min=1e-3),
        "grade": (mean[:, None] - typical).abs().argmin(1).double(),
        "condyles": 2 * half / GRID,
        "sharpness": sharpness(x),
    }


def _condyles(y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Middle column and half width of the condyles in pixels, brightness of soft tissue and bone; (B,) each."""
    rows = y[:, CONDYLES]
    column = torch.arange(GRID, dtype=y.dtype)
    soft = torch.quantile(rows.flatten(1), 0.3, dim=1)
    level = torch.quantile(rows[:, :, 16:48].flatten(1), 0.6, dim=1)
    middle = half = torch.empty(0)
    for _ in range(3):  # where bone is depends on its brightness, and the other way round
        share = (rows - soft[:, None, None]) / (level - soft).clamp(min=0.02)[:, None, None]
        bone = (2 * share - 0.5).clamp(0.0, 1.0)  # (B, rows, 64)
        total = bone.sum(2).clamp(min=1e-6)
        middle = ((bone * column).sum(2) / total).mean(1)
        half = total.amax(1) / 2
        off = (column - middle[:, None]).abs() / half[:, None].clamp(min=4.0)
        soft, level = _mean(rows, (off > 1.12) & (off < 1.30)), _mean(rows, off < 0.8)
    return middle, half, soft, level


def _mean(rows: Tensor, where: Tensor) -> Tensor:
    """(B,) mean of rows (B, r, 64) over the columns `where` (B, 64)."""
    return (rows.mean(1) * where).sum(1) / where.sum(1).clamp(min=1)


def _spaces(y: Tensor, middle: Tensor, half: Tensor, soft: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Width of the joint space in the middle of its left and right half, (B,) each; fraction of S."""
    columns = [_columns(y, middle + sign * half / 2, half / 5) for sign in (-1, 1)]
    dark = [_dip(c.mean(2)) for c in columns]  # (B, 64)
    widths = []
    for own, other, profile in ((dark[0], dark[1], columns[0]), (dark[1], dark[0], columns[1])):
        near = -F.max_pool1d(-other[:, None], 7, 1, 3)[:, 0]  # the other half is dark within 3 rows too
        joint = JOINT.start + (own + near)[:, JOINT].argmin(1)  # (B,) row
        scale = (level - soft).clamp(min=0.02)[:, None, None]
        missing = ((level[:, None, None] - profile) / scale).clamp(0.0, 1.0)
        width = (missing * _connected(missing, joint)).sum(1).mean(1) / GRID
        widths.append(SLOPE * width + OFFSET)
    return widths[0], widths[1]


def _dip(profile: Tensor) -> Tensor:
    """(B, 64) mean of three rows minus mean of the eleven around them: lowest in a dark line."""
    line = profile[:, None]
    narrow, wide = (F.avg_pool1d(line, k, 1, k // 2, count_include_pad=False) for k in (3, 11))
    return (narrow - wide)[:, 0]


def _columns(y: Tensor, centre: Tensor, reach: Tensor, count: int = 7) -> Tensor:
    """(B, 64, count) columns of y (B, 64, 64) at centre +- reach, (B,) each, in pixels."""
    at = centre[:, None] + reach[:, None] * torch.linspace(-1, 1, count, dtype=y.dtype)
    at = at.clamp(0, GRID - 1.001)
    low = at.floor()
    index = low.long()[:, None].expand(-1, GRID, -1)
    return torch.lerp(y.gather(2, index), y.gather(2, index + 1), (at - low)[:, None])


def _connected(missing: Tensor, joint: Tensor) -> Tensor:
    """(B, 64, k) 1 on the rows around row `joint` (B,) that miss bone without interruption, else 0."""
    row = torch.arange(GRID)
    start = (row == joint[:, None])[:, :, None]
    gap = (missing > 0.15) | start | ((row - joint[:, None]).abs() <= 1)[:, :, None]
    down = torch.where(row[:, None] >= joint[:, None, None], gap, True).long().cumprod(1)
    up = torch.where(row[:, None] <= joint[:, None, None], gap, True).long().flip(1).cumprod(1).flip(1)
    return (down * up).to(missing)


def _side(y: Tensor, middle: Tensor, half: Tensor, soft: Tensor, level: Tensor) -> Tensor:
    """(B,) what is brighter than soft tissue right of the leg's axis minus left of it, over their sum."""
    column, row = torch.arange(GRID, dtype=y.dtype), torch.arange(GRID, dtype=y.dtype)
    share = (y - soft[:, None, None]) / (level - soft).clamp(min=0.02)[:, None, None]
    bright = (2 * share - 0.4).clamp(0.0, 1.0)  # (B, 64, 64)
    shaft = bright[:, SHAFT].sum(1)
    top = (shaft * column).sum(1) / shaft.sum(1).clamp(min=1e-6)
    rise = (SHAFT.start + SHAFT.stop - CONDYLES.start - CONDYLES.stop) / 2  # rows from condyles to shaft
    slope = ((top - middle) / rise).clamp(-0.15, 0.15)
    axis = middle[:, None] + slope[:, None] * (row - (CONDYLES.start + CONDYLES.stop - 1) / 2)  # (B, 64)
    off = ((column - axis[..., None]) / half[:, None, None].clamp(min=4.0))[:, BELOW]
    right, left = ((bright[:, BELOW] * ((s * off > 0.65) & (s * off < 1.35))).sum((1, 2)) for s in (1, -1))
    return (right - left) / (right + left).clamp(min=1e-6)

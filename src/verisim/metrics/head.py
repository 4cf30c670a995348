"""Head circumference and volume of brain scans, by shape alone (spec 002, section N).

    mask:  brighter than a share of the 99th percentile -> largest component -> holes filled
    pose:  axes of inertia; the one nearest to the scan's vertical axis is the head's
    plane: of all planes across that axis the one with the largest section
    HC:    perimeter of the ellipse with the section's second moments, semi-axes a = 2 sqrt(lambda)

A voxel on the rim counts by its brightness over that of its brightest neighbour, so that the outline is
finer than the voxels. An ellipse's perimeter is 4 a E(1 - b^2 / a^2), exactly. What is measured is the outline of
what is bright: of a skull-stripped scan the brain's, which runs parallel to the scalp's. So compare standard deviations
of errors and correlations rather than means, as the source does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from scipy.special import ellipe
from torch import Tensor

from verisim.data.spec import Images
from verisim.errors import VerisimError

LEVEL = 0.1  # of the 99th percentile of brightness: background below
SMALLEST = 16  # pixels of a section that can be measured


@dataclass(frozen=True)
class Heads:
    """Measures of N scans, (N,) float64 each; without a known spacing they count in pixels."""

    circumference: Tensor  # mm
    content: Tensor  # mL; slices: area in cm^2
    long: Tensor  # longer semi-axis of the section, mm
    short: Tensor  # shorter one, mm
    unit: str  # "mm" or "pixels"


def measure_heads(images: Images, level: float = LEVEL) -> Heads:
    """Heads in scans (N, 1, *S) of any range, volumes (D, H, W) with the vertical axis first, or axial slices (H, W).

    Raises VerisimError for other images, a level outside of (0, 1), and a scan in which nothing is bright.
    """
    spec = images.spec
    if spec.spatial_dims not in (2, 3) or spec.channels != 1:
        raise VerisimError(
            f"metrics.head: images of shape {spec.shape} (channels, *size); slices or volumes of one channel are "
            f"measured."
        )
    if not 0 < level < 1:
        raise VerisimError(
            f"metrics.head: level is {level:g}; it is a share of the 99th percentile, in (0, 1)."
        )
    mm = np.array(spec.spacing or (1.0,) * spec.spatial_dims)
    rows = []
    for k, x in enumerate(images.to_range(0.0, 1.0).pixels[:, 0].double().numpy()):
        inside = membership(x, level)
        long, short = section_axes(inside, mm) if inside is not None else (0.0, 0.0)
        if inside is None or short <= 0:
            raise VerisimError(
                f"metrics.head: image {k} shows no head: less than {SMALLEST} pixels are brighter than "
                f"{level:g} of its 99th percentile. Is it empty, constant or inverted?"
            )
        content = float(inside.sum() * mm.prod())
        if spec.spacing is not None:
            content /= 10.0**spec.spatial_dims  # mm -> cm
        rows.append((perimeter(long, short), content, long, short))
    columns = torch.tensor(rows, dtype=torch.float64).T
    return Heads(columns[0], columns[1], columns[2], columns[3], "mm" if spec.spacing else "pixels")


def perimeter(a: float, b: float) -> float:
    """Of the ellipse with semi-axes a >= b > 0, exactly."""
    return float(4 * a * ellipe(1 - (b / a) ** 2))


def membership(x: np.ndarray, level: float) -> np.ndarray | None:
    """How much of each voxel of x (*S), brightness in [0, 1], belongs to the head, in [0, 1]; None: no head."""
    top = np.percentile(x, 99)
    bright = x > level * top
    if top <= 0 or bright.all():
        return None
    parts, n = ndimage.label(bright)
    if n == 0:
        return None
    largest = 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    mask = ndimage.binary_fill_holes(parts == largest)
    if mask.sum() < SMALLEST:
        return None
    inner = ndimage.binary_erosion(mask)
    brightest = ndimage.maximum_filter(np.where(mask, x, 0.0), 3)
    share = np.divide(x, brightest, out=np.ones_like(x), where=brightest > 0)
    return np.where(inner, 1.0, np.where(mask, share, 0.0))


def section_axes(inside: np.ndarray, mm: np.ndarray) -> tuple[float, float]:
    """Longer and shorter semi-axis in mm of the head's largest section across its vertical axis."""
    if inside.ndim == 2:
        return _semi_axes(inside, mm)
    turned, step = _upright(inside, mm)
    areas = turned.sum((1, 2))
    return _semi_axes(turned[int(areas.argmax())], np.array([step, step]))


def _moments(inside: np.ndarray, mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre (d,) and covariance (d, d) in mm."""
    grid = np.stack(np.meshgrid(*[np.arange(s) * m for s, m in zip(inside.shape, mm)], indexing="ij"))
    points, w = grid.reshape(inside.ndim, -1), inside.ravel() / inside.sum()
    centre = points @ w
    away = points - centre[:, None]
    return centre, (away * w) @ away.T


def _semi_axes(section: np.ndarray, mm: np.ndarray) -> tuple[float, float]:
    """An ellipse's second moments are a^2 / 4 and b^2 / 4; a pixel's own (1 / 12 of its square) are taken off."""
    values = np.linalg.eigvalsh(_moments(section, mm)[1] - np.diag(mm**2 / 12))
    short, long = 2 * np.sqrt(values.clip(min=0.0))
    return float(long), float(short)


def _upright(inside: np.ndarray, mm: np.ndarray) -> tuple[np.ndarray, float]:
    """The head on a grid of cubes along its own axes of inertia, vertical first; and the cubes' side in mm."""
    centre, covariance = _moments(inside, mm)
    _, axes = np.linalg.eigh(covariance)  # columns
    vertical = int(np.abs(axes[0]).argmax())
    order = [vertical, *[k for k in range(3) if k != vertical]]
    frame = axes[:, order]  # mm of the scan = frame @ mm of the head
    step = float(mm.min())
    n = math.ceil(2.2 * math.sqrt(5 * float(np.linalg.eigvalsh(covariance)[-1])) / step) + 2
    matrix = frame * step / mm[:, None]  # voxels of the scan per cube
    offset = centre / mm - matrix @ np.full(3, (n - 1) / 2)
    return ndimage.affine_transform(inside, matrix, offset, (n, n, n), order=1), step

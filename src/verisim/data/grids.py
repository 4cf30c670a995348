"""Whether two images of one patient lie on the same grid, and label maps that belong to an image."""

from __future__ import annotations

from itertools import product

import numpy as np

from verisim.data.raw import RawImage, spacing_of
from verisim.errors import DataError

SLACK = 0.1  # voxels that corners of two grids may lie apart: rounding in headers


def require_same_grid(a: RawImage, b: RawImage, a_name: str, b_name: str) -> None:
    """DataError with both grids' numbers unless sizes agree and, where both are known, affines."""
    if a.size != b.size:
        raise DataError(
            f"{b_name} has {_sides(b.size)} pixels where {a_name} has {_sides(a.size)}: they must lie on the "
            "same grid. Resample one onto the other first."
        )
    if a.affine is None or b.affine is None or a.meta.get("unplaced") or b.meta.get("unplaced"):
        return
    last = np.array(((1,) * (3 - len(a.size)) + a.size)[-3:]) - 1
    corners = np.array([[*(k * n for k, n in zip(c, last)), 1] for c in product((0, 1), repeat=3)])  # (8, 4)
    apart = float(np.linalg.norm((corners @ (a.affine - b.affine).T)[:, :3], axis=1).max())
    if apart > SLACK * min(spacing_of(a.affine, 3)):
        raise DataError(
            f"{b_name} lies up to {apart:.3g} mm away from {a_name}: their affines (d, h, w -> mm) are "
            f"{_rows(b.affine)} and {_rows(a.affine)}. They must lie on the same grid: resample one onto the "
            "other first."
        )


def as_codes(raw: RawImage, name: str) -> np.ndarray:
    """(1, *S) uint8 codes of a label map; DataError unless it is one channel of integers from 0 to 255."""
    array = raw.array
    if len(array) == 3 and (array[1:] == array[:1]).all():
        array = array[:1]  # grey stored as RGB
    if len(array) != 1:
        raise DataError(
            f"{name}: a {raw.mode} image with {len(array)} channels is no label map. Save the codes themselves "
            "as one grey channel of 8-bit integers."
        )
    wrong = array[(array != np.rint(array)) | (array < 0) | (array > 255)]
    if wrong.size:
        raise DataError(
            f"{name}: {wrong.size:,} of {array.size:,} values are no codes, the first is {wrong[0]:g}; a label "
            "map holds integers from 0 to 255. Save it without interpolation, or name another column."
        )
    return array.astype(np.uint8)


def _sides(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


def _rows(affine: np.ndarray) -> str:
    """The three rows that matter, rounded."""
    return str((affine[:3].round(3) + 0.0).tolist())

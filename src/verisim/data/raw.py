"""What a reader returns: one image as it is stored, with what the file says about its meaning.

Axis and geometry convention of the whole package: arrays are (C, H, W) or (C, D, H, W), and an affine
maps the homogeneous index (d, h, w, 1) to millimetres in RAS+ (right, anterior, superior). A 2D image
uses d = 0. Readers and writers permute axes and never flip them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np

from verisim.errors import DataError

MAX_VALUES = 2**30  # numbers in one image (4 GiB as float32); headers that promise more are refused


@dataclass(frozen=True)
class RawImage:
    """One image in stored units."""

    array: np.ndarray  # (C, *S) float32, stored units (after a DICOM or NIfTI rescale)
    format: str  # "PNG", "JPEG", "TIFF", "NIfTI", "DICOM", "NPZ"
    stored: str  # number type in the file, e.g. "uint8", "int16", "12-bit"
    mode: str = "grey"  # "grey", "RGB", "palette", ... as stored
    range: tuple[float, float] | None = None  # black and white where the file fixes them, else None
    spacing: tuple[float, ...] | None = None  # mm per pixel, order of S; None = not stored
    affine: np.ndarray | None = None  # (4, 4) float64: (d, h, w, 1) -> mm RAS+; None = not stored
    modality: str = "unknown"  # "MR", "CT", "CXR", ...
    notes: tuple[str, ...] = ()  # what was assumed or converted while reading
    meta: dict = field(default_factory=dict)  # further facts; never who the patient is

    @property
    def size(self) -> tuple[int, ...]:
        """Spatial size S."""
        return self.array.shape[1:]


def check_size(shape: tuple[int, ...], path: Path | str, limit: int | None = None) -> None:
    """Refuse a header's promise of shape before any memory is taken for it."""
    limit = MAX_VALUES if limit is None else limit
    if len(shape) == 0 or any(int(s) < 1 for s in shape):
        raise DataError(f"{path}: its header gives the size {tuple(shape)}; every side must be at least 1. "
                        "The header is damaged: export the file again.")  # fmt: skip
    count = 1
    for s in shape:
        count *= int(s)  # Python integers do not overflow
    if count > limit:
        sides = " x ".join(str(int(s)) for s in shape)
        raise DataError(
            f"{path}: its header promises {sides} = {count:,} values ({count * 4 / 2**30:,.1f} GiB in "
            f"memory); at most {limit:,} are read. The header is damaged, or the image must be cut or "
            "reduced first."
        )


def require_finite(raw: RawImage, path: Path | str) -> RawImage:
    """raw, unless it holds NaN or Inf."""
    bad = int(raw.array.size - np.isfinite(raw.array).sum())
    if bad:
        raise DataError(
            f"{path}: {bad:,} of {raw.array.size:,} values are NaN or Inf. Repair the file (for example "
            "set them to the background value) or leave it out."
        )
    return raw


def spacing_of(affine: np.ndarray, dims: int) -> tuple[float, ...]:
    """mm per index step along the last `dims` of (d, h, w)."""
    steps = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return tuple(float(s) for s in steps[3 - dims :])


def orientation(affine: np.ndarray) -> str:
    """Where growing d, h and w lead, e.g. 'SAR' (superior, anterior, right)."""
    return "".join(str(code) for code in nib.orientations.aff2axcodes(affine))

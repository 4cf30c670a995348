"""One DICOM file: rescaled to its units, white made high, with geometry."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, convert_color_space

from verisim.data.dicom_header import open_dicom, provenance_of, safe_meta
from verisim.data.raw import RawImage, check_size, spacing_of
from verisim.errors import DataError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"}


def read_dicom(path: Path) -> RawImage:
    """A DICOM file as (1 or 3, H, W), or (C, D, H, W) where it holds several frames."""
    ds = open_dicom(path)
    _check_pixels(ds, path)
    stored, mode = _stored(ds, path)
    notes: list[str] = []
    array = _rescale(stored, ds, path)
    low, high = value_range(ds)
    photometric = str(ds.get("PhotometricInterpretation", ""))
    if photometric == "MONOCHROME1":
        array = low + high - array
        notes.append("MONOCHROME1: inverted, so that white is high")
    affine, spacing = _geometry(ds, array, notes, path)
    bits = int(ds.get("BitsStored", ds.get("BitsAllocated", 0)))
    meta = safe_meta(ds)
    provenance = provenance_of(ds)
    if provenance:
        meta["provenance"] = provenance
    fixed = (bits == 8 and int(ds.get("PixelRepresentation", 0)) == 0) or "range" in provenance
    window = _window(ds, (low, high) if photometric == "MONOCHROME1" else None)
    if window:
        meta["window"] = window
    return RawImage(array.astype(np.float32), "DICOM", f"{bits}-bit", mode, (low, high) if fixed else None,
                    spacing, affine, str(ds.get("Modality", "unknown") or "unknown"), tuple(notes), meta)  # fmt: skip


def _check_pixels(ds: Dataset, path: Path) -> None:
    """Size before decoding, and for uncompressed data the exact length."""
    frames, samples = int(ds.get("NumberOfFrames", 1) or 1), int(ds.get("SamplesPerPixel", 1))
    shape = (frames, int(ds.Rows), int(ds.Columns), samples)
    check_size(shape, path)
    syntax = str(getattr(ds.file_meta, "TransferSyntaxUID", ""))
    if not syntax:
        raise DataError(f"{path}: its header does not say how the pixels are coded (no Transfer Syntax UID). "
                        "Export it again from the archive.")  # fmt: skip
    if syntax in NATIVE and ds.get("PhotometricInterpretation") != "YBR_FULL_422":
        need = math.ceil(math.prod(shape) * int(ds.BitsAllocated) / 8)
        have = len(ds.PixelData)
        if have < need or have > need + need % 2:
            state = "truncated" if have < need else "longer than that"
            raise DataError(
                f"{path}: pixel data of {have:,} bytes is {state}: {shape[1]} rows x {shape[2]} columns x "
                f"{frames} frames of {ds.BitsAllocated} bits need {need:,}. Rows, Columns or the file are "
                "wrong: export it again."
            )


def _stored(ds: Dataset, path: Path) -> tuple[np.ndarray, str]:
    """Stored numbers (F, H, W, C) and their mode."""
    photometric = str(ds.get("PhotometricInterpretation", ""))
    try:
        array = ds.pixel_array
        if photometric == "PALETTE COLOR":
            array = apply_color_lut(array, ds)
            if array.dtype == np.uint16:
                array = (array >> 8).astype(np.uint8)
        elif photometric.startswith("YBR_FULL"):
            array = convert_color_space(array, photometric, "RGB")
    except Exception as error:  # codecs raise anything
        name = getattr(getattr(ds.file_meta, "TransferSyntaxUID", None), "name", "unknown")
        raise DataError(
            f"{path}: its pixels cannot be decoded (transfer syntax: {name}). {_first(error)} If a decoder is "
            "missing: pip install pylibjpeg[all]; otherwise export the file uncompressed."
        ) from error
    colour = int(ds.get("SamplesPerPixel", 1)) == 3 or photometric == "PALETTE COLOR"
    array = array if colour else array[..., None]
    array = array if array.ndim == 4 else array[None]
    return array, "RGB" if colour else "grey"


def _first(error: Exception) -> str:
    """First sentence of another library's message."""
    text = " ".join(str(error).split())
    return (text[:200] + ("..." if len(text) > 200 else "")).rstrip(".") + "."


def slopes(ds: Dataset) -> list[tuple[float, float]]:
    """(slope, intercept) of the image, or of each frame of an enhanced one."""
    shared = ds.get("SharedFunctionalGroupsSequence") or [Dataset()]
    frames = ds.get("PerFrameFunctionalGroupsSequence") or [Dataset()]
    found = []
    for frame in frames:
        group = (frame.get("PixelValueTransformationSequence")
                 or shared[0].get("PixelValueTransformationSequence") or [ds])[0]  # fmt: skip
        slope, inter = group.get("RescaleSlope"), group.get("RescaleIntercept")
        found.append((1.0 if slope is None else float(slope), 0.0 if inter is None else float(inter)))
    return found


def check_slopes(pairs: list[tuple[float, float]], path: Path) -> None:
    """Refuse a rescale that would wipe the image out."""
    for slope, inter in pairs:
        if slope == 0 or not math.isfinite(slope) or not math.isfinite(inter):
            raise DataError(f"{path}: rescale slope {slope} and intercept {inter} give no image. Repair the "
                            "header (0028,1052 and 0028,1053), usually 1 and 0.")  # fmt: skip


def _rescale(stored: np.ndarray, ds: Dataset, path: Path) -> np.ndarray:
    """(F, H, W, C) stored numbers -> (C, [F,] H, W) float64 in the file's units."""
    if "ModalityLUTSequence" in ds:
        values = np.asarray(apply_modality_lut(stored, ds), dtype=np.float64)
    else:
        pairs = slopes(ds)
        check_slopes(pairs, path)
        pairs = pairs if len(pairs) == len(stored) else pairs[:1] * len(stored)
        factor = np.array(pairs, dtype=np.float64).reshape(-1, 2, 1, 1, 1)
        values = stored * factor[:, 0] + factor[:, 1]
    values = np.moveaxis(values, -1, 0)  # (C, F, H, W)
    return values[:, 0] if values.shape[1] == 1 else values


def value_range(ds: Dataset) -> tuple[float, float]:
    """Smallest and largest value that the stored bits can mean, after the rescale."""
    bits, signed = int(ds.get("BitsStored", 16)), int(ds.get("PixelRepresentation", 0))
    ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    slope, inter = slopes(ds)[0]
    a, b = (e * slope + inter for e in ends)
    return (min(a, b), max(a, b))


def _window(ds: Dataset, mirror: tuple[float, float] | None) -> tuple[float, float] | None:
    """(black, white) of the first stored display window (linear), or None."""
    try:
        centre, width = ds.get("WindowCenter"), ds.get("WindowWidth")
        centre = centre[0] if isinstance(centre, pydicom.multival.MultiValue) else centre
        width = width[0] if isinstance(width, pydicom.multival.MultiValue) else width
        if centre is None or width is None or float(width) <= 1:
            return None
        low = float(centre) - 0.5 - (float(width) - 1) / 2  # PS3.3 C.11.2.1.2.1
        high = float(centre) - 0.5 + (float(width) - 1) / 2
    except (TypeError, ValueError, IndexError):
        return None  # a window is optional; an unreadable one is none
    return (low, high) if mirror is None else (sum(mirror) - high, sum(mirror) - low)


def plane(ds: Dataset, frame: Dataset | None = None) -> tuple[np.ndarray, ...] | None:
    """(position, row direction, column direction, [row step, column step]) in mm LPS, or None."""
    shared = (ds.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    frame = Dataset() if frame is None else frame

    def find(group: str, item: str):
        for place in (frame, shared):
            if place.get(group):
                return place.get(group)[0].get(item)
        return ds.get(item)

    position = find("PlanePositionSequence", "ImagePositionPatient")
    orientation = find("PlaneOrientationSequence", "ImageOrientationPatient")
    step = find("PixelMeasuresSequence", "PixelSpacing")
    if not position or not orientation or not step:
        return None
    try:
        p, o, s = (np.array([float(v) for v in x]) for x in (position, orientation, step))
    except (TypeError, ValueError):
        return None
    usable = p.shape == (3,) and o.shape == (6,) and s.shape == (2,) and (s > 0).all()
    if not usable or not np.isfinite(np.concatenate([p, o, s])).all():
        return None
    if not np.allclose(np.linalg.norm(o.reshape(2, 3), axis=1), 1, atol=1e-2) or abs(o[:3] @ o[3:]) > 1e-2:
        return None
    return p, o[:3], o[3:], s


def affine_from(at: tuple[np.ndarray, ...], step: np.ndarray) -> np.ndarray:
    """(d, h, w, 1) -> mm RAS+, from a plane and the mm step from slice to slice (LPS)."""
    position, row, column, spacing = at
    matrix = np.eye(4)
    matrix[:3, 0] = step
    matrix[:3, 1] = column * spacing[0]  # one row down: along the column direction
    matrix[:3, 2] = row * spacing[1]  # one column right: along the row direction
    matrix[:3, 3] = position
    return LPS_TO_RAS @ matrix


def _geometry(ds: Dataset, array: np.ndarray, notes: list[str], path: Path):
    """(affine or None, spacing or None) of a single image or of all frames."""
    frames = ds.get("PerFrameFunctionalGroupsSequence") or []
    first = plane(ds, frames[0] if frames else None)
    if array.ndim == 4:
        return _frames_geometry(ds, first, frames, notes, path)
    if first is None:
        for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
            value = ds.get(name)
            if value and len(value) == 2 and all(float(v) > 0 for v in value):
                notes.append(f"no position and orientation; pixel size from {name}")
                return None, (float(value[0]), float(value[1]))
        notes.append("no pixel size, position or orientation stored")
        return None, None
    depth = float(ds.get("SpacingBetweenSlices") or ds.get("SliceThickness") or 1.0)
    affine = affine_from(first, np.cross(first[1], first[2]) * depth)
    return affine, spacing_of(affine, 2)


def _frames_geometry(ds: Dataset, first, frames, notes: list[str], path: Path):
    """Geometry of a multi-frame file; frames must lie at equal steps to count as a volume in space."""
    planes = [plane(ds, f) for f in frames]
    if first is None or len(planes) < 2 or any(p is None for p in planes):
        notes.append("frames without positions: order as stored, spacing unknown")
        return None, None
    positions = np.stack([p[0] for p in planes if p is not None])
    steps = np.diff(positions, axis=0)
    step = steps.mean(axis=0)
    size = float(np.linalg.norm(step))
    if size < 1e-6 or np.abs(steps - step).max() > max(0.01 * size, 1e-3):
        raise DataError(f"{path}: its {len(planes)} frames do not lie at equal steps (unequal, repeated or "
                        "several stacks in one file). Split it into one file per stack.")  # fmt: skip
    affine = affine_from(first, step)
    return affine, spacing_of(affine, 3)

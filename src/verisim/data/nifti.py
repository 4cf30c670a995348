"""NIfTI through nibabel: (i, j, k) of the file becomes (w, h, d) of the array; the affine follows."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np

from verisim.data.raw import RawImage, check_size, spacing_of
from verisim.errors import DataError

nib.imageglobals.logger.setLevel(logging.CRITICAL)  # damage is reported here, by file name

GZIP = b"\x1f\x8b"


def read_nifti(path: Path, frame: int | None = None) -> RawImage:
    """A NIfTI file as (1, D, H, W), or (1, H, W) where it has one slice; `frame` picks one of a 4D file."""
    _check_name(path)
    try:
        image = nib.load(path)
    except nib.filebasedimages.ImageFileError as error:
        raise DataError(
            f"{path}: not a readable NIfTI file ({error}). It may be truncated or another format: "
            "export or download it again."
        ) from error
    if not isinstance(image, nib.Nifti1Image):  # Nifti2Image is a subclass
        raise DataError(f"{path}: {type(image).__name__} is not NIfTI. Convert it to .nii.gz first.")
    shape = tuple(int(s) for s in image.header["dim"][1 : 1 + max(1, int(image.header["dim"][0]))])
    check_size(shape, path)
    _check_length(path, image)
    dtype = image.get_data_dtype()
    if dtype.kind not in "uifb":
        kind = "complex" if dtype.kind == "c" else "colour or other structured"
        raise DataError(f"{path}: holds {kind} numbers ({dtype}); one real grey level per voxel is needed. "
                        "Save the magnitude or one channel.")  # fmt: skip
    notes: list[str] = []
    affine = _affine(image, path, notes)
    stored = _pick_frame(image, shape, frame, path)  # (X, Y, Z)
    slope, inter = image.header.get_slope_inter()  # None where the header means "no scaling"
    scaled = slope not in (None, 1.0) or inter not in (None, 0.0)
    eight = dtype == np.uint8 and not scaled
    array = np.asarray(stored, dtype=np.float32).T  # (D, H, W)
    provenance = _provenance(image)
    bounds = tuple(provenance["range"]) if "range" in provenance else (0.0, 255.0) if eight else None
    if array.shape[0] == 1:
        array = array[0]  # one slice: an image (H, W)
    array = np.ascontiguousarray(array)[None]
    meta: dict = {"provenance": provenance} if provenance else {}
    if not image.header["sform_code"] and not image.header["qform_code"]:
        meta["unplaced"] = True  # voxel sizes are known, the place in space is not
    return RawImage(array, "NIfTI", str(dtype.newbyteorder("=")), "grey", bounds,
                    spacing_of(affine, array.ndim - 1), affine,
                    provenance.get("modality", "unknown"), tuple(notes), meta)  # fmt: skip


def _check_name(path: Path) -> None:
    """Content and name must agree, or other programs will fail on it."""
    with path.open("rb") as file:
        packed = file.read(2) == GZIP
    if packed and not path.name.lower().endswith(".gz"):
        raise DataError(f"{path}: named .nii, but its content is compressed. Rename it to end in .nii.gz.")
    if not packed and path.name.lower().endswith(".gz"):
        raise DataError(f"{path}: named .nii.gz, but its content is not compressed (or not NIfTI at all). "
                        "Rename it to end in .nii, or export it again.")  # fmt: skip


def _check_length(path: Path, image: nib.Nifti1Image) -> None:
    """An uncompressed file must be as long as its header says (a compressed one fails on reading)."""
    if path.name.lower().endswith(".gz"):
        return
    header = image.header
    start = int(getattr(image.dataobj, "offset", 352))
    need = start + int(np.prod(header.get_data_shape(), dtype=np.int64)) * header.get_data_dtype().itemsize
    if path.stat().st_size < need:
        raise DataError(f"{path}: truncated: {path.stat().st_size:,} bytes where the header promises "
                        f"{need:,}. Copy or export it again.")  # fmt: skip


def _affine(image: nib.Nifti1Image, path: Path, notes: list[str]) -> np.ndarray:
    """(d, h, w, 1) -> mm RAS+; refuses a matrix that no scanner can have."""
    stored = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(stored).all() or abs(np.linalg.det(stored[:3, :3])) < 1e-12:
        raise DataError(
            f"{path}: its affine is singular or not finite, so voxel sizes and orientation are unknown: "
            f"{stored[:3].round(4).tolist()}. Repair the sform/qform in the header (for example from the "
            "original DICOM) before using the file."
        )
    sform, scode = image.get_sform(coded=True)
    qform, qcode = image.get_qform(coded=True)
    if scode and qcode and qform is not None:
        corner = np.array([*(np.array((image.shape + (1, 1))[:3]) - 1), 1.0])
        off = float(np.abs((sform - qform) @ corner)[:3].max())
        if off > 0.5:
            notes.append(f"sform and qform disagree by up to {off:.1f} mm; the sform is used")
    if not scode and not qcode:
        notes.append("no orientation stored (sform and qform codes are 0); only voxel sizes are known")
    return stored[:, [2, 1, 0, 3]]  # columns i, j, k -> k, j, i


def _pick_frame(image: nib.Nifti1Image, shape: tuple[int, ...], frame: int | None, path: Path) -> np.ndarray:
    """The (X, Y, Z) volume of a 2D, 3D or (with `frame`) 4D file."""
    frames = int(np.prod(shape[3:], dtype=np.int64)) if len(shape) > 3 else 1
    if frames > 1 and frame is None:
        sides = " x ".join(map(str, shape))
        raise DataError(f"{path}: has {len(shape)} dimensions ({sides}): {frames} volumes in one file. "
                        "Save the one you mean as a file of its own; in Python, read_nifti(path, frame=0) reads one.")  # fmt: skip
    if frame is not None and not 0 <= frame < frames:
        raise DataError(f"{path}: frame {frame} asked for; it has frames 0 to {frames - 1}.")
    full = shape[:3] + (1,) * max(0, 3 - len(shape))
    if frames == 1:
        return np.asanyarray(image.dataobj).reshape(full, order="F")
    if len(shape) > 4:
        return np.asanyarray(image.dataobj).reshape((*full, frames), order="F")[..., frame]
    return np.asanyarray(image.dataobj[..., frame])


def _provenance(image: nib.Nifti1Image) -> dict:
    """The provenance that verisim wrote into this file's header extension, or {}."""
    for extension in image.header.extensions:
        content = extension.get_content()
        text = content.decode("utf-8", "replace") if isinstance(content, bytes) else str(content)
        if text.startswith('{"verisim"'):
            return json.loads(text.rstrip("\0 "))["verisim"]
    return {}


def write_nifti(
    array: np.ndarray, affine: np.ndarray | None, spacing, provenance: dict, packed: bool
) -> bytes:
    """A NIfTI file's bytes: array (D, H, W) float32, affine on (d, h, w), provenance in the header."""
    if affine is None:
        step = (1.0,) * 3 if spacing is None else ((1.0,) * (3 - len(spacing)) + tuple(spacing))
        affine = np.diag([*step, 1.0])
    matrix = np.asarray(affine, dtype=np.float64)[:, [2, 1, 0, 3]]
    image = nib.Nifti1Image(array.T, matrix)
    image.set_sform(matrix, code=1)
    image.set_qform(matrix, code=1, strip_shears=True)
    if not np.allclose(image.get_qform(), matrix, atol=1e-3):
        image.set_qform(None, code=0)  # a sheared grid has no qform
    image.header.set_xyzt_units("mm")
    note = f"SYNTHETIC by verisim; model {provenance.get('model', 'unknown')}; seed {provenance.get('seed')}"
    image.header["descrip"] = note.encode("ascii", "replace")[:79]
    text = json.dumps({"verisim": provenance}, sort_keys=True)
    image.header.extensions.append(nib.nifti1.Nifti1Extension(6, text.encode()))
    data = image.to_bytes()
    return gzip.compress(data, compresslevel=6, mtime=0) if packed else data

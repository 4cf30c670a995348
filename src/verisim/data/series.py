"""A DICOM series: many files, one volume, in the order of space. What does not fit is an error."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from verisim.data.dicom import affine_from, plane, read_dicom, slopes
from verisim.data.dicom_header import head_meta, open_dicom
from verisim.data.raw import RawImage, check_size, spacing_of
from verisim.errors import DataError

TOLERANCE = 0.01  # of the slice step: how unequal steps may be


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files directly in a folder, by name or by their mark; a DICOMDIR is never followed."""
    found = []
    for path in sorted(p for p in folder.iterdir() if p.is_file() and p.name.upper() != "DICOMDIR"):
        if path.suffix.lower() in (".dcm", ".dicom", ".ima") or (path.suffix == "" and has_mark(path)):
            found.append(path)
    return found


def has_mark(path: Path) -> bool:
    """Whether 'DICM' stands after the first 128 bytes."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def group_series(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Files by the hash of their SeriesInstanceUID; unreadable files stand alone under their own name."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        try:
            series = head_meta(path)["series"]
        except DataError:
            series = ""  # reading the file will report why
        groups[series or path.name].append(path)
    return dict(groups)


def order_slices(files: Sequence[Path], where: Path | str) -> tuple[list[Path], np.ndarray, list[str]]:
    """(files in the order of space, affine (4, 4), notes); DataError for what is no regular stack."""
    heads = [open_dicom(f, pixels=False) for f in files]
    _require_one_series(heads, files, where)
    planes = [plane(ds) for ds in heads]
    lacking = [f.name for f, p in zip(files, planes) if p is None]
    if lacking:
        raise DataError(f"{where}: {len(lacking)} of {len(files)} slices have no usable position, orientation "
                        f"or pixel spacing ({some(lacking)}), so their order in space is unknown.")  # fmt: skip
    at = [p for p in planes if p is not None]
    _require_same_grid(heads, at, files, where)
    normal = np.cross(at[0][1], at[0][2])
    depth = np.array([p[0] @ normal for p in at])  # mm along the normal
    order = np.argsort(depth, kind="stable")
    files, at, depth = [files[i] for i in order], [at[i] for i in order], depth[order]
    step = _step(files, at, depth, where)
    notes = []
    tilt = float(np.degrees(np.arccos(np.clip(step @ normal / max(np.linalg.norm(step), 1e-9), -1, 1))))
    if tilt > 0.1:
        notes.append(f"tilted stack (gantry tilt {tilt:.1f} degrees): the affine keeps the shear")
    return list(files), affine_from(at[0], step), notes


def _require_one_series(heads: Sequence[Dataset], files: Sequence[Path], where: Path | str) -> None:
    counts = Counter(str(ds.get("SeriesInstanceUID", "") or "") for ds in heads)
    if len(counts) > 1:
        sizes = " + ".join(str(n) for n in counts.values())
        raise DataError(f"{where}: {len(files)} files of {len(counts)} different series ({sizes} files). Put "
                        "each series into a folder of its own.")  # fmt: skip
    if any(int(ds.get("NumberOfFrames", 1) or 1) > 1 for ds in heads) and len(files) > 1:
        raise DataError(f"{where}: several multi-frame files in one series. Read each file by itself.")


def _require_same_grid(heads, at, files: Sequence[Path], where: Path | str) -> None:
    """All slices with the rows, columns, pixel spacing, direction and rescale of the first."""
    first, zero = heads[0], at[0]
    check_size((len(files), int(first.Rows), int(first.Columns)), where)
    for ds, p, file in zip(heads, at, files):
        if (ds.Rows, ds.Columns) != (first.Rows, first.Columns):
            raise DataError(f"{where}: {file.name} has {ds.Rows} x {ds.Columns} pixels, {files[0].name} "
                            f"{first.Rows} x {first.Columns}. They are not one volume.")  # fmt: skip
        if not all(np.allclose(a, b, atol=1e-3) for a, b in zip(p[1:], zero[1:])):
            raise DataError(f"{where}: {file.name} has another orientation or pixel spacing than "
                            f"{files[0].name}. They are not one volume (a localiser?).")  # fmt: skip
    pairs = {slopes(ds)[0] for ds in heads}
    if len(pairs) > 1 and str(first.get("Modality", "")) != "PT":  # PET rescales each slice by design
        raise DataError(f"{where}: {len(pairs)} different rescale slopes/intercepts within one series "
                        f"({some([f'{s:g}, {i:g}' for s, i in sorted(pairs)])}). The slices are not "
                        "comparable: export the series again, or correct the headers.")  # fmt: skip


def _step(files: Sequence[Path], at, depth: np.ndarray, where: Path | str) -> np.ndarray:
    """mm vector (LPS) from slice to slice, after checking that the slices lie evenly."""
    if len(files) == 1:
        head = open_dicom(files[0], pixels=False)
        thick = float(head.get("SpacingBetweenSlices") or head.get("SliceThickness") or 1.0)
        return np.cross(at[0][1], at[0][2]) * thick
    gaps = np.diff(depth)
    usual = float(np.median(gaps))
    for i in np.flatnonzero(gaps < max(1e-3, 0.01 * usual)).tolist():
        raise DataError(f"{where}: {files[i].name} and {files[i + 1].name} lie at the same position. Remove "
                        "the repeated slice, or split several time points or echoes.")  # fmt: skip
    for i in np.flatnonzero(np.abs(gaps - usual) > max(TOLERANCE * usual, 1e-3)).tolist():
        ratio = gaps[i] / usual
        missing = round(ratio) - 1
        if missing >= 1 and abs(ratio - round(ratio)) < 0.05:
            raise DataError(f"{where}: {missing} slice(s) missing between {files[i].name} and "
                            f"{files[i + 1].name} ({gaps[i]:.2f} mm apart, {usual:.2f} mm elsewhere). "
                            "Export the whole series again.")  # fmt: skip
        raise DataError(f"{where}: unequal slice spacing: {gaps[i]:.2f} mm between {files[i].name} and "
                        f"{files[i + 1].name}, {usual:.2f} mm elsewhere. Resample to equal spacing "
                        "first.")  # fmt: skip
    positions = np.stack([p[0] for p in at])
    step = (positions[-1] - positions[0]) / (len(files) - 1)
    off = float(np.abs(positions - positions[0] - np.arange(len(files))[:, None] * step).max())
    if off > max(0.05 * usual, 0.1):
        raise DataError(f"{where}: the slices are shifted sideways against each other by up to {off:.2f} mm. "
                        "They are not one straight stack.")  # fmt: skip
    return step


def read_series(source: Path | Sequence[Path]) -> RawImage:
    """A folder of DICOM files, or a list of them, as one volume (1, D, H, W) sorted along its normal."""
    files = dicom_files(source) if isinstance(source, Path) else list(source)
    where = source if isinstance(source, Path) else files[0].parent if files else "series"
    if not files:
        raise DataError(f"{where}: no DICOM files in this folder.")
    files, affine, notes = order_slices(files, where)
    slices = [read_dicom(f) for f in files]
    if any(s.array.shape != slices[0].array.shape or s.array.ndim != 3 for s in slices):
        raise DataError(f"{where}: the slices differ in colour or frames. They are not one volume.")
    first = slices[0]
    array = np.stack([s.array for s in slices], axis=1)  # (C, D, H, W)
    meta = {k: v for k, v in first.meta.items() if k in ("patient", "series", "deidentified", "synthetic")}
    windows = {s.meta.get("window") for s in slices}
    if len(windows) == 1 and None not in windows:
        meta["window"] = windows.pop()
    return RawImage(array, "DICOM", first.stored, first.mode, first.range, spacing_of(affine, 3), affine,
                    first.modality, (*first.notes, *notes), meta)  # fmt: skip


def some(items: Sequence[str], limit: int = 5) -> str:
    """Up to `limit` items, and how many more there are."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more

"""Makers of good and bad files for the data tests."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid


def png(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    """array (H, W) or (H, W, C) as a PNG, converted to `mode` if given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path)
    return path


def noise(seed: int, size: tuple[int, ...] = (24, 20)) -> np.ndarray:
    """uint8 noise that no other seed gives."""
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def manifest(folder: Path, rows: list[dict[str, str]]) -> None:
    """manifest.csv from rows."""
    columns = list(rows[0])
    lines = [",".join(columns), *(",".join(r[c] for c in columns) for r in rows)]
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")


def png_folder(folder: Path, n: int = 12, label: bool = True, split: bool = False) -> Path:
    """n different images of n / 2 patients with two classes."""
    rows = []
    for i in range(n):
        png(folder / "images" / f"{i:03d}.png", noise(i, (32, 32)))
        rows.append({"image": f"images/{i:03d}.png", "patient": f"p{i // 2}"})
        if label:
            rows[-1]["label"] = "abcd"[i % 2]
        if split:
            rows[-1]["split"] = "test" if i // 2 == 0 else "train"
    manifest(folder, rows)
    return folder


def huge_png(path: Path, width: int = 60_000, height: int = 60_000) -> Path:
    """A valid PNG header that promises width x height, and next to no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100))
                     + chunk(b"IEND", b""))  # fmt: skip
    return path


def nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """array (X, Y, Z) as NIfTI."""
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def dicom(
    path: Path,
    pixels: np.ndarray,  # (H, W) uint16, or (F, H, W)
    *,
    series: str = "1.2.3.4",
    position: tuple[float, float, float] | None = (0.0, 0.0, 0.0),
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
    spacing: tuple[float, float] = (0.5, 0.75),
    photometric: str = "MONOCHROME2",
    change=None,  # function(ds) for further spoiling
) -> Path:
    """A minimal MR file with personal data in its header."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, generate_uid()
    ds.SeriesInstanceUID, ds.StudyInstanceUID = series, "1.2.3"
    ds.PatientName, ds.PatientID, ds.Modality = "Secret^Person", "SECRET-4711", "MR"
    ds.InstitutionName, ds.PatientBirthDate = "SECRET clinic", "19700101"
    if position is not None:
        ds.ImagePositionPatient, ds.ImageOrientationPatient = list(position), list(orientation)
        ds.PixelSpacing = list(spacing)
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, photometric
    ds.Rows, ds.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        ds.NumberOfFrames = len(pixels)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = pixels.astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if change is not None:
        change(ds)
    dcmwrite(path, ds, enforce_file_format=True)
    return path


def stack(folder: Path, n: int = 6, step: float = 2.0, **settings) -> list[Path]:
    """A DICOM series of n slices; slice k has the value 10 k + 1 in its corner. File names are shuffled."""
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(0).permutation(n)
    files = []
    for k in range(n):
        pixels = np.full((4, 5), 100, dtype=np.uint16)
        pixels[0, 0] = 10 * k + 1
        files.append(
            dicom(folder / f"{order[k]:02d}.dcm", pixels, position=(-3.0, 4.0, 7.0 + k * step), **settings)
        )
    return files

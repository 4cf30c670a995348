""".npz files: sets of images in the MedMNIST layout, and single images that verisim wrote.

Sets:   {train,val,test}_images (N, ...) with {split}_labels, or image(s) (N, ...) with label(s), patient(s)
        or subject, name. Images are (H, W), (H, W, 3) or (D, H, W).
Single: image (C, *S) beside a 'verisim' JSON text.
Object arrays (pickle) are refused from their header, before anything is loaded.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock

import numpy as np

from verisim.data.raw import RawImage, check_size
from verisim.errors import DataError

MAX_BYTES = 2**34  # of one array: sets are larger than single images
PATIENT_KEYS = ("patient", "patients", "subject", "subjects")


@dataclass(frozen=True)
class NpzSet:
    """One array of images inside an .npz file, with what is known of each image."""

    key: str  # name of the array
    split: str | None  # "train", "val", "test" or None
    shape: tuple[int, ...]  # (N, ...)
    fields: tuple[dict[str, str], ...]  # per image: label columns, patient


def headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and number type of every array, read without loading any of them."""
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.filename.endswith(".npy"):
                    with archive.open(info) as file:
                        found[info.filename[:-4]] = _header(file, info.file_size, f"{path} [{info.filename}]")
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        raise DataError(f"{path}: not a readable .npz file ({error}). It may be truncated: copy or export "
                        "it again.") from error  # fmt: skip
    if not found:
        raise DataError(f"{path}: holds no arrays. Save images with numpy.savez(path, images=...).")
    return found


def _header(file, stored: int, where: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of one .npy member of `stored` bytes; refuses pickle and false sizes."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise DataError(f"{where}: holds Python objects (pickle), which could run code when loaded; it is "
                        "refused. Save plain numbers or texts instead.")  # fmt: skip
    if shape and 0 not in shape:
        check_size(shape, where, limit=MAX_BYTES // max(1, dtype.itemsize))
    need = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if stored < need:
        raise DataError(f"{where}: truncated: {stored:,} bytes where {need:,} are promised. Export it again.")
    return shape, dtype


def sets_in(path: Path) -> list[NpzSet]:
    """The image sets of an .npz file; DataError where there is none."""
    known = headers(path)
    keys: list[tuple[str, str | None]] = [
        (f"{s}_images", s) for s in ("train", "val", "test") if f"{s}_images" in known
    ]
    keys += [(k, None) for k in ("images", "image") if k in known and not keys][:1]
    usable = [(k, s) for k, s in keys if len(known[k][0]) in (3, 4, 5) and known[k][1].kind in "uifb"]
    if not usable:
        has = ", ".join(f"{k} {shape} {dtype}" for k, (shape, dtype) in list(known.items())[:8])
        raise DataError(
            f"{path}: no image set found; it holds: {has}. Expected 'train_images' (and 'test_images', "
            "'train_labels', ...) or 'images' of shape (N, H, W), (N, H, W, 3) or (N, D, H, W)."
        )
    with np.load(path, allow_pickle=False) as arrays:
        return [NpzSet(k, s, known[k][0], _fields(arrays, known, k, s)) for k, s in usable]


def _fields(arrays, known: dict, key: str, split: str | None) -> tuple[dict[str, str], ...]:
    """Per image the texts of its labels, patient and name, from arrays of the same length."""
    n = known[key][0][0]
    prefix = f"{split}_" if split else ""
    rows: list[dict[str, str]] = [{} for _ in range(n)]
    for name, column in [(f"{prefix}{k}", "label") for k in ("labels", "label")] + [
        (f"{prefix}{k}", "patient") for k in PATIENT_KEYS
    ] + [(f"{prefix}{k}", "name") for k in ("names", "name")]:  # fmt: skip
        shape = known[name][0] if name in known else ()
        if not shape or shape[0] != n or len(shape) > 2 or known[name][1].kind not in "uifbUS":
            continue
        values = arrays[name].reshape(n, -1)
        for j in range(values.shape[1]):
            title = column if values.shape[1] == 1 else f"{column}_{j}"
            for row, value in zip(rows, values[:, j]):
                row[title] = value.decode() if isinstance(value, bytes) else str(value)
    return tuple(rows)


_ONE_AT_A_TIME = Lock()  # so that threads wait for one copy instead of loading eight


@lru_cache(maxsize=2)
def _array(path: str, key: str, stamp: tuple[int, int]) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[key]


def forget() -> None:
    """Let go of the sets kept in memory."""
    _array.cache_clear()


def read_npz_item(path: Path, key: str, index: int) -> RawImage:
    """Image `index` of the set `key`, as (C, *S)."""
    stat = path.stat()
    with _ONE_AT_A_TIME:
        array = _array(str(path), key, (stat.st_mtime_ns, stat.st_size))
    if not 0 <= index < len(array):
        raise DataError(f"{path} [{key}]: image {index} asked for; it holds {len(array)}.")
    item = array[index]
    colour = item.ndim >= 3 and item.shape[-1] in (3, 4)
    pixels = np.moveaxis(item[..., :3], -1, 0) if colour else item[None]
    bounds = (0.0, 255.0) if item.dtype == np.uint8 else (0.0, 1.0) if item.dtype == bool else None
    return RawImage(np.ascontiguousarray(pixels, np.float32), "NPZ", str(item.dtype),
                    "RGB" if colour else "grey", bounds)  # fmt: skip


def read_npz(path: Path) -> RawImage:
    """A single image that verisim wrote: image (C, *S), with its range, geometry and provenance."""
    known = headers(path)
    if "verisim" not in known or "image" not in known:
        raise DataError(f"{path}: a set of images, not one image. Read it as a folder would be read, with "
                        "load_images.")  # fmt: skip
    with np.load(path, allow_pickle=False) as arrays:
        provenance = json.loads(str(arrays["verisim"]))
        array = arrays["image"].astype(np.float32)
        affine = arrays["affine"].astype(np.float64) if "affine" in known else None
    spacing = tuple(provenance["spacing"]) if provenance.get("spacing") else None
    bounds = tuple(provenance["range"]) if "range" in provenance else None
    return RawImage(array, "NPZ", str(known["image"][1]), "grey" if len(array) == 1 else "RGB", bounds,
                    spacing, affine, provenance.get("modality", "unknown"), (), {"provenance": provenance})  # fmt: skip

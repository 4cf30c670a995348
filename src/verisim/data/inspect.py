"""What one image file is: the facts that `data check` counts and compares."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from verisim.data.listing import Entry
from verisim.data.loading import digest_of, in_threads, sides
from verisim.data.raw import RawImage, orientation
from verisim.data.resample import resize
from verisim.errors import DataError

LABEL_VALUES = 64  # integer images with at most so many different values are taken for label maps


@dataclass(frozen=True)
class Facts:
    """What is known of one image."""

    entry: Entry
    role: str  # manifest column that names it, or "image"
    error: str = ""  # why it cannot be read; "" = it can
    format: str = ""
    size: str = ""  # "256 x 256"
    mode: str = ""  # "grey", "RGB" ...
    stored: str = ""  # "uint8" ...
    spacing: tuple[float, ...] | None = None
    orientation: str = ""  # where d, h, w lead, e.g. "SAR"; "" = not stored
    low: float = 0.0  # smallest finite value
    high: float = 0.0  # largest
    not_finite: int = 0  # values that are NaN or Inf
    constant: bool = False
    label_map: bool = False  # looks like a mask or label map
    bytes_digest: str = ""  # sha256 of the file
    pixels_digest: str = ""  # sha256 of the decoded values
    notes: tuple[str, ...] = ()
    deidentified: bool = True  # False: DICOM without the mark that names were removed
    burned_in: bool = False  # DICOM says that texts are burned into the pixels
    executable: bool = False  # DICOM preamble that looks like a program
    synthetic: bool = False
    thumb: np.ndarray | None = None  # (256,) normalised thumbnail, for near-duplicates


def inspect_all(entries: Sequence[tuple[Entry, str]], thumbs: bool, progress: bool) -> list[Facts]:
    """Facts of every (entry, role), in order."""
    work = in_threads(lambda pair: inspect(pair[0], pair[1], thumbs), entries, "Checking images", progress)
    return list(work)


def inspect(entry: Entry, role: str, thumbs: bool = False) -> Facts:
    """Read one image and describe it; never raises for a bad file."""
    try:
        raw = entry.read(finite=False)
        return _describe(entry, role, raw, thumbs)
    except DataError as error:
        return Facts(entry, role, error=_short(str(error), entry))
    except OSError as error:
        return Facts(entry, role, error=f"cannot be read ({error.strerror or error})")


def _short(text: str, entry: Entry) -> str:
    """The message without the path that the table names anyway."""
    for path in (str(entry.path), entry.name, entry.path.name):
        text = text.removeprefix(f"{path}: ")
    return text


def _describe(entry: Entry, role: str, raw: RawImage, thumbs: bool) -> Facts:
    array = raw.array
    finite = np.isfinite(array)
    bad = int(array.size - finite.sum())
    values = array if bad == 0 else array[finite]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    shape = np.array(array.shape).tobytes()
    return Facts(
        entry,
        role,
        format=raw.format,
        size=sides(raw.size),
        mode=raw.mode,
        stored=raw.stored,
        spacing=raw.spacing,
        orientation="" if raw.affine is None else orientation(raw.affine),
        low=low,
        high=high,
        not_finite=bad,
        constant=bool(values.size and low == high and bad == 0),
        label_map=_is_label_map(values, low, high),
        bytes_digest=digest_of(entry),
        pixels_digest=hashlib.sha256(shape + np.ascontiguousarray(array).tobytes()).hexdigest(),
        notes=raw.notes,
        deidentified=bool(raw.meta.get("deidentified", True)),
        burned_in=bool(raw.meta.get("burned_in", False)),
        executable=bool(raw.meta.get("preamble", False)),
        synthetic=bool(raw.meta.get("synthetic") or raw.meta.get("provenance", {}).get("synthetic")),
        thumb=thumbnail(array) if thumbs and bad == 0 else None,
    )


def _is_label_map(values: np.ndarray, low: float, high: float) -> bool:
    """Few different integers: a mask or label map, not an image."""
    if not values.size or low == high or low < 0:
        return False
    some = np.unique(values.reshape(-1)[:: max(1, values.size // 20_000)])
    if len(some) > LABEL_VALUES or not (some == np.round(some)).all():
        return False
    return len(np.unique(values)) <= LABEL_VALUES


def thumbnail(array: np.ndarray) -> np.ndarray | None:
    """(256,) float32 of zero mean and unit length; None for an image without contrast."""
    grey = array.mean(axis=0, keepdims=True)
    while grey.ndim > 3:
        grey = grey[:, grey.shape[1] // 2]  # middle slice
    small = resize(grey, (16, 16)).reshape(-1)
    small = small - small.mean()
    norm = float(np.linalg.norm(small))
    return small / norm if norm > 1e-6 else None


def near_pairs(facts: Sequence[Facts], least: float = 0.999) -> list[tuple[str, str, float]]:
    """Pairs of images whose thumbnails correlate at least so much, though their values differ."""
    have = [f for f in facts if f.thumb is not None]
    if len(have) < 2:
        return []
    matrix = np.stack([f.thumb for f in have if f.thumb is not None])  # (N, 256)
    pairs = []
    for start in range(0, len(have), 1024):
        block = matrix[start : start + 1024] @ matrix.T  # (1024, N)
        for i, j in zip(*np.nonzero(block >= least)):
            a, b = have[start + i], have[j]
            if start + i < j and a.pixels_digest != b.pixels_digest:
                pairs.append((a.entry.name, b.entry.name, float(block[i, j])))
    return pairs

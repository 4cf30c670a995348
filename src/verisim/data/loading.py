"""Read and resize many images in threads; unreadable ones come back with their reason."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from verisim.data.grids import as_codes, require_same_grid
from verisim.data.intensity import Window
from verisim.data.listing import Entry
from verisim.data.npz import forget
from verisim.data.raw import RawImage, spacing_of
from verisim.data.readers import read_image
from verisim.data.resample import Fit, content_size, fit_image
from verisim.errors import DataError

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # RGB -> grey, ITU-R BT.601
SKIP_HINT = "Mend or remove it, or leave such files out: on_error='skip' (--data.on_error skip)."
QUIET_BELOW = 300  # images; fewer are read without a progress bar


@dataclass(frozen=True)
class Plan:
    """What every image is brought to."""

    size: tuple[int, ...]  # (H, W) or (D, H, W)
    channels: int  # of each file: 1 or 3
    low: float  # value of black
    high: float  # value of white
    window: Window  # black and white in stored units, or how to find them
    fit: Fit  # "pad", "crop" or "stretch"
    enlarge: bool  # whether small images may be interpolated up
    on_error: str  # "skip" or "stop"
    contrasts: tuple[str, ...] = ()  # names of the channels, where each is a file of its own
    mask: str = ""  # where label maps come from

    def __post_init__(self) -> None:
        if len(self.size) not in (2, 3) or min(self.size) < 1:
            raise DataError(
                f"size={self.size}: must be (height, width) or (depth, height, width), each >= 1."
            )
        if self.channels not in (1, 3):
            raise DataError(f"channels={self.channels}: allowed are 1 (grey) and 3 (RGB).")
        if self.fit not in ("pad", "crop", "stretch"):
            raise DataError(f"fit='{self.fit}': allowed are pad, crop, stretch.")
        if self.on_error not in ("skip", "stop"):
            raise DataError(f"on_error='{self.on_error}': allowed are skip, stop.")
        if not self.low < self.high:
            raise DataError(f"Range [{self.low:g}, {self.high:g}]: black must be below white.")
        if self.contrasts and self.channels != 1:
            raise DataError(
                f"channels={self.channels} with the contrasts {', '.join(self.contrasts)}: each contrast is one "
                "grey channel. Leave channels out."
            )


@dataclass(frozen=True)
class Loaded:
    """One image after reading and resizing."""

    entry: Entry
    raws: tuple[RawImage, ...]  # what each contrast's file says; their arrays are emptied
    pixels: np.ndarray  # (C, *size) float32 stored units, NaN = padding
    affine: np.ndarray | None  # (4, 4): new (d, h, w, 1) -> mm RAS+
    spacing: tuple[float, ...] | None  # mm per new pixel
    digest: str  # sha256 of the file's bytes (and the place inside it)
    mask: np.ndarray | None = None  # (1, *size) uint8 codes
    lost: tuple[int, ...] = ()  # codes of the file that none of its pixels kept

    @property
    def raw(self) -> RawImage:
        """What the first file says."""
        return self.raws[0]


def load_one(entry: Entry, plan: Plan) -> Loaded:
    """One image at the asked size, in stored units; DataError says why not."""
    raw = entry.read()
    array = _channels(_dimensions(raw, plan, entry.name), plan.channels, entry.name)
    raws = [raw]
    for path in entry.others:
        raws.append(read_image(path))
        require_same_grid(raw, raws[-1], entry.name, str(path))
        array = np.concatenate([array, _channels(_dimensions(raws[-1], plan, str(path)), 1, str(path))])
    content = content_size(array.shape[1:], plan.size, plan.fit)
    if not plan.enlarge and any(c > h for c, h in zip(content, array.shape[1:])):
        raise DataError(
            f"{entry.name}: {sides(array.shape[1:])} pixels would have to be enlarged to {sides(plan.size)}, "
            "which invents detail. Ask for a smaller size, or allow it with enlarge=True."
        )
    pixels, back = fit_image(array, plan.size, plan.fit)
    affine = None if raw.affine is None else raw.affine @ back
    spacing = _spacing(raw, back, len(plan.size))
    mask, lost = (None, ()) if entry.mask is None else load_mask(entry.mask, raw, entry.name, plan)
    empty = tuple(replace(r, array=np.empty((0,))) for r in raws)
    return Loaded(entry, empty, pixels, affine, spacing, digest_of(entry), mask, lost)


def load_mask(path: Path, image: RawImage, name: str, plan: Plan) -> tuple[np.ndarray, tuple[int, ...]]:
    """Codes (1, *size) uint8 of the label map of `image` (called `name`), and those that vanish by resizing."""
    raw = read_image(path)
    require_same_grid(image, raw, name, str(path))
    codes = as_codes(replace(raw, array=_dimensions(raw, plan, str(path))), str(path))
    fitted, _ = fit_image(codes, plan.size, plan.fit, codes=True)
    return fitted, tuple(np.setdiff1d(codes, fitted).tolist())


def _dimensions(raw: RawImage, plan: Plan, name: str) -> np.ndarray:
    """raw.array with as many axes as the asked size."""
    have, want = raw.array.ndim - 1, len(plan.size)
    if have == want:
        return raw.array
    if have == 3 and raw.array.shape[1] == 1:
        return raw.array[:, 0]
    if have == 3:
        raise DataError(f"{name}: a volume of {sides(raw.size)}, where an image of {sides(plan.size)} is asked "
                        "for. Give three numbers (depth, height, width).")  # fmt: skip
    raise DataError(f"{name}: an image of {sides(raw.size)}, where a volume of {sides(plan.size)} is asked for. "
                    "Give two numbers (height, width).")  # fmt: skip


def _channels(array: np.ndarray, channels: int, name: str) -> np.ndarray:
    """(C, *S) with the asked number of channels: colour -> luma, grey -> repeated."""
    if len(array) == channels:
        return array
    if len(array) == 1:
        return np.repeat(array, channels, axis=0)
    if len(array) == 3 and channels == 1:
        if (array[1:] == array[:1]).all():
            return array[:1]  # grey stored as RGB: exact
        return np.tensordot(LUMA, array, axes=1)[None]
    raise DataError(f"{name}: {len(array)} channels cannot become {channels}. Save one file per channel.")


def _spacing(raw: RawImage, back: np.ndarray, dims: int) -> tuple[float, ...] | None:
    """mm per pixel after resampling."""
    if raw.affine is not None:
        return spacing_of(raw.affine @ back, dims)
    if raw.spacing is None:
        return None
    scale = np.diag(back)[3 - dims : 3]
    return tuple(float(s * k) for s, k in zip(raw.spacing[-dims:], scale))


def digest_of(entry: Entry) -> str:
    """sha256 over the bytes of the image's files, in order, and its place inside a set."""
    total = hashlib.sha256(repr(entry.item).encode())
    for path in entry.files:
        total.update(file_digest(path, path.stat().st_mtime_ns).encode())
    return total.hexdigest()


_KNOWN: dict[tuple[Path, int], str] = {}  # .npz sets are hashed once, not once per image


def file_digest(path: Path, stamp: int) -> str:
    """sha256 of a file's bytes; stamp is its time of change."""
    if (path, stamp) not in _KNOWN:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if path.suffix != ".npz":
            return found
        _KNOWN[path, stamp] = found
    return _KNOWN[path, stamp]


def load_all(
    entries: Sequence[Entry], plan: Plan, progress: bool
) -> tuple[list[Loaded], list[tuple[str, str]]]:
    """(images read, (name, reason) of the others), in order; with on_error='stop' the first failure raises."""

    def attempt(entry: Entry) -> Loaded | DataError:
        try:
            return load_one(entry, plan)
        except DataError as error:
            return error

    good: list[Loaded] = []
    bad: list[tuple[str, str]] = []
    for entry, result in zip(entries, in_threads(attempt, entries, "Reading images", progress)):
        if isinstance(result, Loaded):
            good.append(result)
        elif plan.on_error == "stop":
            raise DataError(f"{result} {SKIP_HINT}") from result
        else:
            bad.append((entry.name, str(result)))
    return good, bad


def in_threads(work, items: Sequence, title: str, progress: bool) -> Iterator:
    """work(item) for every item, in order, with a progress bar where there are many."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    show = progress and len(items) >= QUIET_BELOW
    with (
        Progress(*columns, console=Console(stderr=True), transient=True, disable=not show) as bar,
        ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool,
    ):
        task = bar.add_task(title, total=len(items))
        for result in pool.map(work, items):
            bar.advance(task)
            yield result
    forget()


def sides(size: Sequence[int]) -> str:
    """'64 x 64'."""
    return " x ".join(str(s) for s in size)

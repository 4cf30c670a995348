"""Where images come from: a user's folder or a built-in phantom, behind one settings class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from verisim.data.folder import Dataset, load_images
from verisim.errors import VerisimError, pick
from verisim.phantoms import PHANTOMS


@dataclass(frozen=True)
class DataSettings:
    """Settings of the data.

    Args:
        folder: folder of images (PNG, JPEG, TIFF, NIfTI, DICOM, npz), with manifest.csv or without;
            empty = use the phantom
        phantom: built-in procedural images to use without a folder
        count: number of phantom images to make (a fifth of them for testing)
        size: side of the images in pixels
        channels: 1 = grey, 3 = colour
        label: manifest column (or 'label' for phantoms) to condition on; empty = unconditional
        fit: how images that are not square are made so
        enlarge: interpolate images up that are smaller than size, instead of refusing them
        low: stored value that becomes black; with high. Both 0 = by the files' type, or robustly
        high: stored value that becomes white
        on_error: what to do with unreadable files
        seed: seed of phantoms and of a split that has to be made
    """

    folder: str = ""
    phantom: str = "chest"
    count: int = 2500
    size: int = 64
    channels: int = 1
    label: str = ""
    fit: Literal["pad", "crop", "stretch"] = "pad"
    enlarge: bool = False
    low: float = 0.0
    high: float = 0.0
    on_error: Literal["stop", "skip"] = "stop"
    seed: int = 0


def open_dataset(settings: DataSettings) -> Dataset:
    """Images in [-1, 1] by split, class names and a fingerprint. Raises DataError for unusable data."""
    if settings.size < 8:
        raise VerisimError(f"data.size is {settings.size}; images must be at least 8 pixels wide.")
    if not settings.folder:
        return _phantoms(settings)
    window = None if settings.low == settings.high else (settings.low, settings.high)
    return load_images(
        settings.folder,
        settings.size,
        channels=settings.channels,
        label=settings.label or None,
        fit=settings.fit,
        enlarge=settings.enlarge,
        window=window,
        on_error=settings.on_error,
        seed=settings.seed,
    )


def _phantoms(settings: DataSettings) -> Dataset:
    kind = pick(PHANTOMS, settings.phantom, "phantom")
    if settings.count < 10:
        raise VerisimError(f"data.count is {settings.count}; make at least 10 phantoms.")
    if settings.channels != 1:
        raise VerisimError(f"data.channels is {settings.channels}; phantoms are grey (1).")
    made = kind.make(settings.count, settings.seed, settings.size).images
    images = made if settings.label else replace(made, labels=None)
    order, n_test = torch.arange(settings.count), settings.count // 5
    text = f"phantom {settings.phantom}: {settings.count} of {settings.size} pixels, seed {settings.seed}"
    return Dataset(
        splits={"train": images.subset(order[n_test:]), "test": images.subset(order[:n_test])},
        class_names=kind.class_names if settings.label else (),
        notes=(text,),
        fingerprint=text,
        skipped=(),
        window={},
        split_of={},
        affines={},
    )

"""Where images come from: a user's folder or a built-in phantom, behind one settings class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
        window=window,
        on_error=settings.on_error,
        seed=settings.seed,
    )


def _phantoms(settings: DataSettings) -> Dataset:
    module = pick(PHANTOMS, settings.phantom, "phantom")
    if settings.count < 10:
        raise VerisimError(f"data.count is {settings.count}; make at least 10 phantoms.")
    made = module.make(settings.count, settings.seed, settings.size).images
    names = tuple(module.CLASS_NAMES) if settings.label else ()
    import torch

    from verisim.data.spec import Images

    n_test = settings.count // 5
    order = torch.arange(settings.count)
    labels = made.labels if settings.label else None
    images = Images(made.pixels, made.spec, labels)
    splits = {"train": images.subset(order[n_test:]), "test": images.subset(order[:n_test])}
    text = f"phantom {settings.phantom} n={settings.count} seed={settings.seed} size={settings.size}"
    return Dataset(splits=splits, class_names=names, notes=(text,), fingerprint=text)

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
        size: pixels: 64 means 64x64; 48x64 is height x width; 32x48x32 a volume, depth x height x width
        channels: 1 = grey, 3 = colour
        label: manifest column (or 'label' for phantoms) to condition on; empty = unconditional
        text: manifest column with reports (or 'report' for phantoms) for a model that reads texts; empty = none
        split: manifest column with train, val or test; new = make a split by patient whatever it says
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
    size: int | str = 64
    channels: int = 1
    label: str = ""
    text: str = ""
    split: str = "split"
    fit: Literal["pad", "crop", "stretch"] = "pad"
    enlarge: bool = False
    low: float = 0.0
    high: float = 0.0
    on_error: Literal["stop", "skip"] = "stop"
    seed: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W) or (D, H, W) in pixels. Raises VerisimError for a size that is none."""
        words = str(self.size).lower().split("x")
        if not all(w.strip().isdigit() for w in words) or len(words) > 3:
            raise VerisimError(
                f"data.size is '{self.size}'; give 64 (a square), 48x64 (height x width) or 32x48x32 "
                f"(depth x height x width)."
            )
        sides = tuple(int(w) for w in words)
        if min(sides) < 8:
            raise VerisimError(f"data.size is {self.size}; images must be at least 8 pixels wide.")
        return sides * 2 if len(sides) == 1 else sides


def open_dataset(settings: DataSettings) -> Dataset:
    """Images in [-1, 1] by split, class names and a fingerprint. Raises DataError for unusable data."""
    if not settings.folder:
        return _phantoms(settings)
    window = None if settings.low == settings.high else (settings.low, settings.high)
    return load_images(
        settings.folder,
        settings.shape,
        channels=settings.channels,
        label=settings.label or None,
        text=settings.text or None,
        split=settings.split,
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
    phantom = kind.make(settings.count, settings.seed, settings.shape)
    made = phantom.images
    if settings.text:
        if kind.report is None:
            able = ", ".join(k for k, v in PHANTOMS.items() if v.report is not None)
            raise VerisimError(f"Phantom {settings.phantom} has no reports. Those with reports: {able}.")
        made = replace(made, texts=kind.report(phantom.factors))
    images = made if settings.label else replace(made, labels=None)
    people = images.patients or tuple(map(str, range(len(images))))  # a person's images stay together
    first = list(dict.fromkeys(people))
    tested = set(first[: max(1, len(first) // 5)])
    held = torch.tensor([p in tested for p in people])
    text = f"phantom {settings.phantom}: {settings.count} of {settings.size} pixels, seed {settings.seed}"
    text += ", with reports" if settings.text else ""
    return Dataset(
        splits={"train": images.subset(~held), "test": images.subset(held)},
        class_names=kind.class_names if settings.label else (),
        notes=(text,),
        fingerprint=text,
        skipped=(),
        window={},
        split_of={},
        affines={},
    )

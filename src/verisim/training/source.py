"""Where images come from: a user's folder or a built-in phantom, behind one settings class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from verisim.data.folder import Dataset, load_images
from verisim.errors import VerisimError, pick
from verisim.phantoms import PHANTOMS, Phantom, PhantomKind


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
        image: manifest column with file names; several, t1,t1c,t2,flair, give one channel each, in this order
        mask: manifest column with label maps (integers 0 to 255, on the grid of their image); for phantoms
            lesion (1 where a finding is) or structures (a code for each); empty = none
        contrasts: for the brain phantom: T1, T1c, T2, PD, FLAIR, comma-separated, one channel each; empty = T1
        findings: for the brain phantom: mixed, none, ms or tumour heads; empty = mixed
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
    image: str = "image"
    mask: str = ""
    contrasts: str = ""
    findings: str = ""
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

    @property
    def contrast_names(self) -> tuple[str, ...]:
        """Names of the channels where several contrasts are named, else ()."""
        words = tuple(w.strip() for w in (self.image if self.folder else self.contrasts).split(","))
        return words if len(words) > 1 else ()

    @property
    def channel_count(self) -> int:
        """Channels of the images: one for each contrast where several are named."""
        return len(self.contrast_names) or self.channels


def open_dataset(settings: DataSettings) -> Dataset:
    """Images in [-1, 1] by split, class names and a fingerprint. Raises DataError for unusable data."""
    if not settings.folder:
        return _phantoms(settings)
    if (
        settings.contrasts and settings.image == "image"
    ):  # beside named columns they are a recipe's, for its phantom
        raise VerisimError(
            f"data.contrasts='{settings.contrasts}' is for phantoms; in a folder, name the manifest columns of the "
            f"contrasts: --data.image t1,t2."
        )
    window = None if settings.low == settings.high else (settings.low, settings.high)
    return load_images(
        settings.folder,
        settings.shape,
        channels=settings.channels,
        label=settings.label or None,
        image=settings.image,
        mask=settings.mask or None,
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
    contrasts = _contrasts(settings, kind)
    if settings.channels not in (1, len(contrasts) or 1):
        raise VerisimError(
            f"data.channels is {settings.channels}; phantoms are grey (1), or have one channel for each of data.contrasts."
        )
    more: dict[str, Any] = {"contrasts": contrasts} if contrasts else {}
    if settings.findings:
        pick(
            dict.fromkeys(kind.findings),
            settings.findings,
            f"kind of findings of the {settings.phantom} phantom",
        )
        more["lesions"] = settings.findings
    made = kind.make(settings.count, settings.seed, settings.shape, **more)
    images = made.images if settings.label else replace(made.images, labels=None)
    structures: tuple[str, ...] = ()
    if settings.mask:
        codes, structures = _segmentation(settings, kind, made)
        images = replace(images, segmentation=codes)
    people = images.patients or tuple(map(str, range(len(images))))  # a person's images stay together
    first = list(dict.fromkeys(people))
    tested = set(first[: max(1, len(first) // 5)])
    held = torch.tensor([p in tested for p in people])
    text = f"phantom {settings.phantom}: {settings.count} of {settings.size} pixels, seed {settings.seed}"
    text += f", contrasts {', '.join(contrasts)}" if contrasts else ""
    text += f", mask of {settings.mask}" if settings.mask else ""
    text += f", findings {settings.findings}" if settings.findings else ""
    return Dataset(
        splits={"train": images.subset(~held), "test": images.subset(held)},
        class_names=kind.class_names if settings.label else (),
        notes=(text,),
        fingerprint=text,
        skipped=(),
        window={},
        split_of={},
        affines={},
        structures=structures,
        contrasts=contrasts if len(contrasts) > 1 else (),
    )


def _contrasts(settings: DataSettings, kind: PhantomKind) -> tuple[str, ...]:
    """The contrasts asked for; () = the phantom's own. VerisimError for what a phantom does not have."""
    if settings.image != "image":
        raise VerisimError(
            f"data.image='{settings.image}' names manifest columns, and the phantom has none: give --data.folder, "
            f"or --data.contrasts T1,T2 for the brain phantom."
        )
    words = tuple(w.strip() for w in settings.contrasts.split(",")) if settings.contrasts else ()
    if words and not kind.contrasts:
        able = ", ".join(name for name, k in PHANTOMS.items() if k.contrasts)
        raise VerisimError(
            f"data.contrasts: the {settings.phantom} phantom has one only; several has: {able}."
        )
    if len(set(words)) < len(words):
        raise VerisimError(f"data.contrasts is '{settings.contrasts}'; name each contrast once.")
    for word in words:
        pick(dict.fromkeys(kind.contrasts), word, "contrast of the phantom")
    return words


def _segmentation(
    settings: DataSettings, kind: PhantomKind, made: Phantom
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Codes (N, 1, *S) uint8 and their names: 'lesion' = 0 or 1, 'structures' = all."""
    able = {"structures": kind.structures, "lesion": kind.lesions}
    able = {name: codes for name, codes in able.items() if codes}
    if made.segmentation is None or settings.mask not in able:
        raise VerisimError(
            f"data.mask is '{settings.mask}'; the {settings.phantom} phantom has "
            f"{' and '.join(able) or 'no segmentation: leave it empty'}."
        )
    if settings.mask == "structures":
        return made.segmentation, kind.structures
    inside = torch.isin(made.segmentation, torch.tensor(kind.lesions, dtype=torch.uint8))
    return inside.to(torch.uint8), ("background", "lesion")

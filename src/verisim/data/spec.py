"""What an image tensor means: its size, channels and range. Ranges are part of the type.

Source 004 scored images in [0, 1] with a judge trained on [-1, 1] and its whole ranking was upset by
it. Here a batch carries its range, and a mismatch is an error, never a silent rescale.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from verisim.errors import RangeError


@dataclass(frozen=True)
class ImageSpec:
    """Meaning of an image tensor (B, C, *S)."""

    size: tuple[int, ...]  # spatial size S in pixels: (H, W) or (D, H, W)
    channels: int = 1  # C
    low: float = -1.0  # value of black
    high: float = 1.0  # value of white
    spacing: tuple[float, ...] | None = None  # mm per pixel, same order as size; None = unknown
    modality: str = "unknown"  # e.g. "CXR", "MR", "CT", "phantom"

    @property
    def spatial_dims(self) -> int:
        return len(self.size)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *S) of one image."""
        return (self.channels, *self.size)

    @property
    def dims(self) -> int:
        """Number of values in one image: C * prod(S)."""
        n = self.channels
        for s in self.size:
            n *= s
        return n

    def check(self, x: Tensor, where: str = "images", tolerance: float = 1e-3) -> Tensor:
        """Return x if it is (B, C, *S), finite and within [low, high]; else raise RangeError."""
        if tuple(x.shape[1:]) != self.shape:
            raise RangeError(
                f"{where}: expected images of shape {self.shape} (channels, *size), got "
                f"{tuple(x.shape[1:])}. Resize or convert the images first."
            )
        if len(x) == 0:
            raise RangeError(f"{where}: there are no images.")
        if not torch.isfinite(x).all():
            bad = int((~torch.isfinite(x)).flatten(1).any(1).sum())
            raise RangeError(
                f"{where}: {bad} of {len(x)} images hold NaN or Inf. Remove or repair them "
                f"('verisim data check' names such files)."
            )
        lo, hi = float(x.min()), float(x.max())
        slack = tolerance * (self.high - self.low)
        if lo < self.low - slack or hi > self.high + slack:
            raise RangeError(
                f"{where}: values in [{lo:.4g}, {hi:.4g}] where [{self.low:g}, {self.high:g}] is meant. "
                f"Convert explicitly with Images.to_range({self.low:g}, {self.high:g})."
            )
        return x


@dataclass(frozen=True)
class Images:
    """A set of images with their meaning; pixels are checked against the spec on construction."""

    pixels: Tensor  # (N, C, *S) float32 within [spec.low, spec.high]
    spec: ImageSpec
    labels: Tensor | None = None  # (N,) int64 class indices
    patients: tuple[str, ...] | None = None  # N patient identifiers
    names: tuple[str, ...] | None = None  # N file names or sample names
    segmentation: Tensor | None = None  # (N, 1, *S) uint8 codes; 0 is the background
    ages: Tensor | None = None  # (N,) float32, in the unit that the data set uses
    texts: tuple[str, ...] | None = None  # N reports; "" = none

    def __post_init__(self) -> None:
        self.spec.check(self.pixels)
        seg, meant = self.segmentation, (len(self.pixels), 1, *self.spec.size)
        if seg is not None and (tuple(seg.shape) != meant or seg.dtype != torch.uint8):
            raise RangeError(
                f"segmentation: {tuple(seg.shape)} of {seg.dtype}, where {meant} of torch.uint8 is meant: one "
                f"code from 0 to 255 for every pixel of every image. Resize it with its images, nearest "
                f"neighbour, and convert with .to(torch.uint8)."
            )
        if self.texts is not None and len(self.texts) != len(self.pixels):
            raise RangeError(f"images: {len(self.texts)} texts for {len(self.pixels)} images. Give one each.")

    def __len__(self) -> int:
        return len(self.pixels)

    def to_range(self, low: float, high: float) -> Images:
        """The same images on another intensity range, explicitly."""
        a, b = self.spec.low, self.spec.high
        x = (self.pixels.clamp(a, b) - a) / (b - a) * (high - low) + low
        return replace(self, pixels=x, spec=replace(self.spec, low=low, high=high))

    def quantise(self, levels: int = 256) -> Images:
        """Round to `levels` equally spaced grey values: what an 8-bit file would keep."""
        return replace(self, pixels=from_levels(self.levels(levels), self.spec, levels))

    def levels(self, levels: int = 256) -> Tensor:
        """Numbers 0...levels - 1 of the grey values, float32, shape of the pixels."""
        a, b = self.spec.low, self.spec.high
        return ((self.pixels.clamp(a, b) - a) / ((b - a) / (levels - 1))).round()

    def subset(self, index: Tensor) -> Images:
        """The images at `index` ((M,) int64 or (N,) bool), with their labels, patients, names and segmentation."""
        if index.dtype == torch.bool:
            index = index.nonzero().flatten()
        take = index.tolist()
        return Images(
            self.pixels[index],
            self.spec,
            None if self.labels is None else self.labels[index],
            None if self.patients is None else tuple(self.patients[i] for i in take),
            None if self.names is None else tuple(self.names[i] for i in take),
            None if self.segmentation is None else self.segmentation[index],
            None if self.ages is None else self.ages[index],
            texts=None if self.texts is None else tuple(self.texts[i] for i in take),
        )

    def joined(self, other: Images) -> Images:
        """These images and then `other`'s; what only one of the sets knows (labels, masks, ...) is left out.

        Raises RangeError unless both share size, channels and range.
        """
        self.require_same_spec(other, "joined images")
        found: dict[str, Any] = {}
        for f in fields(self):
            a, b = getattr(self, f.name), getattr(other, f.name)
            if isinstance(a, Tensor):
                found[f.name] = None if b is None else torch.cat([a, b])
            elif f.name != "spec":
                found[f.name] = None if a is None or b is None else a + b
        return replace(self, **found)

    def require_same_spec(self, other: Images, where: str) -> None:
        """Raise RangeError unless both sets share size, channels and range."""
        a, b = self.spec, other.spec
        if (a.shape, a.low, a.high) != (b.shape, b.low, b.high):
            raise RangeError(
                f"{where}: {a.shape} in [{a.low:g}, {a.high:g}] against {b.shape} in "
                f"[{b.low:g}, {b.high:g}]. Bring both to one size and range first."
            )


def from_levels(grey: Tensor, spec: ImageSpec, levels: int = 256) -> Tensor:
    """Pixels in the range of `spec` of numbers 0...levels - 1, float32."""
    a, b = spec.low, spec.high
    return (grey.float() * ((b - a) / (levels - 1)) + a).clamp(a, b)

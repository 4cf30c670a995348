"""One image outside of a data set, read as the images of the set were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from verisim.data.dataset import by_contrast
from verisim.data.intensity import Window, apply_levels, kind_of, levels
from verisim.data.listing import Entry
from verisim.data.loading import Plan, load_one
from verisim.data.resample import Fit
from verisim.data.spec import ImageSpec
from verisim.errors import DataError


@dataclass(frozen=True)
class Reading:
    """How the images of a data set were read."""

    spec: ImageSpec
    window: Mapping[str, Sequence[float] | str] = field(default_factory=dict)  # kind -> black and white
    contrasts: tuple[str, ...] = ()  # names of the channels, where each is a file of its own
    other: Window = None  # black and white of kinds that `window` does not have
    fit: Fit | None = None  # None: "pad" in 2D, "stretch" in 3D
    enlarge: bool = False
    strict: bool = False  # refuse a kind without black and white, instead of taking its own percentiles


@dataclass(frozen=True)
class Single:
    """One image at the size of the set."""

    pixels: Tensor  # (C, *S) float32 in [spec.low, spec.high]
    affine: np.ndarray | None  # (4, 4): (d, h, w, 1) -> mm RAS+
    inside: Tensor  # (1, *S) bool: not padding
    mask: Tensor | None = None  # (1, *S) uint8 codes
    lost: tuple[int, ...] = ()  # codes of the mask that vanished by resizing


def load_single(
    paths: Sequence[Path],  # one file, or one for each contrast, in their order
    how: Reading,
    mask: Path | None = None,  # label map on the same grid
) -> Single:
    """Read one image; DataError says why it cannot be read as `how` says."""
    if len(paths) != max(1, len(how.contrasts)):
        of = f"the contrasts {', '.join(how.contrasts)}" if how.contrasts else "one file"
        raise DataError(
            f"{len(paths)} file(s) given where an image has {of}. Give one for each, in this order."
        )
    spec = how.spec
    fit: Fit = how.fit or ("pad" if spec.spatial_dims == 2 else "stretch")
    channels = 1 if how.contrasts else spec.channels
    plan = Plan(spec.size, channels, spec.low, spec.high, how.other, fit, how.enlarge, "stop", how.contrasts)
    item = load_one(Entry(str(paths[0]), paths[0], others=tuple(paths[1:]), mask=mask), plan)
    pixels = item.pixels[None]
    inside = torch.from_numpy(np.isfinite(item.pixels[:1]))
    for (title, raws, part), path in zip(by_contrast([item], pixels, plan), paths):
        known = how.window.get(title + kind_of(raws[0]), how.window.get(title + "all images"))
        rule: Window = how.other if known is None or isinstance(known, str) else (known[0], known[1])
        if how.strict and rule is None and raws[0].range is None and not isinstance(known, str):
            raise DataError(
                f"{path}: which of its values are black and white is not known: the model has seen no "
                f"{kind_of(raws[0])} images. Give the run folder, or an 8-bit image."
            )
        black_white, _ = levels(raws, part, np.array([True]), rule)
        apply_levels(part, black_white, spec.low, spec.high)
    codes = None if item.mask is None else torch.from_numpy(item.mask)
    return Single(torch.from_numpy(pixels[0]), item.affine, inside, codes, item.lost)

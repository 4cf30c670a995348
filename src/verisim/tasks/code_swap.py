"""Code swapping: an image with some of its codes replaced by those of another (source 001, section 6 S6/S7, K-X4).

The discrete counterpart of a traversal. A block of the code map of image a takes the codes of image b, and
the result is decoded. What changed is held against the receptive field of the codes that were swapped: a
decoder of convolutions alone changes nothing outside; group norm, which looks at the whole image, may.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from verisim.errors import VerisimError
from verisim.roles import CodeSpace, LatentSpace

Region = tuple[tuple[int, int], ...]  # (first, behind the last) code position per axis
VISIBLE = 2 / 255  # smallest change of a pixel in [-1, 1] that counts: one 8-bit grey value


@dataclass(frozen=True)
class Swap:
    """Image a with the codes of image b inside a region."""

    region: Region
    swapped: int  # positions whose code differs, out of those in the region
    images: Tensor  # (3, C, *S): reconstruction of a, the mixture, reconstruction of b
    change: Tensor  # (*S) largest absolute change over channels, mixture against reconstruction of a
    field: Tensor  # (*S) bool: pixels that the region's codes reach through the decoder's convolutions
    inside: float  # share of the visibly changed pixels that lie in the field; NaN where none changed
    energy_inside: float  # share of the squared change that lies in the field; NaN where nothing changed


def require_codes(model: Any) -> CodeSpace:
    """The model as a CodeSpace, or a VerisimError that says what to do with this one instead."""
    if isinstance(model, CodeSpace):
        return model
    kind = getattr(model, "family", "model")
    if isinstance(model, LatentSpace):
        raise VerisimError(
            f"A {kind} model has a continuous latent and no codes to swap. Use 'verisim explore traverse' or "
            f"'verisim explore interpolate' for it, or swap in a VQ-VAE, e.g. one trained with 'verisim train K-S7'."
        )
    raise VerisimError(
        f"A {kind} model has no codes to swap. Train a VQ-VAE, e.g. with 'verisim train K-S7'."
    )


def middle_region(grid: Sequence[int]) -> Region:
    """The middle half of every axis of the code grid; at least one position."""
    return grown(tuple((n // 2, n // 2 + 1) for n in grid), grid, 0.0 if min(grid) < 4 else 0.4)


def check_region(region: Sequence[tuple[int, int]], grid: Sequence[int]) -> Region:
    """The region as given, or a VerisimError if it does not lie on the grid."""
    if len(region) == len(grid) and all(0 <= a <= b <= n for (a, b), n in zip(region, grid)):
        return tuple((a, b) for a, b in region)
    shown = ",".join(f"{a}:{b}" for a, b in region)
    limits = ",".join(f"0:{n}" for n in grid)
    raise VerisimError(
        f"The region {shown} is not part of this model's code map. Give first:end for each of {len(grid)} axes "
        f"within {limits} (the whole map)."
    )


def grown(region: Region, grid: Sequence[int], share: float) -> Region:
    """The region with every side moved `share` (0 to 1) of the way to the border of the grid."""
    return tuple((round(a * (1 - share)), round(b + (n - b) * share)) for (a, b), n in zip(region, grid))


def mixed_codes(a: Tensor, b: Tensor, region: Region) -> Tensor:
    """Codes a (*G) with those of b (*G) inside the region."""
    inside = tuple(slice(first, end) for first, end in region)
    mixed = a.clone()
    mixed[inside] = b[inside]
    return mixed


def swap_codes(
    model: CodeSpace,
    a: Tensor,  # (C, *S) in [-1, 1]: gives most of the codes
    b: Tensor,  # (C, *S) in [-1, 1]: gives those of the region
    region: Sequence[tuple[int, int]] | None = None,  # code positions per axis; None = the middle half
) -> Swap:
    """Decode a's codes with b's inside the region, and measure where the image changed.

    An empty region gives a's reconstruction, the whole map gives b's, exactly. Raises VerisimError for a
    region beyond the code map.
    """
    where = middle_region(model.grid) if region is None else check_region(region, model.grid)
    codes = model.encode_codes(torch.stack([a, b]))  # (2, *G)
    mixed = mixed_codes(codes[0], codes[1], where)
    images = model.decode_codes(torch.stack([codes[0], mixed, codes[1]])).cpu()  # (3, C, *S)
    change = (images[1] - images[0]).abs().amax(0)  # (*S)
    field = torch.zeros(change.shape, dtype=torch.bool)
    field[tuple(slice(first, end) for first, end in model.reach(where))] = True
    visible = change > VISIBLE
    energy = change.double().square()
    return Swap(
        where,
        int((mixed != codes[0]).sum()),
        images,
        change,
        field,
        _share(visible & field, visible),
        _share(energy * field, energy),
    )


def _share(part: Tensor, whole: Tensor) -> float:
    """Sum of part over sum of whole; NaN for an empty whole."""
    total = float(whole.sum())
    return float(part.sum()) / total if total else float("nan")


def growing_swap(
    model: CodeSpace, a: Tensor, b: Tensor, region: Sequence[tuple[int, int]], frames: int = 9
) -> tuple[Tensor, list[Region]]:
    """(F, C, *S) from a's reconstruction through the region's swap to b's reconstruction, and each frame's region.

    The first frame swaps nothing, the second the region; from there its sides move evenly to the border.
    """
    if frames < 3:
        raise VerisimError(f"frames={frames}: nothing, the region and everything are 3 frames at least.")
    start = check_region(region, model.grid)
    nothing: Region = tuple((first, first) for first, _ in start)
    steps = [grown(start, model.grid, i / (frames - 2)) for i in range(frames - 1)]
    regions = [nothing, *steps]
    codes = model.encode_codes(torch.stack([a, b]))
    mixed = torch.stack([mixed_codes(codes[0], codes[1], r) for r in regions])
    return model.decode_codes(mixed).cpu(), regions

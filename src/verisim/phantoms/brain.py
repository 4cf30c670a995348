"""Procedural brain MR images: labelled regions, contrasts from tissue physics, age, sex, lesions.

Specifications 003 chapter 16, section 0.3.1 (16-Phantom) and 002, section D.9 (tumours, B-D2). Volumes of
all regions are closed forms of the factors. Sizes (D, H, W) or, for the axial plane through ventricles,
caudate and putamen, (H, W). The patient's left is at the right of the image, the crown at the last slice.

Image i of a seed is the same whatever n is: factors are drawn in blocks of 16, noise for each image.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from verisim.data.spec import Images, ImageSpec
from verisim.errors import VerisimError, pick
from verisim.phantoms.base import Phantom, full_size
from verisim.phantoms.brain_render import render
from verisim.phantoms.mr_contrast import SEQUENCES
from verisim.phantoms.shapes import keep_freed_memory
from verisim.phantoms.volume import WARP_COLUMNS, Solids, spacing
from verisim.seeding import generator

CLASS_NAMES = ("healthy", "MS lesions", "tumour")
BLOCK = 16  # images whose factors share one generator
SLICE_AT = 10.0  # mm above the centre: the plane of 2D images
NOISE = 0.02  # standard deviation of each quadrature channel, on [0, 1]
AGE = (20.0, 90.0)  # years
LESIONS = {
    "mixed": (0.5, 0.25, 0.25),
    "none": (1.0, 0.0, 0.0),
    "ms": (0.0, 1.0, 0.0),
    "tumour": (0.0, 0.0, 1.0),
}

# Known effects, as the specification states them
SEX_SCALE = 0.06  # a man's brain is longer by this share in every direction
VENTRICLE = (0.8, 0.012)  # relative radius at 20 years, and its growth per year
CORTEX = -0.004  # relative change of cortical thickness per year after 20
HIPPOCAMPUS = -0.003  # relative change of hippocampal volume per year after 20
SCALE_SD, REGION_SD, LIMIT = 0.03, 0.04, 2.5  # normal variation: of length, of volumes; cut at 2.5 deviations

# The cerebrum: points whose radius (in units of these semi-axes, mm: x, y, z) is below a limit, cut off below
AXES = (57.0, 73.0, 64.0)
BASE = 0.45  # the cut, as a share of the radius below the centre
WHITE, THICKNESS, SKULL = 0.80, 0.17, 1.10  # radius of white matter, thickness of cortex, radius of the skull
FOLDING = 0.15  # relative modulation of the squared radius by the gyri

STRUCTURES = (
    "background", "csf", "cortex", "white_matter", "ventricle_right", "ventricle_left", "thalamus_right",
    "thalamus_left", "caudate_right", "caudate_left", "putamen_right", "putamen_left", "hippocampus_right",
    "hippocampus_left", "cerebellum", "brainstem", "ms_lesion", "oedema", "enhancing_tumour", "tumour_core",
)  # fmt: skip
LESION_CODES = tuple(k for k, s in enumerate(STRUCTURES) if s in STRUCTURES[-4:])
# centre of the left one and semi-axes in mm (x, y, z), in the average head at 20 years (ventricles: radius 1)
PAIRS = {
    "ventricle": ((11.0, 2.0, 10.0), (5.0, 20.0, 9.0)),
    "thalamus": ((10.0, 6.0, -12.0), (7.5, 13.0, 6.0)),
    "caudate": ((22.0, -27.0, 6.0), (5.0, 8.0, 8.0)),
    "putamen": ((28.0, -2.0, 5.0), (5.5, 14.0, 9.0)),
    "hippocampus": ((27.0, 14.0, -13.0), (5.0, 15.0, 5.0)),
}
SINGLE = {
    "cerebellum": ((0.0, 26.0, -46.0), (36.0, 23.0, 14.5)),
    "brainstem": ((0.0, -6.0, -46.0), (11.0, 8.0, 16.0)),
}
# Places of MS lesions on the left in white matter that nothing else needs; the first three are in SLICE_AT
PLACES = (
    (27.0, 24.0, 10.0), (15.0, -40.0, 10.0), (14.0, 42.0, 10.0),
    (20.0, 16.0, 31.0), (20.0, -16.0, 31.0), (26.0, 4.0, 21.0),
)  # fmt: skip
SOLID_NAMES = (
    *(f"{name}_{side}" for name in PAIRS for side in ("right", "left")),
    *SINGLE,
    *(["ms_lesion"] * 2 * len(PLACES)),
    "oedema", "enhancing_tumour", "tumour_core",
)  # fmt: skip
INSIDE = 2 * len(PAIRS)  # the first ellipsoids lie in white matter


def make(
    n: int,
    seed: int = 0,
    size: int | tuple[int, ...] = (32, 32, 32),
    *,
    contrasts: tuple[str, ...] = ("T1",),
    lesions: Literal["mixed", "none", "ms", "tumour"] = "mixed",
    slice_at: float = SLICE_AT,
) -> Phantom:
    """n brain phantoms; size (D, H, W) or (H, W) in pixels, or one number for a square slice.

    images: pixels (n, len(contrasts), *S) float32 in [-1, 1], modality "phantom-MR", spacing in mm; labels
    (n,) int64, see CLASS_NAMES. segmentation: (n, 1, *S) uint8, indices of STRUCTURES, at pixel centres.
    contrasts: names of mr_contrast.SEQUENCES, one channel each. lesions: which heads are drawn; the anatomy
    and the share of each class ("mixed": a half, a quarter, a quarter) do not depend on the images.
    slice_at: height of a 2D image in the average head, mm; the default crosses every tumour and at least
    one lesion of each MS head.
    factors, (n,) float32: age (years), sex (1 = man), scale, rotation, shift_*, bias, lesion_count; and of
    every structure `volume_NAME` in mL, in 2D `area_NAME` in cm^2, plus `*_ventricles` and `*_brain` (all but
    fluid). They are exact for the continuous shapes. Healthy structures count as if no lesion lay on them;
    lesions as they are.
    Raises VerisimError for n < 1, sides below 16 pixels, an unknown contrast or kind of lesion.
    """
    full = full_size(size, (2, 3), 16, "phantoms.brain.make")
    probability = pick(LESIONS, lesions, "kind of lesions of the brain phantom")
    for name in contrasts:
        pick(SEQUENCES, name, "MR contrast")
    if n < 1 or not contrasts:
        raise VerisimError(
            f"phantoms.brain.make: n={n}, contrasts={contrasts}; at least one of each is meant."
        )
    pixels = torch.empty(n, len(contrasts), *full)
    codes = torch.empty(n, 1, *full, dtype=torch.uint8)

    def fill(start: int) -> dict[str, Tensor]:
        stop = min(start + BLOCK, n)
        drawn, solids = draw(seed, start // BLOCK, probability)
        render(drawn, solids, full, slice_at, contrasts, (seed, start), pixels[start:stop], codes[start:stop])
        sizes = measures(drawn, solids, slice_at if len(full) == 2 else None)
        return {k: v[: stop - start] for k, v in {**drawn, **sizes}.items() if v.ndim == 1}

    keep_freed_memory()
    parts = [fill(k) for k in range(0, n, BLOCK)]
    kept = {k: torch.cat([p[k] for p in parts]) for k in parts[0]}
    mm = spacing(full)
    spec = ImageSpec(full, len(contrasts), spacing=(mm,) * len(full), modality="phantom-MR")
    return Phantom(Images(pixels, spec, labels=kept["diagnosis"].long()), kept, codes)


def draw(seed: int, block: int, probability: tuple[float, ...]) -> tuple[dict[str, Tensor], Solids]:
    """Factors of the 16 heads of a block, (16,) each (`warp`, `trend` and `fold` more), and their ellipsoids."""
    g = generator("brain", seed, block)
    u = torch.rand(BLOCK, 16 + WARP_COLUMNS, generator=g)
    normal = torch.randn(BLOCK, 32, generator=g).clamp_(-LIMIT, LIMIT)
    f = {"age": AGE[0] + (AGE[1] - AGE[0]) * u[:, 0], "sex": (u[:, 1] < 0.5).float()}
    f["scale"] = 1 + SEX_SCALE * f["sex"] + SCALE_SD * normal[:, 0]
    f["rotation"] = 12 * u[:, 2] - 6
    for k, axis in enumerate("xyz"):
        f[f"shift_{axis}"] = 4 * u[:, 3 + k] - 2
    f["bias"] = 0.15 * u[:, 6]
    limits = torch.tensor(probability).cumsum(0)[:-1]
    f["diagnosis"] = (u[:, 7, None] >= limits).sum(1).float()
    f["fold"] = u[:, 8:12]
    f["warp"] = u[:, 16:]
    f["trend"] = 2 * torch.rand(BLOCK, 6, generator=g) - 1
    years = f["age"] - AGE[0]
    f["white_radius"] = WHITE * (1 + REGION_SD * normal[:, 1]) ** (1 / 3)
    f["cortex_thickness"] = THICKNESS * (1 + CORTEX * years) * (1 + REGION_SD * normal[:, 2])
    solids = _anatomy(f, normal[:, 3 : 3 + INSIDE + len(SINGLE)])
    return f, _with_lesions(f, solids, g)


def _anatomy(f: dict[str, Tensor], normal: Tensor) -> Solids:
    """The healthy ellipsoids, (16, 12, 3); normal (16, 12) varies their volumes."""
    years = f["age"] - AGE[0]
    centres, semis = [], []
    for centre, semi in PAIRS.values():
        for side in (-1, 1):  # right, left
            centres.append((side * centre[0], *centre[1:]))
            semis.append(semi)
    for centre, semi in SINGLE.values():
        centres.append(centre)
        semis.append(semi)
    volume = 1 + REGION_SD * normal  # (16, 12) relative to the average
    names = SOLID_NAMES[: len(semis)]
    for k, name in enumerate(names):
        if name.startswith("ventricle"):
            volume[:, k] *= (VENTRICLE[0] + VENTRICLE[1] * years) ** 3
        if name.startswith("hippocampus"):
            volume[:, k] *= 1 + HIPPOCAMPUS * years
    scale = f["scale"][:, None, None]
    return Solids(torch.tensor(centres) * scale, torch.tensor(semis) * volume[..., None] ** (1 / 3) * scale)


def _with_lesions(f: dict[str, Tensor], healthy: Solids, g: torch.Generator) -> Solids:
    """Add MS lesions (spheres at some of PLACES) and the three nested ellipsoids of a tumour."""
    slots = 2 * len(PLACES)
    u = torch.rand(BLOCK, 4, slots, generator=g)
    v = torch.rand(BLOCK, 8, generator=g)
    ms, tumour = f["diagnosis"] == 1, f["diagnosis"] == 2
    shown = u[:, 0] < v[:, :1]  # as many as chance has it,
    first = (6 * v[:, 1]).long().clamp_(max=5)  # and one that is seen in the default slice
    first = torch.where(first < 3, first, first - 3 + len(PLACES))
    shown = (shown | (torch.arange(slots) == first[:, None])) & ms[:, None]
    f["lesion_count"] = shown.sum(1).float()
    place = torch.tensor([(side * x, y, z) for side in (-1, 1) for x, y, z in PLACES])
    spot = place + (2 * u[:, 1:4].transpose(1, 2) - 1)  # (16, slots, 3)
    radius = ((1.5 + 2.0 * u[:, 0] / v[:, :1].clamp(min=1e-3)).clamp(max=3.5) * shown)[..., None].expand(
        -1, -1, 3
    )
    side = torch.where(v[:, 2] < 0.5, -1.0, 1.0)
    centre = torch.stack([side * (18 + 8 * v[:, 3]), 44 * v[:, 4] - 20, 10 + 6 * v[:, 5] - 3], 1)  # (16, 3)
    shape = 0.9 + 0.2 * torch.rand(BLOCK, 3, generator=g)
    outer = (10 + 7 * v[:, 6]) * tumour
    share = torch.stack([torch.ones(BLOCK), 0.60 + 0.10 * v[:, 7], torch.full((BLOCK,), 0.40)], 1)  # (16, 3)
    nested = (outer[:, None] * share)[..., None] * shape[:, None]  # (16, 3 shells, 3)
    scale = f["scale"][:, None, None]
    centres = [healthy.centre, spot * scale, centre[:, None].expand(-1, 3, -1) * scale]
    semis = [healthy.semi, radius * scale, nested * scale]
    return Solids(torch.cat(centres, 1), torch.cat(semis, 1))


def measures(f: dict[str, Tensor], solids: Solids, slice_at: float | None = None) -> dict[str, Tensor]:
    """Exact volumes in mL of all structures, or areas in cm^2 of the plane slice_at; (N,) each.

    The cerebrum up to radius r: (a b c) r^3 pi (2/3 + h - h^3 / 3); its section: pi a b (r^2 - (z/c)^2).
    The gyri and the warp change neither.
    """
    s = f["scale"].double()
    a, b, c = (length * s for length in AXES)
    plane = None if slice_at is None else slice_at * s

    def radial(r: Tensor, base: float) -> Tensor:
        if plane is None:
            return math.pi / 1000 * a * b * c * r**3 * (2 / 3 + base - base**3 / 3)
        inside = (plane > -base * r * c).double()
        return math.pi / 100 * a * b * (r.square() - (plane / c).square()).clamp(min=0.0) * inside

    wide = Solids(solids.centre.double(), solids.semi.double())
    each = wide.volume() if plane is None else wide.area(plane)  # (N, K)
    white = f["white_radius"].double()
    v = {name: torch.zeros_like(s) for name in STRUCTURES[1:]}
    for k, name in enumerate(SOLID_NAMES):
        v[name] = v[name] + each[:, k]
    v["enhancing_tumour"] = v["enhancing_tumour"] - v["tumour_core"]
    v["oedema"] = v["oedema"] - v["enhancing_tumour"] - v["tumour_core"]
    cerebrum = radial(white + f["cortex_thickness"].double(), BASE)
    v["cortex"] = cerebrum - radial(white, BASE)
    v["white_matter"] = radial(white, BASE) - each[:, :INSIDE].sum(1)
    v["csf"] = radial(torch.full_like(s, SKULL), 1.0) - cerebrum - v["cerebellum"] - v["brainstem"]
    v["ventricles"] = v["ventricle_right"] + v["ventricle_left"]
    v["brain"] = cerebrum + v["cerebellum"] + v["brainstem"] - v["ventricles"]
    kind = "volume" if plane is None else "area"
    return {f"{kind}_{name}": value.float() for name, value in v.items()}

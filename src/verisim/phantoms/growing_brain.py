"""A brain that grows: the same procedural subject at any age (spec 002, section K.10; B-D3).

Age is postmenstrual, 26 to 45 weeks. What a subject is (proportions, pose, folds, ventricles) never changes;
what age does (size, folding, contrast of the cortex, share of the ventricles) is the same for all. Volumes
at every age are closed forms. Contrast as in a T2-weighted scan of a newborn: white matter lighter than
cortex, which darkens with age. Sizes (D, H, W), or (H, W) for the axial plane through the middle.

Lengths without unit count in radii of the subject at that age. A scan depends on seed, subject and age only.
"""

from __future__ import annotations

import math

import torch
from scipy.special import ellipe
from torch import Tensor

from verisim.data.spec import Images, ImageSpec
from verisim.errors import VerisimError
from verisim.phantoms.base import Phantom, full_size
from verisim.phantoms.growing_brain_render import render
from verisim.phantoms.shapes import keep_freed_memory
from verisim.phantoms.volume import WARP_COLUMNS, Solids
from verisim.seeding import generator

CLASS_NAMES = ("before term", "at term")  # from 37 weeks on
BLOCK = 16  # subjects that share one generator
AGES = (26.0, 45.0)  # weeks
TERM = 37.0
FIELD = 140.0  # mm, the shortest side of the image
RADIUS, GROWTH = 28.0, 1.54  # mm at 26 weeks, and per week: 0.20 and 0.011 of the field
PIAL = 0.90  # radius of the cortex's surface; fluid is outside of it
THICKNESS = (0.10, 0.004)  # of the cortex at 26 weeks, and per week
FOLDING = (0.02, 0.0095)  # relative modulation of the squared radius by the gyri at 26 weeks, and per week
SHRINKING = -0.01  # relative change of the ventricles' radius, in radii of the brain, per week
VENTRICLE = ((0.13, 0.0, 0.05), (0.07, 0.24, 0.12))  # centre of the left one and semi-axes
DEEP = ((0.36, 0.05, -0.02), (0.10, 0.14, 0.10))  # grey matter beside them
IDENTITY = {  # uniform
    "aspect": (0.85, 1.15),  # width / length
    "height": (0.85, 0.95),  # height / mean of width and length
    "size": (0.94, 1.06),  # relative radius
    "rotation": (-17.0, 17.0),  # degrees about the vertical axis
    "ventricle_offset": (-0.10, 0.10),  # forwards or backwards
    "ventricle_radius": (0.70, 1.30),
    "ventricle_asymmetry": (-0.10, 0.10),  # (left - right) / (left + right) radius
    "ventricle_level": (0.75, 0.95),  # brightness
    "deep_radius": (0.85, 1.15),
    "shift_x": (-1.0, 1.0),  # mm
    "shift_y": (-1.0, 1.0),
    "shift_z": (-1.0, 1.0),
}
STRUCTURES = (
    "background", "csf", "cortex", "white_matter", "ventricle_right", "ventricle_left", "deep_right", "deep_left",
)  # fmt: skip


def make(
    n: int,
    seed: int = 0,
    size: int | tuple[int, ...] = 64,
    *,
    visits: int = 2,
    gap: float = 4.0,
) -> Phantom:
    """n scans of ceil(n / visits) subjects: image i is visit i % visits of subject i // visits.

    Ages rise from visit to visit by at least `gap` weeks and are uniform otherwise. For the rest, and for
    scans at chosen ages, see `scan`. Raises VerisimError for n or visits below 1, or visits that do not fit
    into 26 to 45 weeks.
    """
    free = AGES[1] - AGES[0] - gap * (visits - 1)
    if n < 1 or visits < 1 or gap < 0 or free < 0:
        raise VerisimError(
            f"phantoms.growing_brain.make: n={n}, visits={visits}, gap={gap:g}; n >= 1 scans with gaps >= 0 that "
            f"fit into weeks {AGES[0]:g} to {AGES[1]:g} are possible."
        )
    subjects = torch.arange(n) // visits
    blocks = range(int(subjects[-1]) // BLOCK + 1)
    u = torch.cat(
        [torch.rand(BLOCK, visits, generator=generator("growing-ages", seed, b, visits)) for b in blocks]
    )
    ages = AGES[0] + free * u.sort(1).values + gap * torch.arange(visits)  # (subjects, visits)
    return scan(subjects, ages.flatten()[:n], seed, size)


def scan(subjects: Tensor, ages: Tensor, seed: int = 0, size: int | tuple[int, ...] = 64) -> Phantom:
    """Scans of the subjects (n,) int64 >= 0 at the ages (n,) in weeks; any subject at any ages.

    images: pixels (n, 1, *S) float32 in [-1, 1], modality "phantom-MR", spacing in mm, labels (n,) int64 (see
    CLASS_NAMES), patients "subject-0000" and so on. segmentation: (n, 1, *S) uint8, indices of STRUCTURES.
    factors, (n,) float32: subject, age, radius (mm), head_circumference (mm, of the middle plane), every name
    of IDENTITY, and of every structure `volume_NAME` in mL (in 2D `area_NAME`, cm^2), plus `*_ventricles` and
    `*_head`; exact for the continuous shapes.
    Raises VerisimError for an age outside of 26 to 45 weeks, sides below 16 pixels or unequal lengths.
    """
    full = full_size(size, (2, 3), 16, "phantoms.growing_brain.scan")
    if len(subjects) != len(ages) or not len(ages) or int(subjects.min()) < 0:
        raise VerisimError(
            f"phantoms.growing_brain.scan: {len(subjects)} subjects and {len(ages)} ages; one age for each "
            f"scan and subjects from 0 on are meant."
        )
    if float(ages.min()) < AGES[0] or float(ages.max()) > AGES[1]:
        raise VerisimError(
            f"phantoms.growing_brain.scan: ages from {float(ages.min()):g} to {float(ages.max()):g}; weeks "
            f"{AGES[0]:g} to {AGES[1]:g} are possible."
        )
    f = at_age(identities(subjects, seed), ages.float())
    pixels = torch.empty(len(ages), 1, *full)
    codes = torch.empty(len(ages), 1, *full, dtype=torch.uint8)

    def fill(start: int) -> None:
        part = slice(start, min(start + BLOCK, len(ages)))
        some = {k: v[part] for k, v in f.items()}
        render(some, full, spacing(full), seed, pixels[part], codes[part])

    keep_freed_memory()
    for k in range(0, len(ages), BLOCK):
        fill(k)
    spec = ImageSpec(full, spacing=(spacing(full),) * len(full), modality="phantom-MR")
    names = tuple(f"subject-{k:04d}" for k in subjects.tolist())
    images = Images(pixels, spec, labels=(ages >= TERM).long(), patients=names)
    factors = {k: v for k, v in {**f, **measures(f, len(full))}.items() if v.ndim == 1}
    return Phantom(images, factors, codes)


def spacing(size: tuple[int, ...]) -> float:
    """Millimetres per pixel, the same along all axes."""
    return FIELD / min(size)


def identities(subjects: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """What never changes: every name of IDENTITY (n,) and the phases of the gyri, `fold` (n, 4).

    There is no warp, so that the head circumference is exactly an ellipse's.
    """
    drawn = {}
    for block in torch.unique(subjects // BLOCK).tolist():
        drawn[block] = torch.rand(BLOCK, 16, generator=generator("growing", seed, block))
    u = torch.stack([drawn[k // BLOCK][k % BLOCK] for k in subjects.tolist()])  # (n, columns)
    f = {name: lo + (hi - lo) * u[:, k] for k, (name, (lo, hi)) in enumerate(IDENTITY.items())}
    still = torch.zeros(len(u), WARP_COLUMNS)
    return {**f, "fold": u[:, 12:16], "warp": still, "subject": subjects.float()}


def at_age(identity: dict[str, Tensor], ages: Tensor) -> dict[str, Tensor]:
    """Add what follows from age (n,): its radius, semi-axes (n, 3), folding and the cortex's thickness."""
    weeks = ages - AGES[0]
    f = {**identity, "age": ages, "scale": torch.ones_like(ages)}
    f["radius"] = (RADIUS + GROWTH * weeks) * f["size"]
    stretch = f["aspect"].sqrt()  # keeps width times length
    f["axes"] = f["radius"][:, None] * torch.stack([stretch, 1 / stretch, f["height"]], 1)
    f["thickness"] = THICKNESS[0] + THICKNESS[1] * weeks
    f["folding"] = FOLDING[0] + FOLDING[1] * weeks
    f["ventricle_size"] = f["ventricle_radius"] * (1 + SHRINKING * weeks)
    f["maturity"] = weeks / (AGES[1] - AGES[0])
    long, short = f["axes"][:, :2].double().amax(1), f["axes"][:, :2].double().amin(1)
    f["head_circumference"] = (
        4 * long * torch.from_numpy(ellipe((1 - (short / long).square()).numpy()))
    ).float()
    return f


def solids(f: dict[str, Tensor]) -> Solids:
    """Right and left ventricle, right and left deep grey matter, in mm; (n, 4, 3)."""
    mirror = torch.tensor([-1.0, 1.0, 1.0])
    (inner, a), (outer, b) = ([torch.tensor(v) for v in pair] for pair in (VENTRICLE, DEEP))
    offset = torch.tensor([0.0, 1.0, 0.0]) * f["ventricle_offset"][:, None]
    sides = [1 - f["ventricle_asymmetry"], 1 + f["ventricle_asymmetry"]]
    centres = [
        inner * mirror + offset,
        inner + offset,
        (outer * mirror).expand_as(offset),
        outer.expand_as(offset),
    ]
    semis = [a * (f["ventricle_size"] * s)[:, None] for s in sides] + 2 * [b * f["deep_radius"][:, None]]
    axes = f["axes"][:, None]
    return Solids(torch.stack(centres, 1) * axes, torch.stack(semis, 1) * axes)


def measures(f: dict[str, Tensor], dims: int) -> dict[str, Tensor]:
    """Exact volumes in mL (dims = 3) or areas in cm^2 of the middle plane (dims = 2); (n,) each.

    A shell up to radius r has 4/3 pi r^3 a b c; its section in the middle pi r^2 a b. Gyri change neither.
    """
    axes = f["axes"].double()
    unit = axes.prod(1) * (4 / 3 * math.pi / 1000) if dims == 3 else axes[:, :2].prod(1) * (math.pi / 100)
    deep = solids({k: v.double() for k, v in f.items()})
    each = deep.volume() if dims == 3 else deep.area(torch.zeros_like(unit))
    white = PIAL - f["thickness"].double()
    v = {name: each[:, k] for k, name in enumerate(STRUCTURES[4:])}
    v["head"] = unit
    v["csf"] = unit * (1 - PIAL**dims)
    v["cortex"] = unit * (PIAL**dims - white**dims)
    v["white_matter"] = unit * white**dims - each.sum(1)
    v["ventricles"] = v["ventricle_right"] + v["ventricle_left"]
    return {f"{'volume' if dims == 3 else 'area'}_{name}": value.float() for name, value in v.items()}

"""Procedural head CT with haemorrhages and fractures, for anomaly detection (spec 002, section A.10; B-D1).

Hounsfield units (HU) are shown through a window: its ends become -1 and 1, and what lies beyond saturates.
Sizes (D, H, W) or (H, W) for one axial plane. The patient's left is at the right of the image, the crown at
the last slice. All volumes, also those of the findings, are closed forms of the factors.

Lengths without unit count in half widths of the inner skull, an ellipsoid of semi-axes AXES.
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
from verisim.phantoms.closed_forms import ball_overlap, disc_overlap
from verisim.phantoms.head_ct_render import render
from verisim.phantoms.shapes import keep_freed_memory
from verisim.phantoms.volume import WARP_COLUMNS, Solids, spacing
from verisim.seeding import generator

CLASS_NAMES = ("normal", "epidural", "subdural", "intraparenchymal", "subarachnoid", "fracture")
BLOCK = 16  # images whose factors share one generator
WINDOW = (-100.0, 200.0)  # HU shown as -1 and 1
SLICE_AT = 8.0  # mm above the centre: the plane of 2D images; it crosses every finding
FINDINGS = {
    "mixed": (0.5, 0.1, 0.1, 0.1, 0.1, 0.1),
    **{name: tuple(float(i == k) for i in range(6)) for k, name in enumerate(CLASS_NAMES)},
}
AXES = (60.0, 75.0, 64.0)  # mm: x, y, z of the inner skull in the average head
SCALP, SKULL, BRAIN, WHITE = 1.16, 1.10, 0.93, 0.78  # radii; the inner skull has 1, fluid is outside of BRAIN
FOLDING = 0.15  # relative modulation of the squared radius of the white matter by the gyri
VENTRICLE = ((10.0, 2.0, 8.0), (5.0, 18.0, 8.0))  # centre of the left one and semi-axes, mm
STRUCTURES = (
    "background", "scalp", "skull", "csf", "brain_right", "brain_left", "ventricle_right", "ventricle_left",
    "epidural_right", "epidural_left", "subdural_right", "subdural_left", "intraparenchymal_right",
    "intraparenchymal_left", "subarachnoid_right", "subarachnoid_left", "fracture_right", "fracture_left",
)  # fmt: skip
LESIONS = CLASS_NAMES[1:]
# Structures that a detector is asked about, and the codes that belong to them, findings included
PARTS = {
    "right": tuple(k for k, s in enumerate(STRUCTURES) if s.endswith("_right") and "fracture" not in s),
    "left": tuple(k for k, s in enumerate(STRUCTURES) if s.endswith("_left") and "fracture" not in s),
    "skull": tuple(k for k, s in enumerate(STRUCTURES) if s == "skull" or "fracture" in s),
    "lesion": tuple(k for k, s in enumerate(STRUCTURES) if s.rsplit("_", 1)[0] in LESIONS),
}


def make(
    n: int,
    seed: int = 0,
    size: int | tuple[int, ...] = (32, 32, 32),
    *,
    findings: Literal[
        "mixed", "normal", "epidural", "subdural", "intraparenchymal", "subarachnoid", "fracture"
    ] = "mixed",
    window: tuple[float, float] = WINDOW,
    slice_at: float = SLICE_AT,
) -> Phantom:
    """n head CTs; size (D, H, W) or (H, W) in pixels, or one number for a square slice.

    images: pixels (n, 1, *S) float32 in [-1, 1], which are the HU of `window`, modality "phantom-CT",
    spacing in mm; labels (n,) int64, see CLASS_NAMES. segmentation: (n, 1, *S) uint8, indices of STRUCTURES;
    `mask` gives the left half, the right half, the skull or all findings of it.
    findings: which heads are drawn; "mixed" = half of them normal, a tenth each finding. The healthy anatomy
    does not depend on it. slice_at: height of a 2D image in the average head, mm.
    factors, (n,) float32: finding (class), side (+1 = the patient's left, -1 = right, 0 = normal), scale,
    rotation, shift_*, and of every structure `volume_NAME` in mL (in 2D `area_NAME`, cm^2), `*_ventricles`,
    `*_intracranial` and `*_lesion`, exact for the continuous shapes. Healthy structures count as if no
    finding lay on them. Raises VerisimError for n < 1, sides below 16 pixels, unknown findings or a window
    that is empty.
    """
    full = full_size(size, (2, 3), 16, "phantoms.head_ct.make")
    probability = pick(FINDINGS, findings, "finding of the head CT phantom")
    if n < 1 or not window[0] < window[1]:
        raise VerisimError(
            f"phantoms.head_ct.make: n={n}, window={window}; n >= 1 and a window (low, high) in HU are meant."
        )
    pixels = torch.empty(n, 1, *full)
    codes = torch.empty(n, 1, *full, dtype=torch.uint8)

    def fill(start: int) -> dict[str, Tensor]:
        stop = min(start + BLOCK, n)
        f = draw(seed, start // BLOCK, probability)
        render(f, full, slice_at, window, (seed, start), pixels[start:stop], codes[start:stop])
        sizes = measures(f, slice_at if len(full) == 2 else None)
        return {k: v[: stop - start] for k, v in {**f, **sizes}.items() if v.ndim == 1}

    keep_freed_memory()
    parts = [fill(k) for k in range(0, n, BLOCK)]
    factors = {k: torch.cat([p[k] for p in parts]) for k in parts[0]}
    spec = ImageSpec(full, spacing=(spacing(full),) * len(full), modality="phantom-CT")
    return Phantom(Images(pixels, spec, labels=factors["finding"].long()), factors, codes)


def mask(segmentation: Tensor, part: str) -> Tensor:
    """Boolean mask of "right", "left" (both with their haemorrhages), "skull" or "lesion"; same shape."""
    return torch.isin(segmentation, torch.tensor(pick(PARTS, part, "part of the head"), dtype=torch.uint8))


def draw(seed: int, block: int, probability: tuple[float, ...]) -> dict[str, Tensor]:
    """Factors of the 16 heads of a block, (16,) each; `warp`, `fold`, centres and semi-axes have more."""
    g = generator("head-ct", seed, block)
    u = torch.rand(BLOCK, 16 + WARP_COLUMNS, generator=g)
    limits = torch.tensor(probability).cumsum(0)[:-1]
    f = {"finding": (u[:, 0, None] >= limits).sum(1).clamp_(max=5).float()}
    f["scale"] = 0.95 + 0.10 * u[:, 1]
    f["rotation"] = 12 * u[:, 2] - 6
    for k, axis in enumerate("xyz"):
        f[f"shift_{axis}"] = 4 * u[:, 3 + k] - 2
    f["ventricle_radius_right"], f["ventricle_radius_left"] = (
        (0.8 + 0.5 * u[:, 6]) * (0.97 + 0.06 * u[:, 7 + k]) for k in range(2)
    )
    f["side"] = torch.where(u[:, 9] < 0.5, -1.0, 1.0) * (f["finding"] > 0)
    f["fold"], f["warp"] = u[:, 10:14], u[:, 16:]
    v = torch.rand(BLOCK, 12, generator=g)
    _lens(f, v)
    _crescent(f, v)
    side = f["side"]
    f["blood_centre"] = torch.stack([side * (28 + 5 * v[:, 0]), 44 * v[:, 1] - 22, 8 + 6 * v[:, 2] - 3], 1)
    f["blood_semi"] = (5 + 7 * v[:, 3])[:, None] * (0.85 + 0.15 * v[:, 4:7]) * (f["finding"] == 3)[:, None]
    # wedges {|angle - turn z - middle| < spread, |z - height| < reach}: blood among the gyri, or a crack in bone
    crack = f["finding"] == 5
    outwards = torch.where(side < 0, math.pi, 0.0)  # the angle of this side
    f["wedge_middle"] = outwards + (2 * v[:, 7] - 1) * torch.where(crack, 1.0, 0.5)
    f["wedge_spread"] = torch.where(crack, 0.015 + 0.030 * v[:, 8], 0.40 + 0.50 * v[:, 8])
    f["wedge_height"] = 0.125 + 0.10 * (2 * v[:, 9] - 1)
    f["wedge_reach"] = torch.where(crack, 0.30 + 0.30 * v[:, 10], 0.20 + 0.25 * v[:, 10])
    f["wedge_turn"] = (2 * v[:, 11] - 1) * 0.6 * crack
    return f


def _lens(f: dict[str, Tensor], v: Tensor) -> None:
    """Epidural: the inner skull within a ball of radius r, d away in direction n; biconvex.

    It meets the skull at the angle a from n and is t thick: r = d - (1 - t), r^2 = 1 + d^2 - 2 d cos a.
    """
    cos = torch.cos(0.31 + 0.14 * v[:, 0])
    t = (1 - cos) + 0.06 + 0.08 * v[:, 1]
    f["epidural_thickness"] = t * (f["finding"] == 1)
    f["epidural_distance"] = (1 - (1 - t) ** 2) / (2 * (cos - 1 + t))
    f["epidural_radius"] = f["epidural_distance"] - (1 - t)
    turn, up = 1.4 * v[:, 2] - 0.7, 0.25 * v[:, 3]
    f["epidural_direction"] = torch.stack(
        [f["side"] * turn.cos() * up.cos(), turn.sin() * up.cos(), up.sin()], 1
    )


def _crescent(f: dict[str, Tensor], v: Tensor) -> None:
    """Subdural: the inner skull without a ball of radius r whose centre lies d behind, seen from n; a sickle.

    It meets the skull at the angle a from n and is t thick: r = 1 - t + d, r^2 = 1 + d^2 + 2 d cos a.
    """
    cos = torch.cos(0.85 + 0.35 * v[:, 0])
    t = 0.06 + 0.10 * v[:, 1]
    f["subdural_thickness"] = t * (f["finding"] == 2)
    f["subdural_distance"] = (1 - (1 - t) ** 2) / (2 * (1 - t - cos))
    f["subdural_radius"] = 1 - t + f["subdural_distance"]
    turn = 0.4 * v[:, 2] - 0.2
    f["subdural_direction"] = torch.stack([f["side"] * turn.cos(), turn.sin(), torch.zeros_like(turn)], 1)


def ventricles(f: dict[str, Tensor]) -> Solids:
    """The two ventricles (right, left) and the intraparenchymal haemorrhage, in mm; (N, 3, 3)."""
    centre, semi = (torch.tensor(v) for v in VENTRICLE)
    mirror = torch.tensor([-1.0, 1.0, 1.0])
    radius = torch.stack([f["ventricle_radius_right"], f["ventricle_radius_left"]], 1)  # (N, 2)
    both = torch.stack([centre * mirror, centre]).expand(len(radius), 2, 3)
    scale = f["scale"][:, None, None]
    centres = torch.cat([both, f["blood_centre"][:, None]], 1)
    semis = torch.cat([radius[..., None] * semi, f["blood_semi"][:, None]], 1)
    return Solids(centres * scale, semis * scale)


def measures(f: dict[str, Tensor], slice_at: float | None = None) -> dict[str, Tensor]:
    """Exact volumes in mL of all structures, or areas in cm^2 of the plane slice_at; (N,) each.

    In units of the inner skull a ball of radius r has 4/3 pi r^3, its section pi (r^2 - z^2); a wedge of a
    shell r to s: spread (s^2 - r^2) times its height, 2 reach, since the section's size is the same at all z.
    """
    f = {k: v.double() for k, v in f.items()}
    a, b, c = AXES
    flat = slice_at is not None
    unit = f["scale"] ** 2 * a * b / 100 if flat else f["scale"] ** 3 * a * b * c / 1000
    z = torch.full_like(unit, (slice_at or 0.0) / c)  # the plane is scaled with the head

    def ball(r: float) -> Tensor:
        return (math.pi * (r**2 - z.square()).clamp(min=0.0) if flat else 4 / 3 * math.pi * r**3) * unit

    def wedge(inner: float, outer: float) -> Tensor:
        height = ((z - f["wedge_height"]).abs() < f["wedge_reach"]).double() if flat else 2 * f["wedge_reach"]
        return f["wedge_spread"] * (outer**2 - inner**2) * height * unit

    def common(name: str, sign: float) -> Tensor:
        r, d, n = f[f"{name}_radius"], sign * f[f"{name}_distance"], f[f"{name}_direction"]
        if not flat:
            return ball_overlap(r, d.abs()) * unit
        apart = d.abs() * n[:, :2].norm(dim=1)
        return disc_overlap(1 - z.square(), r.square() - (z - d * n[:, 2]).square(), apart) * unit

    solids = ventricles(f)
    each = solids.area(slice_at * f["scale"]) if slice_at is not None else solids.volume()
    v = {"scalp": ball(SCALP) - ball(SKULL), "skull": ball(SKULL) - ball(1.0), "csf": ball(1.0) - ball(BRAIN)}
    v["ventricle_right"], v["ventricle_left"] = each[:, 0], each[:, 1]
    for side in ("right", "left"):
        v[f"brain_{side}"] = ball(BRAIN) / 2 - v[f"ventricle_{side}"]
    found = {
        "epidural": common("epidural", 1.0),
        "subdural": ball(1.0) - common("subdural", -1.0),
        "intraparenchymal": each[:, 2],
        "subarachnoid": wedge(BRAIN, 1.0),
        "fracture": wedge(1.0, SKULL),
    }
    for k, name in enumerate(LESIONS):
        for side, sign in (("right", -1), ("left", 1)):
            v[f"{name}_{side}"] = found[name] * ((f["finding"] == k + 1) & (f["side"] == sign))
    v["lesion"] = torch.stack([v[f"{name}_{side}"] for name in LESIONS for side in ("right", "left")]).sum(0)
    v["ventricles"] = v["ventricle_right"] + v["ventricle_left"]
    v["intracranial"] = ball(1.0)
    kind = "area" if flat else "volume"
    return {f"{kind}_{name}": value.float() for name, value in v.items()}

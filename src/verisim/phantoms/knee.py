"""Procedural frontal knee X-rays with an exactly known Kellgren-Lawrence grade (spec 001, section 9; K-D1).

Seen as a radiologist sees them: a right knee has its fibula at the left of the image, a left knee at the
right. The factor `side` says which knee it is (+1 = left, as in the chest phantom); nothing else mirrors.

Image i of a seed is the same whatever n is: random numbers are drawn in blocks of 64 images, each block
from its own seed. Lengths are fractions of the image's side.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from verisim.data.spec import Images, ImageSpec
from verisim.errors import VerisimError, pick
from verisim.phantoms.base import Phantom, full_size
from verisim.phantoms.knee_render import render
from verisim.phantoms.shapes import keep_freed_memory
from verisim.seeding import generator

CLASS_NAMES = ("KL 0", "KL 1", "KL 2", "KL 3", "KL 4")
BLOCK = 64  # images that share one generator
PREVALENCE = (0.39, 0.18, 0.26, 0.13, 0.04)  # of the five grades
JOINT_SPACE = (0.060, 0.055, 0.045, 0.030, 0.012)  # mean width of the joint space of each grade
JITTER = 0.006  # uniform, to both sides
SIDES = {"both": 0.5, "left": 1.0, "right": 0.0}  # probability of a left knee

RANGES = {
    "femur_width": (0.42, 0.56),  # across the condyles
    "tibia_ratio": (0.95, 1.08),  # tibial plateau / femur
    "tilt": (-6.0, 6.0),  # degrees, positive = the thigh leans to the fibular (lateral) side
    "shift_x": (-0.04, 0.04),
    "shift_y": (-0.04, 0.04),
    "thigh": (0.10, 0.16),  # soft tissue beside the condyles
    "calf": (0.02, 0.08),  # how much the leg narrows below the knee
    "tissue_level": (0.20, 0.30),  # brightness of soft tissue
    "bone_level": (0.60, 0.70),
    "texture": (0.03, 0.07),  # standard deviation of the trabecular pattern
    "patella": (0.03, 0.07),  # brightness added by the kneecap
    "fibula_level": (0.40, 0.50),
    "gain": (0.80, 1.20),  # exposure
    "gamma": (0.80, 1.25),
    "vignetting": (0.0, 0.20),  # loss of brightness in the corners
}
COLUMNS = 32  # uniforms per image; the first len(RANGES) belong to RANGES, the rest are named here
GRADE, GAP, ASYMMETRY, OSTEOPHYTE, SCLEROSIS, SIDE = 31, 30, 29, 28, 27, 26


def make(
    n: int,
    seed: int = 0,
    size: int | tuple[int, ...] = 64,
    *,
    side: Literal["both", "left", "right"] = "both",
) -> Phantom:
    """n knee phantoms; size = side in pixels or (side, side).

    images: pixels (n, 1, size, size) float32 in [-1, 1], modality "phantom-knee"; labels (n,) int64, the
    grade 0 to 4. factors, (n,) float32: `grade`; `side` (+1 left, -1 right knee); `joint_space` and its
    compartments `joint_space_medial`, `joint_space_lateral` (vertical distance of the bones at the middle
    of each compartment) and `joint_space_min`, as fractions of the image; `asymmetry` (medial minus
    lateral, over their sum); `osteophyte_radius` (fraction of the image) and `sclerosis` (brightness
    added beside the joint), both 0 at grade 0 and proportional to the grade; and every name of RANGES.
    side: "left" or "right" draws that knee only, the rest of the anatomy unchanged.
    Raises VerisimError for n < 1, a size that is not square or below 16, or another side.
    """
    full = full_size(size, (2,), 16, "phantoms.knee.make")
    left = pick(SIDES, side, "side of the knee phantom")
    if n < 1 or full[0] != full[1]:
        raise VerisimError(f"phantoms.knee.make: n={n}, size={size}; n >= 1 square images are possible.")
    pixels = torch.empty(n, 1, *full)
    factors = {name: torch.empty(n) for name in factor_names()}

    def fill(start: int) -> None:
        stop = min(start + BLOCK, n)
        drawn = draw(seed, start // BLOCK, left)
        for name, values in factors.items():
            values[start:stop] = drawn[name][: stop - start]
        random = torch.randn(BLOCK, 2, *full, generator=generator("knee-noise", seed, start, full[0]))
        for image in render(drawn, full[0], stop - start, random[:, 0], random[:, 1]):
            take = min(len(image), stop - start)
            pixels[start : start + take, 0] = image[:take]
            start += take

    keep_freed_memory()
    for k in range(0, n, BLOCK):
        fill(k)
    labels = factors["grade"].long()
    return Phantom(Images(pixels, ImageSpec(full, modality="phantom-knee"), labels=labels), factors)


def factor_names() -> tuple[str, ...]:
    """Names of all factors that `make` returns, in a fixed order."""
    return tuple(draw(0, 0))


def draw(seed: int, block: int, left: float = 0.5) -> dict[str, Tensor]:
    """Factors of the 64 images of a block, each (64,) float32; left = probability of a left knee."""
    u = torch.rand(BLOCK, COLUMNS, generator=generator("knee", seed, block))  # (64, K)
    f = {name: lo + (hi - lo) * u[:, k] for k, (name, (lo, hi)) in enumerate(RANGES.items())}
    limits = torch.tensor(PREVALENCE).cumsum(0)[:-1]  # the last grade takes the rest
    grade = (u[:, GRADE, None] >= limits).sum(1)  # (64,)
    severity = grade / 4.0
    f["grade"] = grade.float()
    f["side"] = torch.where(u[:, SIDE] < left, 1.0, -1.0)
    f["joint_space"] = torch.tensor(JOINT_SPACE)[grade] + JITTER * (2 * u[:, GAP] - 1)
    f["asymmetry"] = 0.4 * (2 * u[:, ASYMMETRY] - 1) * (0.25 + 0.75 * severity)
    f["joint_space_medial"] = f["joint_space"] * (1 + f["asymmetry"])
    f["joint_space_lateral"] = f["joint_space"] * (1 - f["asymmetry"])
    f["joint_space_min"] = torch.minimum(f["joint_space_medial"], f["joint_space_lateral"])
    f["osteophyte_radius"] = severity * (0.025 + 0.020 * u[:, OSTEOPHYTE])
    f["sclerosis"] = severity * (0.12 + 0.08 * u[:, SCLEROSIS])
    return f

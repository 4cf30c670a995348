"""Procedural frontal chest X-rays with exactly known anatomy and findings (spec 004, section 9).

Seen as a radiologist sees them: the patient's left is at the right of the image, so the heart and the
L marker are at the right. Never mirrored: a generator that mirrors has learned it from flipped data.

Image i of a seed is the same whatever n is: random numbers are drawn in blocks of 64 images, each block
from its own seed, and rendered in pieces whose borders do not depend on n.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from verisim.data.spec import Images, ImageSpec
from verisim.errors import VerisimError
from verisim.phantoms.base import Phantom
from verisim.phantoms.chest_render import render
from verisim.phantoms.shapes import keep_freed_memory
from verisim.seeding import generator

CLASS_NAMES = ("no finding", "finding")
BLOCK = 64  # images that share one generator
NOISE = 0.01  # standard deviation of the detector noise, on [0, 1]
CARDIOMEGALY = 0.55  # cardiothoracic ratio above which the heart counts as enlarged
PREVALENCE = {"effusion": 0.08, "nodule": 0.05, "opacity": 0.10, "device": 0.05}

# Uniform factors in anatomical coordinates: x to image right, y down, the image spans [-1, 1].
RANGES = {
    "lung_half_width": (0.64, 0.76),  # midline to chest wall, mean of both sides
    "lung_asymmetry": (-0.05, 0.05),  # (left - right) / (left + right) half width
    "apex_y": (-0.80, -0.68),  # top of the lungs
    "diaphragm_y": (0.34, 0.52),  # top of the right dome
    "left_dome_drop": (0.03, 0.09),  # the left dome is lower than the right one
    "dome_height": (0.15, 0.25),  # dome top to costophrenic angle
    "habitus": (0.10, 0.26),  # soft tissue between ribs and skin
    "shoulder_y": (-0.95, -0.82),  # where the shoulder line leaves the neck
    "heart_offset": (0.17, 0.23),  # heart centre left of the midline / heart width
    "heart_tilt": (24.0, 38.0),  # long axis below the horizontal, degrees
    "heart_roundness": (0.72, 0.86),  # short / long axis
    "mediastinum": (0.095, 0.125),  # half width of the central shadow
    "aortic_knob": (0.035, 0.065),  # bulge of the aortic arch beyond it
    "rib_slope": (0.10, 0.24),  # fall of the posterior ribs per unit of x
    "rib_phase": (0.0, 1.0),
    "rib_contrast": (0.06, 0.10),
    "clavicle_y": (-0.66, -0.56),  # medial end
    "clavicle_rise": (0.06, 0.20),  # lateral minus medial end, upwards
    "vessel_phase_right": (0.0, 1.0),
    "vessel_phase_left": (0.0, 1.0),
    "vessel_count": (1.6, 2.4),  # main branches per radian
    "vessel_contrast": (0.08, 0.16),
    "lung_level": (0.16, 0.26),  # brightness of aerated lung
    "abdomen_level": (0.70, 0.84),
    "stomach_size": (0.02, 0.10),  # gas bubble below the left dome
    "marker_x": (0.78, 0.88),
    "marker_y": (-0.90, -0.72),
    "rotation": (-4.0, 4.0),  # degrees, clockwise on the screen
    "shift_x": (-0.04, 0.04),
    "shift_y": (-0.04, 0.04),
    "exposure": (-0.06, 0.06),  # added to the brightness
    "gamma": (0.80, 1.25),
    "effusion_size": (0.15, 0.45),  # height of the fluid / height of the lung
    "nodule_radius": (0.02, 0.06),  # fraction of the image width
    "opacity_radius": (0.07, 0.15),  # fraction of the image width
    "opacity_level": (0.15, 0.30),  # brightness added in the middle
    "device_tip_x": (-0.14, -0.06),  # tip of the central line, beside the midline
    "device_tip_y": (-0.15, 0.15),
}
COLUMNS = 64  # uniforms per image; the first len(RANGES) belong to RANGES, the rest are named below
CTR_COLUMNS = slice(58, 63)
RIB_COLUMN, MARKER_COLUMN = 57, 56
FINDING_COLUMN = {"effusion": 55, "nodule": 54, "opacity": 53, "device": 52}
SIDE_COLUMN = {"effusion": 51, "nodule": 50, "opacity": 49}
PLACE_COLUMNS = {"nodule": (48, 47), "opacity": (46, 45)}  # (height, distance from the midline)


def make(
    n: int,
    seed: int = 0,
    size: int | tuple[int, ...] = 64,
    *,
    findings: bool = True,
    rate: float = 1.0,  # factor on how often effusion, nodule, opacity and device occur; 1 = PREVALENCE
) -> Phantom:
    """n chest phantoms of size x size pixels; size as one number or (size, size).

    images: pixels (n, 1, size, size) float32 in [-1, 1], modality "phantom-chest"; labels (n,) int64,
    0 = no finding, 1 = any of cardiomegaly, effusion, nodule, opacity patch, device wire.
    factors: every name of `factor_names()`, (n,) float32. Positions (`*_x`, `*_y`) of heart, nodule,
    opacity and marker are image coordinates in [-1, 1] (right and down), after rotation and shift;
    position and size of an absent finding are 0. findings=False draws healthy chests only.
    rate changes no image but those that gain or lose a finding.
    Raises VerisimError for n < 1, size < 16, a size that is not square or a rate outside [0, 10].
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if n < 1 or len(sides) != 2 or sides[0] != sides[1] or sides[0] < 16:
        raise VerisimError(
            f"phantoms.chest.make: n={n}, size={size}; n >= 1 square images of at least 16 pixels are possible."
        )
    if not 0 <= rate <= 10:
        raise VerisimError(f"phantoms.chest.make: rate={rate:g}; 0 (no findings) to 10 is possible.")
    size = sides[0]
    pixels = torch.empty(n, 1, size, size)
    factors = {name: torch.empty(n) for name in factor_names()}

    def fill(start: int) -> None:
        stop = min(start + BLOCK, n)
        drawn = draw(seed, start // BLOCK, findings, rate)
        for name, values in factors.items():
            values[start:stop] = drawn[name][: stop - start]
        noise = torch.randn(BLOCK, size, size, generator=generator("chest-noise", seed, start, size))
        for image in render(drawn, size, stop - start, noise * NOISE):
            take = min(len(image), stop - start)
            pixels[start : start + take, 0] = image[:take]
            start += take

    keep_freed_memory()
    for k in range(0, n, BLOCK):
        fill(k)
    spec = ImageSpec((size, size), modality="phantom-chest")
    return Phantom(Images(pixels, spec, labels=factors["finding"].long()), factors)


def factor_names() -> tuple[str, ...]:
    """Names of all factors that `make` returns, in a fixed order."""
    return tuple(draw(0, 0, True))


def draw(seed: int, block: int, findings: bool, rate: float = 1.0) -> dict[str, Tensor]:
    """Factors of the 64 images of a block, each (64,) float32."""
    u = torch.rand(BLOCK, COLUMNS, generator=generator("chest", seed, block))  # (64, K)
    f = {name: lo + (hi - lo) * u[:, k] for k, (name, (lo, hi)) in enumerate(RANGES.items())}
    # The second smallest of five uniforms is Beta(2, 4): bell-shaped, 8.7 % above the cardiomegaly limit.
    beta = u[:, CTR_COLUMNS].sort(1).values[:, 1]
    f["cardiothoracic_ratio"] = 0.40 + (0.25 if findings else CARDIOMEGALY - 0.40) * beta
    f["cardiomegaly"] = (f["cardiothoracic_ratio"] > CARDIOMEGALY).float()
    f["rib_pairs"] = 8.0 + (3 * u[:, RIB_COLUMN]).floor()
    f["marker"] = (u[:, MARKER_COLUMN] < 0.8).float()
    for name, probability in PREVALENCE.items():
        f[name] = (u[:, FINDING_COLUMN[name]] < probability * rate * findings).float()
    for name, column in SIDE_COLUMN.items():  # +1 = the patient's left = image right
        f[f"{name}_side"] = torch.where(u[:, column] < 0.5, -1.0, 1.0)
    f["finding"] = torch.stack([f["cardiomegaly"], *(f[k] for k in PREVALENCE)]).amax(0)
    _place(f, u)
    return f


def _place(f: dict[str, Tensor], u: Tensor) -> None:
    """Add the factors that follow from others: extents, the heart, positions in the image."""
    w, a = f["lung_half_width"], f["lung_asymmetry"]
    f["lung_right"], f["lung_left"] = w * (1 - a), w * (1 + a)  # half widths
    f["lung_width"] = w  # fraction of the image width: 2 w of 2
    f["lung_height"] = (f["diaphragm_y"] - f["apex_y"]) / 2  # fraction of the image height
    width = f["cardiothoracic_ratio"] * 2 * w  # cardiothoracic ratio = heart / inner chest width
    f["heart_width"] = width / 2
    f["heart_side"] = torch.ones_like(w)  # +1: the patient's left, always
    tilt = torch.deg2rad(f["heart_tilt"])
    long = width / 2 / (tilt.cos() ** 2 + (f["heart_roundness"] * tilt.sin()) ** 2).sqrt()
    f["heart_long"] = long  # semi-axis; horizontal extent of the tilted ellipse is exactly `width`
    down = long * (tilt.sin() ** 2 + (f["heart_roundness"] * tilt.cos()) ** 2).sqrt()
    bottom = f["diaphragm_y"] + f["left_dome_drop"] + 0.12
    _to_image(f, "heart", f["heart_offset"] * width, bottom - down)
    for name, (height, lateral) in PLACE_COLUMNS.items():
        side = f[f"{name}_side"]
        y = f["apex_y"] + (0.25 + 0.40 * u[:, height]) * (f["diaphragm_y"] - f["apex_y"])
        x = side * torch.where(side > 0, f["lung_left"], f["lung_right"]) * (0.45 + 0.30 * u[:, lateral])
        _to_image(f, name, x, y)
    _to_image(f, "device", f.pop("device_tip_x"), f.pop("device_tip_y"))
    for name in PREVALENCE:  # an absent finding has neither place nor size
        for key in [k for k in f if k.startswith(f"{name}_")]:
            f[key] = f[key] * f[name]


def _to_image(f: dict[str, Tensor], name: str, x: Tensor, y: Tensor) -> None:
    """Store anatomical (x, y) as name_u, name_v and its place in the image as name_x, name_y."""
    angle = f["rotation"] * (math.pi / 180)
    f[f"{name}_u"], f[f"{name}_v"] = x, y
    f[f"{name}_x"] = angle.cos() * x - angle.sin() * y + f["shift_x"]
    f[f"{name}_y"] = angle.sin() * x + angle.cos() * y + f["shift_y"]

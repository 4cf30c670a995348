"""Draws knee phantoms from their factors: signed distances, branch-free, a batch at a time.

Anatomical coordinates: x to the lateral side (where the fibula is), y down, 0 = the middle of the joint;
the image spans [-1, 1], so a fraction of the image's side counts twice. Every edge is a ramp one pixel
wide, which is the share of a pixel that the shape covers. Brightness is on [0, 1] until the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from verisim.phantoms.shapes import BUDGET, cover, ellipse

NOISE = 0.01  # standard deviation at full brightness; it grows with the square root of the brightness
CUP = 0.05  # depth of the tibial plateau's two hollows, in femur widths
CONDYLE = (0.48, 0.42)  # semi-axes of a condyle, in femur widths
SHAFT, FLARE = 0.42, 0.53  # half width of the femoral shaft, and what the flare above the joint adds


def render(f: dict[str, Tensor], size: int, needed: int, texture: Tensor, noise: Tensor) -> Iterator[Tensor]:
    """Pieces (b, size, size) in [-1, 1], in order, until at least `needed` images are drawn.

    f: factors (N,) each; texture, noise: (N, size, size) standard normal; texture becomes trabeculae.
    """
    total = len(noise)
    piece = min(total, max(1, BUDGET // size**2))
    for start in range(0, min(needed, total), piece):
        part = {k: v[start : start + piece].view(-1, 1, 1) for k, v in f.items()}
        image = _draw(part, size, band_pass(texture[start : start + piece]))
        grain = NOISE * image.sqrt() * noise[start : start + piece]
        yield image.add_(grain).clamp_(0.0, 1.0).mul_(2.0).sub_(1.0)


def band_pass(noise: Tensor) -> Tensor:
    """(b, S, S) white noise -> details between 1 and 3 pixels, standard deviation 1."""
    size = noise.shape[-1]
    fine, coarse = _blur(size, 1.0), _blur(size, 3.0)
    return (fine @ noise @ fine.T - coarse @ noise @ coarse.T) * _band_scale(size)


@lru_cache
def _blur(size: int, sigma: float) -> Tensor:
    """(S, S) Gaussian blur along one axis; rows sum to 1."""
    offset = torch.arange(size)[:, None] - torch.arange(size)
    k = torch.exp(-0.5 * (offset / sigma) ** 2)
    return k / k.sum(1, keepdim=True)


@lru_cache
def _band_scale(size: int) -> float:
    """1 / standard deviation of `band_pass` without it, in the middle of the image."""
    fine, coarse = _blur(size, 1.0)[size // 2], _blur(size, 3.0)[size // 2]
    return 1 / float((torch.outer(fine, fine) - torch.outer(coarse, coarse)).square().sum().sqrt())


def _draw(f: dict[str, Tensor], size: int, texture: Tensor) -> Tensor:
    """(b, S, S) brightness in [0, 1] before noise; f holds (b, 1, 1) factors."""
    axis = (torch.arange(size) + 0.5) * (2.0 / size) - 1.0
    u, v = axis[None, None, :] - 2 * f["shift_x"], axis[None, :, None] - 2 * f["shift_y"]
    angle = f["tilt"] * (math.pi / 180)
    u = u * f["side"]  # from here on positive = lateral
    x = angle.cos() * u - angle.sin() * v
    y = angle.sin() * u + angle.cos() * v
    edge = 2.0 / size
    ax = x.abs()
    thigh, shin = _femur(f, x, ax, y), _tibia(f, x, ax, y)
    growth = _osteophytes(f, ax, y)
    femur, tibia = torch.minimum(thigh, growth[0]), torch.minimum(shin, growth[1])
    bone = (cover(femur, edge) + cover(tibia, edge)).clamp_(max=1.0)  # two shapes that never overlap
    skin = 0.60 * f["femur_width"] + 2 * f["thigh"] + 0.4 * f["femur_width"] - 2 * f["calf"] * (y + 0.3)
    image = 0.03 + f["tissue_level"] * cover(ax - skin, 4 * edge)
    fibula = cover(_fibula(f, x, y), edge)
    image += (f["fibula_level"] - image) * fibula
    image += (f["bone_level"] - image) * bone
    nearest = torch.minimum(femur, tibia)
    rim = 0.04  # the cortex: two pixels at 64, and as thick at any size
    image += 0.15 * bone * (1 - (nearest + rim).abs_() / rim).clamp_(0.0, 1.0)
    image += f["sclerosis"] * bone * _beside_joint(thigh, shin, ax, f)
    image += f["texture"] * texture * torch.maximum(bone, fibula)
    image += f["patella"] * cover(ellipse(x, y + 0.44, 0.42 * f["femur_width"], torch.tensor(0.20)), 0.08)
    image *= f["gain"] * (1 - f["vignetting"] * 0.5 * (u.square() + v.square()))
    return image.clamp_(0.0, 1.0).pow_(f["gamma"])


def _femur(f: dict[str, Tensor], x: Tensor, ax: Tensor, y: Tensor) -> Tensor:
    """Signed distance: a flaring shaft and two condyles whose lowest points bound the joint space."""
    w = f["femur_width"]  # half of the full width, since the image spans two units
    gap = f["joint_space"] * (1 - f["asymmetry"] * x.sign())  # half of the compartment's joint space
    a, b = CONDYLE[0] * w, CONDYLE[1] * w
    condyle = ellipse(ax - 0.5 * w, y + gap + b, a, b)
    t = ((y + 0.95) / 0.60).clamp_(0.0, 1.0)
    shaft = torch.maximum(ax - w * (SHAFT + FLARE * t * t), y + gap + 0.65 * b)
    return torch.minimum(condyle, shaft)


def _tibia(f: dict[str, Tensor], x: Tensor, ax: Tensor, y: Tensor) -> Tensor:
    """Signed distance: a plateau with two hollows, deepest below the condyles, that tapers to the shaft."""
    w = f["femur_width"]
    t = ((y - 0.05) / 0.70).clamp_(0.0, 1.0)
    side = ax - w * f["tibia_ratio"] * (1 - 0.52 * t * (2 - t))
    return torch.maximum(side, plateau(f, x, ax) - y)


def plateau(f: dict[str, Tensor], x: Tensor, ax: Tensor) -> Tensor:
    """Height y of the tibial plateau at x."""
    middle = 0.5 * f["femur_width"]
    gap = f["joint_space"] * (1 - f["asymmetry"] * (x / middle).clamp(-1.0, 1.0))
    return gap - CUP * f["femur_width"] * (ax / middle - 1).square_()


def _osteophytes(f: dict[str, Tensor], ax: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Signed distances of the bony spurs at the margins of femur and tibia; of radius 0 at grade 0.

    Each keeps clear of the joint line by its own radius, so it never narrows the joint space.
    """
    radius = 2 * f["osteophyte_radius"]
    gap = f["joint_space"]
    margin = f["femur_width"] * 0.96
    up, down = y + gap + 1.4 * radius + 0.08, y - gap - 1.4 * radius
    femur = ((ax - margin).square() + up.square()).sqrt_().sub_(radius)
    tibia = ((ax - margin * f["tibia_ratio"]).square() + down.square()).sqrt_().sub_(radius)
    none = 9.0 * (f["osteophyte_radius"] == 0)  # a circle of radius 0 would still mark half a pixel
    return femur + none, tibia + none


def _fibula(f: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Signed distance: head and shaft, lateral of the tibia; the side of the knee."""
    w = f["femur_width"] * f["tibia_ratio"]
    head = ellipse(x - 0.94 * w, y - 0.36, torch.tensor(0.11), torch.tensor(0.09))
    shaft = torch.maximum((x - 0.90 * w).abs_().sub_(0.055), 0.36 - y)
    return torch.minimum(head, shaft)


def _beside_joint(thigh: Tensor, shin: Tensor, ax: Tensor, f: dict[str, Tensor]) -> Tensor:
    """1 where bone meets the joint space, fading within about 0.03 of the image."""
    away = torch.maximum(thigh, shin).clamp_(min=0.0)  # distance of a point of one bone to the other
    return torch.exp(-(away / (0.06 + 2 * f["joint_space"])).square()) * cover(ax - f["femur_width"], 0.1)

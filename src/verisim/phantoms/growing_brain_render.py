"""Draws scans of the growing brain from their factors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from verisim.phantoms import growing_brain
from verisim.phantoms.shapes import BUDGET
from verisim.phantoms.volume import Canvas, folded, frame, paint_solids, rician
from verisim.seeding import generator

CSF, WHITE, DEEP = 0.90, 0.60, 0.45  # brightness on [0, 1]
CORTEX = (0.55, -0.25)  # brightness at 26 weeks, and its change until 45 weeks
NOISE = 0.015  # standard deviation of each quadrature channel


def render(
    f: dict[str, Tensor], size: tuple[int, ...], voxel: float, seed: int, pixels: Tensor, codes: Tensor
) -> None:
    """Fill pixels (m, 1, *S) in [-1, 1] and codes (m, 1, *S) with the m scans of f."""
    piece = max(1, BUDGET // math.prod(size))
    for start in range(0, len(pixels), piece):
        part = slice(start, min(start + piece, len(pixels)))
        some = {k: v[part] for k, v in f.items()}
        canvas = draw(some, size, voxel)
        for i, value in enumerate(canvas.values):
            where = (int(some["subject"][i]), f"{float(some['age'][i]):.4f}")
            noisy = rician(value, NOISE, generator("growing-noise", seed, *where, *size))
            pixels[start + i] = noisy.clamp_(0.0, 1.0).mul_(2.0).sub_(1.0).view_as(pixels[start + i])
        codes[part] = canvas.labels.view_as(codes[part])


def draw(f: dict[str, Tensor], size: tuple[int, ...], voxel: float) -> Canvas:
    """Scans without noise, brightness on [0, 1]."""
    a = frame(f, size, 0.0, voxel)
    axes = f["axes"]
    u, v, w = (t / axes[:, i].view(-1, 1, 1, 1) for i, t in enumerate((a.x, a.y, a.z)))
    g = {k: f[k].view(-1, 1, 1, 1) for k in ("radius", "thickness", "folding", "maturity", "ventricle_level")}
    shape = size if len(size) == 3 else (1, *size)
    canvas = Canvas(len(axes), 1, (shape[0], shape[1], shape[2]), torch.zeros(1))
    outer = (u.square() + v.square() + w.square()).sqrt_()
    inner = folded(u, v, w, f["fold"], g["folding"])
    pial = growing_brain.PIAL
    canvas.paint((outer - 1) * g["radius"], a.voxel, torch.tensor([CSF]), 1)
    canvas.paint((inner - pial) * g["radius"], a.voxel, _each(CORTEX[0] + CORTEX[1] * g["maturity"]), 2)
    canvas.paint((inner - pial + g["thickness"]) * g["radius"], a.voxel, torch.tensor([WHITE]), 3)
    fluid, deep = _each(g["ventricle_level"]), torch.tensor([DEEP])
    paint_solids(canvas, a, f, growing_brain.solids(f), size, [(fluid, 4), (fluid, 5), (deep, 6), (deep, 7)])
    return canvas


def _each(level: Tensor) -> Tensor:
    """A brightness for each scan, (b, 1, 1, 1, 1)."""
    return level.view(-1, 1, 1, 1, 1)

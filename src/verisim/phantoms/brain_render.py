"""Draws brain phantoms from their factors: shells of the cerebrum, then ellipsoids, then lesions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from verisim.phantoms import brain
from verisim.phantoms.mr_contrast import brightness
from verisim.phantoms.shapes import BUDGET
from verisim.phantoms.volume import Canvas, Frame, Solids, bias_field, folded, frame, paint_solids, rician
from verisim.seeding import generator

TISSUE_OF = {
    "background": "background", "csf": "csf", "cortex": "grey", "white_matter": "white", "ventricle": "csf",
    "thalamus": "deep", "caudate": "deep", "putamen": "deep", "hippocampus": "grey", "cerebellum": "grey",
    "brainstem": "white", "ms_lesion": "ms", "oedema": "oedema", "enhancing_tumour": "enhancing",
    "tumour_core": "core",
}  # fmt: skip


def render(
    f: dict[str, Tensor],
    solids: Solids,
    size: tuple[int, ...],
    slice_at: float,
    contrasts: tuple[str, ...],
    seed: tuple[int, int],
    pixels: Tensor,
    codes: Tensor,
) -> None:
    """Fill pixels (m, C, *S) in [-1, 1] and codes (m, 1, *S) with the first m heads.

    f, solids: factors of N >= m heads; seed: (seed, number of the first head), for the noise of each head.
    """
    piece = max(1, BUDGET // math.prod(size))
    for start in range(0, len(pixels), piece):
        part = slice(start, min(start + piece, len(pixels)))
        g = {k: v[part] for k, v in f.items()}
        some = Solids(solids.centre[part], solids.semi[part])
        canvas = draw(g, some, size, slice_at, contrasts)
        shape = canvas.labels.shape[1:]
        values = canvas.values * bias_field(g["trend"], g["bias"], tuple(shape))
        for i, value in enumerate(values):
            noise = generator("brain-noise", seed[0], seed[1] + start + i, *size, *contrasts)
            noisy = rician(value, brain.NOISE, noise).clamp_(0.0, 1.0).mul_(2.0).sub_(1.0)
            pixels[start + i] = noisy.view_as(pixels[start + i])
        codes[part] = canvas.labels.view_as(codes[part])


def draw(
    f: dict[str, Tensor], solids: Solids, size: tuple[int, ...], slice_at: float, contrasts: tuple[str, ...]
) -> Canvas:
    """Heads without bias field and noise, grey values on [0, 1]."""
    tables = [brightness(c) for c in contrasts]
    grey = {k: torch.tensor([t[tissue] for t in tables]) for k, tissue in TISSUE_OF.items()}
    a = frame(f, size, slice_at)
    shape = size if len(size) == 3 else (1, *size)
    canvas = Canvas(len(f["scale"]), len(contrasts), (shape[0], shape[1], shape[2]), grey["background"])
    for name, distance in shells(f, a):
        canvas.paint(distance, a.voxel, grey[name], brain.STRUCTURES.index(name))
    names = [n.removesuffix("_right").removesuffix("_left") for n in brain.SOLID_NAMES]
    codes = [brain.STRUCTURES.index(n) for n in brain.SOLID_NAMES]
    paint_solids(canvas, a, f, solids, size, [(grey[n], code) for n, code in zip(names, codes)])
    return canvas


def shells(f: dict[str, Tensor], a: Frame) -> list[tuple[str, Tensor]]:
    """Signed distances (b, D, H, W) in mm of what lies in the skull, in the cortex, in the white matter."""
    g = {k: f[k].view(-1, 1, 1, 1) for k in ("scale", "white_radius", "cortex_thickness")}
    u, v, w = (t / (length * g["scale"]) for t, length in zip((a.x, a.y, a.z), brain.AXES))
    radius = folded(u, v, w, f["fold"], brain.FOLDING)
    length = g["scale"] * sum(brain.AXES) / 3  # mm per unit of R
    below = -w / brain.BASE
    c = g["scale"] * (brain.AXES[2] * brain.BASE)
    outside = (u.square() + v.square() + w.square()).sqrt_().sub_(brain.SKULL).mul_(length)

    def cerebrum(r: Tensor) -> Tensor:
        return torch.maximum((radius - r) * length, (below - r) * c)

    white = g["white_radius"]
    return [
        ("csf", outside),
        ("cortex", cerebrum(white + g["cortex_thickness"])),
        ("white_matter", cerebrum(white)),
    ]

"""Draws head CT phantoms in Hounsfield units: shells, white matter, ventricles, then the finding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from verisim.phantoms import head_ct
from verisim.phantoms.shapes import BUDGET
from verisim.phantoms.volume import Canvas, Frame, Solids, folded, frame, paint_solids
from verisim.seeding import generator

HU = {
    "background": -1000.0, "scalp": 20.0, "skull": 900.0, "csf": 5.0, "grey": 37.0, "white": 28.0,
    "blood": 65.0, "crack": 20.0,
}  # fmt: skip
NOISE = 5.0  # HU, standard deviation
TEXTURE = 3.0  # HU, greatest deviation of the fixed pattern that tells one place of the brain from another


def render(
    f: dict[str, Tensor],
    size: tuple[int, ...],
    slice_at: float,
    window: tuple[float, float],
    seed: tuple[int, int],
    pixels: Tensor,
    codes: Tensor,
) -> None:
    """Fill pixels (m, 1, *S) in [-1, 1] and codes (m, 1, *S) with the first m heads.

    f: factors of N >= m heads; seed: (seed, number of the first head), for the noise of each head.
    """
    piece = max(1, BUDGET // math.prod(size))
    for start in range(0, len(pixels), piece):
        part = slice(start, min(start + piece, len(pixels)))
        canvas = draw({k: v[part] for k, v in f.items()}, size, slice_at)
        for i, hounsfield in enumerate(canvas.values):
            noise = torch.randn(
                size, generator=generator("head-ct-noise", seed[0], seed[1] + start + i, *size)
            )
            shown = (hounsfield.view(size) + NOISE * noise - window[0]) / (window[1] - window[0])
            pixels[start + i, 0] = shown.clamp_(0.0, 1.0).mul_(2.0).sub_(1.0)
        codes[part] = canvas.labels.view_as(codes[part])


def draw(f: dict[str, Tensor], size: tuple[int, ...], slice_at: float) -> Canvas:
    """Heads in HU, without noise."""
    a = frame(f, size, slice_at)
    scale = f["scale"].view(-1, 1, 1, 1)
    u, v, w = (t / (length * scale) for t, length in zip((a.x, a.y, a.z), head_ct.AXES))
    length = scale * sum(head_ct.AXES) / 3  # mm per unit
    radius = (u.square() + v.square() + w.square()).sqrt_()
    shape = size if len(size) == 3 else (1, *size)
    canvas = Canvas(len(scale), 1, (shape[0], shape[1], shape[2]), _hu("background"))
    for name, limit, grey in (
        ("scalp", head_ct.SCALP, "scalp"), ("skull", head_ct.SKULL, "skull"), ("csf", 1.0, "csf"),
        ("brain_right", head_ct.BRAIN, "grey"),
    ):  # fmt: skip
        canvas.paint((radius - limit) * length, a.voxel, _hu(grey), head_ct.STRUCTURES.index(name))
    right, left = (head_ct.STRUCTURES.index(f"brain_{s}") for s in ("right", "left"))
    canvas.labels[(canvas.labels == right) & (a.x >= 0)] = left
    white = folded(u, v, w, f["fold"], head_ct.FOLDING).sub_(head_ct.WHITE).mul_(length)
    canvas.paint_grey(white, a.voxel, _hu("white"))
    canvas.values += (TEXTURE * _pattern(u, v, w) * (radius < head_ct.BRAIN))[:, None]
    solids = head_ct.ventricles(f)
    both = Solids(solids.centre[:, :2], solids.semi[:, :2])
    codes = [head_ct.STRUCTURES.index(f"ventricle_{s}") for s in ("right", "left")]
    paint_solids(canvas, a, f, both, size, [(_hu("csf"), code) for code in codes])
    _findings(canvas, f, a, (u, v, w), radius, length, size, solids)
    return canvas


def _hu(tissue: str) -> Tensor:
    return torch.tensor([HU[tissue]])


def _pattern(u: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """The same for all heads, in [-1, 1]; no two places of the brain have the same surroundings."""
    return 0.5 * torch.sin(9 * u + 4 * v - 3 * w) + 0.5 * torch.sin(7 * v - 8 * w + 5 * u * v)


def _findings(
    canvas: Canvas,
    f: dict[str, Tensor],
    a: Frame,
    at: tuple[Tensor, Tensor, Tensor],
    radius: Tensor,
    length: Tensor,
    size: tuple[int, ...],
    solids: Solids,
) -> None:
    """Paint the finding of every head; kinds that no head of the piece has cost nothing."""
    for k, name in enumerate(head_ct.LESIONS):
        for side, sign in (("right", -1.0), ("left", 1.0)):
            present = (f["finding"] == k + 1) & (f["side"] == sign)
            if not present.any():
                continue
            code = head_ct.STRUCTURES.index(f"{name}_{side}")
            if name == "intraparenchymal":
                some = Solids(solids.centre[:, 2:], solids.semi[:, 2:] * present[:, None, None])
                paint_solids(canvas, a, f, some, size, [(_hu("blood"), code)])
                continue
            if name == "epidural":
                far = _from_ball(f, name, 1.0, at)
                distance = torch.maximum(radius - 1, far) * length
            elif name == "subdural":
                distance = torch.maximum(radius - 1, -_from_ball(f, name, -1.0, at)) * length
            else:
                inner, outer = (1.0, head_ct.SKULL) if name == "fracture" else (head_ct.BRAIN, 1.0)
                distance = (
                    torch.maximum(_wedge(f, at), torch.maximum(inner - radius, radius - outer)) * length
                )
            grey = _hu("crack" if name == "fracture" else "blood")
            canvas.paint(distance + 1e3 * ~present.view(-1, 1, 1, 1), a.voxel, grey, code)


def _from_ball(f: dict[str, Tensor], name: str, sign: float, at: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Signed distance to the ball of the lens or the sickle, in half widths of the head."""
    centre = sign * f[f"{name}_distance"][:, None] * f[f"{name}_direction"]  # (b, 3)
    square = sum((t - centre[:, i].view(-1, 1, 1, 1)).square() for i, t in enumerate(at))
    assert isinstance(square, Tensor)
    return square.sqrt() - f[f"{name}_radius"].view(-1, 1, 1, 1)


def _wedge(f: dict[str, Tensor], at: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Signed distance to {|angle - turn z - middle| < spread, |z - height| < reach}, near the surface."""
    u, v, w = at
    g = {k: f[f"wedge_{k}"].view(-1, 1, 1, 1) for k in ("middle", "spread", "height", "reach", "turn")}
    angle = torch.atan2(v, u) - g["middle"] - g["turn"] * w
    angle = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
    around = (angle.abs() - g["spread"]) * (u.square() + v.square()).sqrt()
    return torch.maximum(around, (w - g["height"]).abs() - g["reach"])

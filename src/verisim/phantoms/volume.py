"""Drawing heads in millimetres: coordinates, ellipsoids, label maps, bias field and noise, in 2D and 3D.

Axes as in DICOM: x grows to the patient's left (image right), y to the back (image down), z to the crown;
arrays are (D, H, W) = (z, y, x). A slice is the same volume in one plane. A head is placed in the image
by a shift, a turn about z and two shears, x by y and z, then y by x and z. Each shear has determinant 1
and leaves z alone, so volumes, and areas in every axial plane, stay exactly what they were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from verisim.phantoms.shapes import cover

FIELD = (172.0, 200.0, 160.0)  # mm in z, y, x that must fit into the image
WARP = 3.0  # mm, greatest displacement by each shear
WAVES = 2  # per shear
WARP_COLUMNS = 2 * WAVES * 3  # uniforms per head: amplitude, direction, phase


def spacing(size: tuple[int, ...]) -> float:
    """Millimetres per pixel, the same along all axes, with which FIELD fits into `size`."""
    return max(f / s for f, s in zip(FIELD[-len(size) :], size))


@dataclass(frozen=True)
class Frame:
    """Head coordinates of the points of a piece, in mm; each (b, D, H, W) or broadcastable to it."""

    x: Tensor
    y: Tensor
    z: Tensor
    voxel: float  # mm

    def part(self, box: tuple[slice, slice, slice]) -> Frame:
        """The points of a box of indices (z, y, x)."""
        z = self.z[:, box[0]] if self.z.shape[1] > 1 else self.z
        return Frame(self.x[(slice(None), *box)], self.y[(slice(None), *box)], z, self.voxel)


def frame(f: dict[str, Tensor], size: tuple[int, ...], slice_at: float, voxel: float | None = None) -> Frame:
    """The frame of heads with factors (b,) shift_x, shift_y, shift_z (mm), rotation (degrees), warp (b, K).

    size: (D, H, W), or (H, W) for the plane z = slice_at (mm in the average head, times `scale`);
    voxel: mm per pixel, by default such that FIELD fits in.
    """
    voxel = voxel or spacing(size)
    axes = [(torch.arange(s) - (s - 1) / 2) * voxel for s in size]
    g = {k: f[k].view(-1, 1, 1, 1) for k in ("shift_x", "shift_y", "shift_z", "rotation", "scale")}
    z = axes[0].view(1, -1, 1, 1) - g["shift_z"] if len(size) == 3 else slice_at * g["scale"]
    u, v = axes[-1].view(1, 1, 1, -1) - g["shift_x"], axes[-2].view(1, 1, -1, 1) - g["shift_y"]
    angle = g["rotation"] * (math.pi / 180)
    x = angle.cos() * u + angle.sin() * v
    y = angle.cos() * v - angle.sin() * u
    waves = f["warp"].view(len(z), 2, WAVES, 3, 1, 1, 1)
    x = x + _waves(y, z, waves[:, 0])
    y = y + _waves(x, z, waves[:, 1])
    return Frame(x, y, z, voxel)


def _waves(t: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """Displacement of at most WARP mm that depends on t and z alone; w (b, WAVES, 3, 1, 1, 1) in [0, 1]."""
    total: Tensor | float = 0.0
    for k in range(WAVES):
        amplitude, direction, phase = w[:, k].unbind(1)
        length = (150.0, 80.0)[k]  # mm
        along = t + (2 * direction - 1) * z
        wave = torch.sin(along * (2 * math.pi / length) + 2 * math.pi * phase)
        total = total + (WARP / WAVES) * amplitude * wave
    assert isinstance(total, Tensor)
    return total


@dataclass(frozen=True)
class Solids:
    """Ellipsoids of a piece, in head coordinates; an absent one has semi-axes 0."""

    centre: Tensor  # (b, K, 3) mm; x, y, z
    semi: Tensor  # (b, K, 3) mm

    def volume(self) -> Tensor:
        """(b, K) mL."""
        return (4 / 3 * math.pi / 1000) * self.semi.prod(2)

    def area(self, z: Tensor) -> Tensor:
        """(b, K) cm^2 in the plane z (b,)."""
        off = (z[:, None] - self.centre[..., 2]) / self.semi[..., 2].clamp(min=1e-6)
        return (math.pi / 100) * self.semi[..., 0] * self.semi[..., 1] * (1 - off.square()).clamp(min=0.0)

    def boxes(
        self, f: dict[str, Tensor], size: tuple[int, ...], voxel: float
    ) -> list[list[tuple[slice, slice, slice]]]:
        """Index boxes [b][K] (z, y, x) outside of which an ellipsoid covers nothing; wide enough for the warp."""
        angle = (f["rotation"] * (math.pi / 180))[:, None]
        x, y, z = self.centre.unbind(2)
        a, b, c = self.semi.unbind(2)
        cos, sin = angle.cos(), angle.sin()
        turned = [z, sin * x + cos * y, cos * x - sin * y]
        warped = 2 * WARP
        reach = [
            c,
            sin.abs() * (a + warped) + cos * (b + warped),
            cos * (a + warped) + sin.abs() * (b + warped),
        ]
        shape = size if len(size) == 3 else (1, *size)
        sides: list[list[list[slice]]] = []
        for centre, half, shift, s in zip(turned, reach, ("shift_z", "shift_y", "shift_x"), shape):
            at = (centre + f[shift][:, None]) / voxel + (s - 1) / 2
            half = half / voxel + 1.0
            low = (at - half).floor().clamp(0, s).long().tolist()
            high = (at + half).ceil().add(1).clamp(0, s).long().tolist()
            sides.append(
                [[slice(i, j) if s > 1 else slice(0, 1) for i, j in zip(p, q)] for p, q in zip(low, high)]
            )
        return [list(zip(*head)) for head in zip(*sides)]


def ellipsoid(a: Frame, centre: Tensor, semi: Tensor) -> Tensor:
    """Signed distance (b, D, H, W) in mm to ellipsoids of centre and semi-axes (b, 3), to first order.

    (rho^2 - 1) / |grad rho^2| with rho^2 = sum (x_i / a_i)^2: exact on the surface, and near it.
    """
    c, s = centre[:, :, None, None, None], semi[:, :, None, None, None].clamp(min=1e-3)
    x, y, z = ((t - c[:, i]) / s[:, i] for i, t in enumerate((a.x, a.y, a.z)))
    square = x.square() + y.square() + z.square()
    slope = (x / s[:, 0]).square() + (y / s[:, 1]).square() + (z / s[:, 2]).square()
    return (square - 1) / (2 * slope.sqrt() + 1e-6)


GYRI = (9, 14)  # waves around the head, whole numbers so that their mean over the angle is 0


def folded(x: Tensor, y: Tensor, z: Tensor, phases: Tensor, depth: float | Tensor) -> Tensor:
    """Radius R = sqrt(Q / (1 + g) + z^2), Q = x^2 + y^2, of points of a unit head; x, y, z as in a Frame.

    g, the gyri, lies in [-depth, depth] and has mean 0 over the angle at every height, so that the section
    {R < r} at z has the area pi (r^2 - z^2), and {R < r} the volume of a ball. phases: (b, 4) in [0, 1].
    """
    p = phases.view(-1, 4, 1, 1, 1) * (2 * math.pi)
    angle = torch.atan2(y, x)
    g = torch.cos(GYRI[0] * angle + p[:, 0] + 5 * torch.cos(3 * z + p[:, 2]))
    g += torch.cos(GYRI[1] * angle + p[:, 1] + 5 * torch.cos(4 * z + p[:, 3]))
    return ((x.square() + y.square()) / (1 + 0.5 * depth * g) + z.square()).sqrt_()


def union(boxes: list[tuple[slice, slice, slice]]) -> tuple[slice, slice, slice]:
    """The smallest box that holds all."""
    if len(boxes) == 1:
        return boxes[0]
    sides = [slice(min(b[i].start for b in boxes), max(b[i].stop for b in boxes)) for i in range(3)]
    return sides[0], sides[1], sides[2]


class Canvas:
    """Grey values of several contrasts and one label map, painted tissue by tissue."""

    def __init__(self, b: int, channels: int, shape: tuple[int, int, int], background: Tensor) -> None:
        """background: (channels,) grey values of what is outside of everything."""
        self.values = background.view(1, -1, 1, 1, 1).repeat(b, 1, *shape)  # (b, C, D, H, W)
        self.labels = torch.zeros(b, *shape, dtype=torch.uint8)

    def paint(
        self,
        distance: Tensor,
        voxel: float,
        grey: Tensor,
        code: int,
        box: tuple[slice, slice, slice] = (slice(None), slice(None), slice(None)),
    ) -> None:
        """Put a tissue and its code where the signed distance (b, *box) is negative.

        grey: (C,) the same for all images, or (b, C, 1, 1, 1).
        """
        self.paint_grey(distance, voxel, grey, box)
        self.labels[(slice(None), *box)].masked_fill_(distance < 0, code)

    def paint_grey(
        self,
        distance: Tensor,
        voxel: float,
        grey: Tensor,
        box: tuple[slice, slice, slice] = (slice(None), slice(None), slice(None)),
    ) -> None:
        """The same without a code: the tissue belongs to the structure that is there."""
        part = self.values[(slice(None), slice(None), *box)]
        level = grey if grey.ndim == 5 else grey.view(1, -1, 1, 1, 1)
        part += (level - part) * cover(distance, voxel)[:, None]


def paint_solids(
    canvas: Canvas,
    a: Frame,
    f: dict[str, Tensor],
    solids: Solids,
    size: tuple[int, ...],
    tissues: list[tuple[Tensor, int]],
) -> None:
    """Paint K ellipsoids in turn, each with its grey values (C,) and code, within their boxes; skip absent ones."""
    boxes = solids.boxes(f, size, a.voxel)
    absent = solids.semi.amin(2) <= 0  # (b, K)
    for k, (grey, code) in enumerate(tissues):
        if absent[:, k].all():
            continue
        box = union([b[k] for b in boxes])
        distance = ellipsoid(a.part(box), solids.centre[:, k], solids.semi[:, k])
        canvas.paint(distance + 1e3 * absent[:, k].view(-1, 1, 1, 1), a.voxel, grey, code, box)


def bias_field(weights: Tensor, amplitude: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(b, 1, D, H, W) factor in [1 - amplitude, 1 + amplitude]: a random linear and quadratic trend.

    weights (b, 6) in [-1, 1], amplitude (b,).
    """
    w = (weights / weights.abs().sum(1, keepdim=True).clamp(min=1e-6)).view(-1, 6, 1, 1, 1)
    total: Tensor | float = 0.0
    for i, s in enumerate(shape):
        t = (torch.linspace(-1, 1, s) if s > 1 else torch.zeros(1)).view(
            [-1 if j == i else 1 for j in range(3)]
        )
        total = total + w[:, i] * t + w[:, 3 + i] * (2 * t.square() - 1)
    return (1 + amplitude.view(-1, 1, 1, 1) * total)[:, None]


def rician(values: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Magnitude of values (any shape) with complex Gaussian noise: sqrt((v + sigma n1)^2 + (sigma n2)^2)."""
    noise = torch.randn(2, *values.shape, generator=generator) * sigma
    return (values + noise[0]).square_().add_(noise[1].square_()).sqrt_()

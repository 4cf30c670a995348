"""Draws chest phantoms from their factors: signed distances, branch-free, a batch at a time.

Geometry is written in |x| with parameters that may differ between the sides, so that both lungs, both
clavicles and all ribs cost one evaluation each. Brightness is on [0, 1] (white = dense) until the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from verisim.phantoms.shapes import BUDGET, cover, ellipse

FULL = 128  # from this size on, one point per pixel is enough: every edge is a ramp of one pixel or more
THORAX = ("lung_half_width", "apex_y", "diaphragm_y", "dome_height", "abdomen_level")  # what findings lie in
WIDEST_Y = 0.20  # from here down the chest wall is straight: the width there is the inner chest width


@dataclass(frozen=True)
class Frame:
    """Coordinates of the points of a piece and the two surfaces that most shapes refer to; (b, S, S)."""

    x: Tensor  # anatomical: 0 = midline, positive = the patient's left = image right
    ax: Tensor  # |x|
    y: Tensor  # positive = down
    side: Tensor  # sign of x
    wall: Tensor  # signed distance to the inner chest wall, < 0 inside
    dome: Tensor  # height below the diaphragm, > 0 in the abdomen
    edge: float  # width of the softest edge that the grid can hold

    def only(self, index: Tensor) -> Frame:
        """Some images of it."""
        x, ax, y, side, wall, dome = (
            t[index] for t in (self.x, self.ax, self.y, self.side, self.wall, self.dome)
        )
        return Frame(x, ax, y, side, wall, dome, self.edge)

    def rows(self, part: slice) -> Frame:
        """Some rows of it, for shapes that lie nowhere else."""
        x, ax, y, side = (t[:, part] for t in (self.x, self.ax, self.y, self.side))
        return Frame(x, ax, y, side, self.wall[:, part], self.dome[:, part], self.edge)


def render(f: dict[str, Tensor], size: int, needed: int, noise: Tensor) -> Iterator[Tensor]:
    """Pieces (b, size, size) in [-1, 1], in order, until at least `needed` images are drawn.

    f: factors (N,) each; noise: (N, size, size) on [0, 1], added after exposure. The borders of the pieces
    depend on N and size alone, so an image never depends on `needed`.
    """
    total = len(noise)
    piece = min(total, max(1, BUDGET // size**2))
    points = lattice(size)
    for start in range(0, min(needed, total), piece):
        part = {k: v[start : start + piece].view(-1, 1, 1) for k, v in f.items()}
        image = _draw(part, size, *points[0])
        for offset in points[1:]:
            image += _draw(part, size, *offset)
        image = image.div_(len(points)).add_(part["exposure"]).clamp_(0.0, 1.0).pow_(part["gamma"])
        yield image.add_(noise[start : start + piece]).clamp_(0.0, 1.0).mul_(2.0).sub_(1.0)


def lattice(size: int) -> list[tuple[float, float]]:
    """Sub-pixel offsets (in pixels) of the supersampling: a rank-1 lattice, 1 point at 128 and 2 at 64."""
    m = max(1, math.ceil(2 * (64 / size) ** 2)) if size < FULL else 1
    golden = (math.sqrt(5) - 1) / 2
    return [((k + 0.5) / m - 0.5, (k * golden + 0.5) % 1 - 0.5) for k in range(m)]


def _draw(f: dict[str, Tensor], size: int, off_x: float, off_y: float) -> Tensor:
    """(b, S, S) brightness at one point of each pixel; f holds (b, 1, 1) factors."""
    a = _frame(f, size, off_x, off_y)
    wide = 2 * a.edge
    heart = cover(_heart(f, a), wide)
    central = cover(_central(f, a), wide)
    lung = cover(torch.maximum(a.wall, a.dome), a.edge) * (1 - heart) * (1 - central)  # aerated lung
    flank = (a.wall * 8).clamp_(0.0, 0.5)  # outside the ribs the abdomen begins gradually
    below = F.hardsigmoid(a.dome * 6 / (wide + flank))  # abdomen
    trunk = _trunk(f, a)
    above = 1 - below
    image = a.ax.square().mul_(-0.14).add_(0.48).sub_(0.05 * a.y).mul_(trunk).add_(0.04)
    image += ((f["abdomen_level"] - 0.52) * below).mul_(trunk)
    image += torch.maximum(heart, central).mul_(0.10).mul_(above)
    image += (f["lung_level"] - image).mul_(lung)
    image += _vessels(f, a).mul_(lung)
    bone = cover(a.wall, a.edge).mul_(lung.mul_(0.8).add_(0.2)).mul_(1 - 0.7 * below)
    image += bone.mul_(_ribs(f, a))
    upper, lower = slice(0, size // 2), slice(size // 2, size)
    image += _spine(a)
    image[:, upper] += trunk[:, upper] * _clavicles(f, a.rows(upper)) - _trachea(a.rows(upper))
    image[:, lower] -= below[:, lower] * _stomach(f, a.rows(lower))
    image[:, : size // 3, size // 2 :] += _marker(f, size, off_x, off_y)
    return _findings(f, a, image)


def _frame(f: dict[str, Tensor], size: int, off_x: float, off_y: float) -> Frame:
    axis = (torch.arange(size) + 0.5) * (2.0 / size) - 1.0
    angle = f["rotation"] * (math.pi / 180)
    u = axis[None, None, :] + (2 * off_x / size - f["shift_x"])
    v = axis[None, :, None] + (2 * off_y / size - f["shift_y"])
    x = angle.cos() * u + angle.sin() * v
    y = angle.cos() * v - angle.sin() * u
    ax, side = x.abs(), x.sign()
    w = f["lung_half_width"] * (1 + f["lung_asymmetry"] * side)  # inner chest half width of this side
    middle = 0.33 * w  # the apex of the lung is above this x
    up = (WIDEST_Y - y).clamp_(min=0.0)
    wall = ellipse(ax - middle, up, w - middle, WIDEST_Y - f["apex_y"])
    drop = f["left_dome_drop"] * (0.5 + 4 * x).clamp_(0.0, 1.0)
    out = torch.minimum(ax, w).sub_(0.28).mul_(1 / 0.42)  # the dome ends at the chest wall
    dome = y - (f["diaphragm_y"] + drop) - f["dome_height"] * out.square_()
    return Frame(x, ax, y, side, wall, dome, max(2.0 / size, 0.02))


def _trunk(f: dict[str, Tensor], a: Frame) -> Tensor:
    """Cover of soft tissue on air: side walls that flare into the arms, shoulders and neck."""
    side = a.ax - f["lung_half_width"] - f["habitus"] - 0.7 * (-0.10 - a.y).clamp_(min=0.0)
    shoulder = (f["shoulder_y"] + 0.36 * a.ax.square()).sub_(a.y)
    return cover(torch.maximum(side, torch.minimum(shoulder, a.ax - 0.24)), 4 * a.edge)


def _heart(f: dict[str, Tensor], a: Frame) -> Tensor:
    """Signed distance to the heart, an ellipse whose long axis falls towards the patient's left."""
    tilt = torch.deg2rad(f["heart_tilt"])
    dx, dy = a.x - f["heart_u"], a.y - f["heart_v"]
    along = tilt.cos() * dx + tilt.sin() * dy
    across = tilt.cos() * dy - tilt.sin() * dx
    return ellipse(along, across, f["heart_long"], f["heart_long"] * f["heart_roundness"])


def _central(f: dict[str, Tensor], a: Frame) -> Tensor:
    """Signed distance to the central shadow: vessels that widen into the heart, and the aortic knob.

    It stays within the heart's own horizontal extent, so the cardiothoracic ratio is the heart's.
    """
    half = f["cardiothoracic_ratio"] * f["lung_half_width"]  # half of the heart's width
    reach = (half + f["heart_u"] * a.side).sub_(f["mediastinum"])  # from the central shadow to its border
    down = ((a.y + 0.30) / (f["heart_v"] + 0.30)).clamp_(0.0, 1.0)
    knob = (1 - ((a.y + 0.34) * (1 / 0.13)).square_()).clamp_(min=0.0) * (a.side + 1)
    wide = f["mediastinum"] + 0.8 * reach * down.square() + f["aortic_knob"] * 0.5 * knob
    return a.ax - wide


def _ribs(f: dict[str, Tensor], a: Frame) -> Tensor:
    """Posterior ribs (arcs that fall laterally) and fainter anterior ones (rising laterally)."""
    gap = (f["diaphragm_y"] - f["apex_y"]) / f["rib_pairs"]
    arc = f["rib_slope"] * a.ax + 0.9 * (a.ax - 0.30).square_()  # a large circle, to second order
    row = ((a.y - arc) - f["apex_y"]) / gap + f["rib_phase"]
    off = (row - row.round()).abs_()  # distance to the nearest rib, in gaps
    posterior = (1.4 - off / 0.18).clamp_(0.0, 1.0) * cover(0.10 - a.ax, 0.05)
    row = ((a.y + 0.75 * a.ax) - f["apex_y"]) / (1.25 * gap) + f["rib_phase"]
    off = (row - row.round()).abs_()
    anterior = (1.2 - off / 0.24).clamp_(0.0, 1.0) * cover(0.30 - a.ax, 0.30)
    return f["rib_contrast"] * (posterior + 0.45 * anterior)


def _vessels(f: dict[str, Tensor], a: Frame) -> Tensor:
    """Arteries that leave each hilum and split in two twice, thinner and fainter outwards."""
    dx, dy = a.ax - 0.14, (a.y + 0.02) - 0.02 * a.side
    r = (dx.square() + dy.square()).sqrt_().add_(1e-4)
    turn = dy / r + 0.15 * torch.sin(9.0 * r + 6.28 * f["vessel_phase_left"])  # sine of the angle, bent
    mean = 0.5 * (f["vessel_phase_right"] + f["vessel_phase_left"])
    half = 0.5 * (f["vessel_phase_left"] - f["vessel_phase_right"])
    branch = f["vessel_count"] * turn + (mean + half * a.side)
    off = (branch - branch.round()).abs_()  # 0 on a main branch, at most 1/2
    off = off.sub_((1.1 * r - 0.12).clamp_(0.0, 0.25)).abs_()  # first split: two branches
    off = off.sub_((0.8 * r - 0.28).clamp_(0.0, 0.125)).abs_()  # second split: four
    distance = off.mul_(r) / f["vessel_count"]
    fade = (1 - 1.35 * r).clamp_(min=0.0)
    vessel = (1.4 - distance / (0.008 + 0.022 * fade)).clamp_(0.0, 1.0)
    return f["vessel_contrast"] * (0.15 * fade + fade * vessel)


def _spine(a: Frame) -> Tensor:
    """The vertebral column with its discs."""
    row = a.y * (1 / 0.125)
    disc = (row - row.round()).abs_()
    return cover(a.ax - 0.075, 3 * a.edge) * (0.03 + 0.08 * disc)


def _trachea(a: Frame) -> Tensor:
    """The windpipe in front of the upper spine, as brightness to take away."""
    return 0.09 * cover(torch.maximum(a.ax - 0.036, a.y + 0.26), 2 * a.edge)


def _clavicles(f: dict[str, Tensor], a: Frame) -> Tensor:
    t = ((a.ax - 0.07) * (1 / 0.60)).clamp_(0.0, 1.0)  # along the bone
    middle = f["clavicle_y"] - f["clavicle_rise"] * t + 0.16 * t * (1 - t)
    beyond = (0.07 - a.ax).clamp_(min=0.0) + (a.ax - 0.67).clamp_(min=0.0)
    return 0.11 * cover((a.y - middle).abs_().add_(beyond).sub_(0.030), 2 * a.edge)


def _stomach(f: dict[str, Tensor], a: Frame) -> Tensor:
    """The gas bubble under the left dome, as brightness to take away."""
    size = f["stomach_size"]
    bubble = ellipse(a.x - 0.36, a.dome - size - 0.03, 1.7 * size, size)
    return 0.20 * cover(bubble, 4 * a.edge)


def _findings(f: dict[str, Tensor], a: Frame, image: Tensor) -> Tensor:
    """Add the findings, each to the images of the piece that have it."""
    for name, add in (
        ("effusion", _effusion),
        ("nodule", _nodule),
        ("opacity", _opacity),
        ("device", _device),
    ):
        here = f[name].flatten().nonzero().flatten()  # (m,) images with this finding
        if len(here):
            some = {k: v[here] for k, v in f.items() if k.startswith(name) or k in THORAX}
            image[here] = add(some, a.only(here), image[here])
    return image


def _effusion(f: dict[str, Tensor], a: Frame, image: Tensor) -> Tensor:
    """Fluid fills the angle; its meniscus rises towards the chest wall."""
    level = f["effusion_size"] * (f["diaphragm_y"] - f["apex_y"])
    depth = a.dome + f["dome_height"] * 0.3 + level * (a.ax / f["lung_half_width"]).square()
    fluid = (depth / (0.6 * level + 1e-3)).clamp_(0.0, 1.0) * cover(a.wall, a.edge)
    fluid *= a.side == f["effusion_side"]
    return image + (f["abdomen_level"] - 0.05 - image).clamp_(min=0.0) * fluid


def _nodule(f: dict[str, Tensor], a: Frame, image: Tensor) -> Tensor:
    d = ((a.x - f["nodule_u"]).square() + (a.y - f["nodule_v"]).square()).sqrt_()
    return image + 0.28 * cover(d - 2 * f["nodule_radius"], max(0.04, a.edge))


def _opacity(f: dict[str, Tensor], a: Frame, image: Tensor) -> Tensor:
    """A mottled patch within the chest wall."""
    dx, dy = a.x - f["opacity_u"], a.y - f["opacity_v"]
    d2 = (dx.square() + (0.8 * dy).square()) / (2 * f["opacity_radius"] + 1e-3).square()
    mottle = 1 + 0.3 * torch.sin(23 * dx + 9 * dy) * torch.sin(19 * dy - 7 * dx)
    far = (-1.5 * d2.square()).clamp_(
        min=-60.0
    )  # exp(-60) adds nothing, and is not slow as smaller numbers are
    return image + f["opacity_level"] * (torch.exp(far) * mottle * cover(a.wall, a.edge))


def _device(f: dict[str, Tensor], a: Frame, image: Tensor) -> Tensor:
    """A central line from the right side of the neck down to its tip."""
    t = ((a.y + 1.0) / (f["device_v"] + 1.0)).clamp_(0.0, 1.0)
    path = -0.30 + (f["device_u"] + 0.30) * t - 0.12 * t * (1 - t)
    d = torch.maximum((a.x - path).abs_() - 0.010, a.y - f["device_v"])
    return image + 0.30 * cover(d, a.edge)


def _marker(f: dict[str, Tensor], size: int, off_x: float, off_y: float) -> Tensor:
    """The letter L on the film beside the patient's left shoulder; it does not turn with the patient.

    Only the corner that can hold it: (b, S // 3, S - S // 2), rows from the top, columns to the right.
    """
    axis = (torch.arange(size) + 0.5) * (2.0 / size) - 1.0
    x = axis[None, None, size // 2 :] + (2 * off_x / size - f["marker_x"])
    y = axis[None, : size // 3, None] + (2 * off_y / size - f["marker_y"])
    tall, low = (y - 0.07).abs_().sub_(0.07), (y - 0.12).abs_().sub_(0.02)  # rows of the stem and the foot
    stem = torch.maximum((x - 0.02).abs_().sub_(0.02), tall)
    foot = torch.maximum((x - 0.045).abs_().sub_(0.045), low)
    return 0.7 * f["marker"] * cover(torch.minimum(stem, foot), 2.0 / size)

"""Measures scans of growing brains from their pixels alone: size, circumference, ventricles, age by size.

The head is what is brighter than the background; its second moments give the semi-axes of its outline.
Ventricles are what is brighter than white matter in the middle.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from scipy.special import ellipe
from torch import Tensor

from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.phantoms.brain_measure import central_box
from verisim.phantoms.growing_brain import AGES, GROWTH, IDENTITY, RADIUS, spacing
from verisim.phantoms.growing_brain_render import CSF, WHITE

CHUNK = 64  # images measured at a time
BOX = (0.27, 0.48, (-0.15, 0.25))  # where ventricles lie, in half widths of the head
HEIGHT = sum(IDENTITY["height"]) / 2  # of the average head


def measure(images: Images) -> dict[str, Tensor]:
    """Numbers per image, each (N,) float64, from pixels (N, 1, *S).

    volume_head and volume_ventricles in mL (slices: area_* in cm^2) and head_circumference in mm of the
    middle plane, by the images' spacing or, where it is unknown, the phantom's rule; age: weeks at which the
    average subject has this size; aspect: width / length along the head's own axes, the shorter over the
    longer. Raises VerisimError for images that are neither 2D nor 3D, of several channels or below 16 pixels.
    """
    spec = images.spec
    if spec.spatial_dims not in (2, 3) or spec.channels != 1 or min(spec.size) < 16:
        raise VerisimError(
            f"phantoms.growing_brain_measure: images of shape {spec.shape} (channels, *size); slices or volumes "
            f"of one channel and at least 16 pixels a side can be measured. Convert or resize first."
        )
    mm = spec.spacing or (spacing(spec.size),) * spec.spatial_dims
    x = images.to_range(0.0, 1.0).pixels[:, 0]
    parts = [_measure(c.double(), mm) for c in x.split(CHUNK)]
    return {name: torch.cat([p[name] for p in parts]) for name in parts[0]}


def _measure(x: Tensor, mm: tuple[float, ...]) -> dict[str, Tensor]:
    """x (B, *S) in [0, 1]; mm: size of a pixel along each axis."""
    edge = (2 * x / CSF - 0.5).clamp(0.0, 1.0)  # 0 and 1 in the lower and upper quarter of the step to fluid
    pool = F.max_pool2d if x.ndim == 3 else F.max_pool3d
    inner = -pool(-x[:, None], 3, 1, 1)[:, 0] > CSF / 4  # no neighbour is background
    head = torch.maximum(edge, inner.double())
    unit = math.prod(m / 10 for m in mm)  # mL or cm^2
    dims = x.ndim - 1
    short, long = _semi_axes(head, mm)
    squeezed = (1 - (short / long.clamp(min=1e-6)).square()).clamp(0.0, 1.0)
    circumference = 4 * long * torch.from_numpy(ellipe(squeezed.numpy()))
    share = ((x - WHITE) / (_fluid(x, head) - WHITE).clamp(min=0.05).view(-1, *[1] * dims)).clamp(0.0, 1.0)
    fluid = (2 * share - 0.5).clamp(0.0, 1.0) * central_box(head, BOX)
    total = head.flatten(1).sum(1) * unit
    radius = 10 * ((total * 3 / (4 * math.pi * HEIGHT)) ** (1 / 3) if dims == 3 else (total / math.pi).sqrt())
    kind = "volume" if dims == 3 else "area"
    return {
        f"{kind}_head": total,
        f"{kind}_ventricles": fluid.flatten(1).sum(1) * unit,
        "head_circumference": circumference,
        "age": AGES[0] + (radius - RADIUS) / GROWTH,
        "aspect": short / long.clamp(min=1e-6),
    }


def _fluid(x: Tensor, head: Tensor) -> Tensor:
    """(B,) brightness of the ventricles: the brightest percentile of the box that holds them."""
    inside = (x * central_box(head, BOX)).flatten(1)
    peak = inside.amax(1)
    return torch.where(peak > WHITE, peak - 0.02, torch.full_like(peak, CSF))


def _semi_axes(head: Tensor, mm: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Shorter and longer semi-axis (B,) in mm, in the axial plane, of the ellipsoid with head's moments."""
    dims = head.ndim - 1
    total = head.flatten(1).sum(1).clamp(min=1e-6)
    plane = head.sum(1) if dims == 3 else head  # (B, H, W)
    axes = [torch.arange(s, dtype=head.dtype) * m for s, m in zip(plane.shape[1:], mm[-2:])]
    y, x = torch.meshgrid(axes[0], axes[1], indexing="ij")
    my, mx = ((plane * t).sum((1, 2)) / total for t in (y, x))
    dy, dx = y - my[:, None, None], x - mx[:, None, None]
    yy, xx, xy = ((plane * t).sum((1, 2)) / total for t in (dy * dy, dx * dx, dx * dy))
    half, root = (yy + xx) / 2, (((yy - xx) / 2).square() + xy.square()).sqrt()
    return tuple(((dims + 2) * v.clamp(min=0.0)).sqrt() for v in (half - root, half + root))  # type: ignore[return-value]

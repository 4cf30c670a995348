"""Measures T1-weighted brains from their pixels alone: head, brain and ventricles, in mL or cm^2.

The brightest tissue, white matter, sets the scale; its known contrast to fluid gives thresholds; what is
darker than brain in the middle of the head is ventricle. Bias fields of 15 % are borne, not corrected.
"""

from __future__ import annotations

import torch
from torch import Tensor

from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.phantoms.mr_contrast import brightness
from verisim.phantoms.volume import spacing

CHUNK = 64  # images measured at a time
# The ventricles lie in this box, in half widths of the head from its centre: x, y to both sides, z down and up
BOX = (0.40, 0.52, (-0.20, 0.45))


def measure(images: Images) -> dict[str, Tensor]:
    """Numbers per image, each (N,) float64, from pixels (N, C, *S) whose first channel is T1-weighted.

    volume_head: everything within the skull; volume_brain: without fluid; volume_ventricles; in mL, by the
    images' spacing or, where it is unknown, the phantom's rule. Slices give area_* in cm^2 instead.
    ventricle_side: left minus right ventricle over their sum, in [-1, 1]; mirroring changes its sign.
    Dark cores of tumours beside the ventricles count as ventricle.
    Raises VerisimError for images that are neither 2D nor 3D or below 16 pixels.
    """
    spec = images.spec
    if spec.spatial_dims not in (2, 3) or min(spec.size) < 16:
        raise VerisimError(
            f"phantoms.brain_measure: images of shape {spec.shape} (channels, *size); slices or volumes of "
            f"at least 16 pixels a side can be measured. Resize first."
        )
    unit = 1.0
    for mm in spec.spacing or (spacing(spec.size),) * spec.spatial_dims:
        unit *= mm / 10  # cm, so mL or cm^2
    x = images.to_range(0.0, 1.0).pixels[:, 0]
    parts = [_measure(c.double(), unit) for c in x.split(CHUNK)]
    return {name: torch.cat([p[name] for p in parts]) for name in parts[0]}


def _measure(x: Tensor, unit: float) -> dict[str, Tensor]:
    """x (B, *S) in [0, 1]; unit = size of a pixel in mL or cm^2."""
    levels = brightness("T1")
    flat = x.flatten(1)
    inside = flat > 0.25 * flat.amax(1, keepdim=True)
    white = torch.stack([torch.quantile(v[m], 0.85) if m.any() else v.max() for v, m in zip(flat, inside)])
    v = x / white.clamp(min=1e-3).view(-1, *[1] * (x.ndim - 1))  # white matter = 1
    fluid, grey = levels["csf"] / levels["white"], levels["grey"] / levels["white"]
    head = _share(v, 0.0, fluid)
    brain = _share(v, fluid, grey)
    dark = _share(-v, -1.0, -fluid) * central_box(head, BOX)
    axis = torch.arange(x.shape[-1], dtype=x.dtype)
    weight = head.flatten(1, -2).sum(1)  # (B, W)
    middle = (weight * axis).sum(1) / weight.sum(1).clamp(min=1e-6)
    left = (dark.flatten(1, -2).sum(1) * (axis > middle[:, None])).sum(1)
    total = dark.flatten(1).sum(1)
    kind = "volume" if x.ndim == 4 else "area"
    return {
        f"{kind}_head": head.flatten(1).sum(1) * unit,
        f"{kind}_brain": brain.flatten(1).sum(1) * unit,
        f"{kind}_ventricles": total * unit,
        "ventricle_side": (2 * left - total) / total.clamp(min=1e-6),
    }


def _share(v: Tensor, low: float, high: float) -> Tensor:
    """How much of a pixel belongs to the brighter of two tissues: 0 in the lower, 1 in the upper quarter."""
    return (2 * (v - low) / (high - low) - 0.5).clamp(0.0, 1.0)


Box = tuple[float, float, tuple[float, float]]


def central_box(head: Tensor, limits: Box) -> Tensor:
    """1 within a box (x, y: +-; z: from, to, in half widths of the head) around the head (B, *S), else 0."""
    dims = head.ndim - 1
    mask = torch.ones_like(head)
    total = head.flatten(1).sum(1).clamp(min=1e-6)
    for i in range(dims):
        axis = torch.arange(head.shape[1 + i], dtype=head.dtype)
        weight = head.sum([1 + j for j in range(dims) if j != i])  # (B, s)
        centre = (weight * axis).sum(1) / total
        spread = (weight * (axis - centre[:, None]).square()).sum(1) / total
        half = ((dims + 2) * spread).sqrt().clamp(min=1e-3)  # of an ellipsoid with this variance
        off = (axis - centre[:, None]) / half[:, None]
        limit = limits[dims - 1 - i]
        low, high = limit if isinstance(limit, tuple) else (-limit, limit)
        mask = mask * ((off > low) & (off < high)).view(
            len(head), *[-1 if j == i else 1 for j in range(dims)]
        )
    return mask

"""Do the slices of a volume fit together? Two measures that compare a volume across its slices with itself within.

through_plane  mean |x_{z+1} - x_z| over the mean of the same along the two in-plane axes. 1 if the anatomy is the
               same in all directions; jumps between slices raise it, a volume of repeated slices lowers it.
stripes        mean_z |m_z - (m_{z-1} + m_{z+1}) / 2| / std(volume), m_z the mean of slice z: slices that are
               brighter or darker than their neighbours (spec 003, section 16-D).

What is right depends on the anatomy and the spacing, so both are read beside real volumes of the same kind.
"""

from __future__ import annotations

import torch
from torch import Tensor

from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.metrics.bootstrap import Estimate, from_draws, resample_weights


def through_plane(x: Tensor, axis: int = 0) -> Tensor:
    """(N,) float64 for volumes x (N, C, D, H, W) cut along `axis` of (D, H, W); nan for a volume that is constant."""
    x = _volumes(x, axis)
    across, within = (_change(x, dims) for dims in ((2,), (3, 4)))
    return torch.where(within + across > 0, across / within, torch.nan)


def stripes(x: Tensor, axis: int = 0) -> Tensor:
    """(N,) float64 stripe index for volumes x (N, C, D, H, W) cut along `axis`; nan for a volume that is constant."""
    x = _volumes(x, axis)
    m = x.mean((3, 4))  # (N, C, Z)
    bend = (m[..., 1:-1] - 0.5 * (m[..., :-2] + m[..., 2:])).abs().mean((1, 2))
    spread = x.flatten(1).std(1, unbiased=False)
    return torch.where(spread > 0, bend / spread, torch.nan)


MEASURES = {"through_plane": through_plane, "stripes": stripes}


def slice_consistency(
    fake: Images,
    real: Images,
    generator: torch.Generator,
    axis: int = 0,
    draws: int = 1000,
) -> dict[str, Estimate]:
    """Each measure's mean over fakes divided by its mean over reals, with bootstrap intervals; 1 is right.

    Volumes for which a measure is not defined (constant ones) are left out; with none left it is nan.
    """
    fake.require_same_spec(real, "slice consistency")
    found = {}
    for name, measure in MEASURES.items():
        top, tops = _resampled(measure(fake.pixels, axis), draws, generator)
        bottom, bottoms = _resampled(measure(real.pixels, axis), draws, generator)
        found[name] = from_draws(top / bottom, tops / bottoms)
    return found


def _resampled(v: Tensor, draws: int, generator: torch.Generator) -> tuple[float, Tensor]:
    """Mean of v (N,) over its defined values, and of `draws` resamples."""
    v = v[torch.isfinite(v)]
    if len(v) == 0:
        return float("nan"), torch.full((draws,), torch.nan, dtype=torch.float64)
    w = resample_weights(len(v), draws, generator, None)
    return float(v.mean()), (w @ v) / w.sum(1)


def _volumes(x: Tensor, axis: int) -> Tensor:
    """x as (N, C, Z, ., .) float64, slices first. VerisimError for what is no volume."""
    if x.ndim != 5 or not 0 <= axis < 3:
        raise VerisimError(
            f"Slice consistency: images of shape {tuple(x.shape[1:])} along axis {axis}; it takes volumes "
            f"(C, D, H, W) and an axis 0 to 2."
        )
    if x.shape[2 + axis] < 3:
        raise VerisimError(f"Slice consistency: {x.shape[2 + axis]} slices; at least 3 are needed.")
    return x.double().movedim(2 + axis, 2)


def _change(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """(N,) mean absolute difference of neighbours, averaged over dimensions `dims` of x."""
    return torch.stack([x.diff(dim=d).abs().flatten(1).mean(1) for d in dims]).mean(0)

"""How one number follows another: correlation and straight line, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from verisim.errors import VerisimError
from verisim.metrics.bootstrap import Estimate, from_draws, resample_weights


def correlation(
    x: Tensor,
    y: Tensor,
    draws: int,
    generator: torch.Generator,
    groups: Sequence[str] | None = None,
    level: float = 0.95,
) -> Estimate:
    """Pearson's r of x and y, (n,) each, with an interval over items or groups; 0 where one of them is constant.

    Raises VerisimError unless both have the same number of items, at least 3.
    """
    _, _, xx, yy, xy = _moments(x, y, draws, generator, groups)
    r = xy / (xx * yy).sqrt().clamp(min=1e-30)
    return from_draws(float(r[0]), r[1:], level)


def regression(
    x: Tensor,
    y: Tensor,
    draws: int,
    generator: torch.Generator,
    groups: Sequence[str] | None = None,
    level: float = 0.95,
) -> tuple[Estimate, Estimate]:
    """Intercept and slope of the least-squares line y = a + b x of (n,) each, as `correlation`."""
    mx, my, xx, _, xy = _moments(x, y, draws, generator, groups)
    b = xy / xx.clamp(min=1e-30)
    a = my - b * mx
    return from_draws(float(a[0]), a[1:], level), from_draws(float(b[0]), b[1:], level)


def _moments(
    x: Tensor, y: Tensor, draws: int, generator: torch.Generator, groups: Sequence[str] | None
) -> tuple[Tensor, ...]:
    """Means of x and y, variances of x and y, covariance: (1 + draws,) each, the first of the items as they are."""
    if len(x) != len(y) or len(x) < 3:
        raise VerisimError(f"{len(x)} and {len(y)} numbers: pairs, at least 3 of them, are needed.")
    x, y = x.double(), y.double()
    w = torch.cat([torch.ones(1, len(x)).double(), resample_weights(len(x), draws, generator, groups)])
    w = w / w.sum(1, keepdim=True)  # (1 + B, n)
    dx, dy = x - x.mean(), y - y.mean()  # centred, so that no digits are lost
    mx, my, xx, yy, xy = (w @ torch.stack([dx, dy, dx * dx, dy * dy, dx * dy], 1)).T
    return (
        mx + x.mean(),
        my + y.mean(),
        (xx - mx * mx).clamp(min=0.0),
        (yy - my * my).clamp(min=0.0),
        xy - mx * my,
    )

"""Simple statistics that must agree with the real images: laterality, and any measured factor.

Laterality catches training with mirrored images: a heart on the wrong side in half of the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.metrics.bootstrap import mean_estimate

Measure = Callable[[Images], dict[str, Tensor]]  # images -> factor name -> (N,) values


def half_asymmetry(x: Tensor) -> Tensor:
    """(N,) mean of the left half minus mean of the right half along the last axis of x (N, C, *S)."""
    w = x.shape[-1] // 2
    left, right = x[..., :w], x[..., -w:]
    return (left.flatten(1).double().mean(1) - right.flatten(1).double().mean(1)).cpu()


def asymmetry_template(train: Tensor) -> Tensor:
    """(C, *S) mean image minus its mirror image: where the average patient is not symmetric."""
    mean = train.double().mean(0)
    return mean - mean.flip(-1)


def asymmetry_score(x: Tensor, template: Tensor) -> Tensor:
    """(N,) projection on the template; 1 on average for the images that made it, -1 if mirrored."""
    t = template.flatten()
    odd = x.double() - x.double().flip(-1)
    return odd.flatten(1) @ t / t.square().sum().clamp_min(1e-12)


def laterality(
    fake: Images, train: Images, test: Images, generator: torch.Generator, draws: int = 1000
) -> dict:
    """Do fakes keep the left-right asymmetry of real images?

    Returns means with intervals of the half asymmetry (grey values of [-1, 1]) and of the template score
    for fakes and held-out reals; `same_sign` (half asymmetry), `score_ratio` = fake score / real score
    (1 right, 0 half of them mirrored, -1 all mirrored) and `flag`: True if the whole interval of the fakes
    is below half of the real score. Both are None when the real images show no clear asymmetry.
    """
    for other, what in ((train, "training images"), (test, "held-out images")):
        fake.require_same_spec(other, f"laterality, fakes against {what}")
    template = asymmetry_template(train.pixels)
    real_score = asymmetry_score(test.pixels, template)
    fake_score = asymmetry_score(fake.pixels, template)
    real = mean_estimate(real_score, draws, generator, test.patients)
    mine = mean_estimate(fake_score, draws, generator)
    half_real = mean_estimate(half_asymmetry(test.pixels), draws, generator, test.patients)
    half_fake = mean_estimate(half_asymmetry(fake.pixels), draws, generator)
    clear = real.low > 0
    ratio = mine.value / real.value if clear else None
    return {
        "score_real": real.as_dict(),
        "score_fake": mine.as_dict(),
        "score_ratio": ratio,
        "half_real": half_real.as_dict(),
        "half_fake": half_fake.as_dict(),
        "same_sign": (half_real.value > 0) == (half_fake.value > 0),
        "flag": mine.high < 0.5 * real.value if clear else None,
    }


def compare_factors(
    measure: Measure,
    fake: Images,
    real: Images,
    generator: torch.Generator,
    draws: int = 1000,
    names: Sequence[str] | None = None,
) -> dict[str, dict]:
    """Measured factors (heart side, cardiothoracic ratio, ...) of fakes against reals.

    `wasserstein` is the distance between the two distributions in units of the real standard deviation.
    """
    a, b = measure(fake), measure(real)
    chosen = list(names) if names is not None else sorted(set(a) & set(b))
    missing = [n for n in chosen if n not in a or n not in b]
    if missing or not chosen:
        raise VerisimError(f"Factor(s) {missing or 'any'} not measured. Known: {', '.join(sorted(a))}.")
    out: dict[str, dict] = {}
    for name in chosen:
        f, r = a[name].double(), b[name].double()
        f, r = f[torch.isfinite(f)], r[torch.isfinite(r)]
        if len(f) < 2 or len(r) < 2:
            out[name] = {"value": None, "reason": f"{len(f)} fakes and {len(r)} reals could be measured"}
            continue
        out[name] = {
            "fake": mean_estimate(f, draws, generator).as_dict(),
            "real": mean_estimate(r, draws, generator).as_dict(),
            "wasserstein": wasserstein(f, r) / max(float(r.std()), 1e-12),
            "n_fake": len(f),
            "n_real": len(r),
        }
    return out


def wasserstein(x: Tensor, y: Tensor) -> float:
    """Wasserstein-1 distance between two samples on the line."""
    grid = torch.cat((x, y)).double().sort().values
    cdf = [torch.searchsorted(v.double().sort().values, grid[:-1], right=True) / len(v) for v in (x, y)]
    return float(((cdf[0] - cdf[1]).abs().double() * grid.diff()).sum())

"""How near is a reconstruction to its original? MSE, PSNR, SSIM and MS-SSIM per image, 2D and 3D, float64.

    SSIM    = (2 mu_x mu_y + C1)(2 s_xy + C2) / ((mu_x^2 + mu_y^2 + C1)(s_x^2 + s_y^2 + C2))
    MS-SSIM = l_M^w_M prod_j cs_j^w_j,  l the first factor, cs the second   (source 001, eqs. 5.2 to 5.4)

Wang et al. 2004 and 2003: Gaussian window of 11 pixels with sigma 1.5, only windows that lie wholly inside
the image, C1 = 0.01^2, C2 = 0.03^2, averaged over windows and channels; every next scale is the 2x mean of the
one before; a negative mean cs counts as 0. All on grey values rescaled from the images' range to [0, 1]: the
luminance term is not indifferent to an offset, so [-1, 1] with L = 2 would be another measure. Small images
have fewer scales: as many as leave the window room at the coarsest, with the weights rescaled to sum to 1.
The result says how many: numbers with different numbers of scales cannot be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from verisim.data.spec import Images, ImageSpec
from verisim.errors import RangeError, VerisimError
from verisim.metrics.bootstrap import Estimate, mean_estimate

WINDOW, SIGMA = 11, 1.5  # pixels
K1, K2 = 0.01, 0.03
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, finest first (Wang et al. 2003)
CHUNK = 32  # images at a time; bounds memory
CONV = {2: F.conv2d, 3: F.conv3d}
POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}


@dataclass(frozen=True)
class Reconstruction:
    """Per-image scores (N,) float64 of reconstructions, and how they were made."""

    mse: Tensor  # on grey values rescaled to [0, 1], as source 001 reports (times 1e5)
    psnr: Tensor  # dB; infinite for a perfect reconstruction
    ssim: Tensor
    ms_ssim: Tensor
    settings: dict[str, Any]  # constants, data range, number of scales and their weights

    def estimates(
        self, generator: torch.Generator, groups: tuple[str, ...] | None = None, draws: int = 1000
    ) -> dict[str, Estimate]:
        """Means with 95 % bootstrap intervals over images, or over `groups` (patients); N names.

        "mse_1e-5" is the mean squared error in units of 1e-5; "psnr" is the mean over images.
        """
        scores = {"mse_1e-5": self.mse * 1e5, "psnr": self.psnr, "ssim": self.ssim, "ms_ssim": self.ms_ssim}
        return {k: mean_estimate(v.cpu(), draws, generator, groups) for k, v in scores.items()}


def score_reconstructions(real: Images, fake: Images) -> Reconstruction:
    """Scores of fake.pixels[i] as a reconstruction of real.pixels[i].

    Raises RangeError if the two sets differ in shape, number or range, VerisimError for images under 11 pixels.
    """
    real.require_same_spec(fake, "reconstructions against originals")
    if len(real) != len(fake):
        raise RangeError(
            f"{len(fake)} reconstructions for {len(real)} originals. Give one per original, in the same order."
        )
    weights = scale_weights(real.spec.size)
    parts = []
    for x, y in zip(real.pixels.split(CHUNK), fake.pixels.split(CHUNK)):
        x, y = unit_range(x, real.spec, "originals"), unit_range(y, real.spec, "reconstructions")
        error = (x - y).square().flatten(1).mean(1)
        parts.append(torch.stack([error, psnr(error), *_similarities(x, y, weights)]))
    error, ratio, single, multi = torch.cat(parts, 1)  # (N,) each
    return Reconstruction(error, ratio, single, multi, _settings(real.spec, weights))


def mse(x: Tensor, y: Tensor, spec: ImageSpec) -> Tensor:
    """(N,) float64 mean squared error of y (N, C, *S) on grey values rescaled from spec's range to [0, 1].

    MSE = 1/n sum_i (x_i - y_i)^2 (source 001, eq. 5.1), n = values of one image; times 1e5 in its tables.
    """
    x, y = _pair(x, y, spec)
    return (x - y).square().flatten(1).mean(1)


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, -10 log10 of the mean squared error on [0, 1]; infinite for 0."""
    return -10 * torch.log10(mse)


def ssim(x: Tensor, y: Tensor, spec: ImageSpec) -> Tensor:
    """(N,) float64 structural similarity of x and y (N, C, *S); 1 for equal images."""
    scale_weights(spec.size)  # refuses images that are too small
    return _similarities(*_pair(x, y, spec), (1.0,))[0]


def ms_ssim(x: Tensor, y: Tensor, spec: ImageSpec) -> Tensor:
    """(N,) float64 multi-scale structural similarity over as many scales as fit (`scale_weights`)."""
    weights = scale_weights(spec.size)
    return _similarities(*_pair(x, y, spec), weights)[1]


def scale_weights(size: tuple[int, ...]) -> tuple[float, ...]:
    """The weights of the scales that fit images of `size`, rescaled to sum to 1; finest first.

    M scales fit if size // 2^(M - 1) is at least 11 on every axis: five from 176 pixels, four from 88, three
    from 44, two from 22, one from 11. VerisimError below.
    """
    fits = [m for m in range(1, len(WEIGHTS) + 1) if min(size) // 2 ** (m - 1) >= WINDOW]
    if not fits:
        raise VerisimError(
            f"SSIM looks through windows of {WINDOW} pixels; images of {'x'.join(map(str, size))} are too "
            f"small. Use images of at least {WINDOW} pixels on every axis, or compare them by MSE."
        )
    used = WEIGHTS[: fits[-1]]
    return tuple(w / sum(used) for w in used)


def unit_range(x: Tensor, spec: ImageSpec, what: str) -> Tensor:
    """x (N, C, *S) as float64 with spec's range rescaled to [0, 1]; RangeError if x does not fit spec."""
    return (spec.check(x, what).double() - spec.low) / (spec.high - spec.low)


def _pair(x: Tensor, y: Tensor, spec: ImageSpec) -> tuple[Tensor, Tensor]:
    x, y = unit_range(x, spec, "originals"), unit_range(y, spec, "reconstructions")
    if len(x) != len(y):
        raise RangeError(f"{len(y)} reconstructions for {len(x)} originals. Give one per original.")
    return x, y


def _similarities(x: Tensor, y: Tensor, weights: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """SSIM of the finest scale and MS-SSIM, (N,) each, of x and y (N, C, *S) float64 on [0, 1]."""
    first = None
    product = torch.ones(len(x), dtype=x.dtype, device=x.device)
    for j, w in enumerate(weights):
        full, cs = _scale(x, y)  # (N,) each
        first = full if first is None else first
        last = j + 1 == len(weights)
        product = product * (full if last else cs).clamp(min=0) ** w
        if not last:
            x, y = (POOL[x.ndim - 2](v, 2) for v in (x, y))
    assert first is not None
    return first, product


def _scale(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Means over all windows and channels of l cs and of cs, (N,) each."""
    c1, c2 = K1**2, K2**2  # the data range is 1
    mu_x, mu_y, xx, yy, xy = _blur(torch.stack([x, y, x * x, y * y, x * y])).unbind(0)
    var_x, var_y = (xx - mu_x**2).clamp(min=0), (yy - mu_y**2).clamp(min=0)
    cs = (2 * (xy - mu_x * mu_y) + c2) / (var_x + var_y + c2)
    luminance = (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1)
    return (luminance * cs).flatten(1).mean(1), cs.flatten(1).mean(1)


def _blur(x: Tensor) -> Tensor:
    """x (..., *S) weighted by the Gaussian window, wholly inside: every axis loses 10 pixels."""
    taps = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    kernel = torch.exp(-0.5 * (taps / SIGMA) ** 2)
    kernel = kernel / kernel.sum()
    dims = x.ndim - 3
    flat = x.reshape(-1, 1, *x.shape[3:])
    for axis in range(dims):
        shape = [1] * dims
        shape[axis] = WINDOW
        flat = CONV[dims](flat, kernel.view(1, 1, *shape))
    return flat.view(*x.shape[:3], *flat.shape[2:])


def _settings(spec: ImageSpec, weights: tuple[float, ...]) -> dict[str, Any]:
    return {
        "range": [spec.low, spec.high],
        "rescaled_to": [0.0, 1.0],
        "window": WINDOW,
        "sigma": SIGMA,
        "k1": K1,
        "k2": K2,
        "padding": "none",
        "scales": len(weights),
        "weights": list(weights),
        "downsampling": "2x mean",
        "negative_cs": 0.0,
    }

"""Control image sets: what a perfect, a blurred, a structureless and a nonsense generator would score."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from verisim.data.spec import Images


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian blur of x (N, C, *S), sigma in pixels, edges repeated."""
    r = max(1, round(3 * sigma))
    t = torch.arange(-r, r + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (t / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(x.dtype)
    for dim in range(2, x.ndim):
        h = x.movedim(dim, -1)
        flat = F.pad(h.reshape(-1, 1, h.shape[-1]), (r, r), mode="replicate")
        x = F.conv1d(flat, kernel[None, None]).view(h.shape).movedim(-1, dim)
    return x.contiguous()


def blurred(images: Images, sigma: float | None = None) -> Images:
    """The images blurred by `sigma` pixels (default: 1/32 of the longest side, at least 0.75)."""
    sigma = sigma or max(0.75, max(images.spec.size) / 32)
    return replace(
        images, pixels=gaussian_blur(images.pixels, sigma).clamp(images.spec.low, images.spec.high)
    )


def noise_like(images: Images, n: int, rng: torch.Generator) -> Images:
    """n images of white Gaussian noise with the mean and spread of the images' pixels, clipped."""
    x = torch.randn((n, *images.spec.shape), generator=rng)
    x = x * images.pixels.std() + images.pixels.mean()
    return Images(x.clamp(images.spec.low, images.spec.high), images.spec)


def pixel_marginal(images: Images, n: int, rng: torch.Generator) -> Images:
    """n images whose every pixel is drawn from the images' values at that place, independently."""
    flat = images.pixels.flatten(1)  # (N, P)
    index = torch.randint(len(flat), (n, flat.shape[1]), generator=rng)
    return Images(flat.gather(0, index).view(n, *images.spec.shape), images.spec)

"""Two models without learning that every autoregressive model must beat in bits per dimension.

Both are exact distributions over 8-bit images, fitted on training images and scored on held-out ones.
Images are (N, C, *S), uint8 or float in [-1, 1] (rounded to 8 bit). Source 004, section 3 A (acceptance).
"""

from __future__ import annotations

import math

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from verisim.errors import RangeError, VerisimError
from verisim.models.autoregressive.heads import quantise

LEVELS = 256


def eight_bit(train: Tensor, test: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """Both sets as int64 grey levels 0 ... 255, or an error that says why they cannot be."""
    if len(train) == 0 or len(test) == 0 or train.shape[1:] != test.shape[1:]:
        raise VerisimError(
            f"{where}: training images {tuple(train.shape)} and test images {tuple(test.shape)} must both "
            "be there and have one shape (N, C, *S). Resize or split them anew."
        )
    out = []
    for name, x in (("training", train), ("test", test)):
        if x.dtype != torch.uint8 and not (x.is_floating_point() and bool((x.abs() <= 1.001).all())):
            raise RangeError(
                f"{where}: {name} images are {x.dtype} or leave [-1, 1]. Give uint8 images, or floats in "
                "[-1, 1] (Images.to_range(-1, 1))."
            )
        out.append(x.long() if x.dtype == torch.uint8 else quantise(x, LEVELS))
    return out[0], out[1]


def smoothed_histogram(level: Tensor) -> Tensor:
    """(256,) float64 probabilities of grey levels, one half added to every count."""
    count = torch.bincount(level.flatten(), minlength=LEVELS).double() + 0.5
    return count / count.sum()


def pixel_histogram_bits(train: Tensor, test: Tensor) -> Tensor:
    """Bits per dimension (N,) float64 of test images when every pixel has its own training histogram.

    p_i(v) = (count_i(v) + a g(v)) / (n + a), with g the histogram of all pixels and a the strength that
    gives the training images the best leave-one-out likelihood.
    """
    fit, held = eight_bit(train, test, "pixel_histogram_bits")
    flat, n = fit.flatten(1).t(), len(fit)  # (P, n)
    g = smoothed_histogram(flat)  # (256,)
    count = torch.zeros(len(flat), LEVELS, dtype=torch.float64)
    count.scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.float64))  # (P, 256)
    seen, prior = count.gather(1, flat), g[flat]  # (P, n)

    def leave_one_out(log_a: float) -> float:
        a = math.exp(log_a)
        return -float(((seen - 1 + a * prior) / (n - 1 + a)).log().mean())

    a = math.exp(minimize_scalar(leave_one_out, bounds=(-2.0, 12.0), method="bounded").x)
    log2_p = ((count + a * g) / (n + a)).log2()  # (P, 256)
    return -log2_p.gather(1, held.flatten(1).t()).mean(0)


def left_neighbour_laplace_bits(train: Tensor, test: Tensor) -> Tensor:
    """Bits per dimension (N,) float64 of test images when every pixel is its left neighbour plus noise.

    p(x | left) is proportional to exp(-|x - left| / b) on 0 ... 255, b fitted by maximum likelihood; the
    first column has the histogram of the training images' first columns.
    """
    fit, held = eight_bit(train, test, "left_neighbour_laplace_bits")
    level = torch.arange(LEVELS, dtype=torch.float64)
    distance = (level[:, None] - level).abs()  # (left, x)
    pairs = torch.bincount((fit[..., :-1] * LEVELS + fit[..., 1:]).flatten(), minlength=LEVELS**2)
    weight = pairs.double().view(LEVELS, LEVELS) / max(int(pairs.sum()), 1)  # (left, x)

    def log_table(log_b: float) -> Tensor:
        return (-distance / math.exp(log_b)).log_softmax(1)  # normalised for every left neighbour

    best = minimize_scalar(
        lambda t: -float((weight * log_table(t)).sum()), bounds=(-4.0, 8.0), method="bounded"
    )
    first = -smoothed_histogram(fit[..., 0]).log()[held[..., 0]]  # (N, C, *S without the last)
    rest = -log_table(best.x)[held[..., :-1], held[..., 1:]]
    nats = first.flatten(1).sum(1) + rest.flatten(1).sum(1)
    return nats / (held[0].numel() * math.log(2))

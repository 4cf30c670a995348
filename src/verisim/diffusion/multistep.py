"""PNDM: linear multistep sampling with the exact weights of the grid at hand."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from verisim.diffusion.stepping import Callback, Denoise, denoised, steps
from verisim.errors import VerisimError


def pndm(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    order: int = 4,  # points of the multistep formula, 1 to 4
) -> Tensor:
    """Linear multistep (Adams-Bashforth) on eps = (x - D) / sigma. Liu 2022 (PNDM), eq. 11-12; n evaluations.

    The source's weights (55, -59, 37, -9)/24 hold on a uniform grid; these are the exact ones of the
    grid at hand and agree there. It warms up with the lower orders, so no step costs more than one
    evaluation.
    """
    if not 1 <= order <= 4:
        raise VerisimError(f"order = {order}: the multistep formula takes 1 to 4 points.")
    slopes: list[Tensor] = []  # newest first
    levels: list[float] = []
    for i, (t, s) in enumerate(steps(sigmas)):
        slope = (x - denoised(denoise, x, t, i, callback)) / t
        slopes, levels = [slope, *slopes[: order - 1]], [t, *levels[: order - 1]]
        for weight, e in zip(multistep_weights(levels, s), slopes):
            x = x + (s - t) * weight * e
    return x


def multistep_weights(levels: list[float], s: float) -> list[float]:
    """Weights of slopes at up to 4 levels (newest first) for the step levels[0] -> s; they sum to 1.

    Weight j is the mean over the step of the Lagrange polynomial that is 1 at level j and 0 at the
    others; two Gauss points average a cubic exactly.
    """
    half, middle = (s - levels[0]) / 2, (s + levels[0]) / 2
    points = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))
    weights = []
    for j, own in enumerate(levels):
        others = levels[:j] + levels[j + 1 :]
        basis = [math.prod((p - other) / (own - other) for other in others) for p in points]
        weights.append(sum(basis) / 2)
    return weights

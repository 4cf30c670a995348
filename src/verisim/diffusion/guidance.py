"""Guidance wraps a denoiser into another denoiser: D = weak + scale (strong - weak).

Classifier-free (Ho 2022): strong has the condition, weak has none. Autoguidance (Karras 2024): weak is a
smaller or less trained network. Classifier guidance (Dhariwal 2021) adds a classifier's gradient instead.

A condition is a tensor (B, ...) of any kind - class, vector, image, token sequence - or a dict of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from verisim.errors import VerisimError

Condition = Tensor | dict[str, Tensor]  # (B, ...) each
Null = float | Tensor | dict  # what "none" is: a number, one condition (1, ...) or a dict of those
ConditionalDenoise = Callable[..., Tensor]  # (x, sigma, condition) -> x0
LogProb = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x, sigma, label) -> log p(label | x), (B,)


def classifier_free(
    denoise: ConditionalDenoise,
    scale: float,  # 0 = unconditional, 1 = conditional, > 1 = away from the unconditional, < 0 = away from the class
    null_label: Null,  # the condition that means "none": a class index, 0 for a vector or image, or a tensor
    limit: float | None = 1.0,  # largest |x0| of an extrapolation; None = unlimited
) -> ConditionalDenoise:
    """D = D_null + scale (D_condition - D_null). Ho 2022, eq. 6, for x0; w of the literature is scale - 1.

    Scales 0 and 1 cost one evaluation, others one of twice the batch. Outside [0, 1] this is an
    extrapolation: it is clipped to [-limit, limit], the range of the images, so that any scale, be it
    -1 or 1e6, gives finite (if saturated) images. Raises VerisimError if scale is not finite.
    """
    check_scale("guidance", scale)

    def guided(x: Tensor, sigma: Tensor, label: Condition) -> Tensor:
        if scale == 1:
            return denoise(x, sigma, label)
        null = null_condition(label, null_label)
        if scale == 0:
            return denoise(x, sigma, null)
        both = denoise(torch.cat([x, x]), torch.cat([sigma, sigma]), _joined(label, null))
        conditional, unconditional = both.chunk(2)  # (B, C, *S) each
        return extrapolated(conditional, unconditional, scale, limit)

    return guided


def autoguidance(
    denoise: Callable[..., Tensor],
    weak: Callable[..., Tensor],  # the same kind of denoiser, smaller or less trained
    scale: float,  # 1 = off, 1.5 to 3 = usual
    limit: float | None = 1.0,  # as above
) -> Callable[..., Tensor]:
    """D = D_weak + scale (D - D_weak): away from the faults that both share. Karras 2024, eq. 5.

    Both get the same arguments (x, sigma, and the condition if there is one).
    """
    check_scale("autoguidance", scale)

    def guided(*inputs: Tensor) -> Tensor:
        if scale == 1:
            return denoise(*inputs)
        return extrapolated(denoise(*inputs), weak(*inputs), scale, limit)

    return guided


def classifier_guided(
    denoise: Callable[[Tensor, Tensor], Tensor],
    log_prob: LogProb,  # a classifier of noisy images, differentiable in x
    scale: float,  # 0 = off, 1 = Bayes' rule, > 1 = sharper
    limit: float | None = 1.0,  # largest |x0| outside of scales 0 to 1; None = unlimited
) -> ConditionalDenoise:
    """D + scale sigma^2 grad_x log p(label | x): Bayes' rule for scores, exact at scale 1. Dhariwal 2021, eq. 10.

    The diffusion model stays unconditional. In a reverse step this shifts the mean by Sigma grad log p
    (Sigma = beta, up to terms of the next order). Costs one gradient of the classifier per step.
    """
    check_scale("guidance", scale)

    def guided(x: Tensor, sigma: Tensor, label: Condition) -> Tensor:
        x0 = denoise(x, sigma)
        if scale == 0:
            return x0
        if not isinstance(label, Tensor):
            raise VerisimError("Classifier guidance takes class labels (B,), not a dict of conditions.")
        with torch.enable_grad():
            y = x.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(log_prob(y, sigma, label).sum(), y)
        x0 = x0 + scale * (sigma**2).view(-1, *[1] * (x.ndim - 1)) * slope
        return x0 if limit is None or 0 <= scale <= 1 else x0.clamp(-limit, limit)

    return guided


def extrapolated(strong: Tensor, weak: Tensor, scale: float, limit: float | None) -> Tensor:
    """weak + scale (strong - weak), clipped to [-limit, limit] where that is an extrapolation."""
    x0 = weak + scale * (strong - weak)
    return x0 if limit is None or 0 <= scale <= 1 else x0.clamp(-limit, limit)


def null_condition(condition: Condition, null: Null) -> Condition:
    """The condition that means "none", in the shape of `condition`; VerisimError if it has none to give."""
    if isinstance(condition, dict):
        if isinstance(null, dict) and null.keys() != condition.keys():
            raise VerisimError(
                f"Guidance: the condition has {sorted(condition)}, its null form {sorted(null)}; give one for each."
            )
        return {k: _null(v, null[k] if isinstance(null, dict) else null) for k, v in condition.items()}
    return _null(condition, null)


def check_scale(what: str, scale: float) -> None:
    """Raise VerisimError unless the scale is a finite number."""
    if not math.isfinite(scale):
        raise VerisimError(f"{what} = {scale}: it must be finite; 0 = none, 1 = plain, 1.5 to 4 = stronger.")


def _null(condition: Tensor, null: Null) -> Tensor:
    if isinstance(null, dict):
        raise VerisimError(
            "Guidance: the condition is one tensor, its null form a dict; give a number or tensor."
        )
    if isinstance(null, Tensor):
        return null.to(condition).expand(condition.shape)
    return torch.full_like(condition, null)


def _joined(a: Condition, b: Condition) -> Condition:
    """Two conditions along the batch."""
    if isinstance(a, dict) and isinstance(b, dict):
        return {k: torch.cat([a[k], b[k]]) for k in a}
    assert isinstance(a, Tensor) and isinstance(b, Tensor)
    return torch.cat([a, b])

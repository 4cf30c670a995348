"""A brain at other ages: series of frames, prediction from one scan, and the control of zero age change."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.metrics.reconstruction import mse, psnr
from verisim.models.implicit.development import Development, Rendering
from verisim.models.implicit.fitting import LatentFit, fit_latents


def frames(
    model: Development,
    latent: Tensor,  # (1, L): latents_of, average_latent or fit_latents
    from_age: float,  # weeks
    to_age: float,  # weeks; below from_age = backwards
    n: int,  # frames, both ends included
    size: tuple[int, ...] | None = None,  # grid; None = the trained one
) -> Rendering:
    """n equally spaced ages of one subject, for a film or a growth curve.

    Frames outside of the ages that the model was trained on are marked as extrapolated.
    """
    if n < 2:
        raise VerisimError(f"growth.frames: {n} frames asked for; from one age to another takes at least 2.")
    ages = torch.linspace(from_age, to_age, n)
    if not (torch.isfinite(ages) & (ages > 0)).all():
        raise VerisimError(
            f"growth.frames: ages from {from_age:g} to {to_age:g}; postmenstrual weeks above 0 are meant."
        )
    return model.render(latent, ages, size)


def predict(
    model: Development,
    scans: Images,  # (n, C, *S)
    ages: Tensor,  # (n,) weeks at the scan
    to_ages: Tensor,  # (n,) weeks asked for
    settings: LatentFit | None = None,
    *,
    masks: Tensor | None = None,
    seed: int = 0,
) -> Rendering:
    """Each scan's subject at another age, from this scan alone; the network stays as it is."""
    return model.render(fit_latents(model, scans, ages, settings, masks=masks, seed=seed), to_ages)


@dataclass(frozen=True)
class AgeChange:
    """Peak signal-to-noise ratios in dB of each pair of scans; (n,) float64.

    The network has learned something about ages only if `predicted` exceeds `unchanged`.
    """

    predicted: Tensor  # first scan's subject at the second age, against the second scan
    unchanged: Tensor  # control, zero age change: the same at the first age, against the second scan
    copied: Tensor  # control: the first scan itself, against the second
    reconstructed: Tensor  # the subject at the first age, against the first scan
    extrapolated: Tensor  # (n,) bool: the second age lies outside of the trained range


def age_change(
    model: Development,
    first: Images,
    ages: Tensor,  # (n,) weeks at the first scan
    second: Images,  # the same subjects, in the same order
    to_ages: Tensor,  # (n,) weeks at the second scan
    settings: LatentFit | None = None,
    *,
    seed: int = 0,
) -> AgeChange:
    """How well second scans are predicted from first ones (spec 002, K.7; always against the target, T15)."""
    first.require_same_spec(second, "growth.age_change")
    if len(first) != len(second) or first.patients != second.patients:
        raise VerisimError(
            f"growth.age_change: {len(first)} first and {len(second)} second scans of other subjects or in another "
            f"order. Give one pair per subject."
        )
    latents = fit_latents(model, first, ages, settings, seed=seed)
    then, now = model.render(latents, to_ages), model.render(latents, ages).images

    def ratio(target: Images, made: Images) -> Tensor:
        return psnr(mse(target.pixels, made.pixels, first.spec))

    return AgeChange(
        predicted=ratio(second, then.images),
        unchanged=ratio(second, now),
        copied=ratio(second, first),
        reconstructed=ratio(first, now),
        extrapolated=then.extrapolated,
    )

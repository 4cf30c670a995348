"""A brain at other ages: series of frames, prediction from one scan, and the control of zero age change."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.metrics.head import Heads, measure_heads
from verisim.metrics.reconstruction import mse, psnr
from verisim.models.implicit.development import Development, Rendering
from verisim.models.implicit.fitting import LatentFit, fit_latents, unexplained
from verisim.models.implicit.model import ImplicitDevelopment


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


MOST_UNEXPLAINED = (
    3.0  # times what training scans leave unexplained, above which a scan is refused; docs/implicit.md
)
LEAST = 0.05  # share of variance that a scan may leave unexplained in any case


@dataclass(frozen=True)
class Growth:
    """One subject, or nobody, at a series of ages."""

    shown: Rendering
    heads: Heads | None  # of these images; None where no head can be made out
    latent: Tensor  # (1, L)
    unexplained: float  # share of the scan's variance that the fitted model leaves; 0 without a scan


def grow(
    model: ImplicitDevelopment,
    scan: Images,  # (1, C, *S) on the model's grid
    age: float,  # weeks at the scan
    to_age: float,  # weeks
    n: int,  # frames from age to to_age
    settings: LatentFit | None = None,
    *,
    seed: int = 0,
    force: bool = False,  # draw also what the model cannot explain
) -> Growth:
    """A scan's subject from the scan's age to another one. Raises VerisimError for a scan of something else."""
    net = model.sampling_development
    at = torch.tensor([age])
    x = scan.pixels
    if float(x.max()) - float(x.min()) < 1e-3 * (scan.spec.high - scan.spec.low):
        raise VerisimError("growth.grow: the scan is constant, so there is nobody to fit. Is it empty?")
    latent = fit_latents(net, scan, at, settings, seed=seed)
    left = float(unexplained(net, scan, at, latent))
    limit = most_unexplained(model)
    if left > limit and not force:
        raise VerisimError(
            f"growth.grow: the fitted model leaves {left:.0%} of this scan's variance unexplained; up to {limit:.0%} "
            f"is allowed ({model.usual:.1%} is usual). Is it another anatomy or contrast, turned, or not registered "
            f"to the training scans? To draw it all the same: --force."
        )
    return _shown(frames(net, latent, age, to_age, n), latent, left)


def most_unexplained(model: ImplicitDevelopment) -> float:
    """Share of a scan's variance that the fitted model may leave unexplained before `grow` refuses the scan."""
    return max(MOST_UNEXPLAINED * model.usual, LEAST)


def grow_average(model: ImplicitDevelopment, kind: str, from_age: float, to_age: float, n: int) -> Growth:
    """Nobody's brain: `kind` zero = the global latent, mean = the mean of the subjects' (spec 002, section O)."""
    net = model.sampling_development
    latent = net.average_latent(kind)
    return _shown(frames(net, latent, from_age, to_age, n), latent, 0.0)


def _shown(shown: Rendering, latent: Tensor, left: float) -> Growth:
    try:
        heads = measure_heads(shown.images) if shown.images.spec.channels == 1 else None
    except VerisimError:
        heads = None
    return Growth(shown, heads, latent, left)


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
    made: Images  # the predictions themselves
    latents: Tensor  # (n, L) of the subjects


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
        made=then.images,
        latents=latents,
    )

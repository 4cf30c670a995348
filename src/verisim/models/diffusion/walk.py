"""How a diffusion model samples: its denoiser with guidance, and the sampler that walks it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from verisim.diffusion.chain import Reverse, ancestral, fixed_variance
from verisim.diffusion.guidance import autoguidance, classifier_free
from verisim.diffusion.samplers import SAMPLERS
from verisim.diffusion.stepping import Callback, Denoise
from verisim.errors import VerisimError
from verisim.models.diffusion.options import VARIANCES

if TYPE_CHECKING:
    from verisim.models.diffusion.denoising import DenoisingDiffusion

FAR = 10.0  # standard deviations to which extrapolated latents and wavelet bands are kept


def walk(model: DenoisingDiffusion, label: Tensor | None) -> Callable[..., Tensor]:
    """run(x, sigmas, *, generator, callback) of the model's sampling options, for classes (B,) or none."""
    o = model.options
    if o.sampler == "ddpm" and reverse_variance(model) != "lower":
        return partial(ancestral, reverse(model, label))
    extra: dict[str, dict[str, float]] = {
        "heun": {"churn": o.churn},
        "ddim": {"eta": o.eta},
        "renoise": {"fresh": o.fresh_noise},
        "flow_heun": {"sigma_data": model.sigma_data},
    }
    run = SAMPLERS[o.sampler].run
    return partial(run, guided(model, label, model.denoise), **extra.get(o.sampler, {}))


def decoded_steps(model: DenoisingDiffusion, callback: Callback | None) -> Callback | None:
    """callback with the state and the estimate of each step as images."""
    r = model.representation
    if callback is None or r.name == "pixels":
        return callback
    return lambda step: callback(step._replace(x=r.decode(step.x), x0=r.decode(step.x0)))


def in_image_space(model: DenoisingDiffusion, reverse: Reverse) -> Reverse:
    """The reverse step seen from images, for likelihoods. VerisimError unless z is a rotation of the image."""
    r = model.representation
    if not r.orthonormal:
        raise VerisimError(
            f"Bits per dimension are not defined for this model: its {r.name} representation is not orthonormal, "
            f"so a density of it is none of the image. Use representation pixels, or haar with low_scale 1."
        )

    def seen(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        z0, v = reverse(r.encode(x), sigma)
        return r.decode(z0), v.new_full(x.shape, float(v.flatten()[0]))  # one number: not learned here

    return reverse if r.name == "pixels" else seen


def guided(model: DenoisingDiffusion, label: Tensor | None, plain: Callable[..., Tensor]) -> Denoise:
    """denoise(x, sigma) from plain(x, sigma, label): with class, guidance by class and network, clipping."""
    o = model.options
    limit = 1.0 if model.representation.name == "pixels" else FAR * model.sigma_data
    by_class = classifier_free(plain, o.guidance, model.null_condition, limit)

    def strong(x: Tensor, sigma: Tensor) -> Tensor:
        return plain(x, sigma) if label is None else by_class(x, sigma, label)

    def weak(x: Tensor, sigma: Tensor) -> Tensor:
        assert model.guide is not None
        return model.guide(x, sigma, label)

    both = strong if model.guide is None else autoguidance(strong, weak, o.autoguidance, limit)
    return (lambda x, sigma: model.representation.clip(both(x, sigma))) if o.clip else both


def reverse_variance(model: DenoisingDiffusion) -> str:
    """The variance of ancestral sampling: "lower", "upper" or "learned"."""
    asked = model.options.variance
    if asked == "learned" and not model.learned_variance:
        raise VerisimError(
            "variance = learned: this model was trained without it. Train with --model.learned_variance "
            "true, or choose lower or upper."
        )
    return ("learned" if model.learned_variance else "lower") if asked == "auto" else asked


def reverse(model: DenoisingDiffusion, label: Tensor | None) -> Reverse:
    """Mean and variance of the reverse step. Guidance moves the mean alone; v is that of the condition."""
    if reverse_variance(model) != "learned":
        return fixed_variance(guided(model, label, model.denoise), VARIANCES[reverse_variance(model)])
    last: list[Tensor] = []  # v of the last evaluation, so that x0 and v cost one

    def plain(x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        x0, v = model.denoise_with_variance(x, sigma, condition)
        assert v is not None
        last[:] = [v]
        return x0

    denoise = guided(model, label, plain)
    return lambda x, sigma: (denoise(x, sigma), last[0][: len(x)])  # the condition's half comes first

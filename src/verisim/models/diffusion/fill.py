"""In- and outpainting of images with a trained model, in whatever it denoises: RePaint around encode and decode."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from verisim.diffusion.inpainting import check_mask, repaint
from verisim.diffusion.stepping import Callback, draw_noise, noise_source
from verisim.models.diffusion.walk import decoded_steps, guided

if TYPE_CHECKING:
    from verisim.models.diffusion.denoising import DenoisingDiffusion


@torch.no_grad()
def fill_in(
    model: DenoisingDiffusion,
    known: Tensor,  # images whose masked part is given, (B, C, *S) in [-1, 1]
    mask: Tensor,  # bool, True = known, broadcastable to known
    condition: Tensor | None = None,  # classes (B,), or None
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    resamples: int = 10,  # times each stretch of the walk is walked
    jump: int = 1,  # its length in steps
) -> Tensor:
    """Images (B, C, *S) in [-1, 1] with the unknown part filled in; the known pixels come out unchanged.

    A wavelet or latent value counts as known where all pixels beneath it are (spec 000, C5f). Raises
    VerisimError for a mask that is not bool or does not fit.
    """
    model.spec.check(known, "images to fill in")
    check_mask(mask, known)
    r, label = model.representation, model.check_condition(len(known), condition)
    known, mask = known.to(model.device), mask.to(model.device).expand_as(known)
    z = r.encode(known)
    generator = noise_source(generator, z)
    sigmas = model.sigmas()
    start = float(sigmas[0]) * draw_noise(z, generator)
    z = repaint(
        guided(model, label, model.denoise),
        start,
        sigmas,
        z,
        r.known(mask),
        generator=generator,
        callback=decoded_steps(model, callback),
        resamples=resamples,
        jump=jump,
    )
    return torch.where(mask, known, r.decode(z).clamp(-1, 1))

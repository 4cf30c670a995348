"""The second stage of a cascade: drawn images enlarged by a super-resolution model. Spec 000, C5e."""

from __future__ import annotations

import time

import torch

from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.hub.weights import load_model
from verisim.models.diffusion.super_resolution import SuperResolution
from verisim.seeding import generator
from verisim.tasks.generation import CHUNK, Generated

AUGMENTATION = 0.1  # noise on the images of the first stage, which hides its faults; at most the model's own


def upscale(made: Generated, source: str, *, seed: int = 0) -> Generated:
    """The images of `made` (in [-1, 1]), enlarged by the super-resolution model of a run folder or weights file.

    VerisimError for a model of another kind, or one for images of another size.
    """
    model, card = load_model(source)
    if not isinstance(model, SuperResolution):
        raise VerisimError(
            f"{source} holds a {card.model} model; --upscale takes a run of super_resolution (W-C5e)."
        )
    images = made.images
    if images.spec.shape != model.low_shape:
        raise VerisimError(
            f"{source} enlarges images of shape {model.low_shape} (channels, *size); these have shape "
            f"{images.spec.shape}. Train it at {model.factor} times their size."
        )
    model.configure_sampling(augmentation=min(AUGMENTATION, model.augmentation))
    start = time.perf_counter()
    parts = [
        model.sample(len(low), low, generator("upscale", seed, k)).cpu().float()
        for k, low in enumerate(images.pixels.split(CHUNK))
    ]
    large = Images(torch.cat(parts), card.spec, images.labels, texts=images.texts)
    return Generated(large, made.seconds + time.perf_counter() - start)

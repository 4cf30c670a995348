"""New contents for a part of an image, and new surroundings for one: n different ways to fill a mask."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from verisim.data.single import Single
from verisim.data.spec import Images
from verisim.diffusion.stepping import Callback
from verisim.errors import VerisimError
from verisim.hub.weights import ModelCard
from verisim.models.base import GenerativeModel
from verisim.models.diffusion.denoising import DenoisingDiffusion
from verisim.models.diffusion.fill import fill_in
from verisim.seeding import generator
from verisim.tasks.generation import Generated, choose_labels
from verisim.tasks.memory import memory_explained


def part_to_make(image: Single, where: str) -> Tensor:
    """(1, *S) bool, True = make new: where the mask is not black. VerisimError for a mask that leaves no task."""
    assert image.mask is not None
    values = sorted({*image.mask[image.inside].tolist(), *image.lost})
    if len(values) > 2:
        raise VerisimError(
            f"{where}: the mask holds {len(values)} different values; draw it in two, black (keep) and white (make "
            f"new), without smooth borders."
        )
    new = (image.mask == values[-1]) & image.inside
    if values == [0]:
        raise VerisimError(
            f"{where}: the mask covers nothing (all black). Paint white what is to be made new."
        )
    if not new.any():
        size = " x ".join(map(str, new.shape[1:]))
        raise VerisimError(f"{where}: nothing of the mask is left at the model's {size} pixels. Paint more.")
    if bool(new[image.inside].all()):
        raise VerisimError(
            f"{where}: the mask covers everything, so nothing is known. Leave --inpaint out to draw whole images, or "
            f"paint black what is to be kept."
        )
    return new


def inpaint(
    model: GenerativeModel,
    card: ModelCard,
    known: Tensor,  # (C, *S) in [-1, 1]
    new: Tensor,  # (1, *S) bool: what is to be made
    n: int,
    *,
    seed: int = 0,
    label: int | None = None,
    resamples: int = 10,  # times each step is walked; more = borders agree better
    callback: Callback | None = None,
) -> Generated:
    """n images (n, C, *S) in [-1, 1] that are `known` outside of `new`, bit for bit.

    The same seed and options.batch give the same images. Raises VerisimError for a model that is no diffusion
    model.
    """
    if not isinstance(model, DenoisingDiffusion):
        raise VerisimError(
            f"A {model.family} model draws whole images only; to fill in a part, train a diffusion model, e.g. "
            f"recipe X-D-fix."
        )
    if n < 1:
        raise VerisimError(f"{n} images asked for; ask for at least 1.")
    labels = choose_labels(card, n, seed, label)
    made: list[Tensor] = []
    start = time.perf_counter()
    with memory_explained(model, n):
        for k, rows in enumerate(torch.arange(n).split(model.options.batch)):
            condition = None if labels is None else labels[rows]
            batch = known.expand(len(rows), *known.shape)
            rng = generator("inpaint", seed, k)
            made.append(fill_in(model, batch, ~new[None], condition, generator=rng, callback=callback,
                                resamples=resamples).cpu().float())  # fmt: skip
    return Generated(Images(torch.cat(made), card.spec, labels), time.perf_counter() - start)

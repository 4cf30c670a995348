"""Draw many images from a trained model, reproducibly and in shards."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from rich.progress import track
from torch import Tensor

from verisim.data.spec import Images
from verisim.diffusion.stepping import Callback
from verisim.errors import VerisimError
from verisim.hub.weights import ModelCard
from verisim.models.base import GenerativeModel
from verisim.seeding import generator
from verisim.tasks.memory import memory_explained

CHUNK = 64  # images that share one generator; image k depends on (seed, k // CHUNK) alone


@dataclass(frozen=True)
class Generated:
    """Images and what they cost."""

    images: Images
    seconds: float

    @property
    def per_second(self) -> float:
        return len(self.images) / max(self.seconds, 1e-9)


def generate(
    model: GenerativeModel,
    card: ModelCard,
    n: int,
    *,
    seed: int = 0,
    label: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = True,
    callback: Callback | None = None,
) -> Generated:
    """n images in [-1, 1] of (card.spec.size); labels drawn by training frequency unless one is given.

    callback: sees every step of models that sample in steps (previews); VerisimError for others.
    With world_size > 1 this rank draws every world_size-th chunk: the union over ranks is what one
    process would have drawn.
    """
    if n < 1:
        raise VerisimError(f"{n} images asked for; ask for at least 1.")
    chunks = [k for k in range(math.ceil(n / CHUNK)) if k % world_size == rank]
    labels = choose_labels(card, n, seed, label)
    pixels, kept = [], []
    draw: Callable[..., Tensor] = model.sample if callback is None else with_callback(model, callback)
    start = time.perf_counter()
    for k in track(chunks, "sampling", disable=not progress or len(chunks) < 2, transient=True):
        m = min(CHUNK, n - k * CHUNK)
        want = None if labels is None else labels[k * CHUNK : k * CHUNK + m]
        with memory_explained(model, m):
            drawn = draw(m, want, generator("sample", seed, k)).cpu().float()
        if not torch.isfinite(drawn).all():
            raise VerisimError(
                "The model produced NaN or Inf. It was probably trained too short or at too high a learning rate."
            )
        pixels.append(drawn)
        if want is not None:
            kept.append(want)
    shown = Images(torch.cat(pixels), card.spec, torch.cat(kept) if kept else None)
    return Generated(shown, time.perf_counter() - start)


def with_callback(model: GenerativeModel, callback: Callback) -> Callable[..., Tensor]:
    """model.sample that reports its steps; VerisimError for a model that draws in one go."""
    if "callback" not in inspect.signature(model.sample).parameters:
        raise VerisimError(
            f"A {model.family} model does not sample by denoising, so there is nothing to preview. Leave --preview out."
        )
    sample: Callable[..., Tensor] = model.sample
    return partial(sample, callback=callback)


def choose_labels(card: ModelCard, n: int, seed: int, label: int | None) -> Tensor | None:
    """(n,) class indices: the one asked for, else drawn by their frequency in the training data."""
    if card.num_classes == 0:
        if label is not None:
            raise VerisimError("This model was trained without classes. Train it with --data.label COLUMN.")
        return None
    if label is not None:
        if not 0 <= label < card.num_classes:
            raise VerisimError(f"Class {label} asked for; this model knows 0...{card.num_classes - 1}.")
        return torch.full((n,), label)
    counts = torch.tensor(card.training.get("class_counts") or [1.0] * card.num_classes, dtype=torch.float64)
    return torch.multinomial(counts, n, replacement=True, generator=generator("labels", seed))


def class_index(card: ModelCard, name: str) -> int:
    """Index of a class given by name or number."""
    if name in card.class_names:
        return card.class_names.index(name)
    if name.isdigit():
        return int(name)
    raise VerisimError(f"No class '{name}'. This model knows: {', '.join(card.class_names) or 'none'}.")

"""Draw many images from a trained model, reproducibly and in shards."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Sequence
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
    places: tuple[int, ...] = ()  # of the images in the whole set, where this is a shard of it

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
    texts: Sequence[str] = (),
    rank: int = 0,
    world_size: int = 1,
    progress: bool = True,
    callback: Callback | None = None,
) -> Generated:
    """n images in [-1, 1] of (card.spec.size); labels drawn by training frequency unless one is given.

    callback: sees every step of models that sample in steps (previews); VerisimError for others.
    texts: what a text model is asked for, one for all images or one for each; none = without a text.
    With world_size > 1 this rank draws every world_size-th chunk: the union over ranks is what one
    process would have drawn.
    """
    if n < 1:
        raise VerisimError(f"{n} images asked for; ask for at least 1.")
    all_chunks = math.ceil(n / CHUNK)
    if world_size > all_chunks:
        raise VerisimError(
            f"{n} images come in {all_chunks} chunk(s) of {CHUNK}, too few for {world_size} shards. Ask for fewer shards."
        )
    chunks = [k for k in range(all_chunks) if k % world_size == rank]
    labels = _read_texts(model, n, texts) if texts else choose_labels(card, n, seed, label)
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
        if want is not None and not texts:
            kept.append(want)
    places = tuple(i for k in chunks for i in range(k * CHUNK, min(n, (k + 1) * CHUNK)))
    said = tuple(texts[0] if len(texts) == 1 else texts[i] for i in places) if texts else None
    shown = Images(torch.cat(pixels), card.spec, torch.cat(kept) if kept else None, texts=said)
    return Generated(shown, time.perf_counter() - start, places if world_size > 1 else ())


def with_callback(model: GenerativeModel, callback: Callback) -> Callable[..., Tensor]:
    """model.sample that reports its steps; VerisimError for a model that draws in one go."""
    if "callback" not in inspect.signature(model.sample).parameters:
        raise VerisimError(
            f"A {model.family} model does not sample by denoising, so there is nothing to preview. Leave --preview out."
        )
    sample: Callable[..., Tensor] = model.sample
    return partial(sample, callback=callback)


def _read_texts(model: GenerativeModel, n: int, texts: Sequence[str]) -> Tensor:
    """The condition (n, ...) of texts. VerisimError unless there is one text, or one for each image."""
    if len(texts) not in (1, n):
        raise VerisimError(
            f"{len(texts)} texts for {n} images. Give one text for all, or one for each image."
        )
    read = model.read_texts(list(texts))
    return read.expand(n, *read.shape[1:])


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


def parse_shard(text: str) -> tuple[int, int]:
    """'2/4' -> (1, 4): rank and number of shards; '' -> (0, 1). VerisimError for what is neither."""
    parts = text.split("/") if text else ["1", "1"]
    if len(parts) != 2 or not all(p.isdecimal() for p in parts) or not 1 <= int(parts[0]) <= int(parts[1]):
        raise VerisimError(
            f"shard is '{text}'; write K/N with K from 1 to N, e.g. 2/4 for the second of four."
        )
    return int(parts[0]) - 1, int(parts[1])


def class_index(card: ModelCard, name: str) -> int:
    """Index of a class given by name or number."""
    if name in card.class_names:
        return card.class_names.index(name)
    if name.isdigit():
        return int(name)
    raise VerisimError(f"No class '{name}'. This model knows: {', '.join(card.class_names) or 'none'}.")

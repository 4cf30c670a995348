"""What is compared: images of a trained model or of a folder, with what they cost and how likely they find real ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from verisim.data.folder import Dataset, load_images
from verisim.data.listing import read_manifest
from verisim.data.spec import Images, ImageSpec, from_levels
from verisim.errors import VerisimError
from verisim.hub.published import find_published
from verisim.hub.weights import load_model, read_card
from verisim.metrics.memo import digest
from verisim.models.base import GenerativeModel
from verisim.roles import Likelihood
from verisim.seeding import generator
from verisim.tasks.generation import generate
from verisim.training.checkpoint import load_state, read_metadata, save_state

BITS_IMAGES = 64  # held-out images whose likelihood is measured


@dataclass(frozen=True)
class Contestant:
    """One set of images to be judged."""

    name: str  # e.g. X-D-fix@0: recipe and training seed
    images: Images  # in [-1, 1], 8-bit levels
    facts: dict[str, Any] = field(default_factory=dict)  # cost, parameters, bits per dimension ...
    metrics: Path | None = None  # its metrics.jsonl

    def report(self) -> dict[str, Any]:
        """What a report shows about it."""
        title = f"{self.name.split('@')[0]} ({self.facts.get('family', 'images')})"
        return {"title": title, **self.facts, "metrics": self.metrics}


def from_model(
    path: Path,
    name: str,
    n: int,
    held_out: Images,
    *,
    seed: int = 0,
    cache: Path | None = None,
    options: Mapping[str, Any] | None = None,  # sampling options, e.g. {"prior": "normal"}
    likelihood: bool = True,  # measure bits per dimension of held-out images, where the model has them
    asked: Images | None = None,  # whose texts a text model is asked for; None = the held-out images
) -> Contestant:
    """Draw n images from a run folder or weights file and measure cost and likelihood.

    A text model is asked for texts of real images, drawn at random, and its images have the labels of those; where
    there are no texts it draws without. With `cache` the result is kept there and reused while the weights, n and seed are the same.
    """
    weights = path / "weights.safetensors" if path.is_dir() else path
    metrics = path / "metrics.jsonl" if path.is_dir() else None
    chosen = dict(options or {})
    key = f"{read_metadata(weights).get('sha256', '')} {n} {seed}" if weights.exists() else ""
    key += f" {chosen}" if chosen else ""
    asked = held_out if asked is None else asked
    if asked.texts is not None and reads_texts(weights):
        key += f" {digest([asked.texts])}"
    key += " 8 bits"
    if cache is not None and cache.exists() and read_metadata(cache).get("key") == key:
        state = load_state(cache)
    else:
        state = _draw(path, n, held_out, seed, chosen, likelihood, asked)
        if cache is not None:
            save_state(cache, state, header={"key": key})
    images = Images(from_levels(state["levels"], held_out.spec), held_out.spec, state["labels"])
    return Contestant(name, images, state["facts"], metrics)


def _draw(
    path: Path,
    n: int,
    held_out: Images,
    seed: int,
    options: dict[str, Any],
    likelihood: bool,
    asked: Images,
) -> dict[str, Any]:
    model, card = load_model(path)
    model.configure_sampling(**options)
    if card.spec.shape != held_out.spec.shape:
        raise VerisimError(
            f"{path} makes images of {card.spec.size}, the real ones are {held_out.spec.size}. "
            f"Compare at one size: --data.size {'x'.join(map(str, card.spec.size))}."
        )
    reader = bool(card.settings.get("text"))
    texts, labels = _texts(asked, n, seed) if reader else ((), None)
    made = generate(model, card, n, seed=seed, texts=texts)
    facts = {
        "recipe": card.recipe,
        "family": model.family,
        "model": card.model,
        **{k: v for k, v in card.training.items() if k not in ("class_counts", "data_fingerprint")},
        "samples_per_second": round(made.per_second, 3),
        "sampling_threads": torch.get_num_threads(),
        "likelihood": bits_per_dim(model, held_out) if likelihood else None,
    }
    if reader:
        facts["texts"] = "of real images" if texts else "none: their column was not named (--data.text)"
    grey = replace(made.images, spec=held_out.spec).levels().to(torch.uint8)
    return {"levels": grey, "labels": labels if texts else made.images.labels, "facts": facts}


def reads_texts(path: Path) -> bool:
    """Is this the run folder or weights file of a text model?"""
    weights = path / "weights.safetensors" if path.is_dir() else path
    return weights.exists() and bool(read_card(weights).settings.get("text"))


def _texts(asked: Images, n: int, seed: int) -> tuple[tuple[str, ...], Tensor | None]:
    """n texts of real images, each as often as the others, with the labels (n,) of those images."""
    if asked.texts is None:
        return (), None
    order = torch.randperm(len(asked), generator=generator("texts", seed))
    rows = order.repeat(math.ceil(n / len(order)))[:n]
    return tuple(asked.texts[i] for i in rows.tolist()), None if asked.labels is None else asked.labels[rows]


def bits_per_dim(model: GenerativeModel, held_out: Images) -> dict[str, Any] | None:
    """Mean bits per dimension of held-out images with its standard error; None where not defined."""
    if not isinstance(model, Likelihood):
        return None
    x = held_out.quantise().pixels[:BITS_IMAGES]
    label = None
    if model.num_classes and held_out.labels is not None:
        label = held_out.labels[:BITS_IMAGES]
    try:
        bits = model.bits_per_dim(x, label, generator("bits", 0)).cpu().double()
    except VerisimError as e:  # e.g. the model's likelihood is not one of 8-bit images
        return {"bits_per_dim": None, "reason": str(e)}
    return {
        "bits_per_dim": float(bits.mean()),
        "se": float(bits.std() / len(bits) ** 0.5),
        "images": len(bits),
        "upper_bound": bool(model.likelihood_is_bound),
    }


def from_folder(path: Path, name: str, spec: ImageSpec, contrasts: Sequence[str] = ()) -> Contestant:
    """Images that something else made, from a folder."""
    found = read_folder(path, spec, contrasts)["all"]
    images = Images(found.pixels, spec, found.labels, found.patients, found.names)
    return Contestant(name, images.quantise(), {"family": "folder", "recipe": ""})


def read_folder(
    path: Path, spec: ImageSpec, contrasts: Sequence[str] = (), label: str | None = None
) -> Dataset:
    """Made images as real ones of `spec`: a file each, or one for each channel, as 'verisim sample' writes them.

    contrasts: names of the channels of the real images, where each is a file of its own. VerisimError for a folder
    without a file for each channel.
    """
    column = _columns(path, spec, contrasts)
    channels = 1 if "," in column else spec.channels
    return load_images(path, spec.size, channels=channels, image=column, label=label, split=None)


def _columns(path: Path, spec: ImageSpec, contrasts: Sequence[str]) -> str:
    """Manifest columns of the images' channels: named as the contrasts, or c0, c1, ...; else 'image'."""
    manifest = path / "manifest.csv"
    known = read_manifest(manifest)[0] if manifest.is_file() else ()
    numbered = [f"c{c}" for c in range(spec.channels)]
    for names in (list(contrasts), numbered):
        if len(names) == spec.channels > 1 and set(names) <= set(known):
            return ",".join(names)
    if spec.channels not in (1, 3) or contrasts:
        raise VerisimError(
            f"{path}: the real images have {spec.channels} channels; a folder of made ones needs a file for each, named "
            f"in manifest.csv by the columns {', '.join(contrasts or numbered)}."
        )
    return "image"


def open_source(
    path: str, n: int, held_out: Images, *, seed: int = 0, contrasts: Sequence[str] = ()
) -> Contestant:
    """A run folder, a weights file, a recipe whose weights come with verisim, or a folder of images."""
    where, is_model = locate(path)
    name = where.name.removesuffix(".safetensors") or str(where)
    if is_model:
        return from_model(where, name, n, held_out, seed=seed)
    return from_folder(where, name, held_out.spec, contrasts)


def locate(source: str) -> tuple[Path, bool]:
    """Where a source of images is, and whether it is a model. VerisimError if there is no such thing."""
    where = Path(source)
    if not where.exists():
        published = find_published(source)
        if published is None:
            raise VerisimError(
                f"{source} does not exist. Give run folders, weights files or folders of images."
            )
        return published, True
    return where, where.is_file() or any((where / f).exists() for f in ("config.yaml", "weights.safetensors"))

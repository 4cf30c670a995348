"""What all downstream users share: settings, the class that counts as normal, and how their networks are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from verisim.data.spec import Images
from verisim.devices import lent
from verisim.errors import VerisimError, nearest
from verisim.metrics.judges import JudgeSettings, one_cycle, random_shift
from verisim.seeding import derive_seed
from verisim.seeding import generator as seeded

NORMAL_NAMES = ("normal", "no finding", "no findings", "healthy")  # with spaces, - or _ between the words
LEAST_NORMAL = 32  # normal images that a detector is trained on
Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class DownstreamSettings:
    """How downstream users are trained; the same for all sets of images."""

    judge: JudgeSettings = field(default_factory=JudgeSettings)  # of small classifiers, whatever they look at
    densenet: JudgeSettings = field(  # source 004: Adam, batches of 16, learning rate 1e-3
        default_factory=lambda: JudgeSettings(batch=16, lr=1e-3, weight_decay=0.0, dropout=0.0)
    )
    growth: int = 32  # DenseNet: channels that each layer adds; its first convolution has twice as many
    steps: int = 300  # optimiser steps of networks that learn from normal images
    batch: int = 64  # normal images per step
    lr: float = 2e-3  # their peak learning rate (Adam, one cycle)
    width: int = 16  # channels of their first convolution
    latent: int = 64  # length of an autoencoder's code
    shift: int = 2  # largest random shift of a training image in pixels; never a flip


@dataclass(frozen=True)
class Downstream:
    """One kind of user of X-rays: how it is trained, and what its outputs mean."""

    fit: Callable[[Images, int | None, DownstreamSettings, int], nn.Module]  # labelled images, normal class,
    # settings, seed -> network (B, C, *S) in [-1, 1] -> logits (B, K), or scores (B,), larger = more abnormal
    output: Literal["logits", "scores"]
    learns_from: Literal["labels", "normal images"]  # decides the control: shuffled labels, or noise images
    title: str
    meaning: str  # for a reader of the report
    needs_normal: bool = True  # whether a class must count as normal
    least_side: int = 8  # pixels of the shortest side


def normal_class(class_names: Sequence[str], wanted: str = "") -> int:
    """Index of the class `wanted`, or without it of the only one named like NORMAL_NAMES. VerisimError if there is none."""
    known = ", ".join(class_names)
    if wanted:
        if wanted not in class_names:
            raise VerisimError(
                f"No class '{wanted}' that could count as normal.{nearest(wanted, class_names)} Classes: {known}."
            )
        return list(class_names).index(wanted)
    alike = [k for k, n in enumerate(class_names) if _words(n) in NORMAL_NAMES]
    if len(alike) != 1:
        found = "several classes sound" if alike else "no class sounds"
        raise VerisimError(
            f"Anomaly detectors need a normal class, and {found} like one. Name it with --normal CLASS; classes: {known}."
        )
    return alike[0]


def _words(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


def normal_images(train: Images, normal: int | None) -> Tensor:
    """Pixels (M, C, *S) float32 of the normal training images. VerisimError if they are fewer than LEAST_NORMAL."""
    assert train.labels is not None and normal is not None
    found = train.pixels[train.labels == normal].float()
    if len(found) < LEAST_NORMAL:
        raise VerisimError(
            f"utility: {len(found)} normal training images; a detector needs at least {LEAST_NORMAL}. Add normal images."
        )
    return found


def built(make: Callable[[], Net], seed: int) -> Net:
    """make() with weights that depend on the seed alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("downstream weights", seed))
        return make()


def batches(x: Tensor, settings: DownstreamSettings, seed: int) -> Iterator[Tensor]:
    """`steps` batches (B, C, *S) of x (M, C, *S), drawn with replacement and shifted at random."""
    rng = seeded("downstream batches", seed)
    for _ in range(settings.steps):
        pick = torch.randint(len(x), (settings.batch,), generator=rng)
        yield random_shift(x[pick], settings.shift, rng)


def descend(
    net: Net,
    loss_of: Callable[[Tensor], Tensor],  # batch (B, C, *S) -> mean loss
    x: Tensor,  # (M, C, *S) in [-1, 1]
    settings: DownstreamSettings,
    seed: int,
) -> Net:
    """Train `net` on images x by Adam, gradients clipped to norm 1; returns it in eval mode."""
    with lent(net) as device:
        optimizer, schedule = one_cycle(net.parameters(), settings.lr, settings.steps)
        for batch in batches(x, settings, seed):
            optimizer.zero_grad(set_to_none=True)
            loss_of(batch.to(device)).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return net.eval()


def squared_error(x: Tensor, y: Tensor) -> Tensor:
    """Mean over all values of each image: (B, C, *S) -> (B,)."""
    return (x - y).square().flatten(1).mean(1)

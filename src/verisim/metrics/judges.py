"""The judge: a small convolutional classifier that learns from a few hundred images, 2D or 3D.

Used for the two-sample test, for utility and for domain features. Its randomness comes from one seed:
weights, batches, shifts and dropout, so the same images give the same judge on the same machine.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verisim.devices import lent
from verisim.errors import VerisimError
from verisim.metrics.bootstrap import group_index
from verisim.seeding import generator as seeded


@dataclass(frozen=True)
class JudgeSettings:
    """How a judge is trained; fixed for all entries of a comparison."""

    steps: int = 300  # optimiser steps at most
    batch: int = 64  # images per step, classes in equal shares
    width: int = 16  # channels of the first convolution
    lr: float = 3e-3  # peak learning rate of AdamW (one cycle)
    weight_decay: float = 0.05  # decoupled weight decay
    dropout: float = 0.2  # share of features dropped before the last layer
    shift: int = 2  # largest random shift in pixels; never a flip
    validation: float = 0.15  # share of the training images kept for choosing the step
    checks: int = 6  # how often the validation loss is looked at


class Judge(nn.Module):
    """A network that `train` can teach: features (B, D), then a head to (B, K)."""

    head: nn.Module

    def features(self, x: Tensor) -> Tensor:
        """(B, C, *S) in [-1, 1] -> (B, D)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


J = TypeVar("J", bound=Judge)


class SmallCNN(Judge):
    """(B, C, *S) in [-1, 1] -> logits (B, K). Few halvings first, to see noise and blur."""

    def __init__(
        self,
        spatial_dims: int,  # 2 or 3
        in_channels: int,  # C
        num_outputs: int,  # K
        width: int = 16,  # channels of the first convolution
        size: int = 32,  # largest side of the image; sets the number of halvings
    ) -> None:
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]
        norm = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[spatial_dims]
        halvings = max(1, min(5, (size - 1).bit_length() - 2))  # 32 -> 3, down to 4 pixels
        layers: list[nn.Module] = []
        c = in_channels
        for level in range(halvings + 1):
            out = min(width * 2**level, 4 * width)
            stride = 2 if level > 0 or size > 48 else 1
            layers += [conv(c, out, 3, stride=stride, padding=1, bias=False), norm(out), nn.LeakyReLU(0.1)]
            c = out
        self.body = nn.Sequential(*layers)
        self.dim = c * (2**spatial_dims + 1)
        self.head = nn.Linear(self.dim, num_outputs)
        self.spatial_dims = spatial_dims

    def features(self, x: Tensor) -> Tensor:
        """(B, D): coarse 2 x 2 (x 2) map of means, and the spread over space, per channel."""
        h = self.body(x)  # (B, c, *s)
        pool = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[self.spatial_dims]
        spread = (h.flatten(2).var(2, unbiased=False) + 1e-5).sqrt()
        return torch.cat((pool(h, 2).flatten(1), spread), 1)


def initialise(net: nn.Module, rng: torch.Generator) -> nn.Module:
    """Kaiming-normal weights from an explicit generator; normalisation layers start as the identity."""
    for m in net.modules():
        if isinstance(m, (nn.Conv2d, nn.Conv3d, nn.Linear)):
            gain = 2**0.5 if not isinstance(m, nn.Linear) else 1.0
            fan_in = m.weight[0].numel()
            with torch.no_grad():
                m.weight.copy_(torch.randn(m.weight.shape, generator=rng) * gain / fan_in**0.5)
                if m.bias is not None:
                    m.bias.zero_()
    return net


def random_shift(x: Tensor, most: int, rng: torch.Generator) -> Tensor:
    """Shift each image of x (B, C, *S) by up to `most` pixels along each axis, edges repeated."""
    for dim in range(2, x.ndim):
        s = x.shape[dim]
        most_here = min(most, s // 8)
        shift = torch.randint(-most_here, most_here + 1, (len(x),), generator=rng)
        index = (torch.arange(s) + shift[:, None]).clamp(0, s - 1)  # (B, s)
        shape = [len(x), *[1] * (x.ndim - 1)]
        shape[dim] = s
        x = x.gather(dim, index.view(shape).to(x.device).expand_as(x))
    return x


def split_groups(
    n: int, share: float, rng: torch.Generator, groups: Sequence[str] | None = None
) -> tuple[Tensor, Tensor]:
    """Index sets (rest, held out) with about `share` of the items held out and no group in both."""
    index = group_index(n, groups)
    sizes = torch.bincount(index)
    order = torch.randperm(len(sizes), generator=rng)
    held = torch.zeros(len(sizes), dtype=torch.bool)
    held[order[sizes[order].cumsum(0) <= max(1, round(share * n))]] = True
    mask = held[index]
    return (~mask).nonzero().flatten(), mask.nonzero().flatten()


def fit(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    settings: JudgeSettings,
    seed: int,
    groups: Sequence[str] | None = None,
) -> SmallCNN:
    """Train a judge on images (N, C, *S) in [-1, 1] with labels (N,); returns it in eval mode. See `train`."""
    with torch.random.fork_rng(devices=[]):  # building a layer draws from the global generator
        net = SmallCNN(images.ndim - 2, images.shape[1], num_classes, settings.width, max(images.shape[2:]))
    return train(net, images, labels, num_classes, settings, seed, groups)


def train(
    net: J,
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    settings: JudgeSettings,
    seed: int,
    groups: Sequence[str] | None = None,
    loss_of: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,  # outputs (B, K), labels (B,) -> mean loss
) -> J:
    """Give `net` new weights and train it on images (N, C, *S) with labels (N,); returns it in eval mode.

    Batches hold the classes in equal shares. The weights of the step with the lowest loss on an inner
    validation set (own groups) are kept.
    """
    rng = seeded("judge", seed)
    rest, held = _inner_split(labels, num_classes, settings.validation, rng, groups)
    members = [rest[labels[rest] == c] for c in range(num_classes)]
    if any(len(m) == 0 for m in members):
        raise VerisimError(f"A judge needs images of all {num_classes} classes. Add images or drop a class.")
    initialise(net, rng)
    with lent(net) as device:
        draw = partial(_batch, images, members, settings, rng)
        _descend(net, draw, (images[held], labels[held]), settings, rng, loss_of, device)
    return net.eval()


def _descend(
    net: Judge,
    draw: Callable[[], tuple[Tensor, Tensor]],  # the next batch: images (B, C, *S), labels (B,)
    held: tuple[Tensor, Tensor],  # inner validation images and labels; may be empty
    settings: JudgeSettings,
    rng: torch.Generator,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    device: torch.device,
) -> None:
    """Train, and keep the weights with the lowest loss on `held`, if there are any."""
    net.train()
    optimizer, schedule = one_cycle(net.parameters(), settings.lr, settings.steps, settings.weight_decay)
    check_every = max(1, settings.steps // settings.checks)
    best, best_state = float("inf"), None
    for step in range(1, settings.steps + 1):
        x, y = draw()
        fmt = torch.channels_last if x.ndim == 4 else torch.contiguous_format
        h = net.features(x.contiguous(memory_format=fmt).to(device))
        keep = (torch.rand(h.shape, generator=rng) >= settings.dropout).to(device)
        loss = loss_of(net.head(h * keep / (1 - settings.dropout)), y.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if len(held[1]) and (step % check_every == 0 or step == settings.steps):
            now = float(loss_of(logits(net, held[0]), held[1]))
            net.train()
            if now < best:
                best, best_state = now, copy.deepcopy(net.state_dict())
    if best_state is not None:
        net.load_state_dict(best_state)


def _inner_split(
    labels: Tensor, num_classes: int, share: float, rng: torch.Generator, groups: Sequence[str] | None
) -> tuple[Tensor, Tensor]:
    """Split without a group on both sides; no validation when too few images would be left for it."""
    rest, held = split_groups(len(labels), share, rng, groups)
    if len(held) < 4 * num_classes or len(labels[rest].unique()) < num_classes:
        return torch.arange(len(labels)), torch.arange(0)
    return rest, held


def one_cycle(
    parameters: Iterable[nn.Parameter], lr: float, steps: int, weight_decay: float = 0.0
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW (with weight_decay 0: Adam) whose learning rate rises to `lr` and falls to nothing within `steps`."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=steps + 1, pct_start=0.2, cycle_momentum=False
    )
    return optimizer, cycle


def _batch(
    images: Tensor, members: list[Tensor], settings: JudgeSettings, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Equal shares of the classes, randomly shifted: x (B, C, *S), y (B,)."""
    share = max(1, settings.batch // len(members))
    pick = [m[torch.randint(len(m), (share,), generator=rng)] for m in members]
    y = torch.arange(len(members)).repeat_interleave(share)
    return random_shift(images[torch.cat(pick)], settings.shift, rng), y


@torch.no_grad()
def logits(net: nn.Module, images: Tensor, batch: int = 256) -> Tensor:
    """(N, K) float64 logits in eval mode; the training mode is put back."""
    mode = net.training
    net.eval()
    with lent(net) as device:
        out = torch.cat([net(part.to(device)).cpu() for part in images.split(batch)])
    net.train(mode)
    return out.double()


def binary_score(net: nn.Module, images: Tensor) -> Tensor:
    """(N,) float64 log odds of class 1 of a two-class judge."""
    z = logits(net, images)
    return z[:, 1] - z[:, 0]

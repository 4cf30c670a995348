"""Training a model of development, and finding the latents of subjects it has not seen (spec 002, K.4 and K.5)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verisim.data.spec import Images, ImageSpec
from verisim.data.stream import BatchStream
from verisim.errors import LossError, VerisimError
from verisim.models.implicit.development import CHUNK, LATENT_BOUND, Development, bounded, scan_identities
from verisim.models.implicit.points import brain_masks, check_scans, draw_points, grid, mirrored
from verisim.models.implicit.progress import Progress
from verisim.seeding import generator


@dataclass(frozen=True)
class Training:
    """How it is trained; all but `steps` default to the source's settings."""

    steps: int  # the source: up to 2000 passes
    sgla: float = 0.1  # probability of the global latent in place of the subject's; 0 = off
    scans: int = 1  # scans per step
    pixels: float = 0.05  # share of a scan's voxels per step
    foreground: float = 0.9  # share of them inside of the brain
    mirror: float = 0.5  # probability of a mirrored scan, which counts as somebody else's
    mirror_axis: int = -1  # left-right
    lr: float = 1e-4  # AdamW
    weight_decay: float = 0.01
    latent_lr: float = 1e-3  # lazy Adam: latents that a step does not use stay where they are
    chunk: int = CHUNK


@dataclass(frozen=True)
class LatentFit:
    """How the latent of a new scan is found: AdamW from the global latent."""

    steps: int = 1000  # the source: 1000 in 3D, 2000 in 2D
    lr: float = 1e-3
    pixels: float = 0.05
    foreground: float = 0.9
    chunk: int = CHUNK


def fit(
    model: Development,
    images: Images,  # co-registered scans in [-1, 1], background -1, with patients
    ages: Tensor,  # (N,) weeks after the last menstrual period
    settings: Training,
    *,
    masks: Tensor | None = None,  # (N, 1, *S) bool, the brain; None = what is not dark
    seed: int = 0,
    progress: Progress | None = None,  # a file to go on from if the run is killed
) -> list[float]:
    """Train network and latents on random voxels of random scans; returns the loss of every step of this call.

    What step k draws depends on (seed, k) alone, so that a run that goes on from its file ends bit for bit as one
    that was never stopped. Raises VerisimError for scans of another shape, for ages that are missing or not finite
    and for subjects that the model has no latent for; LossError for a loss that is not finite.
    """
    ages = check_scans(images, ages, model.spec, "development.fit")
    check_training(settings, model.spec.spatial_dims)
    rows = model.rows(scan_identities(images, model.architecture.ssl))
    stream = BatchStream(images, settings.scans, settings.steps, lambda: 0, seed)
    masks = brain_masks(images, masks)  # (N, V)
    drawer = Drawer(model.spec, settings)
    adam, lazy = optimisers(model, settings)
    model.widen_ages(ages)
    run = {**asdict(settings), "seed": seed, "images": len(images)}
    del run["steps"]  # a finished run may go on
    first = progress.load(model, [adam, lazy], run) if progress else 0
    losses: list[float] = []
    for k in range(first, settings.steps):
        i = stream.indices(k)
        batch = drawer.draw(images.pixels[i], masks[i], ages[i], rows.cpu()[i], step_generator(seed, k))
        losses.append(descend(model, batch, settings.chunk, adam, lazy))
        if not math.isfinite(losses[-1]):
            raise LossError(f"development.fit: the loss of step {k} is {losses[-1]}. Lower lr and latent_lr.")
        if progress and ((k + 1) % progress.every == 0 or k + 1 == settings.steps):
            progress.save(model, [adam, lazy], run, k + 1)
    return losses


def step_generator(seed: int, k: int) -> torch.Generator:
    """What step k draws with."""
    return generator("development", seed, k)


def descend(model: Development, batch: Batch, chunk: int, adam: Any, lazy: Any) -> float:
    """One step of both optimisers unless the loss is not finite; returns the mean loss of the scans."""
    batch = Batch(*(t.to(model.common.device) for t in batch))
    adam.zero_grad()
    lazy.zero_grad()
    latents = look_up(model, batch.rows, batch.own)
    loss = accumulate(model, batch.points, batch.ages, latents, batch.target, chunk) / len(batch.rows)
    if math.isfinite(loss):
        adam.step()
        if model.latents.grad is not None:
            lazy.step()
    return loss


def optimisers(model: Development, s: Training) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """AdamW for the network (and the global latent if it learns), lazy Adam for the subjects' latents."""
    weights = [*model.net.parameters(), *([model.common] if model.architecture.learn_global else [])]
    adam = torch.optim.AdamW(weights, s.lr, weight_decay=s.weight_decay)
    return adam, torch.optim.SparseAdam([model.latents], s.latent_lr)


def check_training(s: Training, dims: int) -> None:
    """Raise VerisimError for settings that cannot be meant."""
    if not 0 <= s.sgla <= 1 or not 0 <= s.mirror <= 1:
        raise VerisimError(f"development.fit: sgla={s.sgla:g}, mirror={s.mirror:g}; both are probabilities.")
    if s.steps < 1 or not -dims <= s.mirror_axis < dims:
        raise VerisimError(
            f"development.fit: steps={s.steps}, mirror_axis={s.mirror_axis}; at least one step and an axis from "
            f"{-dims} to {dims - 1} are needed."
        )
    _check_shares(s.pixels, s.foreground, "development.fit")


def _check_shares(pixels: float, foreground: float, where: str) -> None:
    if not 0 < pixels <= 1 or not 0 <= foreground <= 1:
        raise VerisimError(
            f"{where}: pixels={pixels:g}, foreground={foreground:g}; pixels is a share above 0 and up to 1 of a "
            f"scan's voxels, foreground one of 0 to 1 of those."
        )


def look_up(model: Development, rows: Tensor, own: Tensor) -> Tensor:
    """Latents (B, L): row `rows` of the table where `own` (B,), else the global one."""
    latents = model.common.expand(len(rows), -1).clone()
    if model.architecture.latent == 0 or not own.any():
        return latents
    mine = F.embedding(rows[own], model.latents, max_norm=LATENT_BOUND, norm_type=math.inf, sparse=True)
    return latents.index_put((own.nonzero().flatten(),), mine)


def accumulate(
    model: Development, points: Tensor, ages: Tensor, latents: Tensor, target: Tensor, chunk: int
) -> float:
    """Sum over scans of the mean squared error at points (B, P, d), target (B, P, C); its gradient is added up.

    The network sees `chunk` points at a time, so memory does not grow with P.
    """
    leaf = latents.detach().requires_grad_()
    scale = target[0].numel()
    each = max(1, chunk // len(points))
    total = 0.0
    for p, y in zip(points.split(each, 1), target.split(each, 1)):
        loss = (model(p, ages, leaf) - y).square().sum() / scale
        loss.backward()
        total += float(loss.detach())
    if latents.requires_grad and leaf.grad is not None:
        latents.backward(leaf.grad)
    return total


class Batch(NamedTuple):
    """What one step sees of B scans."""

    points: Tensor  # (B, P, d)
    ages: Tensor  # (B,) weeks
    target: Tensor  # (B, P, C) brightness in [0, 1]
    rows: Tensor  # (B,) of the table of latents
    own: Tensor  # (B,) bool: that row; else the global latent


class Drawer:
    """Draws random voxels of scans, some of them mirrored, some with the global latent."""

    def __init__(self, spec: ImageSpec, settings: Training) -> None:
        self.settings = settings
        self.grid = grid(spec)  # (V, d)
        self.mirror = mirrored(spec.size, settings.mirror_axis)

    def draw(self, pixels: Tensor, masks: Tensor, ages: Tensor, rows: Tensor, g: torch.Generator) -> Batch:
        """From pixels (B, C, *S) in [-1, 1], masks (B, V), ages (B,) and rows (B,) of scans that are not mirrored."""
        s, n = self.settings, len(rows)
        flip = torch.rand(n, generator=g) < s.mirror
        own = torch.rand(n, generator=g) >= s.sgla
        values = pixels.flatten(2).transpose(1, 2)  # (B, V, C)
        points, target = [], []
        for value, mask, f in zip(values, masks, flip.tolist()):
            at = draw_points(mask, s.pixels, s.foreground, g)
            points.append(self.grid[self.mirror[at] if f else at])
            target.append((value[at] + 1) / 2)
        return Batch(torch.stack(points), ages, torch.stack(target), rows + flip.long(), own)


# --- a new subject --------------------------------------------------------------------------------


def fit_latents(
    model: Development,
    images: Images,  # (n, C, *S), a scan each
    ages: Tensor,  # (n,) weeks
    settings: LatentFit | None = None,
    *,
    masks: Tensor | None = None,  # (n, 1, *S) bool
    seed: int = 0,
) -> Tensor:
    """Latents (n, L) that explain these scans best; the network stays as it is, bit for bit.

    The latent of a scan does not depend on the others. Raises VerisimError like fit.
    """
    s = settings or LatentFit()
    ages = check_scans(images, ages, model.spec, "development.fit_latents").to(model.common.device)
    _check_shares(s.pixels, s.foreground, "development.fit_latents")
    model.check_trained()
    masks = brain_masks(images, masks)
    values = images.pixels.flatten(2).transpose(1, 2)  # (n, V, C)
    points = grid(model.spec)
    latents = model.average_latent().repeat(len(images), 1).requires_grad_()
    if model.architecture.latent == 0:
        return latents.detach()
    adam = torch.optim.AdamW([latents], s.lr)
    with frozen(model):
        for k in range(s.steps):
            at = [draw_points(m, s.pixels, s.foreground, generator("latent", seed, k)) for m in masks]
            p = torch.stack([points[i] for i in at]).to(ages.device)  # (n, P, d)
            y = torch.stack([(v[i] + 1) / 2 for v, i in zip(values, at)]).to(ages.device)
            adam.zero_grad()
            accumulate(model, p, ages, latents, y, s.chunk)
            adam.step()
            with torch.no_grad():
                latents.copy_(bounded(latents))
    return latents.detach()


@torch.no_grad()
def unexplained(
    model: Development, images: Images, ages: Tensor, latents: Tensor, seed: int = 0, most: int = 4096
) -> Tensor:
    """(n,) share of each scan's variance that the model with these latents (n, L) leaves, at `most` random voxels.

    About 0 for a scan that it draws well, 1 for one of which it knows the mean only; 0 for a constant image.
    """
    points, device = grid(model.spec), model.common.device
    at = torch.randperm(len(points), generator=generator("unexplained", seed))[:most]
    left = []
    for x, age, latent in zip(images.pixels.flatten(2).transpose(1, 2), ages.float(), latents):  # x (V, C)
        y = model(points[None, at].to(device), age[None].to(device), latent[None].to(device))[0].cpu()
        target = (x[at] + 1) / 2
        variance = (target - target.mean(0)).square().mean()
        left.append((y.clamp(0, 1) - target).square().mean() / variance.clamp(min=1e-12))
    return torch.stack(left)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter of the model gets a gradient meanwhile."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for p, needs in before:
            p.requires_grad_(needs)

"""Latents of knee phantoms: what moving one does (K-E3), what they know, how many are in use (K-E8)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from verisim.data.spec import Images
from verisim.metrics.bootstrap import Estimate, from_draws, from_se, mean_estimate, resample_weights
from verisim.metrics.latents import ACTIVE, mutual_information_gap, readout
from verisim.phantoms.base import Phantom
from verisim.reproductions.knee_inside_phantoms import LEGIBLE, MIXED, PROBED, Reader
from verisim.roles import LatentSpace
from verisim.seeding import generator
from verisim.tasks.code_swap import VISIBLE
from verisim.tasks.exploration import LatentUse, latent_use, traverse

IDLE = 0.01  # nats of KL below which a latent carries nothing
FRAMES, SPAN = (
    9,
    3.0,
)  # of a traversal: steps, and standard deviations of the aggregate posterior to either side
DRAWS = 1000  # bootstrap resamples of phantoms
BLOCKS = 10  # of the jackknife


def probes(codes: Tensor, known: Phantom) -> dict[str, Any]:
    """Factor -> linear readout of codes (N, d) and the same of shuffled targets, with intervals over phantoms."""
    found = {}
    for name in PROBED:
        target = known.factors[name]
        told = readout(codes, target.long() if name == "grade" else target)
        both = {k: e.as_dict() for k, e in told.estimates(DRAWS).items()}
        found[name] = {"measure": told.measure, "chance": told.chance, **both}
    return found


def active(means: Tensor) -> Estimate:
    """Number of latents whose posterior mean (N, d) varies by more than ACTIVE, with an interval over images."""
    z = means.double()
    w = resample_weights(len(z), DRAWS, generator("active units", 0)) / len(z)
    variance = w @ z.square() - (w @ z).square()
    return from_draws(float((z.var(0, correction=0) > ACTIVE).sum()), (variance > ACTIVE).double().sum(1))


def gap(codes: Tensor, known: Phantom) -> dict[str, Any]:
    """Mutual information gap per factor, its mean with a jackknife interval, and that of shuffled factors."""
    factors = {k: known.factors[k] for k in MIXED}
    n = len(codes)
    order = torch.randperm(n, generator=generator("shuffled factors", 0))
    whole = mutual_information_gap(codes, factors)
    left = [torch.arange(n) % BLOCKS != b for b in range(BLOCKS)]
    parts = [mutual_information_gap(codes[i], {k: v[i] for k, v in factors.items()})["mean"] for i in left]
    mean = sum(parts) / BLOCKS
    se = math.sqrt(
        (BLOCKS - 1) / BLOCKS * sum((p - mean) ** 2 for p in parts)
    )  # of the delete-a-block jackknife
    control = mutual_information_gap(codes, {k: v[order] for k, v in factors.items()})["mean"]
    return {"mean": from_se(whole.pop("mean"), se).as_dict(), "shuffled": control, "factors": whole}


def latent_row(
    model: LatentSpace, train: Images, known: Phantom, moved: Phantom, reader: Reader, count: int
) -> dict[str, Any]:
    """Everything about one model's latents; statistics of the aggregate posterior are those of training images."""
    use, means = latent_use(model, train.pixels), model.encode(known.images.pixels).cpu()
    finite = bool(use.kl.isfinite().all())  # a plain autoencoder has no KL
    return {
        "latents": len(use.kl),
        "active": active(means).as_dict(),
        "kl_nats": use.kl.sort(descending=True).values.tolist() if finite else None,
        "idle": int((use.kl < IDLE).sum()),
        "mig": gap(means, known),
        "probes": probes(means, known),
        "traversal": traversals(model, use, moved, reader, count, reader.legible(known)),
    }


def chosen(use: LatentUse, count: int) -> list[int]:
    """The `count` busiest latents by KL (by standard deviation where there is no KL), and the idlest if it is IDLE."""
    busy = (
        use.busiest(count)
        if bool(use.kl.isfinite().all())
        else use.std.argsort(descending=True)[:count].tolist()
    )
    idlest = int(use.kl.argmin())
    return [*busy, idlest] if float(use.kl[idlest]) < IDLE and idlest not in busy else busy


def traversals(
    model: LatentSpace, use: LatentUse, moved: Phantom, reader: Reader, count: int, legible: dict[str, float]
) -> list[dict[str, Any]]:
    """One row per latent: what it moves from -SPAN to +SPAN, by how much, and whether evenly.

    The factor is chosen on the images of even number, and measured on the others.
    """
    dims = chosen(use, count)
    frames = torch.stack(
        [traverse(model, x, use, dims, frames=FRAMES, span=SPAN).frames for x in moved.images.pixels], 1
    )  # (K, T, F, 1, S, S)
    names = [f for f in reader.names if legible[f] > LEGIBLE]
    return [_moves(f, j, use, names, reader, moved.images) for f, j in zip(frames, dims)]


def _moves(
    frames: Tensor, j: int, use: LatentUse, names: list[str], reader: Reader, like: Images
) -> dict[str, Any]:
    """frames (T, F, 1, S, S) of latent j."""
    shape = frames.shape[:2]
    told = reader.read(frames.flatten(0, 1))
    seen = torch.stack([told[k].view(shape) for k in names])  # (K, T, F)
    space = reader.ruler(Images(frames.flatten(0, 1).clamp(-1, 1), like.spec)).view(shape)
    effect = seen[..., -1] - seen[..., 0]  # (K, T)
    even, odd = (torch.arange(shape[0]) % 2 == k for k in (0, 1))
    towards = effect[:, even].mean(1)
    best = int(towards.abs().argmax())
    sign = 1.0 if towards[best] >= 0 else -1.0
    change = (frames - frames[:, FRAMES // 2, None]).abs().flatten(1).amax(1)  # (T,)
    kl = float(use.kl[j])
    measured = {
        "effect": sign * effect[best, odd],
        "monotone": sign * rank_correlation(seen[best])[odd],
        "joint_space_ruler": space[:, -1] - space[:, 0],
        "joint_space": effect[names.index("joint_space")] if "joint_space" in names else space[:, -1] * 0,
        "largest_change": change,
    }
    rng = generator("traversal", j)
    return {
        "latent": j,
        "kl_nats": kl if math.isfinite(kl) else None,
        "idle": kl < IDLE,
        "factor": names[best],
        "visible": float((change > VISIBLE).double().mean()),
        **{k: mean_estimate(v, DRAWS, rng).as_dict() for k, v in measured.items()},
    }


def rank_correlation(values: Tensor) -> Tensor:
    """(...,) Spearman correlation of values (..., F) with their order; 0 where they are all the same."""
    rank = (values[..., None] > values[..., None, :]).double().sum(-1)
    rank = (
        rank + (values[..., None] == values[..., None, :]).double().sum(-1) / 2
    )  # ties share their mean rank
    step = torch.arange(values.shape[-1], dtype=torch.float64)
    a, b = rank - rank.mean(-1, keepdim=True), step - step.mean()
    size = (a.square().sum(-1) * b.square().sum()).sqrt()
    return (a * b).sum(-1) / size.clamp(min=1e-12)

"""Codes of knee phantoms: what a swap changes and carries over, how codes are used, what they know (K-X4)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from verisim.data.spec import Images
from verisim.metrics.bootstrap import Estimate, from_draws, mean_estimate, resample_weights
from verisim.nets.quantiser import perplexity
from verisim.phantoms.base import Phantom
from verisim.reproductions.knee_inside_latents import DRAWS, probes
from verisim.reproductions.knee_inside_phantoms import Reader
from verisim.roles import CodeSpace
from verisim.seeding import generator
from verisim.tasks.code_probe import code_features, code_use
from verisim.tasks.code_swap import Region, Swap, swap_codes


def code_row(model: CodeSpace, known: Phantom, moved: Phantom, reader: Reader) -> dict[str, Any]:
    """Everything about one model's codes."""
    images = known.images.pixels
    use = code_use(model, images)
    renamed: Any = Relabelled(model)
    return {
        "codes": model.codes,
        "grid": list(model.grid),
        "perplexity": usage(model.encode_codes(images).cpu(), model.codes).as_dict(),
        "used": use.used,
        "perplexity_by_position": {
            "least": float(use.by_position.min()),
            "most": float(use.by_position.max()),
        },
        "probes": probes(code_features(model, images), known),
        "relabelled": probes(code_features(renamed, images), known),
        "swaps": swaps(model, moved, reader),
    }


def usage(codes: Tensor, k: int) -> Estimate:
    """Perplexity of codes (N, *G) out of k, with an interval over images."""
    counts = torch.stack([torch.bincount(c.flatten(), minlength=k) for c in codes]).double()  # (N, K)
    w = resample_weights(len(codes), DRAWS, generator("usage", 0))
    draws = torch.stack([perplexity(c) for c in w @ counts])
    return from_draws(float(perplexity(counts.sum(0))), draws)


class Relabelled:
    """A model whose codes are renamed at random, anew for every image: the same pattern, and no code means anything."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.embed = model.sampling_net.autoencoder.quantiser.embed  # codes (N, *G) -> vectors (N, D, *G)

    def encode(self, x: Tensor) -> Tensor:
        codes, rng = self.model.encode_codes(x).cpu(), generator("relabelled", 0)
        mixed = torch.stack([torch.randperm(self.model.codes, generator=rng)[c] for c in codes])
        return self.embed(mixed.to(x.device)).detach()


def band(grid: tuple[int, ...], top: bool = False) -> Region:
    """The rows of codes that hold the joint, over the whole width; top = as many at the upper border."""
    n = grid[0]
    first, end = math.floor(3 * n / 8), math.ceil(5 * n / 8)
    return ((0, end - first) if top else (first, end), *((0, m) for m in grid[1:]))


def swaps(model: CodeSpace, moved: Phantom, reader: Reader) -> dict[str, Any]:
    """Each phantom takes the joint (or the top) of the next one.

    "inside": share of the visibly changed pixels in the receptive field; "field": the field's share of the image,
    which a change without place would have. "carried": how much of the difference in joint space, by the ruler,
    between the two reconstructions the swap carries over. "untouched": the largest change of any pixel if no codes
    are swapped, and if an image is given its own.
    """
    x = moved.images.pixels
    pairs = list(zip(x, x.roll(-1, 0)))
    rows: dict[str, Any] = {}
    for name, top in (("joint", False), ("top", True)):
        found = [swap_codes(model, a, b, band(model.grid, top)) for a, b in pairs]
        rows[name] = _summary(found, moved.images, reader)
    nothing = [swap_codes(model, a, b, [(0, 0)] * len(model.grid)) for a, b in pairs]
    own = [swap_codes(model, a, a, band(model.grid)) for a, _ in pairs]
    rows["untouched"] = max(float(s.change.max()) for s in (*nothing, *own))
    return rows


def _summary(found: list[Swap], like: Images, reader: Reader) -> dict[str, Any]:
    rng = generator("swaps", 0)
    parts = {"inside": [s.inside for s in found], "energy_inside": [s.energy_inside for s in found]}
    shares = {k: torch.tensor([v for v in each if math.isfinite(v)]) for k, each in parts.items()}
    images = torch.stack([s.images for s in found])  # (T, 3, 1, S, S)
    space = reader.ruler(Images(images.flatten(0, 1).clamp(-1, 1), like.spec)).view(-1, 3)
    return {
        "codes_changed": sum(s.swapped for s in found) / len(found),
        "field": float(found[0].field.double().mean()),
        **{k: mean_estimate(v, DRAWS, rng).as_dict() if len(v) else None for k, v in shares.items()},
        "carried": carried(space).as_dict(),
    }


def carried(space: Tensor) -> Estimate:
    """Slope through 0 of (mixture - own) over (other - own), of values (T, 3): own, mixture, other."""
    got, meant = space[:, 1] - space[:, 0], space[:, 2] - space[:, 0]
    w = resample_weights(len(space), DRAWS, generator("carried", 0))
    over, under = got * meant, meant.square()
    return from_draws(
        float(over.sum() / under.sum().clamp(min=1e-12)), (w @ over) / (w @ under).clamp(min=1e-12)
    )

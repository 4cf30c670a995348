"""What a code map holds: how its codes are used, and features that a linear probe can read (source 001, outlook; K-X4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from verisim.nets.quantiser import perplexity, used_share
from verisim.roles import CodeSpace

SIDE = 4  # positions per axis that features keep
POOL: dict[int, Callable[..., Tensor]] = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


@dataclass(frozen=True)
class CodeUse:
    """How a data set uses the codes."""

    counts: Tensor  # (K,) how often each code occurs
    perplexity: float  # effective number of codes in use: 1 to K
    used: float  # share of codes that occur at least a hundredth as often as the average one
    by_position: Tensor  # (*G) float64 perplexity at each position: 1 = always the same code there


def code_use(model: CodeSpace, images: Tensor) -> CodeUse:
    """Statistics of the codes of images (N, C, *S) in [-1, 1]."""
    codes, found = model.codes, model.encode_codes(images).cpu()  # (N, *G)
    counts = torch.bincount(found.flatten(), minlength=codes)
    flat = found.flatten(1)  # (N, P)
    each = torch.stack([perplexity(torch.bincount(column, minlength=codes)) for column in flat.T])
    return CodeUse(counts, float(perplexity(counts)), float(used_share(counts)), each.view(found.shape[1:]))


def code_features(model: CodeSpace, images: Tensor) -> Tensor:
    """(N, D * P) code vectors, averaged over at most SIDE blocks per axis: what is where, coarsely."""
    z = model.encode(images).cpu()  # (N, D, *G)
    size = tuple(min(SIDE, n) for n in z.shape[2:])
    return POOL[z.ndim - 2](z, size).flatten(1)

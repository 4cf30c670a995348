"""Total variation along the slices of a volume: evens out jumps between slices. Spec 003, section 16-G.

min_u 1/2 ||u - v||^2 + lambda sum_z |u_{z+1} - u_z|
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from verisim.errors import VerisimError


@torch.no_grad()
def smooth_slices(v: Tensor, weight: float, dim: int = 2, rounds: int = 200) -> Tensor:
    """u for v (any shape) along dimension `dim`, by projected gradient on the dual p in [-weight, weight].

    u = v - D^T p with D u = u_{z+1} - u_z; a step of 1/4 converges as the largest eigenvalue of D D^T is below 4.
    """
    if weight < 0 or rounds < 1:
        raise VerisimError(f"tv = {weight:g}: the weight of the total variation must be 0 (off) or positive.")
    if weight == 0 or v.shape[dim] < 2:
        return v
    x = v.movedim(dim, -1)
    p = torch.zeros_like(x[..., 1:])
    for _ in range(rounds):
        u = x - _adjoint(p)
        p = (p + 0.25 * u.diff(dim=-1)).clamp(-weight, weight)
    return (x - _adjoint(p)).movedim(-1, dim)


def _adjoint(p: Tensor) -> Tensor:
    """D^T p: (..., Z - 1) -> (..., Z)."""
    return F.pad(p, (1, 0)) - F.pad(p, (0, 1))

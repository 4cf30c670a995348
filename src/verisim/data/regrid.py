"""Take a map computed on a model's grid back to the grid of the image that it was computed from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def onto_grid(
    values: Tensor,  # (C, *new) float32 on the model's grid
    back: np.ndarray,  # (4, 4): new (d, h, w, 1) -> old indices, as of verisim.data.resample.fit_image
    size: tuple[int, ...],  # of the old grid
) -> Tensor:
    """(C, *size) float32 by linear interpolation; 0 where the model's grid does not reach."""
    out = values.double()
    first = 3 - len(size)
    for axis, n_old in enumerate(size):
        k = first + axis
        n_new = values.shape[1 + axis]
        at = (np.arange(n_old) - back[k, 3]) / back[k, k]  # old pixel centres in new indices
        matrix = torch.from_numpy(_linear(at, n_new))  # (n_old, n_new)
        out = torch.tensordot(out, matrix, dims=([1 + axis], [1])).movedim(-1, 1 + axis)
    return out.float().contiguous()


def _linear(at: np.ndarray, n: int) -> np.ndarray:
    """(len(at), n) float64 weights of linear interpolation, edges held up to half a pixel, 0 beyond."""
    inside = (at >= -0.5 - 1e-9) & (at <= n - 0.5 + 1e-9)
    x = at.clip(0, n - 1)
    low = np.minimum(np.floor(x).astype(int), max(n - 2, 0))
    matrix = np.zeros((len(at), n))
    rows = np.arange(len(at))
    matrix[rows, low] += 1 - (x - low)
    matrix[rows, np.minimum(low + 1, n - 1)] += x - low
    return matrix * inside[:, None]

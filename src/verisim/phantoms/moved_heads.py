"""Head CTs that lie differently, with the motion known exactly and noise of their own, 2D and 3D.

Heads are drawn twice as fine, without noise. Every scan of one is the mean of four (eight) points per pixel of the moved
head, plus fresh noise, so that two scans of a head share its anatomy and nothing else: no grid, no noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from verisim.data.align import carried
from verisim.errors import pick
from verisim.phantoms import head_ct, head_ct_render
from verisim.phantoms.volume import spacing
from verisim.seeding import generator

FINER = 2  # points per pixel and axis
PARTS = ("left", "right", "skull")


@dataclass(frozen=True)
class Heads:
    """Heads as they are, without noise, on a grid FINER times as fine as their scans."""

    hu: Tensor  # (N, 1, *fine) Hounsfield units
    codes: Tensor  # (N, 1, *fine) uint8, indices of head_ct.STRUCTURES
    size: tuple[int, ...]  # of a scan, pixels

    def __len__(self) -> int:
        return len(self.hu)

    @property
    def mm(self) -> float:
        """Millimetres per pixel of a scan, along all axes."""
        return spacing(self.size)

    def scan(self, k: int, motion: np.ndarray | None = None, seed: int = 0) -> Tensor:
        """Head k in HU, (1, *S), after a motion (see `rigid`), with the phantom's noise."""
        clean = self._moved(self.hu[k], motion, head_ct_render.HU["background"])
        noise = torch.randn(clean.shape, generator=generator("moved-head", seed, k))
        return clean + head_ct_render.NOISE * noise

    def part(self, k: int, name: str, motion: np.ndarray | None = None) -> Tensor:
        """Where "left", "right" or "skull" of head k lies, (1, *S) bool: pixels of which it fills more than half."""
        pick(dict.fromkeys(PARTS), name, "part of the head")
        return self._moved(head_ct.mask(self.codes[k], name).float(), motion, 0.0) > 0.5

    def _moved(self, fine: Tensor, motion: np.ndarray | None, background: float) -> Tensor:
        there = coarser(len(self.size)) @ (np.eye(4) if motion is None else motion)
        return carried(fine, there, self.size, finer=FINER, background=background)[0]


def make(n: int, seed: int, size: tuple[int, ...], findings: str = "normal") -> Heads:
    """The first n heads of a seed, as those of `head_ct.make` but for the grid and the noise; n up to 16."""
    f = head_ct.draw(seed, 0, pick(head_ct.FINDINGS, findings, "finding of the head CT phantom"))
    fine = tuple(FINER * s for s in size)
    canvas = head_ct_render.draw({k: v[:n] for k, v in f.items()}, fine, head_ct.SLICE_AT)
    return Heads(canvas.values.reshape(-1, 1, *fine), canvas.labels.reshape(-1, 1, *fine), size)


def coarser(dims: int) -> np.ndarray:
    """(4, 4): pixel of a scan -> pixel of the fine grid."""
    matrix = np.eye(4)
    for axis in range(3 - dims, 3):
        matrix[axis, axis], matrix[axis, 3] = FINER, (FINER - 1) / 2
    return matrix


def rigid(size: tuple[int, ...], turn: Sequence[float], shift: Sequence[float]) -> np.ndarray:
    """(4, 4): pixel (d, h, w, 1) of the moved scan -> pixel of the still one; voxels are cubes.

    turn: degrees in the planes of axes (0, 1), (0, 2), (1, 2), or in the one plane of 2D, about the grid's middle, at once
    (the exponential of the skew matrix); shift: pixels along every axis.
    """
    dims = len(size)
    skew = torch.zeros(dims, dims, dtype=torch.float64)
    for (i, j), angle in zip(combinations(range(dims), 2), turn):
        skew[i, j], skew[j, i] = -math.radians(angle), math.radians(angle)
    matrix, middle, first = np.eye(4), (np.array(size) - 1) / 2, 3 - dims
    matrix[first:3, first:3] = torch.linalg.matrix_exp(skew).numpy()
    matrix[first:3, 3] = middle + np.asarray(shift) - matrix[first:3, first:3] @ middle
    return matrix


def shown(hu: Tensor, window: tuple[float, float]) -> Tensor:
    """HU in a window, whose ends become -1 and 1."""
    low, high = window
    return (2 * (hu - low) / (high - low) - 1).clamp(-1, 1)

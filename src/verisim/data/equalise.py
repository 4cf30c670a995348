"""Histogram equalisation: grey values become ranks among the grey values of a reference (spec 002, A.6).

CT spans thousands of Hounsfield units, the brain thirty of them. y = 2 F(x) - 1, where F is the share of the
reference's foreground that is darker than x, spreads contrast to where tissue is. F is a table over LEVELS grey
values, one row a channel: with the table of a fixed reference this is one monotone map for all scans.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 1024  # grey values from -1 to 1 for which the rank is stored; between them it is interpolated


def identity_table(channels: int) -> Tensor:
    """(C, LEVELS) table that changes nothing."""
    return torch.linspace(-1, 1, LEVELS).repeat(channels, 1)


def equalisation_table(x: Tensor, mask: Tensor) -> Tensor:
    """(C, LEVELS) float32 ranks in [-1, 1] of grey values, from the pixels of x (N, C, *S) in [-1, 1] under mask (N, *S).

    Equal values share the middle of their ranks. A mask without pixels gives the identity.
    """
    if not mask.any():
        return identity_table(x.shape[1])
    rows = []
    for channel in x.unbind(1):
        level = _position(channel[mask]).round().long()
        count = torch.bincount(level, minlength=LEVELS).double()
        rank = (count.cumsum(0) - 0.5 * count) / count.sum()  # F, ties in the middle
        rows.append((2 * rank - 1).float())
    return torch.stack(rows)


def equalise(x: Tensor, table: Tensor) -> Tensor:
    """x (B, C, *S) in [-1, 1] -> ranks (B, C, *S) in [-1, 1] by table (C, LEVELS)."""
    at = _position(x.clamp(-1, 1))
    low = at.floor().long().clamp(max=LEVELS - 2)
    share = at - low
    channels = [torch.lerp(row[i], row[i + 1], w) for row, i, w in zip(table, low.unbind(1), share.unbind(1))]
    return torch.stack(channels, 1)


def _position(x: Tensor) -> Tensor:
    """Values in [-1, 1] as positions 0 ... LEVELS - 1 in the table."""
    return (x + 1) / 2 * (LEVELS - 1)

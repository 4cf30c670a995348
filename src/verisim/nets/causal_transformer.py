"""A small causal transformer over a grid of tokens in raster order, and its key-value cache.

The output at position i depends on the tokens before i alone: the tokens are shifted by one, behind a
start token that carries the class. Pre-norm blocks with scaled_dot_product_attention; a position is the sum
of one learned vector per axis, so grids of any number of axes work (source 001, section 6 S7: fix).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verisim.errors import VerisimError
from verisim.nets.blocks import zeroed


class CausalBlock(nn.Module):
    """x + attention to earlier positions, then x + MLP; x (B, N, C)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.first, self.last = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)  # the MLP
        self.dropout = nn.Dropout(dropout)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of x (B, N, C): (B, h, N, d) each."""
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        return q, k, v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of the block, once attention (B, h, N, d) is known."""
        x = x + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.last(F.gelu(self.first(self.norm2(x)))))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        return self.finish(x, F.scaled_dot_product_attention(q, k, v, is_causal=True))


class CausalTransformer(nn.Module):
    """x (B, C, R, W) token embeddings -> (B, outputs, R, W) logits of the same tokens; starts as all zeros."""

    def __init__(
        self,
        grid: tuple[int, ...],  # G; tokens are in raster order, R = all axes but the last, W = the last
        outputs: int,  # numbers per position
        width: int,  # C
        layers: int,  # blocks
        heads: int,  # attention heads per block
        num_classes: int = 0,  # 0 = unconditional
        dropout: float = 0.0,  # probability, on every residual branch and on the input
    ) -> None:
        super().__init__()
        if width % heads:
            raise VerisimError(
                f"A transformer of width {width} cannot be split into {heads} heads. Choose a width that "
                f"{heads} divides, e.g. {heads * max(1, width // heads)}."
            )
        self.grid = grid
        self.start = nn.Embedding(max(1, num_classes), width)
        self.axes = nn.ParameterList(nn.Parameter(0.02 * torch.randn(n, width)) for n in grid)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(CausalBlock(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.final = zeroed(nn.Linear(width, outputs))
        with torch.no_grad():
            self.start.weight.mul_(0.02)
            for block in self.causal_blocks():  # GPT-2: the residual stream keeps its scale
                block.out.weight.mul_(1 / math.sqrt(2 * layers))
                block.last.weight.mul_(1 / math.sqrt(2 * layers))

    def causal_blocks(self) -> list[CausalBlock]:
        return [b for b in self.blocks if isinstance(b, CausalBlock)]

    def positions(self) -> Tensor:
        """(N, C), N = prod(G)."""
        total = self.axes[0]
        for axis in list(self.axes)[1:]:
            total = total[..., None, :] + axis
        return total.flatten(0, -2)

    def starts(self, n: int, label: Tensor | None) -> Tensor:
        """Start tokens (n, C) for classes label (n,)."""
        index = torch.zeros(n, dtype=torch.long, device=self.start.weight.device) if label is None else label
        return self.start(index)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """x (B, C, R, W), label (B,) int64 or None -> (B, outputs, R, W)."""
        b, _, r, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)  # (B, N, C)
        h = torch.cat([self.starts(b, label)[:, None], tokens[:, :-1]], 1) + self.positions()
        h = self.dropout(h)
        for block in self.blocks:
            h = block(h)
        return self.final(self.norm(h)).transpose(1, 2).unflatten(2, (r, w))


class CachedTransformer:
    """Walks a CausalTransformer token by token, keeping keys and values; see raster.Stepper."""

    def __init__(self, net: CausalTransformer, n: int, width: int, label: Tensor | None = None) -> None:
        self.net, self.width = net, width  # W of the raster
        self.position = net.positions()  # (N, C)
        self.token = net.starts(n, label)  # (B, C): the token before the present one
        heads = net.causal_blocks()[0].heads
        shape = (n, heads, len(self.position), self.position.shape[1] // heads)
        self.memory = [(self.token.new_empty(shape), self.token.new_empty(shape)) for _ in net.blocks]

    def begin_row(self, row: int) -> None:
        """Nothing to prepare."""

    def params(self, row: int, col: int) -> Tensor:
        """Logits (B, outputs) of the position, given all tokens before it."""
        i = row * self.width + col
        h = (self.token + self.position[i])[:, None]  # (B, 1, C)
        for block, (keys, values) in zip(self.net.causal_blocks(), self.memory):
            q, keys[:, :, i : i + 1], values[:, :, i : i + 1] = block.split(h)
            h = block.finish(h, F.scaled_dot_product_attention(q, keys[:, :, : i + 1], values[:, :, : i + 1]))
        return self.net.final(self.net.norm(h))[:, 0]

    def write(self, row: int, col: int, value: Tensor) -> None:
        """value (B, C): the embedding of the token there."""
        self.token = value

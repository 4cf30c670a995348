"""Conditions of a U-Net beside its class: token sequences by cross-attention, maps by SPADE.

Both start as the identity: their last layers are zero. (A vector enters through NoiseEmbedding, as FiLM.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verisim.errors import VerisimError
from verisim.nets.norm import GroupNorm


class CrossAttention(nn.Module):
    """x + attention of all positions to the tokens of a condition. Rombach 2022, section 3.3.

    A learned token that means nothing always goes with them, so that a condition may be empty.
    """

    def __init__(
        self,
        channels: int,  # of x
        width: int,  # of a token
        head_channels: int,  # per attention head; a divisor of channels
    ) -> None:
        super().__init__()
        if channels % head_channels:
            raise VerisimError(
                f"Cross-attention: {channels} channels cannot be split into heads of {head_channels}. "
                f"Set head_channels to a divisor of {channels}."
            )
        self.heads = channels // head_channels
        self.norm = GroupNorm(channels)
        self.nothing = nn.Parameter(torch.zeros(1, 1, width))
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(width, 2 * channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, tokens: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """x (B, C, *S), tokens (B, M, E) or None, mask (B, M) bool, True = a token -> (B, C, *S)."""
        b, c = x.shape[:2]
        memory = self.nothing.expand(b, 1, -1)  # (B, 1, E)
        if tokens is not None:
            memory = torch.cat([memory, tokens.to(memory.dtype)], dim=1)  # (B, 1 + M, E)
            if mask is not None:
                mask = F.pad(mask, (1, 0), value=True)[:, None, None]  # (B, 1, 1, 1 + M)
        q = self.q(self.norm(x).flatten(2).transpose(1, 2))  # (B, N, C) with N = prod(S)
        k, v = self.kv(memory).chunk(2, dim=2)  # (B, 1 + M, C)
        q, k, v = (y.view(b, -1, self.heads, c // self.heads).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask if tokens is not None else None)
        y = self.out(y.transpose(1, 2).reshape(b, -1, c))  # (B, N, C)
        return x + y.transpose(1, 2).reshape(x.shape)


class SPADE(nn.Module):
    """h (1 + gamma(m)) + beta(m) with gamma, beta read from a map m beside the features. Park 2019, eq. 1.

    Follows a group norm; spec 003, eq. 2.31 (with the 1 that the print lacks).
    """

    def __init__(
        self,
        convolution: type[nn.Conv2d] | type[nn.Conv3d],
        channels: int,  # of h
        map_channels: int,  # of m, e.g. one per label class
        hidden: int = 64,
    ) -> None:
        super().__init__()
        self.read = convolution(map_channels, hidden, 3, padding=1)
        self.out = convolution(hidden, 2 * channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        if self.out.bias is not None:
            nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor, m: Tensor) -> Tensor:
        """h (B, C, *S), m (B, M, *any) -> (B, C, *S); m is resized by nearest neighbour (labels stay labels)."""
        if m.shape[2:] != h.shape[2:]:
            m = F.interpolate(m, size=h.shape[2:], mode="nearest")
        gamma, beta = self.out(F.silu(self.read(m.to(self.read.weight.dtype)))).chunk(2, dim=1)
        return h * (1 + gamma) + beta

"""A small transformer encoder of texts, trained together with the network that reads them (spec 000, C5d)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verisim.errors import VerisimError


class EncoderBlock(nn.Module):
    """x + attention to the words that are there, then x + MLP; x (B, N, C). Pre-norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.first, self.last = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)  # the MLP

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """x (B, N, C), seen (B, 1, 1, N) bool."""
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)  # (B, h, N, d)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.last(F.gelu(self.first(self.norm2(x))))


class TextEncoder(nn.Module):
    """Numbers of words (B, M) int64, 0 = padding -> tokens (B, M, width).

    A start token that is always there goes before the words, so that an empty text is possible; it is not given
    out. Number 1, the unknown word, starts as nothing: an unknown word then says only that there is one.
    """

    def __init__(
        self,
        numbers: int,  # of different numbers, with padding and the unknown word
        length: int,  # M at most
        width: int = 64,  # of a token
        depth: int = 2,  # blocks
        heads: int = 4,  # attention heads; divides width
    ) -> None:
        super().__init__()
        if width % heads or depth < 0:
            raise VerisimError(
                f"Text encoder: width {width} must be a multiple of its {heads} heads, and depth {depth} not "
                f"negative. Set text_width to e.g. {heads * max(1, round(width / heads))}."
            )
        self.length = length
        self.words = nn.Embedding(numbers, width)
        self.start = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(EncoderBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.words.weight, std=0.5)
        with torch.no_grad():
            self.words.weight[:2] = 0

    def forward(self, numbers: Tensor) -> Tensor:
        """(B, M) -> (B, M, width), 0 at padding. What stands at padding changes nothing elsewhere."""
        b, m = numbers.shape
        if m > self.length:
            raise VerisimError(f"Text encoder: {m} words; it takes up to {self.length}.")
        mask = numbers > 0  # (B, M)
        x = torch.cat(
            [self.start.expand(b, 1, -1), self.words(numbers) + self.places[:m]], 1
        )  # (B, 1 + M, E)
        seen = F.pad(mask, (1, 0), value=True)[:, None, None]
        for block in self.blocks:
            x = block(x, seen)
        return self.norm(x[:, 1:]) * mask[..., None]

"""The invertible layers of a flow, each with the logarithm of its Jacobian determinant (Kingma & Dhariwal 2018, table 1).

Every layer has `forward(x, emb) -> (y, log|det dy/dx|)` with x (B, C, *S), emb (B, E) a class embedding and the
determinant (B,) or one number for all, and `inverse(y, emb) -> x`. 2D and 3D alike; any floating type.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verisim.nets.blocks import convolution, zeroed

LOG_SCALE = 1.0  # largest |log scale| of a coupling or a split: one of them multiplies by 1/e to e
LEAST_STD = 1e-3  # of a channel that an activation norm starts from


def squeeze(x: Tensor) -> Tensor:
    """x (B, C, *S) -> (B, 2^n C, *S/2): each block of 2^n pixels becomes channels, n axes."""
    b, c, *size = x.shape
    n = len(size)
    x = x.reshape(b, c, *[v for s in size for v in (s // 2, 2)])
    order = [0, 1, *range(3, 2 * n + 2, 2), *range(2, 2 * n + 2, 2)]
    return x.permute(order).reshape(b, c * 2**n, *[s // 2 for s in size])


def unsqueeze(x: Tensor) -> Tensor:
    """The inverse of squeeze."""
    b, c, *size = x.shape
    n = len(size)
    x = x.reshape(b, c // 2**n, *[2] * n, *size)
    order = [0, 1, *[axis for i in range(n) for axis in (2 + n + i, 2 + i)]]
    return x.permute(order).reshape(b, c // 2**n, *[2 * s for s in size])


def per_channel(v: Tensor, like: Tensor) -> Tensor:
    """(C,) or (B, C) -> (1 or B, C, 1, ...), to be used with `like` (B, C, *S)."""
    return v.view(-1, like.shape[1], *[1] * (like.ndim - 2))


def positions(x: Tensor) -> int:
    """prod S of x (B, C, *S)."""
    return math.prod(x.shape[2:])


def bounded(raw: Tensor) -> Tensor:
    """A log scale in (-LOG_SCALE, LOG_SCALE)."""
    return LOG_SCALE * torch.tanh(raw / LOG_SCALE)


class ActNorm(nn.Module):
    """y = exp(s) (x + b), one s and b per channel; start_from makes the channels of one batch standard."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    @torch.no_grad()
    def start_from(self, x: Tensor) -> None:
        flat = x.transpose(0, 1).flatten(1)  # (C, B prod S)
        self.shift.copy_(-flat.mean(1))
        self.log_scale.copy_(-flat.std(1, correction=0).clamp(min=LEAST_STD).log())

    def forward(self, x: Tensor, emb: Tensor) -> tuple[Tensor, Tensor]:
        y = (x + per_channel(self.shift, x)) * per_channel(self.log_scale, x).exp()
        return y, positions(x) * self.log_scale.sum()

    def inverse(self, y: Tensor, emb: Tensor) -> Tensor:
        return y * per_channel(-self.log_scale, y).exp() - per_channel(self.shift, y)


class Rotation(nn.Module):
    """y = W x at every position, W = exp(A - A^T): a 1x1 convolution that is a rotation, log|det W| = 0.

    The source's W is any invertible matrix (its eq. 10). A rotation loses nothing, for the scales are in the
    activation norm, and whatever is learned or rounded, its inverse is its transpose.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.turn = nn.Parameter(
            torch.randn(channels, channels) * 1.5 / channels**0.5
        )  # A: angles up to about 3

    def matrix(self) -> Tensor:  # W (C, C), in float64 as far as the last step: a rotation to the last digit
        upper = self.turn.double().triu(1)
        return torch.linalg.matrix_exp(upper - upper.T).to(self.turn.dtype)

    def forward(self, x: Tensor, emb: Tensor) -> tuple[Tensor, Tensor]:
        return (self.matrix() @ x.flatten(2)).view_as(x), x.new_zeros(())

    def inverse(self, y: Tensor, emb: Tensor) -> Tensor:
        return (self.matrix().T @ y.flatten(2)).view_as(y)


class Coupling(nn.Module):
    """a stays; b -> b exp(s(a)) + t(a), x = (a, b) halves of the channels, |s| < LOG_SCALE; starts as the identity."""

    def __init__(self, dims: int, channels: int, hidden: int, embed: int) -> None:
        super().__init__()
        self.kept = channels // 2
        self.first = convolution(dims, self.kept, hidden)
        self.classes = nn.Linear(embed, hidden)
        self.middle = convolution(dims, hidden, hidden, kernel=1)
        self.last = zeroed(convolution(dims, hidden, 2 * (channels - self.kept)))

    def terms(self, a: Tensor, emb: Tensor) -> tuple[Tensor, Tensor]:
        """t and s, as b each."""
        h = self.first(a)
        h = F.silu(h + per_channel(self.classes(emb), h))
        t, raw = self.last(F.silu(self.middle(h))).chunk(2, dim=1)
        return t, bounded(raw)

    def forward(self, x: Tensor, emb: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x[:, : self.kept], x[:, self.kept :]
        t, s = self.terms(a, emb)
        return torch.cat([a, b * s.exp() + t], dim=1), s.flatten(1).sum(1)

    def inverse(self, y: Tensor, emb: Tensor) -> Tensor:
        a, b = y[:, : self.kept], y[:, self.kept :]
        t, s = self.terms(a, emb)
        return torch.cat([a, (b - t) * (-s).exp()], dim=1)


class FlowStep(nn.Module):
    """Activation norm, rotation of the channels, coupling."""

    def __init__(self, dims: int, channels: int, hidden: int, embed: int) -> None:
        super().__init__()
        self.norm = ActNorm(channels)
        self.mix = Rotation(channels)
        self.coupling = Coupling(dims, channels, hidden, embed)

    def forward(self, x: Tensor, emb: Tensor, start: bool = False) -> tuple[Tensor, Tensor]:
        """start: let the activation norm start from this very batch."""
        if start:
            self.norm.start_from(x)
        x, a = self.norm(x, emb)
        x, b = self.mix(x, emb)
        x, c = self.coupling(x, emb)
        return x, a + b + c

    def inverse(self, y: Tensor, emb: Tensor) -> Tensor:
        return self.norm.inverse(self.mix.inverse(self.coupling.inverse(y, emb), emb), emb)


class Split(nn.Module):
    """Half of the channels leave as latents v ~ N(0, I): b = m(a) + exp(s(a)) v, |s| < LOG_SCALE; m = s = 0 at first."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.kept = channels // 2
        self.head = zeroed(convolution(dims, self.kept, 2 * (channels - self.kept)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, C, *S) -> a, v and log|det dv/db| (B,)."""
        a, b = x[:, : self.kept], x[:, self.kept :]
        m, raw = self.head(a).chunk(2, dim=1)
        s = bounded(raw)
        return a, (b - m) * (-s).exp(), -s.flatten(1).sum(1)

    def inverse(self, a: Tensor, v: Tensor) -> Tensor:
        m, raw = self.head(a).chunk(2, dim=1)
        return torch.cat([a, m + bounded(raw).exp() * v], dim=1)


class Top(nn.Module):
    """What is left becomes v ~ N(0, I) by a mean and a scale per channel, both of the class."""

    def __init__(self, channels: int, embed: int) -> None:
        super().__init__()
        self.head = zeroed(nn.Linear(embed, 2 * channels))

    def forward(self, x: Tensor, emb: Tensor) -> tuple[Tensor, Tensor]:
        m, raw = self.head(emb).chunk(2, dim=1)  # (B, C) each
        s = bounded(raw)
        return (x - per_channel(m, x)) * per_channel(-s, x).exp(), -positions(x) * s.sum(1)

    def inverse(self, v: Tensor, emb: Tensor) -> Tensor:
        m, raw = self.head(emb).chunk(2, dim=1)
        return per_channel(m, v) + per_channel(bounded(raw), v).exp() * v

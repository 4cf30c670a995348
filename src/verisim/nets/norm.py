"""Group norm, modulation and SiLU in one step, for channels-last memory.

Wu 2018, section 3, with a scale s and a shift t per sample and channel (FiLM; Perez 2018):

    xhat = (x - mean_g) / sqrt(var_g + eps)       g: the group of the channel, statistics per sample
    y = silu(s xhat + t)

On a CPU the built-in kernel is up to ten times slower for channels-last bfloat16 than for
channels-first. Here the statistics are column sums over positions, always in float32, and the backward
pass recomputes xhat and y from x instead of keeping them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

EPS = 1e-5


def group_count(channels: int, most: int = 32, smallest: int = 4) -> int:
    """Largest number of equal groups <= most with at least `smallest` channels each (else 1)."""
    fitting = (g for g in range(most, 0, -1) if channels % g == 0 and channels // g >= smallest)
    return next(fitting, 1)


def rows(x: Tensor) -> Tensor:
    """(B, C, *S) -> (B, N, C), N = prod(S): a view of channels-last memory, else a copy."""
    return x.movedim(1, -1).reshape(len(x), -1, x.shape[1])


def unrows(y: Tensor, like: Tensor) -> Tensor:
    """(B, N, C) -> (B, C, *S) of `like`: a channels-last view."""
    return y.view(len(y), *like.shape[2:], y.shape[2]).movedim(-1, 1)


def group_mean(v: Tensor, groups: int) -> Tensor:
    """(B, 1, C) -> (B, 1, C): each value replaced by the mean of its group."""
    b, _, c = v.shape
    return v.view(b, groups, -1).mean(2, keepdim=True).expand(-1, -1, c // groups).reshape(b, 1, c)


class NormAct(torch.autograd.Function):
    """The text's y for x (B, C, *S) and s, t (B, C); act=False leaves the silu out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, s: Tensor, t: Tensor, groups: int, act: bool) -> Tensor:
        v = rows(x).float()  # (B, N, C)
        mean = group_mean(v.mean(1, keepdim=True), groups)  # (B, 1, C)
        d = v - mean if x.dtype == torch.float32 else v.sub_(mean)
        var = group_mean((d * d).mean(1, keepdim=True), groups)
        rstd = (var + EPS).rsqrt()  # (B, 1, C)
        ctx.save_for_backward(x, s, t, mean, rstd)
        ctx.groups, ctx.act = groups, act
        y = d.mul_(rstd * s[:, None]).add_(t[:, None]).to(x.dtype)
        return unrows(F.silu(y, inplace=True) if act else y, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, s, t, mean, rstd = ctx.saved_tensors
        s, t = s[:, None], t[:, None]  # (B, 1, C)
        v = rows(x).float()
        xhat = (v - mean if x.dtype == torch.float32 else v.sub_(mean)).mul_(rstd)  # (B, N, C)
        g = rows(grad)
        if ctx.act:
            g = torch.ops.aten.silu_backward(g, (xhat * s).add_(t).to(x.dtype))
        g = g.float()
        dt = g.sum(1, keepdim=True)
        ds = (g * xhat).sum(1, keepdim=True)
        # dx = rstd (s g - <s g>_g - xhat <s g xhat>_g), <.>_g: the mean over the group's values
        m1 = group_mean(s * dt / xhat.shape[1], ctx.groups)
        m2 = group_mean(s * ds / xhat.shape[1], ctx.groups)
        dx = (g * (s * rstd)).sub_(xhat.mul_(m2 * rstd)).sub_(m1 * rstd)
        return unrows(dx.to(x.dtype), x), ds[:, 0], dt[:, 0], None, None


def norm_act(x: Tensor, s: Tensor, t: Tensor, groups: int, act: bool = True) -> Tensor:
    """silu(s xhat + t) for x (B, C, *S) and float32 s, t (B, C); without the silu if act=False.

    On a CPU by NormAct; elsewhere by the built-in kernel with B * groups groups of one long sample, which
    takes the per-sample scale and shift as they are.
    """
    with torch.autocast(x.device.type, enabled=False):
        if x.device.type == "cpu" and not x.is_contiguous():
            return NormAct.apply(x, s, t, groups, act)
        b, c = x.shape[:2]
        flat = x.reshape(1, b * c, *x.shape[2:])
        weight, bias = s.to(x.dtype).reshape(-1), t.to(x.dtype).reshape(-1)
        y = F.group_norm(flat, b * groups, weight, bias, EPS).view(x.shape)
        return F.silu(y) if act else y


class GroupNorm(nn.Module):
    """Group norm, then SiLU unless act=False; a learned scale and shift per channel, any channel count."""

    def __init__(self, channels: int, act: bool = True) -> None:
        super().__init__()
        self.groups = group_count(channels)
        self.act = act
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        s, t = self.weight.float().expand(len(x), -1), self.bias.float().expand(len(x), -1)
        return norm_act(x, s, t, self.groups, self.act)


class FiLM(nn.Module):
    """Group norm, scale and shift read from the embedding, SiLU: silu((1 + s(e)) xhat + t(e))."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.groups = group_count(channels)
        self.modulation = nn.Linear(embedding, 2 * channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            s, t = self.modulation(emb).float().chunk(2, dim=1)  # (B, C) each
        return norm_act(x, 1 + s, t, self.groups)

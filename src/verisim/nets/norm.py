"""Group norm, modulation and SiLU, in the fastest form that each memory order has.

Wu 2018, section 3, with a scale s and a shift t per sample and channel (FiLM; Perez 2018):

    xhat = (x - mean_g) / sqrt(var_g + eps)       g: the group of the channel, statistics per sample
    y = silu(s xhat + t)

Samples laid side by side, as B * groups groups of one long sample, let the built-in kernel do the
modulation as well: one pass forward, one backward. The kernel for channels-last memory lacks this,
and its backward pass is up to ten times slower on a CPU, so it serves sampling only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by tensor.ndim
FEW = 1024  # positions below which the channels-last bfloat16 kernel of the CPU is slow


def group_count(channels: int, most: int = 32, smallest: int = 4) -> int:
    """Largest number of equal groups <= most with at least `smallest` channels each (else 1)."""
    fitting = (g for g in range(most, 0, -1) if channels % g == 0 and channels // g >= smallest)
    return next(fitting, 1)


def modulated_norm(x: Tensor, s: Tensor, t: Tensor, groups: int) -> Tensor:
    """s xhat + t for x (B, C, *S) and s, t (B, C), in the memory order of x.

    The statistics are float32 inside the kernels, whatever the dtype of x; autocast changes nothing here.
    """
    b, c = x.shape[:2]
    on_cpu = x.device.type == "cpu"
    with torch.autocast(x.device.type, enabled=False):
        if on_cpu and not x.is_contiguous() and not torch.is_grad_enabled():
            v = x if x[0, 0].numel() >= FEW else x.float()
            y = F.group_norm(v, groups, eps=EPS).to(x.dtype)
            s, t = (m.to(x.dtype).view(b, c, *[1] * (x.ndim - 2)) for m in (s, t))
            return torch.addcmul(t, y, s)
        if not on_cpu:  # the CPU kernel alone takes float32 parameters beside bfloat16 images
            s, t = s.to(x.dtype), t.to(x.dtype)
        flat = x.reshape(1, b * c, *x.shape[2:])
        y = F.group_norm(flat, b * groups, s.reshape(-1), t.reshape(-1), EPS).view(x.shape)
        return y if x.is_contiguous() else y.contiguous(memory_format=CHANNELS_LAST[x.ndim])


def modulated_pixel_norm(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """s x / rms(x) + t with the root mean square over the channels of each pixel; x (B, C, *S), s and t (B, C).

    What a pixel becomes depends on no other pixel: a network of such norms does the same to a crop and to the
    whole, but for its borders. Karras 2018, section 4.2.
    """
    with torch.autocast(x.device.type, enabled=False):
        s, t = (m.to(x.dtype).view(*m.shape, *[1] * (x.ndim - 2)) for m in (s, t))
        return torch.addcmul(t, x * (x.float().square().mean(1, keepdim=True) + EPS).rsqrt().to(x.dtype), s)


class GroupNorm(nn.Module):
    """Group norm with a learned scale and shift per channel; any channel count."""

    local = False  # True: by the pixel alone; see by_pixel

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.groups = group_count(channels)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        s, t = self.weight.expand(len(x), -1), self.bias.expand(len(x), -1)
        if self.local:
            return modulated_pixel_norm(x, s, t)
        return modulated_norm(x, s, t, self.groups)


class FiLM(nn.Module):
    """Group norm whose scale and shift are read from the embedding: (1 + s(e)) xhat + t(e)."""

    local = False  # True: by the pixel alone; see by_pixel

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.groups = group_count(channels)
        self.modulation = nn.Linear(embedding, 2 * channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, C, *S), emb (B, E) -> (B, C, *S)."""
        with torch.autocast(x.device.type, enabled=False):
            s, t = self.modulation(emb).chunk(2, dim=1)  # (B, C) each
        if self.local:
            return modulated_pixel_norm(x, 1 + s, t)
        return modulated_norm(x, 1 + s, t, self.groups)


def by_pixel(net: nn.Module) -> nn.Module:
    """The network with all its norms taken over the channels of each pixel; same parameters."""
    for module in net.modules():
        if isinstance(module, GroupNorm | FiLM):
            module.local = True
    return net

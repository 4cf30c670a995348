"""A multi-scale flow: image t (B, C, *S) <-> latents v (B, C prod S), N(0, I) under the model (Dinh 2017, section 3.6).

Each level squeezes 2^n pixels into channels and applies K steps; behind all levels but the last, half of the channels
leave as latents. The density is exact: log p(t) = log N(v; 0, I) + log|det dv/dt|.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models.flows.layers import FlowStep, Split, Top, squeeze, unsqueeze


class FlowNet(nn.Module):
    """The whole map and its inverse. Computes in the type of its weights, also under autocast."""

    def __init__(
        self,
        spec: ImageSpec,
        levels: int,  # times that the image is squeezed
        steps: int,  # K per level
        hidden: int,  # channels inside the couplings
        num_classes: int,  # 0 = unconditional
        embed: int,  # length of a class embedding
    ) -> None:
        super().__init__()
        check_levels(spec.size, levels)
        dims, channels, size = spec.spatial_dims, spec.channels, spec.size
        self.embedding = nn.Embedding(num_classes + 1, embed)  # last: no class
        self.levels, self.splits = nn.ModuleList(), nn.ModuleList()
        self.shapes: list[tuple[int, ...]] = []  # of the latents that leave behind each level
        for level in range(levels):
            channels, size = channels * 2**dims, tuple(s // 2 for s in size)
            self.levels.append(nn.ModuleList(FlowStep(dims, channels, hidden, embed) for _ in range(steps)))
            if level < levels - 1:
                self.splits.append(Split(dims, channels))
                self.shapes.append((channels - channels // 2, *size))
                channels //= 2
        self.top = Top(channels, embed)
        self.shapes.append((channels, *size))

    def forward(self, t: Tensor, group: Tensor, start: bool = False) -> tuple[Tensor, Tensor]:
        """v (B, D) and log|det dv/dt| (B,) of t (B, C, *S), classes (B,); D = C prod S, finest latents first.

        start: let every activation norm start from this batch.
        """
        with torch.autocast(t.device.type, enabled=False):
            emb = self.embedding(group)
            x, log_det, latents = t, t.new_zeros(len(t)), []
            for i, steps in enumerate(self.levels):
                x = squeeze(x)
                for step in steps:  # type: ignore[attr-defined]
                    x, change = step(x, emb, start)
                    log_det = log_det + change
                if i < len(self.splits):
                    x, v, change = self.splits[i](x)
                    log_det = log_det + change
                    latents.append(v.flatten(1))
            v, change = self.top(x, emb)
            return torch.cat([*latents, v.flatten(1)], dim=1), log_det + change

    def inverse(self, v: Tensor, group: Tensor) -> Tensor:
        """t (B, C, *S) of latents v (B, D) and classes (B,)."""
        with torch.autocast(v.device.type, enabled=False):
            emb = self.embedding(group)
            counts = [math.prod(s) for s in self.shapes]
            *latents, top = [p.unflatten(1, s) for p, s in zip(v.split(counts, dim=1), self.shapes)]
            x = self.top.inverse(top, emb)
            for i in reversed(range(len(self.levels))):
                if i < len(self.splits):
                    x = self.splits[i].inverse(x, latents[i])  # type: ignore[operator]
                for step in reversed(self.levels[i]):  # type: ignore[call-overload]
                    x = step.inverse(x, emb)
                x = unsqueeze(x)
            return x


def check_levels(size: tuple[int, ...], levels: int) -> None:
    """VerisimError for a size that cannot be halved `levels` times without remainder."""
    if levels < 1 or len(size) not in (2, 3):
        raise VerisimError(
            f"levels={levels} for images of {len(size)} axes: a flow needs 1 level or more, and 2 or 3 axes."
        )
    unit = 2**levels
    if any(s % unit for s in size):
        nearest = "x".join(str(max(1, round(s / unit)) * unit) for s in size)
        raise VerisimError(
            f"A flow of {levels} levels halves images {levels} times, but {'x'.join(map(str, size))} pixels are not "
            f"multiples of {unit}. It cannot pad them: its density is that of every pixel. Nearest: {nearest}; or fewer "
            f"levels."
        )

"""The network of a hierarchical VAE: groups of latent maps from coarse to fine on one top-down path.

    p(z) = prod_l p(z_l | z_<l)            q(z | x) = prod_l q(z_l | x, z_<l)              Sonderby 2016, Child 2021

h_l is what the path knows of the groups above l; e_l what the image says at that resolution. With v_l standard
normal under the prior, and q given relative to the prior (Vahdat & Kautz 2020, section 3.2):

    z_l = mu_l(h_l) + sigma_l(h_l) v_l,    v_l ~ N(0, I)                                    p(z_l | z_<l)
    v_l ~ N(m_l(h_l, e_l), diag s_l^2(h_l, e_l))                                            q(z_l | x, z_<l)
    h_{l+1} = block(h_l + W z_l)

KL(q(z_l | .) || p(z_l | .)) = KL(N(m_l, s_l^2) || N(0, I)): the change from z to v is the same in both. All latents
of an image are the vector v (B, d), coarsest group first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verisim.data.spec import ImageSpec
from verisim.models.autoencoders.gaussian import Posterior
from verisim.models.autoencoders.trunk import TRANSPOSED, coarsest_grid, padded
from verisim.nets.blocks import CONV, Block, convolution, zeroed
from verisim.nets.norm import GroupNorm

Draw = Callable[["LatentGroup", int, Tensor], Tensor]  # group, its resolution, h (B, C, *G) -> v (B, M, *G)


def gaussian_head(dims: int, channels: int, maps: int) -> nn.Sequential:
    """Features -> means and log variances of `maps` maps; starts at N(0, I)."""
    return nn.Sequential(GroupNorm(channels), nn.SiLU(), zeroed(convolution(dims, channels, 2 * maps)))


class LatentGroup(nn.Module):
    """One group: its prior, its posterior, and how it enters the path."""

    def __init__(self, dims: int, channels: int, maps: int, embed: int) -> None:
        super().__init__()
        self.prior = gaussian_head(dims, channels, maps)
        self.merge = Block(dims, channels, channels, embed, skip_channels=channels)
        self.posterior = gaussian_head(dims, channels, maps)
        self.inject = convolution(dims, maps, channels, kernel=1)
        self.block = Block(dims, channels, channels, embed)

    def given(self, h: Tensor) -> Posterior:
        """p(z_l | z_<l): means and clamped log variances (B, M, *G)."""
        return Posterior.from_features(self.prior(h))

    def infer(self, h: Tensor, e: Tensor, emb: Tensor) -> Posterior:
        """q of v_l: means and clamped log variances (B, M, *G) from the path h and the image's features e (B, C, *G)."""
        return Posterior.from_features(self.posterior(self.merge(h, emb, skip=e)))

    def forward(self, h: Tensor, v: Tensor, emb: Tensor) -> Tensor:
        """The path (B, C, *G) behind this group, whose latents are v (B, M, *G)."""
        p = self.given(h)
        z = p.mean + (0.5 * p.log_variance).exp() * v
        return self.block(h + self.inject(z), emb)


class LadderNet(nn.Module):
    """Bottom-up features, the top-down path with its groups, and a last doubling to the image's size.

    Resolutions halve from the image: level 0 has half its size and channels[0], the last one the coarsest grid.
    """

    def __init__(
        self,
        spec: ImageSpec,
        channels: tuple[int, ...],  # per halving, finest first
        groups: tuple[int, ...],  # latent groups per resolution, coarsest first
        maps: int,  # M of each group
        num_classes: int,  # 0 = unconditional
        embed: int,  # length of a class embedding
    ) -> None:
        super().__init__()
        dims, n = spec.spatial_dims, len(channels)
        full = padded(spec.size, n)
        self.size = spec.size
        self.pad = [
            p for s, m in zip(spec.size[::-1], full[::-1]) for p in ((m - s) // 2, m - s - (m - s) // 2)
        ]
        self.offset = [(m - s) // 2 for s, m in zip(spec.size, full)]
        self.embedding = nn.Embedding(num_classes + 1, embed)  # last: no class
        # bottom-up
        self.stem = CONV[dims](spec.channels, channels[0], 4, 2, 1)
        self.downs = nn.ModuleList([Block(dims, channels[0], channels[0], embed)])
        self.downs.extend(Block(dims, a, b, embed, resample="down") for a, b in pairwise(channels))
        # top-down
        self.constant = nn.Parameter(0.1 * torch.randn(1, channels[-1], *coarsest_grid(spec.size, n)))
        self.begin = Block(
            dims, channels[-1], channels[-1], embed
        )  # the class is known before the first group
        back, counts = channels[::-1], [*groups, *[0] * (n - len(groups))]
        self.levels = nn.ModuleList(
            nn.ModuleList(LatentGroup(dims, c, maps, embed) for _ in range(count))
            for c, count in zip(back, counts)
        )
        self.ups = nn.ModuleList(Block(dims, a, b, embed, resample="up") for a, b in pairwise(back))
        self.last = nn.Sequential(
            GroupNorm(channels[0]),
            nn.SiLU(),
            TRANSPOSED[dims](channels[0], channels[0], 4, 2, 1),
            nn.SiLU(),
            CONV[dims](channels[0], spec.channels, 1),
        )
        grids = [tuple(m // 2 ** (n - i) for m in full) for i in range(n)]  # coarsest first
        self.shapes = [(maps, *g) for g, count in zip(grids, counts) for _ in range(count)]

    @property
    def counts(self) -> list[int]:
        """Latents of each group, coarsest first; their sum is d."""
        return [math.prod(shape) for shape in self.shapes]

    def split(self, v: Tensor) -> list[Tensor]:  # (B, d) -> per group (B, M, *G)
        return [part.unflatten(1, s) for part, s in zip(v.split(self.counts, dim=1), self.shapes)]

    def features(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """What the image (B, C, *S) says at each resolution, coarsest first."""
        if any(self.pad):
            x = F.pad(x, self.pad, mode="replicate")
        h, found = self.stem(x), []
        for down in self.downs:
            h = down(h, emb)
            found.append(h)
        return found[::-1]

    def walk(self, emb: Tensor, draw: Draw) -> Tensor:
        """The top-down path with latents from `draw`: raw output (B, C, *S)."""
        h = self.begin(self.constant.expand(len(emb), *[-1] * (self.constant.ndim - 1)), emb)
        for i, groups in enumerate(self.levels):
            if i:
                h = self.ups[i - 1](h, emb)
            for group in groups:  # type: ignore[attr-defined]
                h = group(h, draw(group, i, h), emb)
        crop = tuple(slice(o, o + s) for o, s in zip(self.offset, self.size))
        return self.last(h)[(slice(None), slice(None), *crop)]

    def decode(self, v: Tensor, group: Tensor) -> Tensor:
        """Raw output (B, C, *S) of latents v (B, d) and classes (B,)."""
        parts = iter(self.split(v))
        return self.walk(self.embedding(group), lambda *_: next(parts))

    def infer(self, x: Tensor, group: Tensor, eps: Tensor) -> tuple[Tensor, Posterior, Tensor]:
        """Raw output (B, C, *S), the posterior along the path (B, d), and v = mean + std * eps (B, d).

        The posterior of a group depends on the v drawn above it.
        """
        emb = self.embedding(group)
        features, noise = self.features(x, emb), iter(self.split(eps))
        found: list[Posterior] = []

        def draw(latents: LatentGroup, level: int, h: Tensor) -> Tensor:
            q = latents.infer(h, features[level], emb)
            found.append(q)
            return q.mean + (0.5 * q.log_variance).exp() * next(noise)

        out = self.walk(emb, draw)
        mean, log_variance = (
            torch.cat([getattr(q, name).flatten(1) for q in found], dim=1)
            for name in ("mean", "log_variance")
        )
        q = Posterior(mean, log_variance, torch.stack([q.clamped for q in found]).sum(0))
        return out, q, mean + (0.5 * log_variance).exp() * eps

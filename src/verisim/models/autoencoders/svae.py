"""Spatial VAE: feature maps with a low-rank matrix-variate normal posterior (source 001 section 6, S3 and S4).

The encoder gives 4 d N numbers (mu, nu, log omega, log psi of N maps of side d) for N d^2 latents, where a
plain VAE needs 2 N d^2. The loss is the VAE's with the exact KL of that posterior.
"""

from __future__ import annotations

from math import prod
from typing import Literal

from torch import Tensor

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models.autoencoders.latent import LatentModel, LatentNet
from verisim.models.autoencoders.matrix_normal import MatrixNormal
from verisim.models.autoencoders.trunk import Trunk, chosen_channels, coarsest_grid
from verisim.models.base import Loss


class SpatialNet(LatentNet):
    """LatentNet whose encoder outputs are the factors of N maps.

    Head "dense": one linear layer gives all factors. Head "conv": a 1x1 convolution gives one map per factor,
    averaged over all axes but the factor's own (row means -> mu, omega; column means -> nu, psi).
    """

    def __init__(
        self,
        spec: ImageSpec,
        trunk: Trunk,
        maps: int,  # N
        grid: tuple[int, ...],  # (d_1, d_2[, d_3])
        rank: int,  # r of each map's mean; 0 = full
        num_classes: int,
        embed: int,
        likelihood: str,
        sigma: str,
    ) -> None:
        per_axis = rank + 1  # factors of one axis: r of the mean, 1 of the variance
        counts = [d * per_axis for d in grid]  # of one map, per axis
        full = 0 if rank else prod(grid)  # a full mean beside them
        if trunk.head == "dense":
            outputs = maps * (sum(counts) + full)  # 4 d N for rank 1 in 2D
        else:
            outputs = maps * prod(grid) * (len(grid) * per_axis + (0 if rank else 1))
        super().__init__(spec, trunk, maps * prod(grid), outputs, num_classes, embed, likelihood, sigma)
        self.maps, self.grid, self.rank, self.counts = maps, grid, rank, counts
        self.outputs, self.dense = outputs, trunk.head == "dense"

    def encode(self, x: Tensor) -> MatrixNormal:  # (B, C, *S) -> factors of N maps
        features = self.encoder(x).float()
        means, variances = self._dense(features) if self.dense else self._pooled(features)
        return MatrixNormal.from_factors(means, variances)

    def _dense(self, features: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        features = features.unflatten(1, (self.maps, -1))  # (B, N, outputs / N)
        factors, full = features.tensor_split([sum(self.counts)], dim=2)
        axes = [f.unflatten(2, (self.rank + 1, -1)) for f in factors.split(self.counts, dim=2)]
        return self._sorted(axes, full.unflatten(2, self.grid) if not self.rank else None)

    def _pooled(self, features: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        maps = features.unflatten(1, (self.maps, -1, *self.grid))  # (B, N, factors, *d)
        n = len(self.grid)
        axes = [along(maps[:, :, a::n][:, :, : self.rank + 1], a, n) for a in range(n)]
        return self._sorted(axes, maps[:, :, -1] if not self.rank else None)

    def _sorted(self, axes: list[Tensor], full: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        """Factors per axis (B, N, r + 1, d_a) -> those of the mean and the last, of the variance."""
        means = [a[:, :, :-1] for a in axes] if full is None else [full]
        return means, [a[:, :, -1] for a in axes]


def along(maps: Tensor, axis: int, n: int) -> Tensor:
    """Means (..., d_axis) of maps (..., d_1, ... d_n) over all of the last n axes but one."""
    others = [a - n for a in range(n) if a != axis]
    return maps.mean(others)


class SVAE(LatentModel):
    """Spatial VAE on 2D or 3D images whose sides are 8 pixels or more (padded and cropped inside).

    Latents are the N maps, flattened map by map: (B, N d^n). With head "conv", d is the side of the
    trunk's coarsest grid.
    """

    net: SpatialNet

    def __init__(
        self,
        spec: ImageSpec,
        num_classes: int = 0,
        *,
        maps: int = 9,  # N
        side: int = 3,  # d of each map; 0 = the coarsest grid, as head conv needs
        rank: int = 1,  # outer products in each map's mean (source: 1); 0 = full mean
        width: int = 32,  # channels of the stem; doubled at every halving
        max_width: int = 256,  # upper bound of channels
        kernel: int = 3,  # of the stride-1 convolutions (source: 4)
        norm: bool = True,  # group norm in the blocks
        likelihood: Literal["sigma", "laplace", "discretised_logistic", "bce"] = "sigma",  # p(x | z)
        sigma: Literal["optimal", "learned", "fixed"] = "optimal",  # its scale; fixed = the plain error
        beta: float = 1.0,  # final weight of the KL
        kl_warmup: int = 200,  # steps over which that weight rises from 0
        embed: int = 32,  # length of a class embedding
        label_dropout: float = 0.1,  # share of training images that are shown without their class
        components: int = 10,  # of the ex-post mixture
        lr: float = 1e-3,  # Adam learning rate
        channels: tuple[int, ...] = (),  # of the trunk, one per halving; empty = by width and max_width
        head: Literal["dense", "conv"] = "dense",  # conv = maps live on the coarsest grid
    ) -> None:
        trunk = Trunk(chosen_channels(spec.size, tuple(channels), width, max_width), kernel, norm, head)
        grid = map_size(spec, trunk, side)
        if maps < 1 or rank < 0:
            raise VerisimError(f"maps={maps}, rank={rank}: at least 1 map, and a rank of 0 (full) or more.")
        net = SpatialNet(spec, trunk, maps, grid, rank, num_classes, embed, likelihood, sigma)
        super().__init__(spec, num_classes, net, maps * prod(grid), components, label_dropout, lr)
        self.beta = beta
        self.kl_warmup = kl_warmup

    @property
    def phase(self) -> int:
        """0 while the KL's weight rises, then 1."""
        return int(self.step + 1 >= self.kl_warmup)

    def training_loss(self, x: Tensor, label: Tensor | None) -> Loss:
        """(-log p(x | z) + w beta sum_k KL_k) / (C prod S), w = min(1, step / kl_warmup)."""
        weight = min(1.0, (self.step + 1) / self.kl_warmup) if self.kl_warmup else 1.0
        loss, parts = self.negative_elbo(x, self.training_groups(x, label), weight * self.beta)
        return loss / self.spec.dims, parts


def map_size(spec: ImageSpec, trunk: Trunk, side: int) -> tuple[int, ...]:
    """Size (d, d[, d]) of the latent maps, or of the coarsest grid; VerisimError if they cannot agree."""
    grid = coarsest_grid(spec.size, len(trunk.channels))
    if side < 0:
        raise VerisimError(f"side={side}: maps are 1 position or more wide, or 0 for the coarsest grid.")
    if trunk.head == "conv" and side and grid != (side,) * len(grid):
        raise VerisimError(
            f"side={side}, but the coarsest grid of {'x'.join(map(str, spec.size))} pixels after "
            f"{len(trunk.channels)} halvings is {'x'.join(map(str, grid))}, and with head=conv the maps live "
            f"on it. Set side=0, another number of channels, or head=dense."
        )
    return (side,) * len(grid) if side else grid

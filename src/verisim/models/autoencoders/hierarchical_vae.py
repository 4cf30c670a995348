"""A hierarchical (ladder) VAE: latent maps from coarse to fine, each drawn given those above it.

    ELBO(x) = E_q [log p(x | z)] - sum_l E_q [KL(q(z_l | x, z_<l) || p(z_l | z_<l))]

A very small relative of NVAE and VDVAE (X-B3 of source 004); the network is ladder.py. The prior is learned with
the rest, so samples need no density fitted afterwards. The loss is the negative ELBO in nats per dimension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError, pick
from verisim.models.autoencoders.gaussian import (
    CHUNK,
    Posterior,
    check_temperature,
    evaluating,
    fresh_generator,
    importance_bound,
    normal_log_density,
)
from verisim.models.autoencoders.ladder import LadderNet
from verisim.models.autoencoders.likelihoods import LIKELIHOODS
from verisim.models.autoencoders.trunk import chosen_channels
from verisim.models.base import Loss, SamplingOptions
from verisim.models.classes import NullClass
from verisim.seeding import generator as seeded


@dataclass(frozen=True)
class HierarchicalOptions(SamplingOptions):
    """Sampling options of the hierarchical VAE."""

    temperature: float = 1.0  # factor on the standard deviation of every group of latents
    noise: bool = False  # add the observation noise of p(x | z); else its mean
    importance_samples: int = 16  # K of the bound behind bits per dimension


class HierarchicalNet(LadderNet):
    """LadderNet with an observation model."""

    def __init__(
        self,
        spec: ImageSpec,
        channels: tuple[int, ...],
        groups: tuple[int, ...],
        maps: int,
        num_classes: int,
        embed: int,
        likelihood: str,  # key of LIKELIHOODS
        sigma: str,  # key of SIGMAS
    ) -> None:
        super().__init__(spec, channels, groups, maps, num_classes, embed)
        self.observation = pick(LIKELIHOODS, likelihood, "likelihood")(spec.channels, sigma)


class HierarchicalVAE(NullClass):
    """Hierarchical VAE on 2D or 3D images whose sides are 8 pixels or more. Roles: Sampler, Autoencoder, Coder, Likelihood.

    Latents are the vector v (B, d) of ladder.py, N(0, I) under the prior, coarsest group first. Class-conditional in
    every block; labels are dropped at rate `label_dropout`, so that "no class" is a class of its own.
    """

    family = "vae"
    Options = HierarchicalOptions
    options: HierarchicalOptions
    net: HierarchicalNet
    likelihood_is_bound = True

    def __init__(
        self,
        spec: ImageSpec,
        num_classes: int = 0,
        *,
        groups: tuple[int, ...] = (),  # latent groups per resolution, coarsest first; empty = one each
        maps: int = 4,  # M, latent maps of each group
        width: int = 32,  # channels at half the image's size; doubled at every halving
        max_width: int = 128,  # upper bound of channels
        channels: tuple[int, ...] = (),  # one per halving; empty = by width and max_width
        likelihood: Literal["sigma", "laplace", "discretised_logistic", "bce"] = "sigma",  # p(x | z)
        sigma: Literal["optimal", "learned", "fixed"] = "optimal",  # its scale; fixed = the plain error
        beta: float = 1.0,  # final weight of the KL
        kl_warmup: int = 200,  # steps over which that weight rises from 0
        embed: int = 32,  # length of a class embedding
        label_dropout: float = 0.1,  # share of training images that are shown without their class
        lr: float = 1e-3,  # Adam learning rate
        betas: tuple[float, float] = (0.9, 0.999),  # Adam
    ) -> None:
        super().__init__(spec, num_classes)
        channels = chosen_channels(spec.size, tuple(channels), width, max_width)
        groups = tuple(groups) or (1,) * len(channels)
        check_groups(groups, maps, len(channels))
        self.net = HierarchicalNet(spec, channels, groups, maps, num_classes, embed, likelihood, sigma)
        self.latent = sum(self.net.counts)  # d
        self.beta, self.kl_warmup = beta, kl_warmup
        self.label_dropout = label_dropout
        self.lr, self.betas = lr, betas

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net.parameters(), self.lr, self.betas)

    # --- training ---------------------------------------------------------------------------------

    @property
    def phase(self) -> int:
        """0 while the KL's weight rises, then 1."""
        return int(self.step + 1 >= self.kl_warmup)

    def training_loss(self, x: Tensor, label: Tensor | None) -> Loss:
        """(-log p(x | z) + w beta sum_l KL_l) / (C prod S), w = min(1, step / kl_warmup); parts kl_0 (coarsest), ..."""
        weight = min(1.0, (self.step + 1) / self.kl_warmup) if self.kl_warmup else 1.0
        eps = torch.randn(len(x), self.latent, device=x.device)
        out, q, _ = self.net.infer(x, self.training_groups(x, label), eps)
        nll = self.net.observation.nll(out, x)  # (B,)
        rates = self.group_rates(q)
        mse = (self.net.observation.mean(out) - x).square().flatten(1).mean(1)
        loss = (nll + weight * self.beta * sum(rates)) / self.spec.dims
        return loss, {"nll": nll, "mse": mse, **q.parts(), **{f"kl_{i}": r for i, r in enumerate(rates)}}

    def group_rates(self, q: Posterior) -> list[Tensor]:
        """KL of each group in nats (B,), coarsest first."""
        return [kl.sum(1) for kl in q.kl().split(self.net.counts, dim=1)]

    # --- roles ------------------------------------------------------------------------------------

    @property
    def _eval_net(self) -> HierarchicalNet:
        return cast(HierarchicalNet, self.sampling_net)

    @torch.no_grad()
    def encode(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """v (B, d) of images x (B, C, *S) in [-1, 1]: the posterior means, each given the means above it."""
        self.spec.check(x, "images to encode")
        group = self.asked_groups(len(x), condition)
        found = []
        with evaluating(self._eval_net) as net:
            for part, g in zip(x.split(CHUNK), group.split(CHUNK)):
                none = torch.zeros(len(part), self.latent, device=self.device)
                found.append(net.infer(part.to(self.device), g, none)[2])
        return torch.cat(found)

    @torch.no_grad()
    def rate_bits(self, x: Tensor) -> Tensor:
        """(B,) float64 sum of the groups' KL in bits of images x (B, C, *S) in [-1, 1], along one draw, always the same."""
        self.spec.check(x, "images to encode")
        fixed, found = seeded("rate", 0), []
        with evaluating(self._eval_net) as net:
            for part in x.split(CHUNK):
                eps = torch.randn(len(part), self.latent, generator=fixed).to(self.device)
                q = net.infer(part.to(self.device), self.groups(len(part), None), eps)[1]
                found.append(q.rate().double())
        return torch.cat(found) / math.log(2)

    @torch.no_grad()
    def decode(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """E[x | z], the mean of p(x | z), (B, C, *S) in [-1, 1], of latents v (B, d)."""
        return self.decoded(z, condition, lambda net, z, group: net.observation.mean(net.decode(z, group)))

    @torch.no_grad()
    def sample(
        self, n: int, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """n images (n, C, *S) in [-1, 1]: the mean of p(x | z), or a draw from it with options.noise.

        condition None means "no class" on a conditional model.
        """
        check_temperature(self.options.temperature)
        generator = generator or fresh_generator()
        v = torch.randn(n, self.latent, generator=generator, device=generator.device)
        images = self.decode(self.options.temperature * v, condition)
        if self.options.noise:
            images = self._eval_net.observation.noisy(images, generator)
        return images

    @torch.no_grad()
    def bits_per_dim(
        self, x: Tensor, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Upper bound (B,), float64, on the bits per dimension of 8-bit images x (B, C, *S) in [-1, 1].

        Importance-weighted bound with K = options.importance_samples; images are rounded to 256 grey values.
        VerisimError for likelihood "bce", which defines no probability.
        """
        self.spec.check(x, "images to score")
        if self.options.importance_samples < 1:
            raise VerisimError(f"importance_samples={self.options.importance_samples}: it must be 1 or more.")
        generator = generator or fresh_generator()
        group = self.asked_groups(len(x), condition)
        found = [
            self._log_bound(part.to(self.device), g, generator)
            for part, g in zip(x.split(CHUNK), group.split(CHUNK))
        ]
        return -torch.cat(found) / (self.spec.dims * math.log(2))

    def _log_bound(self, x: Tensor, group: Tensor, generator: torch.Generator) -> Tensor:
        """log 1/K sum_k p(x | v_k) N(v_k; 0, I) / q(v_k | x), float64 (B,)."""
        weights = []
        with evaluating(self._eval_net) as net:
            for _ in range(self.options.importance_samples):
                eps = torch.randn(len(x), self.latent, generator=generator, device=generator.device)
                out, q, v = net.infer(x, group, eps.to(x.device))
                log_px = net.observation.log_prob(out, x)
                log_pv = normal_log_density(v, torch.zeros_like(v), torch.zeros_like(v))
                weights.append(log_px + log_pv - normal_log_density(v, q.mean, q.log_variance))
        return importance_bound(torch.stack(weights))

    @torch.no_grad()
    def finalise(self, x: Tensor, label: Tensor | None) -> None:
        """Calibrate sigma, where it is in closed form, on draws of q for the training images x (N, C, *S)."""
        group = self.groups(len(x), label if self.num_classes else None)
        fixed, errors = seeded("calibrate", 0), []
        with evaluating(self._eval_net) as net:
            for part, g in zip(x.split(CHUNK), group.split(CHUNK)):
                eps = torch.randn(len(part), self.latent, generator=fixed).to(self.device)
                part = part.to(self.device)
                out = net.infer(part, g.to(self.device), eps)[0]
                errors.append((net.observation.mean(out) - part).square().flatten(1).mean(1))
            net.observation.calibrate(torch.cat(errors).mean())


def check_groups(groups: tuple[int, ...], maps: int, resolutions: int) -> None:
    """VerisimError for groups that the resolutions cannot hold."""
    if len(groups) > resolutions or min(groups) < 0 or sum(groups) < 1 or maps < 1:
        raise VerisimError(
            f"groups={list(groups)}, maps={maps}: give one number of latent groups, 0 or more, for each of at most "
            f"{resolutions} resolutions, coarsest first, at least one group in all, and 1 map or more. Leave groups "
            f"empty for {[1] * resolutions}."
        )

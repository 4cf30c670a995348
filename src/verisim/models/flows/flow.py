"""A normalising flow (X-B3 of source 004): a small Glow with exact density, exact latents and exact inverse.

    log p(t) = log N(v; 0, I) + log|det dv/dt|,   v = f(t)                     Dinh 2017, eq. 2; Kingma & Dhariwal 2018

An 8-bit image has 256 grey values k, and a density needs numbers: t = (k + u) / 128 - 1 with u uniform in [0, 1)
(dequantisation). log p(t) is exact. What it says about the 8-bit image itself is a bound:

    E_u [log p(t)] + D log(1 / 128) <= log P(k) = log E_u [p(t)] + D log(1 / 128)           Theis 2016, section 3.1

so bits per dimension are exact for dequantised images, and for 8-bit images an upper bound, tight where p is flat
across a grey value. More draws of u tighten it, as importance samples do for a VAE.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models.autoencoders.gaussian import (
    CHUNK,
    check_temperature,
    evaluating,
    fresh_generator,
    importance_bound,
    normal_log_density,
)
from verisim.models.autoregressive.heads import quantise
from verisim.models.base import Loss, SamplingOptions
from verisim.models.classes import NullClass
from verisim.models.flows.network import FlowNet
from verisim.seeding import generator as seeded

LEVELS = 256  # grey values of an 8-bit image
HALF = LEVELS / 2  # grey values per unit of t
START = 256  # training images that the activation norms start from
WARMUP = 50  # steps over which the learning rate rises


@dataclass(frozen=True)
class FlowOptions(SamplingOptions):
    """Sampling options of a flow."""

    temperature: float = 1.0  # standard deviation of v; below 1 (0.7) fewer odd images, and less variety
    dequantisations: int = 1  # draws of u behind bits per dimension; 1 is usual, more tighten the bound


def dequantised(x: Tensor, u: Tensor) -> Tensor:
    """t in [-1, 1) of images x (B, C, *S) in [-1, 1], rounded to grey values, and u in [0, 1) of the same shape."""
    return (quantise(x, LEVELS).to(u.dtype) + u) / HALF - 1


def centred(x: Tensor) -> Tensor:
    """t in (-1, 1) of images x in [-1, 1] as they are: u = 1/2 for grey values, and between them in proportion."""
    return ((x + 1) * (LEVELS - 1) / 2 + 0.5) / HALF - 1


def uncentred(t: Tensor) -> Tensor:
    """The inverse of centred; rounded to grey values it is that of dequantised."""
    return ((t + 1) * HALF - 0.5) * 2 / (LEVELS - 1) - 1


class Flow(NullClass):
    """Flow on 2D or 3D images whose sides are multiples of 2^levels. Roles: Sampler, Autoencoder, Likelihood.

    Latents are v (B, D), as many as pixels, N(0, I) under the model. Class-conditional in every coupling and in the
    coarsest latents; labels are dropped at rate `label_dropout`, so that "no class" is a class of its own. Computes in
    float32 whatever training.precision says: its inverse must be the inverse.
    """

    family = "flow"
    Options = FlowOptions
    options: FlowOptions
    net: FlowNet
    likelihood_is_bound = True  # for 8-bit images; log_density is exact

    def __init__(
        self,
        spec: ImageSpec,
        num_classes: int = 0,
        *,
        levels: int = 3,  # times that the image is squeezed to half its size
        steps: int = 8,  # K per level: activation norm, rotation of the channels, coupling
        hidden: int = 64,  # channels inside the couplings
        embed: int = 32,  # length of a class embedding
        label_dropout: float = 0.1,  # share of training images that are shown without their class
        lr: float = 1e-3,  # Adam learning rate
        betas: tuple[float, float] = (0.9, 0.999),  # Adam
    ) -> None:
        super().__init__(spec, num_classes)
        if min(steps, hidden) < 1:
            raise VerisimError(f"steps={steps}, hidden={hidden}: each must be 1 or more. Usual: 8 and 64.")
        self.net = FlowNet(spec, levels, steps, hidden, num_classes, embed)
        self.latent = spec.dims  # D
        self.label_dropout = label_dropout
        self.lr, self.betas = lr, betas

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net.parameters(), self.lr, self.betas)

    def lr_scale(self, step: int, total: int | None) -> float:
        """Linear warm-up."""
        return min(1.0, (step + 1) / WARMUP)

    # --- training ---------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare(self, x: Tensor) -> None:
        """Start the activation norms from training images (N, C, *S): every channel standard, layer by layer."""
        some = x[torch.linspace(0, len(x) - 1, min(len(x), START)).long()].to(self.device)
        u = torch.rand(some.shape, generator=seeded("flow start", self.seed)).to(self.device)
        self.net(dequantised(some, u), self.groups(len(some), None), start=True)

    def training_loss(self, x: Tensor, label: Tensor | None) -> Loss:
        """-log2 p per dimension (B,) of dequantised images; u is new in every step."""
        t = dequantised(x, torch.rand_like(x, dtype=torch.float32))
        v, log_det = self.net(t, self.training_groups(x, label))
        log_p = -0.5 * (v.square() + math.log(2 * math.pi)).sum(1) + log_det  # (B,)
        bits = -log_p / (self.spec.dims * math.log(2)) + math.log2(HALF)
        return bits, {"bits_per_dim": bits, "log_det": log_det, "v_square": v.square().mean(1)}

    # --- roles ------------------------------------------------------------------------------------

    @property
    def _eval_net(self) -> FlowNet:
        return cast(FlowNet, self.sampling_net)

    @torch.no_grad()
    def log_density(self, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """log p(t) in nats, float64 (B,), of dequantised images t (B, C, *S): exact, and a density of all real t."""
        group = self.asked_groups(len(t), condition)
        found = []
        with evaluating(self._eval_net) as net:
            for part, g in zip(t.split(CHUNK), group.split(CHUNK)):
                v, log_det = net(part.to(self.device), g)
                none = torch.zeros_like(v)
                found.append(normal_log_density(v, none, none) + log_det)
        return torch.cat(found)

    @torch.no_grad()
    def encode(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """v (B, D) of images x (B, C, *S) in [-1, 1]; nothing is random, and no grey value is rounded."""
        self.spec.check(x, "images to encode")
        group = self.asked_groups(len(x), condition)
        with evaluating(self._eval_net) as net:
            found = [
                net(centred(part.to(self.device)), g)[0]
                for part, g in zip(x.split(CHUNK), group.split(CHUNK))
            ]
        return torch.cat(found)

    @torch.no_grad()
    def decode(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Images (B, C, *S) in [-1, 1] of latents v (B, D): the inverse of encode, clipped to the range of images."""
        return self.decoded(z, condition, lambda net, v, group: uncentred(net.inverse(v, group)).clamp(-1, 1))

    @torch.no_grad()
    def sample(
        self, n: int, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """n images (n, C, *S) in [-1, 1] of v ~ N(0, temperature^2 I); condition None means "no class"."""
        check_temperature(self.options.temperature)
        generator = generator or fresh_generator()
        v = torch.randn(n, self.latent, generator=generator, device=generator.device)
        return self.decode(self.options.temperature * v, condition)

    @torch.no_grad()
    def bits_per_dim(
        self, x: Tensor, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """(B,), float64: bits per dimension of images x (B, C, *S) in [-1, 1], rounded to 256 grey values.

        -log2 of 1/K sum_k p(t_k) / 128^D, K = options.dequantisations draws of u: for K = 1 the exact density of one
        dequantised image, in expectation an upper bound for the 8-bit image.
        """
        self.spec.check(x, "images to score")
        draws = self.options.dequantisations
        if draws < 1:
            raise VerisimError(f"dequantisations={draws}: it must be 1 or more.")
        generator = generator or fresh_generator()
        log_p = []
        for _ in range(draws):
            u = torch.rand(x.shape, generator=generator, device=generator.device).to(x.device)
            log_p.append(self.log_density(dequantised(x, u), condition))
        return -importance_bound(torch.stack(log_p)) / (self.spec.dims * math.log(2)) + math.log2(HALF)

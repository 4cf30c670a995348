"""The corrected VAE of source 004 (X-V-fix): convolutional trunk, honest likelihood, ex-post density.

ELBO(x) = E_q [log p(x | z)] - KL(q(z | x) || N(0, I)), with a residual trunk (source 001 section 3), a
likelihood whose scale is found rather than assumed, KL warm-up, and log variances kept in [-15, 8].
The loss is the negative ELBO in nats per dimension, so that clipping and learning rate mean the same
at every image and batch size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError, pick
from verisim.models.autoencoders.density import ExPostDensity
from verisim.models.autoencoders.gaussian import (
    CHUNK,
    LOG_VARIANCE_RANGE,
    check_temperature,
    evaluating,
    fresh_generator,
    importance_bound,
    kl_standard_normal,
    normal_log_density,
)
from verisim.models.autoencoders.likelihoods import LIKELIHOODS
from verisim.models.autoencoders.trunk import Decoder, Encoder, trunk_channels
from verisim.models.base import GenerativeModel, Loss, SamplingOptions


@dataclass(frozen=True)
class ConvVAEOptions(SamplingOptions):
    """Sampling options of the convolutional VAE."""

    temperature: float = 1.0  # factor on the standard deviation of the latent
    # where latents come from; auto = the fitted mixture if there is one, else N(0, I)
    prior: Literal["auto", "normal", "gaussian", "mixture"] = "auto"
    noise: bool = False  # add the observation noise of p(x | z); else its mean
    importance_samples: int = 16  # K of the bound behind bits per dimension


class ConvVAENet(nn.Module):
    """Encoder, decoder with class embedding, and observation model."""

    def __init__(
        self,
        spec: ImageSpec,
        channels: tuple[int, ...],  # of the trunk
        latent: int,  # d
        kernel: int,  # of the stride-1 convolutions
        use_norm: bool,  # group norm
        likelihood: str,  # key of LIKELIHOODS
        sigma: str,  # "optimal" or "learned"
        num_classes: int,  # 0 = unconditional
        embed: int,  # length of a class embedding
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes + 1, embed) if num_classes else None  # last: no class
        extra = embed if num_classes else 0
        self.encoder = Encoder(spec.size, spec.channels, channels, 2 * latent, kernel, use_norm)
        self.decoder = Decoder(spec.size, spec.channels, channels, latent + extra, kernel, use_norm)
        self.observation = pick(LIKELIHOODS, likelihood, "likelihood")(spec.channels, sigma)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (B, C, *S) -> (B, d), (B, d)
        mean, log_variance = self.encoder(x).float().chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCE_RANGE)

    def decode(self, z: Tensor, group: Tensor) -> Tensor:  # (B, d), (B,) -> raw output (B, C, *S)
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(group)], dim=1)
        return self.decoder(z)


class ConvVAE(GenerativeModel):
    """Convolutional VAE on 2D or 3D images whose sides are 8 pixels or more (padded and cropped inside).

    Class-conditional by an embedding in the decoder; labels are dropped at rate `label_dropout`, so that
    "no class" is a class of its own (condition None). Roles: Sampler, Autoencoder, Likelihood.
    """

    family = "vae"
    Options = ConvVAEOptions
    options: ConvVAEOptions
    net: ConvVAENet
    likelihood_is_bound = True

    def __init__(
        self,
        spec: ImageSpec,
        num_classes: int = 0,
        *,
        latent: int = 64,  # d
        width: int = 32,  # channels of the stem; doubled at every halving
        max_width: int = 256,  # upper bound of channels
        kernel: int = 3,  # of the stride-1 convolutions (source 001: 4)
        norm: bool = True,  # group norm in the blocks
        likelihood: Literal["sigma", "discretised_logistic", "bce"] = "sigma",  # p(x | z)
        sigma: Literal["optimal", "learned"] = "optimal",  # how the sigma-VAE finds its sigma
        beta: float = 1.0,  # final weight of the KL
        kl_warmup: int = 200,  # steps over which that weight rises from 0
        free_bits: float = 0.0,  # nats per latent that cost nothing; 0 = off
        embed: int = 32,  # length of a class embedding
        label_dropout: float = 0.1,  # share of training images that are shown without their class
        components: int = 10,  # of the ex-post mixture
        lr: float = 1e-3,  # Adam learning rate
    ) -> None:
        super().__init__(spec, num_classes)
        channels = trunk_channels(spec.size, width, max_width)
        self.net = ConvVAENet(spec, channels, latent, kernel, norm, likelihood, sigma, num_classes, embed)
        self.density = ExPostDensity(latent, components, num_classes)
        self.latent = latent
        self.beta = beta
        self.kl_warmup = kl_warmup
        self.free_bits = free_bits
        self.label_dropout = label_dropout
        self.lr = lr

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net.parameters(), self.lr)

    def groups(self, n: int, label: Tensor | None) -> Tensor:
        """Class index (n,) of each image; num_classes stands for "no class"."""
        if label is None or self.num_classes == 0:
            return torch.full((n,), self.num_classes, device=self.device)
        return label

    def training_loss(self, x: Tensor, label: Tensor | None) -> Loss:
        """(-log p(x | z) + w beta sum_j max(KL_j, free_bits)) / (C prod S), w = min(1, step / kl_warmup)."""
        group = self.groups(len(x), label)
        if self.num_classes:
            drop = torch.rand(len(x), device=x.device) < self.label_dropout
            group = torch.where(drop, self.num_classes, group)
        mean, log_variance = self.net.encode(x)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)  # (B, d)
        out = self.net.decode(z, group)
        nll = self.net.observation.nll(out, x)  # (B,)
        kl = kl_standard_normal(mean, log_variance)  # (B, d)
        weight = min(1.0, (self.step + 1) / self.kl_warmup) if self.kl_warmup else 1.0
        loss = nll + weight * self.beta * kl.clamp(min=self.free_bits).sum(1)
        mse = (self.net.observation.mean(out) - x).square().flatten(1).mean(1)
        return loss / self.spec.dims, {"nll": nll, "kl": kl.sum(1), "mse": mse}

    # --- roles ------------------------------------------------------------------------------------

    @property
    def _eval_net(self) -> ConvVAENet:
        return cast(ConvVAENet, self.sampling_net)

    @torch.no_grad()
    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance (B, d) of q(z | x) for images x (B, C, *S) in [-1, 1]."""
        self.spec.check(x, "images to encode")
        with evaluating(self._eval_net) as net:
            found = [net.encode(part.to(self.device)) for part in x.split(CHUNK)]
        return torch.cat([m for m, _ in found]), torch.cat([v for _, v in found])

    def encode(self, x: Tensor) -> Tensor:
        """Posterior mean (B, d) of images x (B, C, *S) in [-1, 1]."""
        return self.posterior(x)[0]

    @torch.no_grad()
    def decode(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """E[x | z], the mean of p(x | z), (B, C, *S) in [-1, 1], of latents z (B, d)."""
        if z.ndim != 2 or z.shape[1] != self.latent:
            raise VerisimError(
                f"Latents of shape {tuple(z.shape)}; this model takes (B, {self.latent}), as encode() gives."
            )
        group = self.groups(len(z), self.check_condition(len(z), condition))
        images = torch.empty(len(z), *self.spec.shape, device=self.device)
        with evaluating(self._eval_net) as net:
            for i in range(0, len(z), CHUNK):
                part = slice(i, i + CHUNK)
                images[part] = net.observation.mean(net.decode(z[part].to(self.device), group[part]))
        return images

    @torch.no_grad()
    def sample(
        self, n: int, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """n images (n, C, *S) in [-1, 1]: the mean of p(x | z), or a draw from it with options.noise.

        z comes from options.prior. condition None means "no class" on a conditional model.
        """
        check_temperature(self.options.temperature)
        generator = generator or fresh_generator()
        prior = self.density.resolve(self.options.prior)
        condition = self.check_condition(n, condition)
        z = self.density.sample(prior, self.groups(n, condition), generator, self.options.temperature)
        images = self.decode(z, condition)
        if self.options.noise:
            images = self._eval_net.observation.noisy(images, generator)
        return images

    @torch.no_grad()
    def bits_per_dim(
        self, x: Tensor, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Upper bound (B,), float64, on the bits per dimension of 8-bit images x (B, C, *S) in [-1, 1].

        Importance-weighted bound with K = options.importance_samples under options.prior; images are
        rounded to 256 grey values. VerisimError for likelihood "bce", which defines no probability.
        """
        self.spec.check(x, "images to score")
        if self.options.importance_samples < 1:
            raise VerisimError(f"importance_samples={self.options.importance_samples}: it must be 1 or more.")
        generator = generator or fresh_generator()
        prior = self.density.resolve(self.options.prior)
        group = self.groups(len(x), self.check_condition(len(x), condition))
        found = [
            self._log_bound(part.to(self.device), g, prior, generator)
            for part, g in zip(x.split(CHUNK), group.split(CHUNK))
        ]
        return -torch.cat(found) / (self.spec.dims * math.log(2))

    def _log_bound(self, x: Tensor, group: Tensor, prior: str, generator: torch.Generator) -> Tensor:
        """log 1/K sum_k p(x | z_k) p(z_k) / q(z_k | x), float64 (B,)."""
        weights = []
        with evaluating(self._eval_net) as net:
            mean, log_variance = net.encode(x)
            for _ in range(self.options.importance_samples):
                eps = torch.randn(mean.shape, generator=generator, device=generator.device).to(x.device)
                z = mean + (0.5 * log_variance).exp() * eps
                log_px = net.observation.log_prob(net.decode(z, group), x)
                log_pz = self.density.log_density(prior, group, z)
                weights.append(log_px + log_pz - normal_log_density(z, mean, log_variance))
        return importance_bound(torch.stack(weights))

    # --- after training ---------------------------------------------------------------------------

    @torch.no_grad()
    def finalise(self, x: Tensor, label: Tensor | None) -> None:
        """Fit the ex-post density, and sigma where it is in closed form, to training images (N, C, *S).

        A conditional model gets a density per class where there are images enough, else the joint one.
        A single image has no density: then the model keeps N(0, I).
        """
        if len(x) < 2:
            return
        mean, log_variance = self.posterior(x)
        self.density.fit(mean, log_variance.exp(), label if self.num_classes else None)
        generator = torch.Generator().manual_seed(0)
        z = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=generator).to(mean.device)
        seen = self.decode(z, label if self.num_classes else None)
        self._eval_net.observation.calibrate((seen - x.to(self.device)).square().mean())

    def extra_state(self) -> dict[str, Tensor]:
        """The ex-post density, stored beside the weights."""
        return self.density.state()

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take back what extra_state() gave; CheckpointError if it does not fit."""
        self.density.load(state)

"""The fully connected VAE of source 004 section 3 V (X-V0), kept as the baseline that it is.

A flat network on all pixels has no idea of translation and blurs towards the mean image. Settings
default to the source's own (batch 128, 128 px, 50 epochs belong to its trainer); `loss_reduction`,
`clamp_log_variance` and `kl_warmup` mend what can be mended without changing the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models.autoencoders.gaussian import (
    CHUNK,
    LOG_VARIANCE_RANGE,
    check_temperature,
    evaluating,
    fresh_generator,
    kl_standard_normal,
)
from verisim.models.base import GenerativeModel, Loss, SamplingOptions


@dataclass(frozen=True)
class MLPVAEOptions(SamplingOptions):
    """Sampling options of the fully connected VAE."""

    temperature: float = 1.0  # standard deviation of z


def stack(before: int, hidden: int, layers: int) -> nn.Sequential:
    """`layers` linear layers of width `hidden`, LeakyReLU(0.2) after each."""
    sizes = [before] + [hidden] * layers
    modules: list[nn.Module] = []
    for a, b in pairwise(sizes):
        modules += [nn.Linear(a, b), nn.LeakyReLU(0.2)]
    return nn.Sequential(*modules)


class MLPVAENet(nn.Module):
    """Encoder P -> H -> ... -> (mu, log s^2); decoder d -> H -> ... -> P logits, P = C prod(S)."""

    def __init__(self, pixels: int, hidden: int, layers: int, latent: int, embed: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, embed) if classes else None
        extra = embed if classes else 0
        self.encoder = stack(pixels, hidden, layers)
        self.to_mean = nn.Linear(hidden, latent)
        self.to_log_variance = nn.Linear(hidden, latent)
        self.decoder = stack(latent + extra, hidden, layers)
        self.to_pixels = nn.Linear(hidden, pixels)

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:  # (B, P) -> (B, d), (B, d)
        h = self.encoder(pixels)
        return self.to_mean(h), self.to_log_variance(h)

    def decode(self, z: Tensor, label: Tensor | None) -> Tensor:  # (B, d) -> logits (B, P)
        if self.embedding is not None:
            if label is None:  # the average class
                mean = self.embedding.weight.mean(0, keepdim=True).expand(len(z), -1)
                z = torch.cat([z, mean], dim=1)
            else:
                z = torch.cat([z, self.embedding(label)], dim=1)
        return self.to_pixels(self.decoder(z))


class MLPVAE(GenerativeModel):
    """VAE of linear layers on images (B, C, *S) of any size and rank.

    Images in [-1, 1] are mapped to [0, 1] for the cross-entropy, and samples back: (x + 1) / 2 and
    2 p - 1. Cross-entropy on grey values is no likelihood, so there are no bits per dimension.
    """

    family = "vae"
    Options = MLPVAEOptions
    options: MLPVAEOptions
    net: MLPVAENet

    def __init__(
        self,
        spec: ImageSpec,
        num_classes: int = 0,
        *,
        hidden: int = 400,  # H, width of every hidden layer
        layers: int = 4,  # hidden layers in the encoder and in the decoder (source: 3 at 32 px)
        latent: int = 200,  # d
        embed: int = 32,  # length of a class embedding
        lr: float = 1e-4,  # Adam learning rate
        loss_reduction: Literal["sum", "mean"] = "sum",  # over the batch; sum = source
        clamp_log_variance: bool = False,  # to [-15, 8]; the source does not
        kl_warmup: int = 0,  # steps over which the KL's weight rises from 0 to 1; 0 = source
    ) -> None:
        super().__init__(spec, num_classes)
        if min(hidden, layers, latent) < 1:
            raise VerisimError(
                f"hidden={hidden}, layers={layers}, latent={latent}: each must be 1 or more. "
                f"The source uses 400, 4 and 200."
            )
        self.net = MLPVAENet(spec.dims, hidden, layers, latent, embed, num_classes)
        self.latent = latent
        self.lr = lr
        self.loss_reduction = loss_reduction
        self.clamp_log_variance = clamp_log_variance
        self.kl_warmup = kl_warmup

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net.parameters(), self.lr)

    def posterior(self, net: MLPVAENet, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance (B, d) of q(z | x) for x (B, C, *S) in [-1, 1]."""
        mean, log_variance = net.encode((x.flatten(1) + 1) / 2)
        if self.clamp_log_variance:
            log_variance = log_variance.clamp(*LOG_VARIANCE_RANGE)
        return mean.float(), log_variance.float()

    @property
    def phase(self) -> int:
        """0 while the KL's weight rises, then 1."""
        return int(self.step + 1 >= self.kl_warmup)

    def training_loss(self, x: Tensor, label: Tensor | None) -> Loss:
        """sum over pixels of BCE(p, (x + 1) / 2) + KL(q(z | x) || N(0, I)), in nats (B,).

        loss_reduction "sum" multiplies by B, so that the batch mean taken afterwards is the source's sum.
        """
        label = label if self.num_classes else None
        mean, log_variance = self.posterior(self.net, x)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        logits = self.net.decode(z, label).float()  # (B, P)
        target = ((x.flatten(1) + 1) / 2).clamp(0, 1)
        bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)
        kl = kl_standard_normal(mean, log_variance).sum(1)
        weight = min(1.0, (self.step + 1) / self.kl_warmup) if self.kl_warmup else 1.0
        loss = bce + weight * kl
        mse = (2 * torch.sigmoid(logits) - 1 - x.flatten(1)).square().mean(1)
        parts = {"bce": bce, "kl": kl, "mse": mse}
        return (loss * len(x) if self.loss_reduction == "sum" else loss), parts

    @property
    def _eval_net(self) -> MLPVAENet:
        return cast(MLPVAENet, self.sampling_net)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Posterior mean (B, d) of images x (B, C, *S) in [-1, 1]."""
        self.spec.check(x, "images to encode")
        with evaluating(self._eval_net) as net:
            return torch.cat([self.posterior(net, part.to(self.device))[0] for part in x.split(CHUNK)])

    @torch.no_grad()
    def decode(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """2 p(z) - 1, the mean image (B, C, *S), of latents z (B, d); condition (B,) or None.

        A conditional model decodes without a class by the average class embedding.
        """
        if z.shape[1:] != (self.latent,):
            raise VerisimError(
                f"Latents of shape {tuple(z.shape)}; this model takes (B, {self.latent}), as encode() gives."
            )
        label = self.check_condition(len(z), condition)
        images = torch.empty(len(z), *self.spec.shape, device=self.device)
        with evaluating(self._eval_net) as net:
            for i in range(0, len(z), CHUNK):
                part = slice(i, i + CHUNK)
                logits = net.decode(z[part].to(self.device), None if label is None else label[part])
                images[part] = (2 * torch.sigmoid(logits.float()) - 1).view(-1, *self.spec.shape)
        return images

    @torch.no_grad()
    def sample(
        self, n: int, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """n mean images (n, C, *S) in [-1, 1] for z ~ N(0, temperature^2 I).

        A conditional model asked for no class draws classes uniformly.
        """
        check_temperature(self.options.temperature)
        generator = generator or fresh_generator()
        on = generator.device
        z = torch.randn(n, self.latent, generator=generator, device=on) * self.options.temperature
        condition = self.check_condition(n, condition)
        if self.num_classes and condition is None:
            condition = torch.randint(self.num_classes, (n,), generator=generator, device=on)
        return self.decode(z.to(self.device), condition)

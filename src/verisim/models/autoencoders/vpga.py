"""VPGA, the variational perceptual generative autoencoder (source 001 section 6 S5; Zhang et al. 2019).

Distributions are matched in the latent space: h(z) = Enc(Dec(z)) is to be the identity on N(0, I).

    L = L_rec + alpha L_lr,N + beta L_lr,H + eta L_vrec + eta_kl L_kl

"literal" is the source's text: sums, every loss trains both networks. Its author got noise from it.
"reference" routes gradients as the method's authors do, with means instead of sums:

| loss    | what                                                          | encoder         | decoder |
|---------|---------------------------------------------------------------|-----------------|---------|
| L_rec   | x against Dec(mu)                                             | yes             | yes     |
| L_lr,N  | h(z) against z ~ N(0, I)                                      | outer pass only | no      |
| L_lr,H  | h(z) against z = mu, held constant                            | outer pass only | no      |
| L_vrec  | h(mu) against h(mu + sigma eps), mu constant, per RMS of mu   | through sigma   | yes     |
| L_kl    | KL(q(z | x) || N(0, I))                                       | yes             | no      |
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from verisim.data.spec import ImageSpec
from verisim.models.autoencoders.gaussian import Posterior, frozen
from verisim.models.autoencoders.latent import LatentModel, LatentNet, PriorOptions
from verisim.models.autoencoders.likelihoods import squared_error
from verisim.models.autoencoders.trunk import Trunk, chosen_channels
from verisim.models.base import Loss

LEAST_RMS = 1e-6  # of a latent's mean over the batch; below it the latent carries nothing


class VPGA(LatentModel):
    """VPGA on 2D or 3D images whose sides are 8 pixels or more; samples from N(0, I) by default."""

    Options = PriorOptions

    def __init__(
        self,
        spec: ImageSpec,
        num_classes: int = 0,
        *,
        latent: int = 50,  # d
        routing: Literal["reference", "literal"] = "reference",  # which loss trains which network
        alpha: float = 3e-2,  # weight of L_lr,N (the source states none)
        beta: float = 1e-2,  # weight of L_lr,H (the source drops it)
        eta: float = 1e-2,  # weight of L_vrec
        eta_kl: float = 3e-3,  # weight of L_kl (the source: the same as eta)
        width: int = 32,  # channels of the stem; doubled at every halving
        max_width: int = 256,  # upper bound of channels
        kernel: int = 3,  # of the stride-1 convolutions (source: 4)
        norm: bool = True,  # group norm in the blocks
        embed: int = 32,  # length of a class embedding
        label_dropout: float = 0.1,  # share of training images that are shown without their class
        components: int = 10,  # of the ex-post mixture
        lr: float = 1e-3,  # Adam learning rate
        channels: tuple[int, ...] = (),  # of the trunk, one per halving; empty = by width and max_width
    ) -> None:
        trunk = Trunk(chosen_channels(spec.size, tuple(channels), width, max_width), kernel, norm)
        net = LatentNet(spec, trunk, latent, 2 * latent, num_classes, embed)
        super().__init__(spec, num_classes, net, latent, components, label_dropout, lr)
        self.routing = routing
        self.weights = {"rec": 1.0, "lr_n": alpha, "lr_h": beta, "vrec": eta, "kl_loss": eta_kl}

    def training_loss(self, x: Tensor, label: Tensor | None) -> Loss:
        """The weighted sum (B,) of losses(); logged beside it: rate, distortion, each loss."""
        group = self.training_groups(x, label)
        q = self.net.encode(x)
        losses = self.losses(x, q, group)
        loss = torch.stack([self.weights[name] * value for name, value in losses.items()]).sum(0)
        per_pixel = 8 / self.spec.dims if self.routing == "literal" else 1.0  # from sum / 2 on [0, 1]
        return loss, {"mse": losses["rec"] * per_pixel, **losses, **q.parts()}

    def losses(self, x: Tensor, q: Posterior, group: Tensor) -> dict[str, Tensor]:
        """The five losses by name, each (B,), unweighted; q is the posterior of x."""
        return self._literal(x, q, group) if self.routing == "literal" else self._reference(x, q, group)

    def identity(self, z: Tensor, group: Tensor) -> Tensor:
        """h(z) = mean of Enc(Dec(z)), (B, d)."""
        return self.net.encode(self.net.decode(z, group)).mean

    def _literal(self, x: Tensor, q: Posterior, group: Tensor) -> dict[str, Tensor]:
        z = q.draw()
        prior = torch.randn_like(z)
        return {
            "rec": 0.5 * squared_error(self.net.decode(z, group), x),  # 1/2 ||x_hat - x||^2
            "lr_n": 0.5 * (self.identity(prior, group) - prior).square().sum(1),  # 1/2 ||h(z) - z||^2
            "lr_h": 0.5 * (self.identity(q.mean, group) - q.mean).square().sum(1),
            "vrec": 0.5 * (self.identity(z, group) - z).square().sum(1),  # -log N(z_hat; z, I) + const
            "kl_loss": q.rate(),
        }

    def _reference(self, x: Tensor, q: Posterior, group: Tensor) -> dict[str, Tensor]:
        mean = q.mean.detach()  # z_H
        prior = torch.randn_like(mean)
        noisy = mean + (q.draw() - q.mean)  # sg(mu) + sigma eps
        rms = mean.square().mean(0).sqrt().clamp(min=LEAST_RMS)  # (d,)
        with frozen(self.net.encoder):  # the outer encoder passes gradients on and learns nothing
            spread = (self.identity(mean, group) - self.identity(noisy, group)) / rms
        return {
            "rec": (self.net.decode(q.mean, group) - x).square().flatten(1).mean(1),
            "lr_n": (self._detached_identity(prior, group) - prior).square().mean(1),
            "lr_h": (self._detached_identity(mean, group) - mean).square().mean(1),
            "vrec": spread.square().mean(1),
            "kl_loss": q.rate() / self.latent,
        }

    def _detached_identity(self, z: Tensor, group: Tensor) -> Tensor:
        """h(z) whose gradient reaches the encoder alone."""
        return self.net.encode(self.net.decode(z, group).detach()).mean

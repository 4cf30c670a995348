"""VampPrior: a prior that is the mixture of the encoder's own posteriors at K learned images.

    p(z) = 1/K sum_k q(z | u_k)                                                Tomczak & Welling 2018, eq. 9

The best prior of a VAE is its aggregate posterior, the same mean over all training images; K pseudo-inputs u_k
stand for them and are learned with the encoder. p(z) has no closed-form KL, so the rate is one draw of
log q(z | x) - log p(z), z ~ q(z | x).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from verisim.data.spec import ImageSpec
from verisim.models.autoencoders.gaussian import Posterior, normal_log_density
from verisim.seeding import generator as seeded

SHRINK = 0.98  # of the image that a pseudo-input starts from: tanh reaches -1 and 1 nowhere
SPREAD = 0.05  # standard deviation added to w then, so that equal ones part
MIXED = 8  # training images, one and those nearest to it, whose average a pseudo-input starts from


class PseudoInputs(nn.Module):
    """u_k = tanh(w_k), K images (C, *S) in (-1, 1).

    The source clips w_k to the range of images instead; a pixel that has left it then gets no gradient ever
    again, and most of a medical image is black, at its very end.
    """

    def __init__(self, spec: ImageSpec, count: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(count, *spec.shape))

    def forward(self) -> Tensor:  # (K, C, *S)
        return torch.tanh(self.w)

    @torch.no_grad()
    def start_from(self, x: Tensor, generator: torch.Generator) -> None:
        """Start each from the average of one of the images x (N, C, *S) in [-1, 1] and those nearest to it.

        Not from single images, as the source may: they are stored with the weights, and would be patients' images.
        Nor from averages of any: a component that no posterior is near gets no gradient, and stays where it is.
        """
        x = x.cpu()
        order = torch.randperm(len(x), generator=generator)
        centres = x[order[torch.arange(len(self.w)) % len(x)]]  # each as often as any other or once more
        distance = torch.cdist(centres.flatten(1), x.flatten(1))  # (K, N)
        alike = distance.topk(min(MIXED, len(x)), largest=False).indices  # (K, MIXED)
        start = torch.stack([x[i].mean(0) for i in alike])
        self.w.copy_(torch.atanh(SHRINK * start) + SPREAD * torch.randn(start.shape, generator=generator))


def mixture_log_density(z: Tensor, mixture: Posterior) -> Tensor:
    """log 1/K sum_k N(z; m_k, diag s_k^2) in nats, float64 (B,), of z (B, d)."""
    log_p = normal_log_density(z[:, None], mixture.mean, mixture.log_variance)  # (B, K)
    return log_p.logsumexp(1) - math.log(len(mixture.mean))


def mixture_sample(
    n: int, mixture: Posterior, generator: torch.Generator, temperature: float = 1.0
) -> Tensor:
    """n latents (n, d): a component each, all alike likely, then m_k + temperature s_k eps; on the generator's device."""
    on = generator.device
    k = torch.randint(len(mixture.mean), (n,), generator=generator, device=on)
    eps = torch.randn(n, mixture.mean.shape[1], generator=generator, device=on)
    mean, log_variance = mixture.mean.to(on), mixture.log_variance.to(on)
    return mean[k] + temperature * (0.5 * log_variance[k]).exp() * eps


def sampled_rate(q: Posterior, z: Tensor, mixture: Posterior) -> Tensor:
    """log q(z | x) - log p(z) in nats, float64 (B,), of draws z (B, d) of q: its mean over draws is the KL."""
    return normal_log_density(z, q.mean, q.log_variance) - mixture_log_density(z, mixture)


def mean_rate(q: Posterior, mixture: Posterior, draws: int) -> Tensor:
    """KL(q || p) in nats, float64 (B,), estimated by sampled_rate of draws that are always the same."""
    fixed = seeded("rate", 0)
    return torch.stack([sampled_rate(q, q.placed(fixed), mixture) for _ in range(max(1, draws))]).mean(0)

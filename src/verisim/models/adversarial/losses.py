"""What the two players of a GAN minimise: adversarial losses, diversity terms and gradient penalties.

Scores are logits s (B,), one per image: larger means "real". Every loss is per sample. Sources:
004 section 3 G; non-saturating loss: Goodfellow 2014; hinge: Lim & Ye 2017; R1: Mescheder 2018, eq. 9;
Wasserstein: Arjovsky 2017; its gradient penalty: Gulrajani 2017, eq. 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class AdversarialLoss:
    """A pair of per-sample losses on logits."""

    discriminator: Callable[[Tensor, Tensor], Tensor]  # (real (B,), fake (B,)) -> (B,)
    generator: Callable[[Tensor], Tensor]  # fake (B,) -> (B,)


def _bce(score: Tensor, target: float) -> Tensor:
    """-log p or -log(1 - p) with p = sigmoid(s) in float32, each log clamped at -100 as in BCELoss."""
    with torch.autocast(score.device.type, enabled=False):
        p = torch.sigmoid(score.float())
        return F.binary_cross_entropy(p, torch.full_like(p, target), reduction="none")


# The source's form: saturates at |s| > 17, where sigmoid rounds to 0 or 1 and the gradient to 0.
BCE = AdversarialLoss(
    discriminator=lambda real, fake: _bce(real, 1.0) + _bce(fake, 0.0),
    generator=lambda fake: _bce(fake, 1.0),
)
# The same function without rounding: -log sigmoid(s) = softplus(-s).
SOFTPLUS = AdversarialLoss(
    discriminator=lambda real, fake: F.softplus(-real) + F.softplus(fake),
    generator=lambda fake: F.softplus(-fake),
)
HINGE = AdversarialLoss(
    discriminator=lambda real, fake: F.relu(1 - real) + F.relu(1 + fake),
    generator=lambda fake: -fake,
)
# -discriminator estimates the Wasserstein-1 distance, if D is 1-Lipschitz: see gradient_penalty.
WASSERSTEIN = AdversarialLoss(
    discriminator=lambda real, fake: fake - real,
    generator=lambda fake: -fake,
)

LOSSES = {"bce": BCE, "softplus": SOFTPLUS, "hinge": HINGE, "wasserstein": WASSERSTEIN}


def mean_pairwise_distance(x: Tensor) -> Tensor:
    """2 / (B (B - 1)) sum_{i<j} ||x_i - x_j||_2 of images (B, C, *S), a scalar; 0 for one image."""
    if len(x) < 2:
        return x.new_zeros(())
    return torch.pdist(x.flatten(1).float()).mean()


def unbounded_diversity(fake: Tensor, real: Tensor) -> Tensor:
    """The source's L_div = -(mean pairwise distance): rewards distance without end.

    Its optimum is an image saturated at -1 and 1, and its size grows with sqrt(pixels).
    """
    return -mean_pairwise_distance(fake)


def hinged_diversity(fake: Tensor, real: Tensor) -> Tensor:
    """max(0, d_real - d_fake) / sqrt(C prod S): asks for as much diversity as real images have."""
    pixels = fake[0].numel()
    return F.relu(mean_pairwise_distance(real) - mean_pairwise_distance(fake)) / pixels**0.5


DIVERSITY = {"unbounded": unbounded_diversity, "hinged": hinged_diversity}


def r1_penalty(score: Tensor, real: Tensor) -> Tensor:
    """1/2 ||d s / d x||^2 per real image (B,); `real` (B, C, *S) must require grad and have made `score`."""
    (gradient,) = torch.autograd.grad(score.sum(), real, create_graph=True)
    return 0.5 * gradient.flatten(1).square().sum(1)


def gradient_penalty(score: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """(||d s / d x||_2 - 1)^2 (B,) at x = u real + (1 - u) fake, u ~ U(0, 1) per image of (B, C, *S)."""
    u = torch.rand(len(real), *[1] * (real.ndim - 1), device=real.device)
    x = torch.lerp(fake.detach(), real.detach(), u).requires_grad_()
    (gradient,) = torch.autograd.grad(score(x).sum(), x, create_graph=True)
    return (gradient.float().flatten(1).norm(dim=1) - 1).square()

"""p(x | z): what the decoder's output means, and what it costs to be wrong.

One small module per observation model, each with the same five methods. `out` is the raw decoder
output (B, C, *S), x an image (B, C, *S) in [-1, 1]. Sources: 004 section 3 V; sigma-VAE: Rybkin et al.
2021, eq. 6; discretised logistic: Kingma et al. 2016, section 5.1, and Salimans et al. 2017, eq. 2.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verisim.errors import VerisimError, pick

LEVELS = 256  # grey values of an 8-bit image: x = -1 + 2 k / 255
STEP = 2 / (LEVELS - 1)  # distance between two of them
LEAST_VARIANCE = STEP**2 / 12  # of rounding to them: a smaller sigma would describe nothing real
# how a Gaussian's sigma is found -> initial sigma^2 on the [-1, 1] scale, where 2 is 1/2 on [0, 1]
SIGMAS = {"optimal": 1.0, "learned": 1.0, "fixed": 2.0}


def to_level(x: Tensor) -> Tensor:
    """The nearest of the 256 grey values in [-1, 1]."""
    return (((x + 1) / STEP).round().clamp(0, LEVELS - 1) * STEP - 1).to(x.dtype)


def squared_error(out: Tensor, x: Tensor) -> Tensor:
    """sum over pixels of (x - out)^2 on the [0, 1] grey scale of source 001, (B,): a quarter of ours."""
    return (x.float() - out.float()).square().flatten(1).sum(1) / 4


def log_normal_interval(low: Tensor, high: Tensor) -> Tensor:
    """log(Phi(high) - Phi(low)) for low < high, exact in both tails; infinite ends are allowed."""
    swap = low + high > 0  # use the tail that is small: Phi(b) - Phi(a) = Phi(-a) - Phi(-b)
    low, high = torch.where(swap, -high, low), torch.where(swap, -low, high)
    log_high = torch.special.log_ndtr(high)
    return log_high + torch.log(-torch.expm1(torch.special.log_ndtr(low) - log_high))


def log_laplace_interval(low: Tensor, high: Tensor) -> Tensor:
    """log(F(high) - F(low)) of the Laplace distribution of scale 1 for low < high, exact in both tails.

    F(t) = e^t / 2 for t <= 0 and 1 - e^-t / 2 beyond; infinite ends are allowed.
    """
    swap = low + high > 0  # use the tail that is small, as above
    low, high = torch.where(swap, -high, low), torch.where(swap, -low, high)
    tail = high + torch.log(-torch.expm1(low - high))
    across = torch.log(-torch.expm1(-high) - torch.expm1(low))
    return torch.where(high <= 0, tail, across) - math.log(2)


class Observation(nn.Module):
    """Interface of an observation model."""

    def mean(self, out: Tensor) -> Tensor:
        """E[x | z] (B, C, *S), clamped to [-1, 1]."""
        return out.float().clamp(-1, 1)

    def nll(self, out: Tensor, x: Tensor) -> Tensor:
        """-log p(x | z) in nats per image (B,), as trained."""
        raise NotImplementedError

    def log_prob(self, out: Tensor, x: Tensor) -> Tensor:
        """log P(x | z) of the 8-bit image nearest to x: nats per image, float64 (B,)."""
        raise NotImplementedError

    def noisy(self, mean: Tensor, generator: torch.Generator) -> Tensor:
        """A draw from p(x | z) around `mean`, clamped to [-1, 1]."""
        raise NotImplementedError

    def calibrate(self, mse: Tensor) -> None:
        """Take the mean squared error over the training set, where the model can use it."""


class GaussianObservation(Observation):
    """N(x; out, sigma^2 I) with one sigma for all pixels: the sigma-VAE.

    "optimal": sigma^2 = mean squared error of the batch, the closed-form maximum of the likelihood;
    `variance` remembers it for evaluation. "learned": a free parameter. "fixed": 1/2 on the [0, 1] scale
    of source 001, so that the loss is its sum of squares and a constant. For 8-bit images the density
    is integrated over each grey value's interval, the outermost ones open, which makes bits per
    dimension proper.
    """

    def __init__(self, channels: int, sigma: str = "optimal") -> None:
        super().__init__()
        pick(SIGMAS, sigma, "sigma")
        self.optimal = sigma == "optimal"
        self.learned = sigma == "learned"
        self.variance: Tensor
        self.register_buffer("variance", torch.tensor(SIGMAS[sigma]))  # sigma^2 on the [-1, 1] scale
        if self.learned:
            self.log_variance = nn.Parameter(torch.zeros(()))

    def sigma2(self) -> Tensor:
        """sigma^2 for evaluation, a scalar."""
        return (self.log_variance.exp() if self.learned else self.variance).clamp(min=LEAST_VARIANCE)

    def nll(self, out: Tensor, x: Tensor) -> Tensor:
        square = (x.float() - out.float()).square()  # (B, C, *S)
        variance = self.sigma2()
        if self.optimal and self.training:
            variance = square.mean().clamp(min=LEAST_VARIANCE)
            self.variance.copy_(0.95 * self.variance + 0.05 * variance.detach())
        return 0.5 * (square / variance + (2 * math.pi * variance).log()).flatten(1).sum(1)

    def log_prob(self, out: Tensor, x: Tensor) -> Tensor:
        x, mean, sigma = to_level(x.double()), out.double(), self.sigma2().double().sqrt()
        low = torch.where(x < -1 + STEP / 2, -torch.inf, (x - STEP / 2 - mean) / sigma)
        high = torch.where(x > 1 - STEP / 2, torch.inf, (x + STEP / 2 - mean) / sigma)
        return log_normal_interval(low, high).flatten(1).sum(1)

    def noisy(self, mean: Tensor, generator: torch.Generator) -> Tensor:
        eps = torch.randn(mean.shape, generator=generator, device=generator.device).to(mean.device)
        return (mean + self.sigma2().sqrt() * eps).clamp(-1, 1)

    def calibrate(self, mse: Tensor) -> None:
        if self.optimal:
            self.variance.copy_(mse.clamp(min=LEAST_VARIANCE))


class LaplaceObservation(Observation):
    """Laplace(x; out, b) with one scale b for all pixels: the absolute error, |x - out| / b + log 2 b.

    "optimal": b = mean absolute error of the batch, the closed-form maximum; "learned": a free parameter;
    "fixed": 1 on the [-1, 1] scale, so that the loss is the absolute error and a constant. Bits per dimension as
    for the Gaussian.
    """

    def __init__(self, channels: int, sigma: str = "optimal") -> None:
        super().__init__()
        pick(SIGMAS, sigma, "sigma")
        self.optimal = sigma == "optimal"
        self.learned = sigma == "learned"
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(1.0))
        if self.learned:
            self.log_scale = nn.Parameter(torch.zeros(()))

    def b(self) -> Tensor:
        """The scale for evaluation, a scalar."""
        return (self.log_scale.exp() if self.learned else self.scale).clamp(min=LEAST_VARIANCE**0.5)

    def nll(self, out: Tensor, x: Tensor) -> Tensor:
        error = (x.float() - out.float()).abs()  # (B, C, *S)
        b = self.b()
        if self.optimal and self.training:
            b = error.mean().clamp(min=LEAST_VARIANCE**0.5)
            self.scale.copy_(0.95 * self.scale + 0.05 * b.detach())
        return (error / b + (2 * b).log()).flatten(1).sum(1)

    def log_prob(self, out: Tensor, x: Tensor) -> Tensor:
        x, mean, b = to_level(x.double()), out.double(), self.b().double()
        low = torch.where(x < -1 + STEP / 2, -torch.inf, (x - STEP / 2 - mean) / b)
        high = torch.where(x > 1 - STEP / 2, torch.inf, (x + STEP / 2 - mean) / b)
        return log_laplace_interval(low, high).flatten(1).sum(1)

    def noisy(self, mean: Tensor, generator: torch.Generator) -> Tensor:
        u = torch.rand(mean.shape, generator=generator, device=generator.device).to(mean.device) - 0.5
        return (mean - self.b() * u.sign() * torch.log1p(-2 * u.abs())).clamp(-1, 1)

    def calibrate(self, mse: Tensor) -> None:
        if self.optimal:  # the variance is 2 b^2
            self.scale.copy_((mse / 2).clamp(min=LEAST_VARIANCE).sqrt())


class LogisticObservation(Observation):
    """Logistic distribution around `out`, integrated over each grey value; one learned scale a channel.

    P(k) = S(a) - S(b), a = (x + step/2 - out) / s, b = (x - step/2 - out) / s, open at black and white.
    With S the sigmoid, log(S(a) - S(b)) = log S(a) + log S(-b) + log(1 - e^(b - a)): no cancellation.
    """

    def __init__(self, channels: int, sigma: str = "learned") -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((channels,), math.log(0.1)))

    def scale(self, like: Tensor) -> Tensor:
        return self.log_scale.clamp(-8, 2).exp().to(like.dtype).view(1, -1, *[1] * (like.ndim - 2))

    def _log_prob(self, out: Tensor, x: Tensor) -> Tensor:
        x, s = to_level(x), self.scale(out)
        a, b = (x + STEP / 2 - out) / s, (x - STEP / 2 - out) / s
        black, white = x < -1 + STEP / 2, x > 1 - STEP / 2
        inside = F.logsigmoid(a) + F.logsigmoid(-b) + torch.log(-torch.expm1(-STEP / s))
        edge = torch.where(black, F.logsigmoid(a), F.logsigmoid(-b))
        return torch.where(black | white, edge, inside).flatten(1).sum(1)

    def nll(self, out: Tensor, x: Tensor) -> Tensor:
        return -self._log_prob(out.float(), x.float())

    def log_prob(self, out: Tensor, x: Tensor) -> Tensor:
        return self._log_prob(out.double(), x.double())

    def noisy(self, mean: Tensor, generator: torch.Generator) -> Tensor:
        u = torch.rand(mean.shape, generator=generator, device=generator.device).clamp(1e-6, 1 - 1e-6)
        return (mean + self.scale(mean) * torch.logit(u).to(mean.device)).clamp(-1, 1)


class BernoulliObservation(Observation):
    """Binary cross-entropy on grey values in [0, 1], the source's loss: a score, not a likelihood."""

    def __init__(self, channels: int, sigma: str = "") -> None:
        super().__init__()

    def mean(self, out: Tensor) -> Tensor:
        return 2 * torch.sigmoid(out.float()) - 1

    def nll(self, out: Tensor, x: Tensor) -> Tensor:
        target = ((x.float() + 1) / 2).clamp(0, 1)
        return F.binary_cross_entropy_with_logits(out.float(), target, reduction="none").flatten(1).sum(1)

    def log_prob(self, out: Tensor, x: Tensor) -> Tensor:
        raise VerisimError(
            "Bits per dimension are not defined for likelihood 'bce': cross-entropy on grey values is the "
            "likelihood of black-and-white images only. Train with --model.likelihood sigma or "
            "discretised_logistic."
        )

    def noisy(self, mean: Tensor, generator: torch.Generator) -> Tensor:
        raise VerisimError(
            "Observation noise is not defined for likelihood 'bce': it would make every pixel black or "
            "white. Sample with noise=false, or train with --model.likelihood sigma."
        )


LIKELIHOODS: dict[
    str, type[GaussianObservation | LaplaceObservation | LogisticObservation | BernoulliObservation]
] = {
    "sigma": GaussianObservation,
    "laplace": LaplaceObservation,
    "discretised_logistic": LogisticObservation,
    "bce": BernoulliObservation,
}

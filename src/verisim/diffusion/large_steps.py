"""A variance-preserving chain of a few large steps, for models that draw x0 instead of averaging it.

Denoising diffusion GANs (Xiao 2022), AdaDiff and SynDiff (spec 003, sections 0.2 and 17-D; eq. 17.19 corrected):

    t_i = (i / n)(1 - t_min) + t_min,   alpha_bar(t) = exp(-t^2 (beta_max - beta_min) / 2 - t beta_min)
    beta_i = 1 - alpha_bar(t_i) / alpha_bar(t_{i-1}),   i = 1...n
    x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) eps

Level 0 is the clean image and level n close to N(0, I). t_min = 0 gives eq. 17.19, whose print has the sign of
the beta_min term wrong; 1e-3 is what the published code takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from verisim.diffusion.schedules import check_steps
from verisim.diffusion.stepping import draw_noise, noise_source
from verisim.errors import VerisimError


def step_times(n: int, t_min: float = 1e-3) -> Tensor:
    """t_0...t_n, (n + 1,) float64 from t_min to 1."""
    check_steps(n)
    if not 0 <= t_min < 1:
        raise VerisimError(f"t_min = {t_min:g}: the first time lies in [0, 1), e.g. 0.001.")
    return torch.arange(n + 1, dtype=torch.float64) / n * (1 - t_min) + t_min


def alpha_bars(times: Tensor, beta_min: float = 0.1, beta_max: float = 20.0) -> Tensor:
    """alpha_bar(t) of float64 times in [0, 1], same shape."""
    if not 0 <= beta_min < beta_max:
        raise VerisimError(
            f"beta_min = {beta_min:g}, beta_max = {beta_max:g}: 0 <= beta_min < beta_max is needed, e.g. 0.1 and 20."
        )
    return torch.exp(-0.5 * times**2 * (beta_max - beta_min) - times * beta_min)


@dataclass(frozen=True)
class LargeSteps:
    """The chain: noise levels 0...n with what each step adds, and its exact posterior."""

    n: int = 4  # steps
    beta_min: float = 0.1  # rate of noise at time 0
    beta_max: float = 20.0  # and at time 1
    t_min: float = 1e-3  # time of level 0

    @property
    def beta(self) -> Tensor:
        """(n,) float64: variance that steps 1...n add."""
        bar = alpha_bars(step_times(self.n, self.t_min), self.beta_min, self.beta_max)
        return 1 - bar[1:] / bar[:-1]

    @property
    def alpha_bar(self) -> Tensor:
        """(n + 1,) float64 of levels 0...n; exactly 1 at level 0."""
        return torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - self.beta, 0)])

    def levels(self, steps: int = 0) -> list[int]:
        """Levels of a walk of `steps` steps from n down to 0, evenly spaced; 0 = all n.

        VerisimError where more steps are asked than there are levels.
        """
        steps = steps or self.n
        if not 1 <= steps <= self.n:
            raise VerisimError(
                f"{steps} steps asked of a model trained on {self.n} levels of noise; 1 to {self.n} are possible. "
                f"More need a model trained with more (--model.steps)."
            )
        return [(2 * self.n * (steps - k) + steps) // (2 * steps) for k in range(steps + 1)]

    def noised(self, x0: Tensor, level: Tensor, eps: Tensor) -> Tensor:
        """q(x_i | x0): x0 (B, C, *S) at levels i (B,) with noise eps, same shape."""
        bar = self._wide(self.alpha_bar, level, x0)
        return bar.sqrt().to(x0.dtype) * x0 + (1 - bar).sqrt().to(x0.dtype) * eps

    def stepped(self, x: Tensor, level: Tensor, eps: Tensor) -> Tensor:
        """q(x_i | x_{i-1}): x = x_{i-1} (B, C, *S), levels i = 1...n (B,), noise eps."""
        beta = self._wide(self.beta, level - 1, x)
        return (1 - beta).sqrt().to(x.dtype) * x + beta.sqrt().to(x.dtype) * eps

    def posterior(self, x: Tensor, x0: Tensor, level: Tensor, to: Tensor, eps: Tensor) -> Tensor:
        """A draw of q(x_to | x_level = x, x0); levels `to` < `level`, (B,) each. Exactly x0 where to = 0.

        mean  sqrt(a_s)(1 - a_t/a_s)/(1 - a_t) x0 + sqrt(a_t/a_s)(1 - a_s)/(1 - a_t) x,  a = alpha_bar
        var   (1 - a_s)(1 - a_t/a_s)/(1 - a_t)        (Ho 2020, eq. 7, for any pair of levels s < t)
        """
        t, s = self._wide(self.alpha_bar, level, x), self._wide(self.alpha_bar, to, x)
        new = (1 - t / s) / (1 - t)
        mean = (s.sqrt() * new).to(x.dtype) * x0 + ((t / s).sqrt() * (1 - s) / (1 - t)).to(x.dtype) * x
        return mean + ((1 - s) * new).sqrt().to(x.dtype) * eps

    def told(self, level: Tensor) -> Tensor:
        """What a network is told of levels (B,): 999 times their time, float32 as a step number of 1000."""
        return (999 * step_times(self.n, self.t_min)).to(level.device)[level].float()

    def walk(
        self,
        draw_x0: Callable[[Tensor, Tensor], Tensor],  # (x, levels (B,)) -> an x0 (B, C, *S), drawn
        x: Tensor,  # standard normal noise (B, C, *S)
        steps: int = 0,  # 0 = all levels
        generator: torch.Generator | None = None,
        callback: Callable[[int, int, Tensor, Tensor], None] | None = None,  # (index, level, x, x0)
    ) -> Tensor:
        """x_n -> ... -> x_0: draw x0, then the level below from the posterior; `steps` evaluations."""
        walk = self.levels(steps)
        generator = noise_source(generator, x)
        for i, (t, s) in enumerate(pairwise(walk)):
            level = torch.full((len(x),), t, device=x.device)
            x0 = draw_x0(x, level)
            if callback is not None:
                callback(i, t, x, x0)
            eps = draw_noise(x, generator) if s > 0 else torch.zeros_like(x)
            x = self.posterior(x, x0, level, torch.full_like(level, s), eps)
        return x

    @staticmethod
    def _wide(table: Tensor, level: Tensor, x: Tensor) -> Tensor:
        """table[level] as (B, 1, ..., 1) float64 beside x (B, C, *S)."""
        return table.to(level.device)[level].view(-1, *[1] * (x.ndim - 1))


def step_variance(t: float, k: float, total: float, beta_min: float = 0.1, beta_max: float = 20.0) -> float:
    """gamma_t, the variance that the step from t - k to t of `total` adds. Eq. 17.19 with its signs corrected."""
    rise = (beta_max - beta_min) * (2 * t * k - k * k) / (2 * total**2)
    return 1 - math.exp(-beta_min * k / total - rise)

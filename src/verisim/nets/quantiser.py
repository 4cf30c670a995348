"""Vector quantisation: every latent vector is replaced by the nearest of K learned ones (2D and 3D).

    k = argmin_j |z_e - e_j|,  z_q = e_k,  gradient of z_e := gradient of z_q   (source 001, section 6 S6)

The codebook follows the encoder either by its own loss |sg[z_e] - e|^2, or as a moving average of the
vectors that chose each code (van den Oord et al. 2017, appendix A.1). A code that nothing chooses any
more is dead and is moved onto a vector of the batch. Everything here is float32, also under autocast.
"""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from verisim.errors import VerisimError

ROWS = 2**16  # vectors compared with the codebook at a time; bounds memory
LAPLACE = 1e-5  # pseudo-count of each code in the moving average
RARE = 0.01  # a code with less than this share of the mean usage counts as unused
COLLAPSED = 0.05  # perplexity below this share of K is a collapsed codebook


class Quantised(NamedTuple):
    """What quantising latents (B, D, *G) gives."""

    embedding: Tensor  # (B, D, *G) float32: z_q, with the straight-through gradient
    codes: Tensor  # (B, *G) int64
    commitment: Tensor  # (B,) mean over positions and D of (z_e - sg[e])^2
    codebook: Tensor  # (B,) mean of (sg[z_e] - e)^2; carries no gradient where the codebook is an average


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of non-negative counts (K,): K for equal counts, 1 for a single code."""
    p = counts.double() / counts.double().sum().clamp(min=1e-300)
    return torch.exp(-torch.special.xlogy(p, p).sum())


def used_share(counts: Tensor) -> Tensor:
    """Share of codes that are chosen at least RARE times as often as the average code; counts (K,)."""
    return (counts > RARE * counts.double().mean()).double().mean()


def warn_if_collapsed(counts: Tensor) -> bool:
    """Warn, with the perplexity, if counts (K,) show a codebook of which hardly anything is used."""
    found, k = float(perplexity(counts)), len(counts)
    if found >= COLLAPSED * k:
        return False
    warnings.warn(
        f"The codebook has collapsed: its perplexity is {found:.1f} where {k} codes could give up to {k} "
        f"(below {COLLAPSED:.0%} counts as collapsed), so images share a few codes. Set --model.restart_below "
        "0.03, lower --model.lr, or ask for fewer --model.codes.",
        stacklevel=2,
    )
    return True


class VectorQuantiser(nn.Module):
    """z_e (B, D, *G) -> z_q of the same shape, and its codes; training mode also moves the codebook.

    State beside the codebook: `usage` (K,), how often codes were chosen (running, for reports), and
    `count` (K,), the same but set to the mean for a code that was restarted. With several processes all
    of them see the same sums, and restarts come from the first one's batch.
    """

    def __init__(
        self,
        codes: int,  # K
        dim: int,  # D, length of a code vector
        update: Literal["ema", "loss"] = "ema",  # the codebook follows by moving average, or by gradient
        decay: float = 0.99,  # of the moving averages, per step
        restart_below: float = 0.03,  # share of the mean usage below which a code is dead; 0 = never
    ) -> None:
        super().__init__()
        if codes < 2 or dim < 1 or not 0 <= decay < 1 or not 0 <= restart_below < 1:
            raise VerisimError(
                f"A codebook cannot be built with codes={codes}, dim={dim}, decay={decay:g}, "
                f"restart_below={restart_below:g}: it takes codes >= 2, dim >= 1, 0 <= decay < 1 and "
                "0 <= restart_below < 1. Usual: 512, 32, 0.99, 0.03."
            )
        self.update, self.decay, self.restart_below = update, decay, restart_below
        start = torch.randn(codes, dim)
        self.codebook: Tensor  # (K, D)
        self.count: Tensor  # (K,)
        self.usage: Tensor  # (K,)
        self.total: Tensor  # (K, D) running sum of the vectors that chose each code
        self.started: Tensor  # has the codebook been put among the data?
        if update == "ema":
            self.register_buffer("codebook", start)
            self.register_buffer("total", start.clone())
        else:
            self.codebook = nn.Parameter(start)
        self.register_buffer("count", torch.ones(codes))
        self.register_buffer("usage", torch.zeros(codes))
        self.register_buffer("started", torch.tensor(False))

    @property
    def codes(self) -> int:
        """K."""
        return len(self.codebook)

    def forward(self, z: Tensor) -> Quantised:
        """z (B, D, *G) -> Quantised. In training mode the codebook is updated afterwards."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            flat = z.movedim(1, -1).flatten(0, -2)  # (N, D)
            if self.training and not bool(self.started):
                self._start(flat.detach())
            index = self.nearest(flat)  # (N,)
            e = self.embed(index.view(len(z), *z.shape[2:]))  # (B, D, *G)
            commitment = (z - e.detach()).square().flatten(1).mean(1)
            codebook = (z.detach() - e).square().flatten(1).mean(1)
            if self.training:
                self._follow(flat.detach(), index)
            through = z + (e - z).detach()  # equation: value of e, gradient of z
            return Quantised(through, index.view(len(z), *z.shape[2:]), commitment, codebook)

    @torch.no_grad()
    def nearest(self, flat: Tensor) -> Tensor:
        """Index (N,) of the code nearest to each row of flat (N, D) float32; the first of equals."""
        centre = self.codebook.mean(0)  # an offset shared by all codes then costs no precision
        book = self.codebook - centre  # (K, D)
        square = book.square().sum(1)  # (K,)
        # |z - e|^2 = |z|^2 - 2 z e + |e|^2, of which |z|^2 does not matter for the choice
        found = [torch.addmm(square, part - centre, book.T, alpha=-2).argmin(1) for part in flat.split(ROWS)]
        return torch.cat(found)

    @torch.no_grad()
    def assign(self, z: Tensor) -> Tensor:
        """Codes (B, *G) int64 of latents z (B, D, *G); nothing is updated."""
        with torch.autocast(z.device.type, enabled=False):
            index = self.nearest(z.float().movedim(1, -1).flatten(0, -2))
        return index.view(len(z), *z.shape[2:])

    def embed(self, codes: Tensor) -> Tensor:
        """Code vectors (B, D, *G) float32 of codes (B, *G) int64."""
        return F.embedding(codes, self.codebook).movedim(-1, 1)

    # --- how the codebook follows -----------------------------------------------------------------

    @torch.no_grad()
    def _follow(self, flat: Tensor, index: Tensor) -> None:
        """Moving averages of one batch flat (N, D) with its codes (N,), then restarts.

        A batch with NaN or Inf (a step that training will skip) must not enter the averages for good.
        """
        if float(_over_processes((~torch.isfinite(flat)).any().float())) > 0:
            return
        n = _over_processes(torch.bincount(index, minlength=self.codes).float())  # (K,)
        self.usage.lerp_(n, 1 - self.decay)
        self.count.lerp_(n, 1 - self.decay)  # N_j <- g N_j + (1 - g) n_j
        if self.update == "ema":
            chosen = torch.zeros_like(self.codebook).index_add_(0, index, flat)
            self.total.lerp_(_over_processes(chosen), 1 - self.decay)  # m_j <- g m_j + (1 - g) sum z
            whole = self.count.sum()
            smooth = (self.count + LAPLACE) / (whole + self.codes * LAPLACE) * whole
            self.codebook.copy_(self.total / smooth[:, None])  # e_j = m_j / N_j
        if self.restart_below:
            dead = self.count < self.restart_below * self.count.mean()
            if bool(dead.any()):
                self._restart(dead.nonzero()[:, 0], flat, self.count.mean())

    def _start(self, flat: Tensor) -> None:
        """Put every code on a vector of the first batch."""
        n = _over_processes(torch.tensor(float(len(flat)), device=flat.device))
        self._restart(torch.arange(self.codes, device=flat.device), flat, n / self.codes)
        self.started.fill_(True)

    @torch.no_grad()
    def _restart(self, which: Tensor, flat: Tensor, count: Tensor) -> None:
        """Move codes `which` (M,) onto random vectors of flat (N, D), as if each had been chosen `count` times."""
        enough = len(flat) >= len(which)
        pick = torch.randperm(len(flat))[: len(which)] if enough else torch.randint(len(flat), which.shape)
        vectors = flat[pick.to(flat.device)]  # (M, D)
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(vectors, 0)
        self.codebook[which] = vectors
        self.count[which] = count
        if self.update == "ema":
            self.total[which] = vectors * count


def _over_processes(x: Tensor) -> Tensor:
    """The sum of x over all training processes."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
    return x

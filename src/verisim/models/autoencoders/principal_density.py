"""Ex-post density of many latents: full covariance in the principal directions, exact variances elsewhere.

A d x d covariance of 8,192 latents would weigh 268 MB, most of it unknowable from a few thousand images.
Written as factors it is small (source 001 section 6 S2, "PCA-Gaussian"):

    z = c + U (m_k + L_k eps) + diag(v)^(1/2) eps'

U (d, r): the leading eigenvectors of the latents' covariance; m_k, L_k: mean and Cholesky factor of one
Gaussian or mixture component in these r coordinates; v: what is left of each latent's variance, plus its
average posterior variance. Over all images every marginal variance is exact; what is approximate at r
below d and N - 1 is that the remainder is taken as uncorrelated.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from verisim.models.autoencoders.density import LEAST_PER_LATENT, RIDGE, ExPostDensity, mixture_shares

RANK = 256  # principal directions
DENSE_LATENTS = 512  # up to here the covariance is kept whole


def latent_density(latent: int, components: int, num_classes: int = 0) -> ExPostDensity:
    """The ex-post density that suits `latent` dimensions."""
    if latent <= DENSE_LATENTS:
        return ExPostDensity(latent, components, num_classes)
    return PrincipalDensity(latent, components, num_classes)


class PrincipalDensity(ExPostDensity):
    """One Gaussian and one mixture per group in r = min(rank, d) principal coordinates.

    All groups share the directions U; a class of fewer than LEAST_PER_LATENT * r images takes the density
    of all images. The mixture divides as many leading coordinates as there are images for.
    """

    def __init__(self, latent: int, components: int, num_classes: int = 0, rank: int = RANK) -> None:
        self.rank = min(rank, latent)  # r
        super().__init__(latent, components, num_classes)

    def make_buffers(self) -> None:
        r, k = self.rank, self.components
        self.basis: Tensor
        self.centres: Tensor
        self.rest: Tensor
        self.register_buffer("basis", torch.zeros(self.latent, r))  # U
        self.register_buffer("centres", torch.zeros(self.groups, self.latent))  # c
        self.register_buffer("rest", torch.ones(self.groups, self.latent))  # v
        self.register_buffer("means", torch.zeros(self.groups, k + 1, r))  # m_k
        self.register_buffer("factors", torch.eye(r).repeat(self.groups, k + 1, 1, 1))  # L_k

    # --- fitting ----------------------------------------------------------------------------------

    def _fit_all(self, mean: Tensor, variance: Tensor, label: Tensor | None) -> None:
        self.basis.copy_(principal_directions(mean, self.rank))
        everything = self._fit_group(mean, variance)
        for group, mine in self.members(label, LEAST_PER_LATENT * self.rank):
            one = everything if mine is None else self._fit_group(mean[mine], variance[mine])
            for buffer, value in zip(
                (self.log_weights, self.centres, self.rest, self.means, self.factors), one
            ):
                buffer[group].copy_(value)

    def _fit_group(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, ...]:
        """log weights (K,), centre (d,), rest (d,), means (K + 1, r), factors (K + 1, r, r) of one group."""
        n, r, k = len(mean), self.rank, self.components
        basis = self.basis.double().cpu()
        centre = mean.mean(0)
        score = (mean - centre) @ basis  # (n, r)
        left = (mean - centre) - score @ basis.T  # outside the r directions
        rest = left.square().mean(0) + variance.mean(0) + RIDGE  # (d,)
        q = min(r, max(1, n // (LEAST_PER_LATENT * k)))  # coordinates that the mixture divides
        share = mixture_shares(score[:, :q], k)  # (n, 1 + used)
        log_weights = torch.full((k,), -torch.inf, dtype=torch.float64)
        means = torch.zeros(k + 1, r, dtype=torch.float64)
        whole = score.T @ score / n + RIDGE * torch.eye(r, dtype=torch.float64)
        factors = torch.linalg.cholesky(whole).repeat(k + 1, 1, 1)
        for j in range(1, share.shape[1]):
            w = share[:, j] / share[:, j].sum()
            means[j, :q] = w @ score[:, :q]
            centred = score[:, :q] - means[j, :q]
            covariance = torch.diag(whole.diagonal())
            covariance[:q, :q] = centred.T @ (w[:, None] * centred) + RIDGE * torch.eye(
                q, dtype=torch.float64
            )
            factors[j] = torch.linalg.cholesky(covariance)
            log_weights[j - 1] = share[:, j].mean().log()
        return log_weights, centre, rest, means, factors

    # --- use --------------------------------------------------------------------------------------

    def _place(
        self, group: Tensor, component: Tensor, eps: Tensor, temperature: float, generator: torch.Generator
    ) -> Tensor:
        on = eps.device
        mean, factor = self.means.to(on)[group, component], self.factors.to(on)[group, component]
        inner = temperature * torch.randn(len(group), self.rank, generator=generator, device=on)
        score = mean + torch.einsum("nij,nj->ni", factor, inner)  # (n, r)
        return self.centres.to(on)[group] + score @ self.basis.to(on).T + self.rest.to(on)[group].sqrt() * eps

    def _log_components(self, which: slice, group: Tensor, z: Tensor) -> Tensor:
        """log N(z; c + U m_k, U L_k L_k^T U^T + diag v), (n, K), by the Woodbury identity."""
        basis, rest = self.basis.double(), self.rest.double()[group]  # (d, r), (n, d)
        mean, factor = self.means.double()[:, which][group], self.factors.double()[:, which][group]
        offset = z - self.centres.double()[group]  # (n, d)
        found = []
        for i in range(len(z)):  # one image at a time: r x r systems per component
            weighted = basis / rest[i, :, None]  # V^-1 U
            gram = basis.T @ weighted  # U^T V^-1 U
            loading = gram @ factor[i]  # (K, r, r)
            inner = torch.eye(self.rank, dtype=z.dtype, device=z.device) + factor[i].mT @ loading
            chol = torch.linalg.cholesky(inner)
            difference = offset[i] - mean[i] @ basis.T  # (K, d)
            projected = (difference @ weighted)[:, None] @ factor[i]  # (K, 1, r)
            white = torch.linalg.solve_triangular(chol, projected.mT, upper=False)
            square = (difference.square() / rest[i]).sum(1) - white.square().sum((1, 2))
            log_det = rest[i].log().sum() + 2 * chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            found.append(-0.5 * (square + log_det + self.latent * math.log(2 * math.pi)))
        return torch.stack(found)


def principal_directions(points: Tensor, rank: int) -> Tensor:
    """Orthonormal directions (d, rank) of largest variance of points (n, d); zero columns beyond n - 1."""
    centred = points - points.mean(0)
    n, d = centred.shape
    basis = torch.zeros(d, rank, dtype=points.dtype)
    r = min(rank, n - 1, d)
    if n < d:  # eigenvectors of the smaller Gram matrix, mapped back
        values, vectors = torch.linalg.eigh(centred @ centred.T)
        found = centred.T @ vectors.flip(1)[:, :r]
        norms = found.norm(dim=0)
        basis[:, :r] = torch.where(norms > 1e-9 * max(1.0, float(values[-1]) ** 0.5), found / norms, 0.0)
    else:
        basis[:, :r] = torch.linalg.eigh(centred.T @ centred)[1].flip(1)[:, :r]
    return basis

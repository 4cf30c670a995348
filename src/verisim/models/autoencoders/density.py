"""Ex-post density: what the latents of the training images look like once the VAE is trained.

Samples of N(0, I) fall where no training image was encoded whenever the aggregate posterior
1/N sum_i q(z | x_i) is not N(0, I). A full-covariance Gaussian or Gaussian mixture fitted to it
afterwards is a better prior (source 001 section 6 S2; Ghosh et al. 2020, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from verisim.errors import CheckpointError, VerisimError

RIDGE = 1e-6  # added to every variance
LEAST_PER_LATENT = 3  # images per latent dimension and mixture component, else fewer components


class ExPostDensity(nn.Module):
    """One Gaussian and one mixture per group, in buffers whose shapes never change.

    Groups are the classes 0 ... num_classes - 1 and, last, all images together. A class of fewer
    images than it takes for a Gaussian takes the density of all images.
    """

    def __init__(self, latent: int, components: int, num_classes: int = 0) -> None:
        super().__init__()
        self.latent, self.components, self.groups = latent, components, num_classes + 1
        self.fitted: Tensor
        self.log_weights: Tensor
        self.means: Tensor
        self.factors: Tensor
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        # component 0 is the single Gaussian, 1 ... K the mixture
        self.register_buffer("log_weights", torch.full((self.groups, components), -math.log(components)))
        self.make_buffers()

    def make_buffers(self) -> None:
        """Register means and covariance factors of every group and component."""
        shape = (self.groups, self.components + 1)
        self.register_buffer("means", torch.zeros(*shape, self.latent))
        self.register_buffer("factors", torch.eye(self.latent).repeat(*shape, 1, 1))  # Cholesky, lower

    # --- fitting ----------------------------------------------------------------------------------

    @torch.no_grad()
    def fit(self, mean: Tensor, variance: Tensor, label: Tensor | None = None) -> None:
        """Fit to posteriors N(mean_i, diag variance_i), both (N, d); label (N,) or None.

        Component covariances are those of the means plus the average posterior variance: the exact
        second moment of the aggregate posterior. Components are dropped (weight 0) where there are fewer
        than LEAST_PER_LATENT * d images for each. Deterministic.
        """
        if len(mean) < 2 or not (torch.isfinite(mean).all() and torch.isfinite(variance).all()):
            raise VerisimError(
                f"A latent density needs at least 2 images with finite latents, got {len(mean)}. "
                f"Sample with prior=normal instead, or train on more images."
            )
        self._fit_all(mean.double().cpu(), variance.double().cpu(), label)
        self.fitted.fill_(True)

    def members(self, label: Tensor | None, least: int) -> Iterator[tuple[int, Tensor | None]]:
        """(group, which images (N,)) for every group; None = all images, also for groups under `least`."""
        for group in range(self.groups):
            mine = (label == group).cpu() if label is not None and group < self.groups - 1 else None
            yield group, mine if mine is not None and int(mine.sum()) >= least else None

    def _fit_all(self, mean: Tensor, variance: Tensor, label: Tensor | None) -> None:
        everything = self._fit_group(mean, variance)
        for group, mine in self.members(label, LEAST_PER_LATENT * self.latent):
            one = everything if mine is None else self._fit_group(mean[mine], variance[mine])
            for buffer, value in zip((self.log_weights, self.means, self.factors), one):
                buffer[group].copy_(value)

    def _fit_group(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, ...]:
        """log weights (K,), means (K + 1, d) and Cholesky factors (K + 1, d, d) of one group."""
        share = mixture_shares(mean, self.components)
        d = self.latent
        log_weights = torch.full((self.components,), -torch.inf, dtype=torch.float64)
        means = torch.zeros(self.components + 1, d, dtype=torch.float64)
        factors = torch.eye(d, dtype=torch.float64).repeat(self.components + 1, 1, 1)
        for j in range(share.shape[1]):
            w = share[:, j] / share[:, j].sum()
            means[j] = w @ mean
            centred = mean - means[j]
            covariance = centred.T @ (w[:, None] * centred) + torch.diag(w @ variance + RIDGE)
            factors[j] = torch.linalg.cholesky(covariance)
            if j > 0:
                log_weights[j - 1] = share[:, j].mean().log()
        return log_weights, means, factors

    # --- use --------------------------------------------------------------------------------------

    def resolve(self, prior: str) -> str:
        """'auto' -> 'mixture' if fitted, else 'normal'; VerisimError for a density not fitted yet."""
        if prior == "auto":
            return "mixture" if bool(self.fitted) else "normal"
        if prior not in ("normal", "gaussian", "mixture"):
            raise VerisimError(f"Unknown prior '{prior}'. Known: auto, gaussian, mixture, normal.")
        if prior != "normal" and not bool(self.fitted):
            raise VerisimError(
                f"prior={prior} needs the latent density that is fitted when training ends, and this model "
                f"has none yet. Let the training finish, or sample with prior=normal."
            )
        return prior

    def sample(
        self, prior: str, group: Tensor, generator: torch.Generator, temperature: float = 1.0
    ) -> Tensor:
        """Latents (n, d) for groups (n,) int64, on the generator's device; prior already resolved."""
        on = generator.device
        eps = temperature * torch.randn(len(group), self.latent, generator=generator, device=on)
        if prior == "normal":
            return eps
        group = group.to(on)
        if prior == "mixture" and len(group):
            weights = self.log_weights.to(on)[group].exp()  # (n, K)
            component = 1 + torch.multinomial(weights, 1, generator=generator).flatten()
        else:
            component = torch.zeros_like(group)
        return self._place(group, component, eps, temperature, generator)

    def _place(
        self, group: Tensor, component: Tensor, eps: Tensor, temperature: float, generator: torch.Generator
    ) -> Tensor:
        """Noise eps (n, d) made into latents of these groups and components (n,)."""
        mean, factor = self.means.to(eps.device), self.factors.to(eps.device)
        return mean[group, component] + torch.einsum("nij,nj->ni", factor[group, component], eps)

    def log_density(self, prior: str, group: Tensor, z: Tensor) -> Tensor:
        """log p(z) in nats, float64 (n,), of z (n, d) for groups (n,); prior already resolved."""
        z = z.double()
        if prior == "normal":
            return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
        if prior == "gaussian":
            return self._log_components(slice(0, 1), group, z)[:, 0]
        return (self._log_components(slice(1, None), group, z) + self.log_weights.double()[group]).logsumexp(
            1
        )

    def _log_components(self, which: slice, group: Tensor, z: Tensor) -> Tensor:
        """log N(z; m_k, L_k L_k^T) in nats, float64 (n, K), of the components `which`."""
        factor = self.factors.double()[:, which][group]  # (n, K, d, d)
        offset = z[:, None] - self.means.double()[:, which][group]  # (n, K, d)
        white = torch.linalg.solve_triangular(factor, offset[..., None], upper=False)[..., 0]
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (n, K)
        return -0.5 * (white.square() + math.log(2 * math.pi)).sum(-1) - log_det

    # --- storage ----------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """All buffers by name."""
        return {name: buffer.clone() for name, buffer in self.named_buffers()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take back what state() gave; CheckpointError if names or shapes differ."""
        mine = dict(self.named_buffers())
        got = {name: tuple(t.shape) for name, t in state.items()}
        want = {name: tuple(t.shape) for name, t in mine.items()}
        if got != want:
            raise CheckpointError(
                f"The stored latent density does not fit this model: expected {want}, got {got}. The weights "
                f"belong to other settings (latent, components or number of classes)."
            )
        for name, buffer in mine.items():
            buffer.copy_(state[name])


def mixture_shares(points: Tensor, components: int) -> Tensor:
    """Responsibilities (n, 1 + K') of points (n, q), float64: first the single Gaussian's, all ones.

    K' is `components`, or fewer where there are not LEAST_PER_LATENT * q points for each. Deterministic.
    """
    from sklearn.mixture import GaussianMixture

    n, q = points.shape
    share = torch.ones(n, 1, dtype=torch.float64)
    k = max(1, min(components, n // (LEAST_PER_LATENT * q)))
    if k == 1:
        return share.repeat(1, 2)
    mixture = GaussianMixture(k, covariance_type="full", reg_covar=1e-4, random_state=0)
    found = torch.from_numpy(mixture.fit(points.numpy()).predict_proba(points.numpy()))
    return torch.cat([share, found], dim=1)

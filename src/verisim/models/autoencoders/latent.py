"""What every autoencoder with a continuous latent shares: network, roles, and sampling from a latent density.

A model with a posterior q(z | x) = N(mean, diag variance), a decoder p(x | z) and a prior p(z): N(0, I), the
mixture of posteriors that it was trained with (vamp_prior.py), or the density of the training images'
latents, fitted once training ends. A subclass writes its constructor and `training_loss`; latents are flat
vectors (B, d) throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError, pick
from verisim.models.autoencoders.gaussian import (
    CHUNK,
    PointPosterior,
    Posterior,
    check_temperature,
    evaluating,
    fresh_generator,
    importance_bound,
    normal_log_density,
)
from verisim.models.autoencoders.likelihoods import LIKELIHOODS
from verisim.models.autoencoders.principal_density import latent_density
from verisim.models.autoencoders.trunk import Decoder, Encoder, Trunk, coarsest_grid, whole_maps
from verisim.models.autoencoders.vamp_prior import (
    PseudoInputs,
    mean_rate,
    mixture_log_density,
    mixture_sample,
    sampled_rate,
)
from verisim.models.base import Loss, SamplingOptions
from verisim.models.classes import NullClass


@dataclass(frozen=True)
class LatentOptions(SamplingOptions):
    """Sampling options of autoencoders with a continuous latent."""

    temperature: float = 1.0  # factor on the standard deviation of the latent
    # where latents come from; auto = vamp if trained with it, else the fitted mixture if there is one, else N(0, I)
    prior: Literal["auto", "normal", "gaussian", "mixture", "vamp"] = "auto"
    noise: bool = False  # add the observation noise of p(x | z); else its mean
    importance_samples: int = 16  # K of the bound behind bits per dimension


@dataclass(frozen=True)
class PriorOptions(LatentOptions):
    """The same, for models whose training makes samples of N(0, I) good: that is their default."""

    prior: Literal["auto", "normal", "gaussian", "mixture", "vamp"] = "normal"


class LatentNet(nn.Module):
    """Encoder, decoder with class embedding, and observation model."""

    def __init__(
        self,
        spec: ImageSpec,
        trunk: Trunk,
        latent: int,  # d
        outputs: int,  # numbers that the encoder gives
        num_classes: int,  # 0 = unconditional
        embed: int,  # length of a class embedding
        likelihood: str = "sigma",  # key of LIKELIHOODS
        sigma: str = "optimal",  # key of SIGMAS
        posterior: type[Posterior] = Posterior,  # how the encoder's outputs are read
        pseudo_inputs: int = 0,  # K of the VampPrior; 0 = the prior is N(0, I)
    ) -> None:
        super().__init__()
        self.posterior = posterior
        self.embedding = nn.Embedding(num_classes + 1, embed) if num_classes else None  # last: no class
        # a 1x1 convolution sees the class at every position of the grid
        grid = coarsest_grid(spec.size, len(trunk.channels))
        if trunk.head == "conv":
            whole_maps(latent, grid, "latent")
        self.repeat = 1 if trunk.head == "dense" else math.prod(grid)
        extra = embed * self.repeat if num_classes else 0
        shape = (spec.size, spec.channels, trunk.channels)
        self.encoder = Encoder(*shape, outputs, trunk.kernel, trunk.norm, trunk.head)
        self.decoder = Decoder(*shape, latent + extra, trunk.kernel, trunk.norm, trunk.head)
        self.observation = pick(LIKELIHOODS, likelihood, "likelihood")(spec.channels, sigma)
        self.pseudo = PseudoInputs(spec, pseudo_inputs) if pseudo_inputs else None

    def encode(self, x: Tensor) -> Posterior:  # (B, C, *S) -> means and log variances (B, d)
        return self.posterior.from_features(self.encoder(x))

    def mixture(self) -> Posterior:  # q(z | u_k) of the pseudo-inputs: means and log variances (K, d)
        assert self.pseudo is not None
        return self.encode(self.pseudo())

    def decode(self, z: Tensor, group: Tensor) -> Tensor:  # (B, d), (B,) -> raw output (B, C, *S)
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(group).repeat_interleave(self.repeat, dim=1)], dim=1)
        return self.decoder(z)


class LatentModel(NullClass):
    """Base of autoencoders with a continuous latent. Roles: Sampler, Autoencoder, Likelihood.

    Class-conditional by an embedding in the decoder; labels are dropped at rate `label_dropout`, so that
    "no class" is a class of its own (condition None).
    """

    family = "vae"
    Options = LatentOptions
    options: LatentOptions
    net: LatentNet
    likelihood_is_bound = True

    def __init__(
        self,
        spec: ImageSpec,
        num_classes: int,
        net: LatentNet,
        latent: int,  # d
        components: int,  # of the ex-post mixture
        label_dropout: float,  # share of training images that are shown without their class
        lr: float,  # Adam learning rate
    ) -> None:
        super().__init__(spec, num_classes)
        self.net = net
        self.density = latent_density(latent, components, num_classes)
        self.latent = latent
        self.label_dropout = label_dropout
        self.lr = lr

    def optimizer(self) -> torch.optim.Optimizer | list[torch.optim.Optimizer]:
        return torch.optim.Adam(self.net.parameters(), self.lr)

    # --- training ---------------------------------------------------------------------------------

    def negative_elbo(self, x: Tensor, group: Tensor, beta: float, free_bits: float | None = None) -> Loss:
        """-log p(x | z) + beta KL(q(z | x) || p(z)), z ~ q, in nats per image (B,).

        free_bits: nats per latent that cost nothing; None = the exact KL of the posterior to N(0, I).
        """
        q = self.net.encode(x)
        z = q.draw()
        return self.bound(x, q, z, self.net.decode(z, group), beta, free_bits)

    def bound(
        self, x: Tensor, q: Posterior, z: Tensor, out: Tensor, beta: float, free_bits: float | None = None
    ) -> Loss:
        """negative_elbo of images x whose posterior is q, for its draw z (B, d), decoded to `out`, raw (B, C, *S)."""
        nll = self.net.observation.nll(out, x)  # (B,)
        mse = (self.net.observation.mean(out) - x).square().flatten(1).mean(1)
        if self.net.pseudo is not None:
            rate = sampled_rate(q, z, self.net.mixture()).float()  # (B,)
            return nll + beta * rate, {"nll": nll, "mse": mse, **q.parts(rate)}
        rate = q.rate() if free_bits is None else q.kl().clamp(min=free_bits).sum(1)  # (B,)
        return nll + beta * rate, {"nll": nll, "mse": mse, **q.parts()}

    # --- roles ------------------------------------------------------------------------------------

    @property
    def _eval_net(self) -> LatentNet:
        return cast(LatentNet, self.sampling_net)

    @torch.no_grad()
    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance (B, d) of q(z | x) for images x (B, C, *S) in [-1, 1]."""
        self.spec.check(x, "images to encode")
        with evaluating(self._eval_net) as net:
            found = [net.encode(part.to(self.device)) for part in x.split(CHUNK)]
        return torch.cat([q.mean for q in found]), torch.cat([q.log_variance for q in found])

    @torch.no_grad()
    def rate_bits(self, x: Tensor) -> Tensor:
        """(B,) float64 KL(q(z | x) || p(z)) in bits of images x (B, C, *S) in [-1, 1].

        p(z) is the prior of training: N(0, I), or the VampPrior, and then the KL is the mean of
        options.importance_samples draws, always the same.
        """
        self.spec.check(x, "images to encode")
        with evaluating(self._eval_net) as net:
            posteriors = [net.encode(part.to(self.device)) for part in x.split(CHUNK)]
            if net.pseudo is None:
                found = [q.rate().double() for q in posteriors]
            else:
                draws = self.options.importance_samples
                found = [mean_rate(q, net.mixture(), draws) for q in posteriors]
        return torch.cat(found) / math.log(2)

    def encode(self, x: Tensor) -> Tensor:
        """Posterior mean (B, d) of images x (B, C, *S) in [-1, 1]."""
        return self.posterior(x)[0]

    @torch.no_grad()
    def decode(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """E[x | z], the mean of p(x | z), (B, C, *S) in [-1, 1], of latents z (B, d)."""
        return self.decoded(z, condition, lambda net, z, group: net.observation.mean(net.decode(z, group)))

    def resolve_prior(self) -> str:
        """options.prior without "auto"; VerisimError for a prior that this model does not have."""
        asked, vamp = self.options.prior, self.net.pseudo is not None
        if vamp and asked == "normal":
            raise VerisimError(
                "prior=normal: this model was trained with the VampPrior, and N(0, I) is not where its latents "
                "lie. Use prior=vamp (auto means that), gaussian or mixture."
            )
        if asked == "vamp" and not vamp:
            raise VerisimError(
                "prior=vamp: this model has no pseudo-inputs. Train a conv_vae with --model.prior vamp, or use "
                "prior=normal, gaussian or mixture."
            )
        return "vamp" if vamp and asked in ("auto", "vamp") else self.density.resolve(asked)

    @torch.no_grad()
    def sample(
        self, n: int, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """n images (n, C, *S) in [-1, 1]: the mean of p(x | z), or a draw from it with options.noise.

        z comes from options.prior. condition None means "no class" on a conditional model.
        """
        temperature = self.options.temperature
        check_temperature(temperature)
        generator = generator or fresh_generator()
        prior = self.resolve_prior()
        condition = self.check_condition(n, condition)
        if prior == "vamp":
            with evaluating(self._eval_net) as net:
                z = mixture_sample(n, net.mixture(), generator, temperature)
        else:
            z = self.density.sample(prior, self.groups(n, condition), generator, temperature)
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
        rounded to 256 grey values. VerisimError for likelihood "bce" and for a plain autoencoder, which
        define no probability.
        """
        self.spec.check(x, "images to score")
        if self.net.posterior is PointPosterior:
            raise VerisimError(
                "Bits per dimension are not defined for a plain autoencoder: its encoder gives a point, not "
                "a distribution. Train with --model.posterior gaussian."
            )
        if self.options.importance_samples < 1:
            raise VerisimError(f"importance_samples={self.options.importance_samples}: it must be 1 or more.")
        generator = generator or fresh_generator()
        prior = self.resolve_prior()
        group = self.asked_groups(len(x), condition)
        found = [
            self._log_bound(part.to(self.device), g, prior, generator)
            for part, g in zip(x.split(CHUNK), group.split(CHUNK))
        ]
        return -torch.cat(found) / (self.spec.dims * math.log(2))

    def _log_bound(self, x: Tensor, group: Tensor, prior: str, generator: torch.Generator) -> Tensor:
        """log 1/K sum_k p(x | z_k) p(z_k) / q(z_k | x), float64 (B,)."""
        weights = []
        with evaluating(self._eval_net) as net:
            q = net.encode(x)
            mixture = net.mixture() if prior == "vamp" else None
            for _ in range(self.options.importance_samples):
                z = q.placed(generator)
                log_px = net.observation.log_prob(net.decode(z, group), x)
                if mixture is None:
                    log_pz = self.density.log_density(prior, group, z)
                else:
                    log_pz = mixture_log_density(z, mixture)
                weights.append(log_px + log_pz - normal_log_density(z, q.mean, q.log_variance))
        return importance_bound(torch.stack(weights))

    # --- after training ---------------------------------------------------------------------------

    @torch.no_grad()
    def finalise(self, x: Tensor, label: Tensor | None) -> None:
        """Fit the ex-post density, and sigma where it is in closed form, to training images (N, C, *S).

        A conditional model gets a density per class where there are images enough, else the joint one.
        A single image has no density: then the model keeps the prior it was trained with.
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

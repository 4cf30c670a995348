"""One contract per role, so that every evaluation works on every model that plays the role."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Sampler(Protocol):
    """Draws new images."""

    def sample(
        self, n: int, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """n images (n, C, *S) float32 in [-1, 1]; condition (n,) int64 class indices or None."""
        ...


@runtime_checkable
class Autoencoder(Protocol):
    """Maps images to latents and back."""

    def encode(self, x: Tensor) -> Tensor:
        """x (B, C, *S) in [-1, 1] -> latent (B, ...), deterministic (the posterior mean)."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """latent (B, ...) -> image (B, C, *S) in [-1, 1]."""
        ...


@runtime_checkable
class LatentSpace(Autoencoder, Protocol):
    """An autoencoder with a Gaussian posterior over flat latents."""

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, *S) in [-1, 1] -> mean and log variance (B, d) of q(z | x)."""
        ...


@runtime_checkable
class CodeSpace(Autoencoder, Protocol):
    """An autoencoder whose latent is a map of integers."""

    @property
    def codes(self) -> int:
        """K, size of the codebook."""
        ...

    @property
    def grid(self) -> tuple[int, ...]:
        """G, code positions per axis."""
        ...

    def encode_codes(self, x: Tensor) -> Tensor:
        """x (B, C, *S) in [-1, 1] -> codes (B, *G) int64."""
        ...

    def decode_codes(self, codes: Tensor) -> Tensor:
        """codes (B, *G) int64 -> images (B, C, *S) in [-1, 1]."""
        ...

    def reach(self, region: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        """The pixels (first, end) per axis that codes in region (first, end) per axis influence by convolution."""
        ...


@runtime_checkable
class Coder(Protocol):
    """An autoencoder whose latents cost something."""

    def rate_bits(self, x: Tensor) -> Tensor:
        """(B,) bits that the latents of images x (B, C, *S) in [-1, 1] take: KL to the prior, or code length."""
        ...


@runtime_checkable
class Likelihood(Protocol):
    """Gives held-out images a probability."""

    def bits_per_dim(
        self, x: Tensor, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """(B,) bits per dimension of 8-bit images x (B, C, *S) in [-1, 1]; lower is better.

        An upper bound where the class says so in `likelihood_is_bound`.
        """
        ...

    likelihood_is_bound: bool


@runtime_checkable
class Denoiser(Protocol):
    """The heart of every continuous diffusion model, whatever its training target."""

    def denoise(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """E[x0 | x0 + sigma * noise = x]; x (B, C, *S), sigma (B,) -> (B, C, *S)."""
        ...


@runtime_checkable
class Segmenter(Protocol):
    def segment(self, x: Tensor) -> Tensor:
        """x (B, C, *S) in [-1, 1] -> class probabilities (B, K, *S)."""
        ...


@runtime_checkable
class AnomalyDetector(Protocol):
    def anomaly_map(self, x: Tensor) -> Tensor:
        """x (B, C, *S) in [-1, 1] -> non-negative map (B, 1, *S); larger is more abnormal."""
        ...


@runtime_checkable
class Reconstructor(Protocol):
    def reconstruct(self, y: Tensor, operator: object) -> Tensor:
        """measurement y = A(x) + n and its operator of verisim.physics -> x (B, C, *S)."""
        ...


@runtime_checkable
class Translator(Protocol):
    def translate(self, x: Tensor) -> Tensor:
        """image of one modality (B, C, *S) -> image of another (B, C', *S), both in [-1, 1]."""
        ...


@runtime_checkable
class Embedder(Protocol):
    def embed(self, x: Tensor) -> Tensor:
        """x (B, C, *S) in [-1, 1] -> features (B, D)."""
        ...


@runtime_checkable
class SurvivalModel(Protocol):
    def log_hazard(self, x: Tensor) -> Tensor:
        """x (B, C, *S) in [-1, 1] -> relative log hazard (B,)."""
        ...

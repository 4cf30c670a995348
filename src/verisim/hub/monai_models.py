"""MONAI's networks as models: what 'verisim import' writes, and what sample, evaluate, explore and first_stage read.

They cannot be trained on; how they were trained is unknown here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from verisim.data.spec import ImageSpec
from verisim.diffusion.guidance import check_scale
from verisim.diffusion.samplers import SAMPLERS
from verisim.diffusion.schedules import check_steps
from verisim.diffusion.stepping import Callback
from verisim.errors import CheckpointError, VerisimError, pick
from verisim.hub.monai_weights import MonaiAutoencoder, MonaiDiffusion
from verisim.models.base import GenerativeModel, SamplingOptions
from verisim.models.diffusion.first_stage import described_model, trained_model


class MonaiKL(GenerativeModel):
    """An imported AutoencoderKL. Its latent is flat here, (B, d); `stage` has it as maps."""

    family = "vae"
    can_sample = False

    def __init__(
        self,
        spec: ImageSpec,
        num_classes: int = 0,
        *,
        network: Mapping[str, Any],  # AutoencoderKL's arguments
        scale_factor: float = 1.0,  # 1 / standard deviation of the latent
        unit_range: bool = False,  # the network was trained on images in [0, 1]
    ) -> None:
        super().__init__(spec, num_classes)
        self.stage = MonaiAutoencoder(None, network, spec, scale_factor=scale_factor, unit_range=unit_range)
        self.net = self.stage.net

    def encode(self, x: Tensor) -> Tensor:
        """x (B, C, *S) in [-1, 1] -> posterior mean (B, d)."""
        return self.stage.encode(x).flatten(1)

    def decode(self, z: Tensor) -> Tensor:
        """z (B, d) -> images (B, C, *S) in [-1, 1]."""
        return self.stage.decode(z.unflatten(1, self.stage.spec.shape))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, *S) in [-1, 1] -> mean and log variance (B, d) of q(z | x)."""
        mean, log_variance = self.stage.posterior(x)
        return mean.flatten(1), log_variance.flatten(1)

    def sample(
        self, n: int, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """VerisimError: there is nothing to draw its latents from."""
        raise VerisimError(
            "An imported autoencoder has nothing to draw its latents from. Import a U-Net of its latents with "
            "--first_stage, or train one: verisim train 16-J --model.first_stage RUN."
        )


@dataclass(frozen=True)
class MonaiOptions(SamplingOptions):
    """Sampling options of an imported U-Net."""

    sampler: str = "ddim"  # key of verisim.diffusion.samplers.SAMPLERS
    steps: int = 50  # of the training steps, evenly respaced
    guidance: float = 1.0  # classifier-free scale; other than 1 needs null_class
    batch: int = 16  # images denoised at a time

    def __post_init__(self) -> None:
        pick(SAMPLERS, self.sampler, "sampler")
        check_steps(self.steps)
        check_steps(self.batch)
        check_scale("guidance", self.guidance)


class MonaiUNet(GenerativeModel):
    """An imported DiffusionModelUNet, of pixels or of the latent of an imported AutoencoderKL."""

    family = "diffusion"
    Options = MonaiOptions
    options: MonaiOptions

    def __init__(
        self,
        spec: ImageSpec,
        num_classes: int = 0,
        *,
        network: Mapping[str, Any],  # DiffusionModelUNet's arguments
        prediction: str = "epsilon",  # scheduler's prediction_type
        schedule: str = "linear_beta",  # scheduler's
        train_steps: int = 1000,  # scheduler's num_train_timesteps
        beta_start: float = 1e-4,
        beta_end: float = 2e-2,
        null_class: int = -1,  # the class that stands for none; -1 = it was trained without one
        first_stage: str = "",  # imported autoencoder: run or weights file; in a saved model its description
    ) -> None:
        super().__init__(spec, num_classes)
        self.card, stage = None, None
        if first_stage:
            found, self.card = (described_model if first_stage.startswith("{") else trained_model)(
                first_stage
            )
            if not isinstance(found, MonaiKL) or found.spec.shape != spec.shape:
                raise CheckpointError(
                    f"The first stage is a {self.card.model} model of images {found.spec.shape}; a MONAI U-Net takes a "
                    f"monai_autoencoder of {spec.shape}."
                )
            stage = found.stage
        self.inner = MonaiDiffusion(
            None,
            network,
            spec,
            stage=stage,
            prediction=prediction,
            schedule=schedule,
            train_steps=train_steps,
            beta_start=beta_start,
            beta_end=beta_end,
            null_class=None if null_class < 0 else null_class,
        )
        self.net = self.inner.net

    def denoise(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """E[z0 | z0 + sigma eps = x]; see verisim.roles.Denoiser."""
        return self.inner.denoise(x, sigma, condition)

    def sample(
        self,
        n: int,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """n images (n, C, *S) float32 in [-1, 1]."""
        if n < 1:
            raise VerisimError(f"{n} images asked; at least 1 is needed.")
        condition, o, images = self.check_condition(n, condition), self.options, []
        for rows in torch.arange(n).split(o.batch):
            label = None if condition is None else condition[rows.to(condition.device)]
            images.append(
                self.inner.sample(
                    len(rows),
                    label,
                    generator,
                    sampler=o.sampler,
                    steps=o.steps,
                    guidance=o.guidance,
                    callback=callback,
                )
            )
        return torch.cat(images)

    def settings_to_rebuild(self) -> dict[str, Any]:
        """The first stage's description in place of its path."""
        return {} if self.card is None else {"first_stage": self.card.to_json()}

    def extra_state(self) -> dict[str, Tensor]:
        """The weights of the first stage."""
        return {} if self.inner.stage is None else self.inner.stage.state_dict()

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take back what extra_state() gave."""
        if self.inner.stage is not None:
            self.inner.stage.load_state_dict(state)

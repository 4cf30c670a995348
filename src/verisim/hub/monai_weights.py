"""Networks trained with MONAI, in the roles of this package: DiffusionModelUNet and AutoencoderKL.

A weights file knows the shapes of a network but neither its heads nor its norms' groups, so the constructor's
arguments are given beside it, as a bundle's network_def has them. Weights are read from safetensors or torch files,
never from pickled code. What MONAI gets wrong in its schedulers does not matter here: only networks and the noise
levels of training are taken over. hub.monai_models makes models of them that every command knows.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from monai.networks.schedulers.scheduler import NoiseSchedules
from monai.utils.module import OptionalImportError
from torch import Tensor, nn

from verisim.data.spec import ImageSpec
from verisim.diffusion.guidance import classifier_free
from verisim.diffusion.parametrisation import Parametrisation
from verisim.diffusion.samplers import SAMPLERS
from verisim.diffusion.schedules import check_sigma_data, respace
from verisim.diffusion.stepping import Callback, draw_noise, noise_source
from verisim.errors import CheckpointError, VerisimError, nearest, pick
from verisim.hub.tensor_files import read_tensors

PREDICTIONS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}  # MONAI's word -> parametrisation
BETAS = ("linear_beta", "scaled_linear_beta", "sigmoid_beta")

Weights = Path | str | Mapping[str, Tensor] | None  # a file, a state dict, or None: still to come


class MonaiAutoencoder(nn.Module):
    """An AutoencoderKL as a first stage (roles.Autoencoder): z = scale_factor * mean of q(z | x)."""

    def __init__(
        self,
        weights: Weights,
        settings: Mapping[str, Any],  # AutoencoderKL's arguments
        spec: ImageSpec,  # of the images, in [-1, 1]
        *,
        scale_factor: float = 1.0,  # LatentDiffusionInferer's: 1 / standard deviation of the latent
        unit_range: bool = False,  # the network was trained on images in [0, 1]
    ) -> None:
        super().__init__()
        check_sigma_data(scale_factor)
        self.net = _loaded(AutoencoderKL, settings, weights)
        self.image, self.scale_factor, self.unit_range = spec, scale_factor, unit_range
        if (settings["spatial_dims"], settings.get("in_channels", 1)) != (spec.spatial_dims, spec.channels):
            raise VerisimError(
                f"This AutoencoderKL takes {settings['spatial_dims']}D images of {settings.get('in_channels', 1)} "
                f"channel(s), not {spec.spatial_dims}D images of {spec.channels}."
            )
        unit = 2 ** (len(self.net.encoder.channels) - 1)
        if any(s % unit for s in spec.size):
            raise VerisimError(f"Images of {spec.size} cannot be halved to latents: every side must be a multiple of "
                               f"{unit}.")  # fmt: skip
        size = tuple(s // unit for s in spec.size)
        self.spec = replace(spec, channels=self.net.latent_channels, size=size, spacing=None)  # of z

    def encode(self, x: Tensor) -> Tensor:
        """x (B, C, *S) in [-1, 1] -> z (B, C', *S')."""
        return self.posterior(x)[0]

    @torch.no_grad()
    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, *S) in [-1, 1] -> mean and log variance (B, C', *S') of q(z | x)."""
        mean, std = self.net.encode((x + 1) / 2 if self.unit_range else x)
        return self.scale_factor * mean, 2 * (self.scale_factor * std).log()

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """z (B, C', *S') -> images (B, C, *S), clipped to [-1, 1]."""
        x = self.net.decode(z / self.scale_factor)
        return (2 * x - 1 if self.unit_range else x).clamp(-1, 1)


class MonaiDiffusion(nn.Module):
    """A DiffusionModelUNet as a denoiser and a sampler (roles.Denoiser, roles.Sampler) of images or latents.

    denoise works on z: the image itself, or what `stage` makes of it. Without a stage the network must have been
    trained on images in [-1, 1].
    """

    def __init__(
        self,
        weights: Weights,
        settings: Mapping[str, Any],  # DiffusionModelUNet's arguments
        spec: ImageSpec,  # of the images, in [-1, 1]
        *,
        stage: MonaiAutoencoder | None = None,  # None: pixels
        prediction: str = "epsilon",  # scheduler's prediction_type: key of PREDICTIONS
        schedule: str = "linear_beta",  # scheduler's: one of BETAS
        train_steps: int = 1000,  # scheduler's num_train_timesteps
        beta_start: float = 1e-4,
        beta_end: float = 2e-2,
        null_class: int | None = None,  # the class that stands for none, if it was trained with one
    ) -> None:
        super().__init__()
        if settings.get("with_conditioning"):
            raise VerisimError("Networks with cross-attention (with_conditioning) are not taken: nothing here gives "
                               "them their context.")  # fmt: skip
        self.net = _loaded(DiffusionModelUNet, settings, weights)
        self.image, self.stage = spec, stage
        self.spec = spec if stage is None else stage.spec  # of z
        have, want = (
            (settings["spatial_dims"], settings["in_channels"]),
            (self.spec.spatial_dims, self.spec.channels),
        )
        if have != want or settings["out_channels"] != want[1]:
            raise VerisimError(
                f"This DiffusionModelUNet maps {have[0]}D images of {have[1]} to {settings['out_channels']} channel(s); "
                f"here {want[0]}D ones of {want[1]} are denoised."
            )
        self.num_classes = settings.get("num_class_embeds") or 0
        self.null_class = null_class
        self.table = training_table(schedule, train_steps, beta_start, beta_end)
        self.parametrisation = Parametrisation(
            pick(PREDICTIONS, prediction, "prediction type"), 1.0, self.table
        )

    @torch.no_grad()
    def denoise(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """E[z0 | z0 + sigma eps = x]; x (B, C', *S'), sigma (B,), condition (B,) classes."""
        return self.parametrisation.denoise(self._network, x, sigma, condition)

    def _network(self, x: Tensor, step: Tensor, label: Tensor | None) -> Tensor:
        if self.num_classes and label is None:
            if self.null_class is None:
                raise VerisimError(
                    f"This network wants a class: give a condition, 0...{self.num_classes - 1}."
                )
            label = torch.full((len(x),), self.null_class, device=x.device)
        return self.net(x, timesteps=step, class_labels=label if self.num_classes else None)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        condition: Tensor | None = None,  # (n,) classes
        generator: torch.Generator | None = None,
        *,
        sampler: str = "ddim",  # key of SAMPLERS
        steps: int = 50,  # of the training steps, evenly respaced
        guidance: float = 1.0,  # classifier-free scale; other than 1 needs null_class
        callback: Callback | None = None,
    ) -> Tensor:
        """n images (n, C, *S) float32 in [-1, 1]."""
        run = pick(SAMPLERS, sampler, "sampler").run
        sigmas = respace(self.table, steps)
        empty = torch.empty(n, *self.spec.shape, device=next(self.net.parameters()).device)
        generator = noise_source(generator, empty)
        x = float(sigmas[0]) * draw_noise(empty, generator)
        z = run(self._guided(condition, guidance), x, sigmas, generator=generator, callback=callback)
        return z.clamp(-1, 1) if self.stage is None else self.stage.decode(z)

    def _guided(self, condition: Tensor | None, guidance: float) -> Any:
        if guidance == 1 or condition is None:
            return lambda x, sigma: self.denoise(x, sigma, condition)
        if self.null_class is None:
            raise VerisimError(
                f"guidance = {guidance:g} needs a class that stands for none: give null_class, or 1."
            )
        limit = 1.0 if self.stage is None else None
        strong = classifier_free(self.denoise, guidance, self.null_class, limit)
        return lambda x, sigma: strong(x, sigma, condition)


def training_table(schedule: str, train_steps: int, beta_start: float, beta_end: float) -> Tensor:
    """sigma of MONAI's training steps 0...T - 1, (T,) float64 increasing, from its own betas."""
    if schedule not in BETAS:
        why = " Its cosine schedule begins with a step without any noise." if schedule == "cosine" else ""
        raise VerisimError(f"schedule '{schedule}' is not taken; known: {', '.join(BETAS)}.{why}")
    betas = NoiseSchedules[schedule](train_steps, beta_start=beta_start, beta_end=beta_end).double()
    return torch.expm1(-torch.log1p(-betas).cumsum(0)).sqrt()  # sigma^2 = 1 / alpha_bar - 1


def _loaded(kind: type[nn.Module], settings: Mapping[str, Any], weights: Weights) -> Any:
    """A network of `kind` in evaluation mode with these weights; says which setting or tensor does not fit."""
    known = list(inspect.signature(kind.__init__).parameters)[1:]
    given = {k: v for k, v in settings.items() if not k.startswith("_")}  # a bundle's _target_
    odd = [k for k in given if k not in known]
    if odd:
        raise VerisimError(f"MONAI's {kind.__name__} has no setting '{odd[0]}'.{nearest(odd[0], known)}")
    try:
        net = kind(**given)
    except OptionalImportError as error:
        raise VerisimError(
            f"MONAI's {kind.__name__} has attention blocks, which need the package einops: pip install einops."
        ) from error
    except (TypeError, ValueError) as error:
        raise VerisimError(f"MONAI's {kind.__name__} refuses these settings: {error}.") from error
    if isinstance(weights, Mapping):
        fill(net, weights, "The state dict")
    elif weights is not None:
        fill(net, read_tensors(Path(weights)), str(weights))
    return net.eval().requires_grad_(False)


def fill(net: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Put weights into a network; CheckpointError that names the first tensor that does not fit."""
    wanted = net.state_dict()
    wrong = sorted(set(state) ^ set(wanted)) or [k for k in wanted if state[k].shape != wanted[k].shape]
    if wrong:
        raise CheckpointError(
            f"{where} does not fit a {type(net).__name__} of these settings: {len(wrong)} tensors differ, first "
            f"'{wrong[0]}' ({_difference(state.get(wrong[0]), wanted.get(wrong[0]))}). Give the arguments that it was "
            f"trained with (a bundle's network_def)."
        )
    net.load_state_dict({k: v.to(wanted[k].dtype) for k, v in state.items()})


def _difference(have: Tensor | None, want: Tensor | None) -> str:
    if have is None:
        return "missing in the file"
    return "unknown to the network" if want is None else f"{tuple(have.shape)}, not {tuple(want.shape)}"

"""Denoising diffusion in pixel space: DDPM (Ho 2020) to EDM (Karras 2022), in 2D and 3D.

One network F, one parametrisation that makes it a denoiser D(x, sigma), one sampler that walks a noise
schedule. The system of source 004 (section 3 D) is these settings:

    parametrisation "epsilon", noise "vp_linear", sampler "ddpm", schedule "vp_linear", steps 1000,
    channels (128, 128, 256, 256, 512, 512), attention in level 5 of 6, lr 1e-4, warmup 500, cosine_decay
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verisim.data.spec import ImageSpec
from verisim.diffusion.guidance import classifier_free
from verisim.diffusion.likelihood import BIN, variational_bound
from verisim.diffusion.parametrisation import STEP_NUMBERED, Parametrisation
from verisim.diffusion.samplers import SAMPLERS
from verisim.diffusion.schedules import make_sigmas, vp_cosine_table, vp_linear_table
from verisim.diffusion.stepping import Callback, draw_noise, noise_source
from verisim.errors import VerisimError
from verisim.models.base import GenerativeModel, Loss
from verisim.models.diffusion.options import DiffusionOptions, default_options
from verisim.nets.unet import UNet

TABLES: dict[str, Callable[[], Tensor]] = {"vp_linear": vp_linear_table, "vp_cosine": vp_cosine_table}


class DenoisingDiffusion(GenerativeModel):
    """A U-Net denoiser with its training noise and its sampler. Raises VerisimError on bad settings."""

    family = "diffusion"
    Options = DiffusionOptions
    options: DiffusionOptions
    likelihood_is_bound = True

    def __init__(
        self,
        spec: ImageSpec,
        num_classes: int = 0,
        *,
        parametrisation: Literal["edm", "epsilon", "x0", "v", "flow"] = "edm",
        sigma_data: float = 0.5,  # standard deviation of the images in [-1, 1]; 0.5 suits chest X-rays
        noise: Literal["auto", "lognormal", "vp_linear", "vp_cosine", "logit_normal"] = "auto",  # of training
        p_mean: float = -1.2,  # lognormal: mean of ln sigma
        p_std: float = 1.2,  # lognormal: its standard deviation
        min_snr_gamma: float = 0.0,  # min-SNR weighting, e.g. 5; 0 = off
        channels: tuple[int, ...] = (64, 128, 128),  # U-Net width per level, finest first
        blocks: int = 2,  # residual blocks per level
        attention: tuple[bool, ...] = (),  # self-attention per level; () = the coarsest only
        head_channels: int = 32,  # channels per attention head
        skip: Literal["concat", "average"] = "concat",  # "average": fewer operations, less memory
        patch: int = 1,  # pixel patch folded into channels at entry
        checkpointing: bool = False,  # recompute in the backward pass: less memory, a third slower
        dropout: float = 0.0,  # probability inside the residual blocks
        label_dropout: float = 0.1,  # share of labels replaced by the null class in training
        lr: float = 2e-4,  # Adam learning rate
        betas: tuple[float, float] = (0.9, 0.999),  # Adam
        warmup: int = 0,  # steps of linear learning-rate warm-up
        cosine_decay: bool = False,  # learning rate falls to 0 along half a cosine over the run
        sampler: str = "auto",  # default sampling options; "auto" and 0 = by parametrisation
        schedule: str = "auto",
        steps: int = 0,
        clip: Literal["auto", "on", "off"] = "auto",  # clip estimates of x0; "auto" = for epsilon
        bf16_sampling: bool = False,  # network in bfloat16 when sampling; the state stays float32
        likelihood_draws: int = 16,  # noise levels per image in bits_per_dim
        allow_small_features: bool = False,  # permit feature maps below 4 pixels (for demonstrations)
    ) -> None:
        super().__init__(spec, num_classes)
        self.training_noise = _training_noise(noise, parametrisation)
        self.table = TABLES.get(self.training_noise, vp_linear_table)()  # (T,) float64
        self.parametrisation = Parametrisation(parametrisation, sigma_data, self.table)
        self.sigma_data = sigma_data
        self.p_mean, self.p_std = p_mean, p_std
        self.min_snr_gamma = min_snr_gamma
        self.label_dropout = label_dropout
        self.lr, self.betas, self.warmup, self.cosine_decay = lr, betas, warmup, cosine_decay
        self.bf16_sampling = bf16_sampling
        self.likelihood_draws = likelihood_draws
        self.net = UNet(
            spatial_dims=spec.spatial_dims,
            in_channels=spec.channels,
            out_channels=spec.channels,
            channels=tuple(channels),
            blocks=blocks,
            attention=tuple(attention) or None,
            head_channels=head_channels,
            num_classes=num_classes,
            dropout=dropout,
            embedding="sinusoidal" if parametrisation in STEP_NUMBERED else "fourier",
            skip=skip,
            patch=patch,
            checkpointing=checkpointing,
        )
        self.stride = int(self.net.stride)
        if not allow_small_features:
            _check_feature_size(spec.size, self.stride)
        self.options = default_options(parametrisation, self.training_noise, sampler, steps, schedule, clip)

    # --- training ---------------------------------------------------------------------------------

    def training_loss(self, x: Tensor, label: Tensor | None) -> Loss:
        """Weighted denoising error (B,) of images x (B, C, *S); part "sigma" is the noise drawn."""
        label = self._drop_labels(label)
        sigma = self.draw_sigma(len(x)).to(x)  # (B,)
        network = partial(self._network, self.net, nullcontext())
        loss = self.parametrisation.loss(network, x, torch.randn_like(x), sigma, label, self.min_snr_gamma)
        return loss, {"sigma": sigma}

    def draw_sigma(self, n: int) -> Tensor:
        """n noise levels (n,) float64 of the training distribution, stratified over the batch."""
        u = ((torch.arange(n) + torch.rand(n, dtype=torch.float64)) / n).clamp(1e-9, 1 - 1e-9)
        if self.training_noise == "lognormal":  # Karras 2022, table 1
            return torch.exp(self.p_mean + self.p_std * torch.special.ndtri(u))
        if self.training_noise == "logit_normal":  # Esser 2024, eq. 19: t = sigmoid(z), sigma = t / (1 - t)
            return torch.exp(torch.special.ndtri(u))
        return self.table[(u * len(self.table)).long()]  # a training step, uniform

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam over the network."""
        return torch.optim.Adam(self.net.parameters(), lr=self.lr, betas=self.betas)

    def lr_scale(self, step: int, total: int | None) -> float:
        """Linear warm-up, then (if asked, and the length of the run is known) half a cosine to 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if not self.cosine_decay or total is None or total <= self.warmup:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - self.warmup) / (total - self.warmup))))

    # --- denoising, sampling, likelihood ----------------------------------------------------------

    def denoise(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """E[x0 | x0 + sigma eps = x]; x (B, C, *S), sigma (B,), condition (B,) or None = null class."""
        with self._evaluating() as network:
            return self.parametrisation.denoise(network, x, sigma, condition)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """n images (n, C, *S) float32 in [-1, 1]; condition (n,) classes or None = no class.

        `callback` gets a verisim.diffusion.stepping.Step after every denoising (previews).
        """
        if n < 1:
            raise VerisimError(f"{n} images asked; at least 1 is needed.")
        condition = self.check_condition(n, condition)
        generator = noise_source(generator, torch.empty(0, device=self.device))
        sigmas, run = self.sigmas(), self._sampler()
        images = []
        for rows in torch.arange(n).split(self.options.batch):
            label = None if condition is None else condition[rows.to(condition.device)]
            empty = torch.empty(len(rows), *self.spec.shape, device=self.device)
            x = float(sigmas[0]) * draw_noise(empty, generator)
            x = run(self._guided(label), x, sigmas, generator=generator, callback=callback)
            images.append(x.clamp(-1, 1))
        return torch.cat(images)

    def sigmas(self) -> Tensor:
        """The noise schedule of the present sampling options, (steps + 1,) float64."""
        name = self.options.schedule
        if name == "auto":
            name = SAMPLERS[self.options.sampler].schedule
        return make_sigmas(name, self.options.steps, self.sigma_data, self.sigma_max)

    @property
    def sigma_max(self) -> float:
        """The noise level to start from: 160 sigma_data (80 in EDM), within what the network was trained on."""
        top = 160 * self.sigma_data
        return min(top, float(self.table[-1])) if self.training_noise in TABLES else top

    @torch.no_grad()
    def bits_per_dim(
        self, x: Tensor, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """(B,) upper bound in bits per dimension of 8-bit images x (B, C, *S) in [-1, 1]."""
        label = self.check_condition(len(x), condition)
        low = max(BIN, float(self.table[0])) if self.training_noise in TABLES else BIN
        bound = variational_bound(
            lambda y, sigma: self.denoise(y, sigma, label),
            x,
            sigma_data=self.sigma_data,
            sigma_min=low,
            sigma_max=self.sigma_max,
            draws=self.likelihood_draws,
            generator=generator,
        )
        return bound.total.float()

    # --- inside -----------------------------------------------------------------------------------

    def _guided(self, label: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
        """denoise(x, sigma) with class, guidance and clipping."""
        guided = classifier_free(self.denoise, self.options.guidance, self.num_classes)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            x0 = self.denoise(x, sigma) if label is None else guided(x, sigma, label)
            return x0.clamp(-1, 1) if self.options.clip else x0

        return denoise

    def _sampler(self) -> Callable[..., Tensor]:
        o = self.options
        run = SAMPLERS[o.sampler].run
        extra: dict[str, dict[str, float]] = {
            "heun": {"churn": o.churn},
            "ddim": {"eta": o.eta},
            "flow_heun": {"sigma_data": self.sigma_data},
        }
        return partial(run, **extra.get(o.sampler, {}))

    def _network(
        self,
        net: nn.Module,
        precision: AbstractContextManager,
        x: Tensor,  # (B, C, *S)
        c_noise: Tensor,  # (B,)
        label: Tensor | None,  # (B,)
    ) -> Tensor:
        """net on images of any size: padded to its stride by reflection, cropped back; float32."""
        size = x.shape[2:]
        pad = [p for s in reversed(size) for p in (0, -s % self.stride)]  # last dimension first
        if any(pad):
            reflect = all(p < s for p, s in zip(pad[1::2], reversed(size)))
            x = F.pad(x, pad, mode="reflect" if reflect else "replicate")
        with precision:
            f = net(x, c_noise, label)
        return f[(..., *[slice(s) for s in size])].float()

    @contextmanager
    def _evaluating(self) -> Iterator[Callable[..., Tensor]]:
        """The sampling network in evaluation mode, in bfloat16 if so set; its mode is restored."""
        net = self.sampling_net
        was_training = net.training
        net.eval()
        try:
            precision = (
                torch.autocast(self.device.type, torch.bfloat16) if self.bf16_sampling else nullcontext()
            )
            yield partial(self._network, net, precision)
        finally:
            net.train(was_training)

    def _drop_labels(self, label: Tensor | None) -> Tensor | None:
        """Classes with a share replaced by the null class; None for an unconditional model."""
        if self.num_classes == 0 or label is None:
            return None
        drop = torch.rand(len(label)).to(label.device) < self.label_dropout
        return label.masked_fill(drop, self.num_classes)


def _training_noise(noise: str, parametrisation: str) -> str:
    """The training noise distribution; VerisimError where the network could not be told of it."""
    numbered = parametrisation in STEP_NUMBERED
    if noise == "auto":
        return {"edm": "lognormal", "flow": "logit_normal"}.get(parametrisation, "vp_linear")
    if numbered and noise not in TABLES:
        raise VerisimError(
            f"parametrisation '{parametrisation}' counts training steps, so its noise must be one of "
            f"{', '.join(TABLES)}, not '{noise}'. For '{noise}' use parametrisation edm or flow."
        )
    return noise


def _check_feature_size(size: tuple[int, ...], stride: int) -> None:
    """The coarsest feature map must be at least 4 pixels wide (source 004: below, images turn black)."""
    if min(-(-s // stride) for s in size) < 4:
        raise VerisimError(
            f"Images of {'x'.join(map(str, size))} shrink to fewer than 4 pixels in a U-Net that divides by "
            f"{stride}. Use fewer levels (shorter `channels`) or images of at least {4 * stride} pixels; "
            f"allow_small_features=true overrides this."
        )

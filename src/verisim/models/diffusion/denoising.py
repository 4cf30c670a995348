"""Denoising diffusion: DDPM (Ho 2020) to EDM (Karras 2022), in 2D and 3D, of pixels, wavelet bands or latents.

One network F, one parametrisation that makes it a denoiser D(x, sigma), one sampler that walks a noise
schedule. What is denoised is z = representation.encode(x), the image itself by default. The system of source 004 (section 3 D) is these settings:

    parametrisation "epsilon", noise "vp_linear", sampler "ddpm", schedule "vp_linear", steps 1000,
    channels (128, 128, 256, 256, 512, 512), attention in level 5 of 6, lr 1e-4, warmup 500, cosine_decay
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from verisim.data.spec import ImageSpec
from verisim.diffusion.chain import ChainBound, chain_bound, fixed_variance
from verisim.diffusion.learned_variance import denoise_with_variance, hybrid_loss
from verisim.diffusion.likelihood import BIN, variational_bound
from verisim.diffusion.parametrisation import STEP_NUMBERED, Parametrisation
from verisim.diffusion.samplers import SAMPLERS
from verisim.diffusion.schedules import TABLES, make_sigmas, vp_linear_table
from verisim.diffusion.stepping import Callback, draw_noise, noise_source
from verisim.errors import VerisimError
from verisim.models.base import Loss
from verisim.models.diffusion.backbones import Backbone, cropped, on_any_size, padded
from verisim.models.diffusion.conditioned import ConditionedModel
from verisim.models.diffusion.first_stage import build_representation
from verisim.models.diffusion.guide import Guide, load_averaged, load_guide
from verisim.models.diffusion.options import DiffusionOptions, check_representation, default_options
from verisim.models.diffusion.text import (
    build_encoder,
    build_reader,
    check_text_settings,
    with_text,
)
from verisim.models.diffusion.training_noise import Noise, check_learned_variance, distribution, draw_levels
from verisim.models.diffusion.walk import decoded_steps, in_image_space, reverse, reverse_variance, walk
from verisim.nets.blocks import EmbeddingKind
from verisim.nets.dit import DiT


class DenoisingDiffusion(ConditionedModel):
    """A denoising network with its training noise and its sampler. Raises VerisimError on bad settings."""

    family = "diffusion"
    Options = DiffusionOptions
    options: DiffusionOptions
    likelihood_is_bound = True

    def __init__(
        self,
        spec: ImageSpec,
        num_classes: int = 0,
        *,
        representation: Literal["pixels", "haar", "latent"] = "pixels",  # what is denoised
        levels: int = 1,  # haar: halvings
        low_scale: float = 1.0,  # haar: factor on the low band; 1 = orthonormal, 0.333 = WDM
        band_std: tuple[float, ...] = (),  # haar: standard deviation of each band; () = measured
        first_stage: str = "",  # latent: run folder or weights file of a trained vqvae, or conv_vae with head conv
        latent_codes: bool = False,  # latent, vqvae: denoise code vectors, not what the encoder gives before them
        parametrisation: Literal["edm", "epsilon", "x0", "v", "flow"] = "edm",
        sigma_data: float = 0.5,  # standard deviation of the images in [-1, 1]; 0.5 suits chest X-rays
        noise: Noise = "auto",  # of training; vp_...: steps of that grid
        p_mean: float = -1.2,  # lognormal: mean of ln sigma
        p_std: float = 1.2,  # lognormal: its standard deviation
        min_snr_gamma: float = 0.0,  # min-SNR weighting, e.g. 5; 0 = off
        learned_variance: bool = False,  # the network gives the reverse variance too; needs a vp_ noise
        vlb_weight: float = 1e-3,  # learned variance: weight of the bound in the hybrid loss
        backbone: Literal["unet", "dit"] = "unet",  # convolutions | transformer
        channels: tuple[int, ...] = (64, 128, 128),  # U-Net width per level, finest first
        blocks: int = 2,  # residual blocks per level
        attention: tuple[bool, ...] = (),  # self-attention per level; () = the coarsest only
        head_channels: int = 32,  # channels per attention head
        skip: Literal["concat", "average"] = "concat",  # "average": fewer operations, less memory
        patch: int = 1,  # side of the pixel patch folded into channels at entry, or into a token
        width: int = 256,  # dit: channels of a token
        depth: int = 8,  # dit: blocks
        positions: Literal[
            "sincos", "rope"
        ] = "sincos",  # dit: added to the tokens | rotating queries and keys
        mask_share: float = 0.0,  # dit: share of tokens left out in training, e.g. 0.5: cheaper steps
        full_blocks: int = 2,  # dit: last blocks that see all tokens where some are left out
        checkpointing: bool = False,  # recompute in the backward pass: less memory, a third slower
        dropout: float = 0.0,  # probability inside the residual blocks
        label_dropout: float = 0.1,  # share of labels or texts left out in training, for guidance
        text: str = "",  # condition on texts: "words" = an encoder trained along | Hugging Face folder; "" = none
        text_words: int = 1000,  # text words: size of the vocabulary, made of the training texts
        text_length: int = 64,  # words (of a folder's encoder: tokens) of a text at most
        text_width: int = 64,  # text words: channels of a token
        text_depth: int = 2,  # text words: blocks of the encoder
        text_state: str = "",  # text: what a saved model remembers of it, as JSON; not for users
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
        self.representation = build_representation(
            representation,
            spec,
            levels=levels,
            low_scale=low_scale,
            band_std=tuple(band_std),
            first_stage=first_stage,
            latent_codes=latent_codes,
        )
        self.training_noise = distribution(noise, parametrisation)
        self.table = TABLES.get(self.training_noise, vp_linear_table)()  # (T,) float64
        self._parametrisation = Parametrisation(parametrisation, sigma_data, self.table)
        self.p_mean, self.p_std = p_mean, p_std
        self.min_snr_gamma = min_snr_gamma
        self.label_dropout = label_dropout
        self.lr, self.betas, self.warmup, self.cosine_decay = lr, betas, warmup, cosine_decay
        self.bf16_sampling = bf16_sampling
        self.likelihood_draws = likelihood_draws
        self.mask_share, self.learned_variance, self.vlb_weight = mask_share, learned_variance, vlb_weight
        check_learned_variance(learned_variance, self.training_noise, mask_share)
        self.reader = build_reader(text, text_words, text_length, text_state)
        encoder = None
        if self.reader is not None:
            check_text_settings(self.reader, num_classes, backbone, attention)
            encoder = build_encoder(self.reader, text_width, text_depth)
        plan = Backbone(
            tokens=0 if self.reader is None else getattr(self.reader, "width", text_width),
            extra=self.extra_channels(spec),
            kind=backbone,
            patch=patch,
            head_channels=head_channels,
            checkpointing=checkpointing,
            dropout=dropout,
            channels=channels,
            blocks=blocks,
            attention=attention,
            skip=skip,
            width=width,
            depth=depth,
            positions=positions,
            mask_share=mask_share,
            full_blocks=full_blocks,
            allow_small_features=allow_small_features,
        )
        embedding: EmbeddingKind = "sinusoidal" if parametrisation in STEP_NUMBERED else "fourier"
        z = self.representation.spec
        net = plan.build(z, z.channels * (1 + learned_variance), num_classes, embedding)
        self.net = net if self.reader is None else with_text(net, self.reader, encoder)
        self.stride = int(self.net.stride)
        self.guide: Guide | None = None  # weaker denoiser of autoguidance
        self._average: tuple[nn.Module, ...] = ()  # network averaged over a chosen length; no submodule
        self.options = default_options(parametrisation, self.training_noise, sampler, steps, schedule, clip)
        self.options = check_representation(self.options, self.representation, learned_variance, clip)

    # --- training ---------------------------------------------------------------------------------

    def training_loss(self, x: Tensor, label: Tensor | None) -> Loss:
        """Weighted denoising error (B,) of images x (B, C, *S); part "sigma" is the noise drawn."""
        x = self.representation.encode(x)
        label = self._drop_labels(label)
        sigma = self.draw_sigma(len(x)).to(x)  # (B,)
        eps, p, gamma = torch.randn_like(x), self.parametrisation, self.min_snr_gamma
        network = partial(self._network, self.net, nullcontext())
        if self.learned_variance:
            loss, bits = hybrid_loss(
                p, network, x, eps, sigma, label, min_snr_gamma=gamma, vlb_weight=self.vlb_weight
            )
            return loss, {"sigma": sigma, "vlb_bits": bits}
        if not self.mask_share:
            return p.loss(network, x, eps, sigma, label, gamma), {"sigma": sigma}
        assert isinstance(self.net, DiT)
        keep, pixels = self.net.tokens_kept(padded(x, self.stride), self.mask_share)
        masked = partial(self._network, partial(self.net, keep=keep), nullcontext())
        pixels = cropped(pixels, x.shape[2:])
        return p.loss(masked, x, eps, sigma, label, gamma, pixels), {"sigma": sigma}

    def draw_sigma(self, n: int) -> Tensor:
        """n noise levels (n,) float64 of the training distribution, stratified over the batch."""
        return draw_levels(n, self.training_noise, self.table, self.p_mean, self.p_std)

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
        """E[x0 | x0 + sigma eps = x]; x (B, C, *S), sigma (B,), condition (B,) or None = null class.

        x is what the representation makes of images: model.representation.encode and decode lead there and back.
        """
        return self.denoise_with_variance(x, sigma, condition)[0]

    def denoise_with_variance(
        self, x: Tensor, sigma: Tensor, condition: Tensor | None = None, net: nn.Module | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """x0 and the interpolation v of its reverse variance (None where that is not learned), (B, C, *S).

        `net`: another network of the same kind than the one to sample with.
        """
        p = self.parametrisation
        with self._evaluating(self.sampling_net if net is None else net) as network:
            if self.learned_variance:
                return denoise_with_variance(p, network, x, sigma, condition)
            return p.denoise(network, x, sigma, condition), None

    def denoiser_of(self, net: nn.Module) -> Guide:
        """The denoiser that this model would be with another network of its kind."""

        def denoise(x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
            return self.denoise_with_variance(x, sigma, label, net)[0]

        return denoise

    @torch.no_grad()
    def sample(
        self,
        n: int,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """n images (n, C, *S) float32 in [-1, 1]; condition (n,) classes or None = no class.

        `callback` gets a verisim.diffusion.stepping.Step after every denoising, its x and x0 as images (previews).
        """
        if n < 1:
            raise VerisimError(f"{n} images asked; at least 1 is needed.")
        condition = self.check_condition(n, condition)
        generator = noise_source(generator, torch.empty(0, device=self.device))
        sigmas = self.sigmas()
        images = []
        for rows in torch.arange(n).split(self.options.batch):
            label = None if condition is None else condition[rows.to(condition.device)]
            empty = torch.empty(len(rows), *self.representation.spec.shape, device=self.device)
            x = float(sigmas[0]) * draw_noise(empty, generator)
            x = walk(self, label)(x, sigmas, generator=generator, callback=decoded_steps(self, callback))
            images.append(self.representation.decode(x).clamp(-1, 1))
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

    def configure_sampling(self, **options: Any) -> None:
        """Set sampling options by name; loads the guide and the average that they name."""
        before = self.options
        super().configure_sampling(**options)
        try:
            check_representation(self.options, self.representation)
            reverse_variance(self)
            if "guide" in options:
                self.guide = load_guide(self, self.options.guide) if self.options.guide else None
            if "ema_length" in options:
                length = self.options.ema_length
                self._average = (load_averaged(self, length),) if length else ()
        except VerisimError:
            self.options = before
            raise

    @property
    def sampling_net(self) -> nn.Module:
        """The network to sample with: averaged over the length asked for, else as trained."""
        return self._average[0] if self._average else super().sampling_net

    @torch.no_grad()
    def chain_bound(
        self, x: Tensor, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> ChainBound:
        """Parts of the bound of the discrete chain of the present schedule; as many evaluations as steps."""
        label = self.check_condition(len(x), condition)
        plain = in_image_space(self, reverse(self, label))
        return chain_bound(plain, x.to(self.device), self.sigmas(), generator=generator)

    @torch.no_grad()
    def bits_per_dim(
        self, x: Tensor, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """(B,) upper bound in bits per dimension of 8-bit images x (B, C, *S) in [-1, 1]."""
        label = self.check_condition(len(x), condition)
        low = max(BIN, float(self.table[0])) if self.training_noise in TABLES else BIN
        plain = in_image_space(self, fixed_variance(lambda y, sigma: self.denoise(y, sigma, label)))
        bound = variational_bound(
            lambda y, sigma: plain(y, sigma)[0],
            x.to(self.device),
            sigma_data=self.sigma_data,
            sigma_min=low,
            sigma_max=self.sigma_max,
            draws=self.likelihood_draws,
            generator=generator,
        )
        return bound.total.float()

    # --- inside -----------------------------------------------------------------------------------

    def _network(
        self,
        net: Callable[..., Tensor],
        precision: AbstractContextManager,
        x: Tensor,  # (B, C, *S)
        c_noise: Tensor,  # (B,)
        label: Tensor | None,  # (B,)
    ) -> Tensor:
        """net on images of any size, float32."""
        return on_any_size(net, self.stride, precision, x, c_noise, label)

    @contextmanager
    def _evaluating(self, net: nn.Module) -> Iterator[Callable[..., Tensor]]:
        """A network in evaluation mode, in bfloat16 if so set; its mode is restored."""
        was_training = net.training
        net.eval()
        try:
            precision = (
                torch.autocast(self.device.type, torch.bfloat16) if self.bf16_sampling else nullcontext()
            )
            yield partial(self._network, net, precision)
        finally:
            net.train(was_training)

"""VQ-VAE (K-S6 std, K-S7 adapted) and, as a second stage of the same run, a learned prior over its codes.

    L = -log p(x | z_q) + |sg[z_e] - e|^2 + beta |z_e - sg[e]|^2        (source 001, eq. 4.12, sign corrected)

All terms are means over pixels or latent numbers, the first in nats with sigma^2 = mean squared error. Perceptual
and adversarial terms (a VQGAN): realism.py.
The two systems differ by `channels` alone: std (8, 16, 32, 64, 128, 256) leaves 4 x 4 codes of a 256-pixel
image, adapted (64, 128, 256) leaves 32 x 32.

The second stage is what the source left out. Steps before `first_stage_steps` train the autoencoder; then
it is frozen, and the rest of the run trains p(codes). One model with two phases, told apart by the step
number alone, needs nothing new from the training loop: resuming, run folder, weights file and sampling are
those of every model, and the weights file is complete in itself.
"""

from __future__ import annotations

import math
import warnings
from typing import Literal, cast

import torch
from torch import Tensor, nn

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models.autoencoders.gaussian import CHUNK, evaluating, fresh_generator
from verisim.models.autoencoders.realism import Realism, RealismTerms, Reconstruction
from verisim.models.autoencoders.vq_nets import VQAutoencoder, VQNet, grid_of
from verisim.models.autoencoders.vq_stages import VQVAEOptions, check_stages, read_first_stage
from verisim.models.autoregressive.code_prior import PriorSettings, build_prior, check_sampling
from verisim.models.base import GenerativeModel, Loss
from verisim.nets.quantiser import VectorQuantiser, perplexity, used_share, warn_if_collapsed

WARMUP = 100  # steps over which each stage's learning rate rises


class VQVAE(Realism, GenerativeModel):
    """VQ-VAE of 2D or 3D images, with an optional prior (class-conditional where there are classes).

    Roles: Sampler, Autoencoder (embeddings; codes through encode_codes and decode_codes), Likelihood (an
    upper bound). The autoencoder knows no classes. Raises VerisimError on bad settings.
    """

    family = "vqvae"
    Options = VQVAEOptions
    options: VQVAEOptions
    net: VQNet
    likelihood_is_bound = True
    skips_parameters = True  # each stage leaves the other's weights alone

    def __init__(
        self,
        spec: ImageSpec,
        num_classes: int = 0,
        *,
        codes: int = 512,  # K, size of the codebook
        dim: int = 32,  # D, length of a code vector
        channels: tuple[int, ...] = (64, 128, 256),  # trunk, finest first; every entry halves the image
        kernel: int = 4,  # of the stride-1 convolutions
        norm: bool = True,  # group norm in the blocks
        codebook: Literal["ema", "loss"] = "ema",  # the codebook follows by moving average, or by gradient
        decay: float = 0.95,  # of the codebook's moving average, per step; 0.99 lags behind a fast encoder
        restart_below: float = 0.03,  # share of the mean usage below which a code is moved; 0 = never
        beta: float = 0.25,  # weight of the commitment loss
        lr: float = 1e-3,  # Adam learning rate of the autoencoder
        prior: Literal["none", "gated_pixelcnn", "transformer"] = "none",  # over the codes
        first_stage_steps: int = 0,  # steps that train the autoencoder before the prior's begin
        first_stage: str = "",  # instead: run folder or weights file of a trained VQ-VAE, same settings
        prior_layers: int = 6,  # depth of the prior
        prior_channels: int = 128,  # its width
        prior_heads: int = 4,  # its attention heads (transformer)
        prior_dropout: float = 0.1,  # probability
        prior_lr: float = 1e-3,  # Adam learning rate of the prior
        label_dropout: float = 0.1,  # share of training images whose class is hidden from the prior
        betas: tuple[float, float] = (0.9, 0.999),  # Adam
        perceptual_weight: float = 0.0,  # of the perceptual term; 0 = none
        perceptual: str = "random",  # whose features it compares: random, or FILE of save_features
        adversarial: float = 0.0,  # weight of the adversarial term; 0 = no discriminator
        discriminator_start: int = 0,  # batches before the discriminator begins
        discriminator_layers: int = 3,  # of stride 2; it judges patches of 9 * 2^layers - 2 pixels
        discriminator_width: int = 64,  # channels of its first layer
        discriminator_lr: float = 0.0,  # Adam learning rate of the discriminator; 0 = lr
        clip: float = 1.0,  # largest gradient norm of either player, in place of training.clip; 0 = none
    ) -> None:
        super().__init__(spec, num_classes)
        check_stages(prior, num_classes, first_stage, first_stage_steps)
        channels = tuple(channels)
        quantiser = VectorQuantiser(codes, dim, codebook, decay, restart_below)
        p = PriorSettings(
            codes,
            grid_of(spec.size, len(channels)),
            prior_layers,
            prior_channels,
            prior_heads,
            prior_dropout,
            num_classes,
        )
        autoencoder = VQAutoencoder(spec, channels, quantiser, kernel, norm)
        self.net = VQNet(autoencoder, None if prior == "none" else build_prior(prior, p))
        self.beta, self.lr, self.prior_lr, self.label_dropout = beta, lr, prior_lr, label_dropout
        self.first_stage, self.first_stage_steps = first_stage, first_stage_steps
        self.warned = False  # of a collapsed codebook
        self.betas = betas
        self.set_terms(
            RealismTerms(
                perceptual_weight,
                perceptual,
                adversarial,
                discriminator_start,
                discriminator_layers,
                discriminator_width,
                discriminator_lr,
                clip,
            )
        )

    # --- training: which stage --------------------------------------------------------------------

    @property
    def prior_begins(self) -> int | None:
        """The step at which the prior's stage begins; None without a prior."""
        if self.net.prior is None:
            return None
        return 0 if self.first_stage else self.first_stage_steps

    @property
    def in_prior_stage(self) -> bool:
        """True once the autoencoder is frozen and the prior is trained."""
        return self.prior_begins is not None and self.step >= self.prior_begins

    @property
    def phase(self) -> int:
        """1 in the prior's stage, else 0."""
        return int(self.in_prior_stage)

    def begin_step(self) -> None:
        super().begin_step()
        if self.in_prior_stage and int(self.net.prior_steps) == 0:
            self._freeze_autoencoder()

    def end_step(self) -> None:
        if self.in_prior_stage:
            self.net.prior_steps += 1
        super().end_step()

    def _freeze_autoencoder(self) -> None:
        """Take the autoencoder that the codes will come from: the given one, or this run's best or average.

        The average of the prior starts afresh, from the weights of its first step.
        """
        self.take_best()
        if self.first_stage:
            self.net.autoencoder.load_state_dict(read_first_stage(self.first_stage, self.net, self.spec))
        elif self.ema is not None:
            self.net.autoencoder.load_state_dict(self._eval_net.autoencoder.state_dict())
        if self.ema is not None:
            self.ema.n_averaged.zero_()

    def reconstruction(self, x: Tensor, label: Tensor | None) -> Reconstruction:
        """The pass of the present stage; the prior's reconstructs nothing."""
        if self.in_prior_stage:
            return Reconstruction(*self.prior_loss(x, label))
        return self.autoencoder_loss(x)

    def autoencoder_loss(self, x: Tensor) -> Reconstruction:
        """-log p(x | z_q) / dims + codebook + beta commitment (eq. 4.12), for images x (B, C, *S)."""
        net = self.net.autoencoder
        found = net.quantiser(net.encoder(x))
        out = net.decoder(found.embedding)
        error = net.observation.nll(out, x) / self.spec.dims
        loss = error + self.beta * found.commitment
        if net.quantiser.update == "loss":
            loss = loss + found.codebook
        image = net.observation.mean(out)
        mse = (image - x).square().flatten(1).mean(1)
        usage = net.quantiser.usage
        if self.training and self.step % 100 == 99 and not self.warned:
            self.warned = warn_if_collapsed(usage)
        parts = {"mse": mse, "commitment": found.commitment}
        parts |= {"perplexity": perplexity(usage), "used": used_share(usage)}
        return Reconstruction(loss, parts, image, error)

    def prior_loss(self, x: Tensor, label: Tensor | None) -> Loss:
        """Bits per code (B,) of the codes of x under the prior; the autoencoder gets no gradient."""
        assert self.net.prior is not None
        with torch.no_grad():
            codes = self.net.autoencoder.codes(x)
        group = None
        if self.num_classes and label is not None:
            drop = torch.rand(len(x), device=label.device) < self.label_dropout
            group = label.masked_fill(drop, self.num_classes)
        bits = self.net.prior.nll_bits(codes, group).flatten(1).mean(1)
        return bits, {"bits_per_code": bits}

    @property
    def last_weight(self) -> nn.Parameter:
        return self.net.autoencoder.decoder.layers[-1].get_parameter("weight")

    def optimizer(self) -> torch.optim.Optimizer | list[torch.optim.Optimizer]:
        """Adam with one group for each stage; parameters without gradient are left alone.

        Behind it the discriminator's, where there is one.
        """
        groups = [{"params": list(self.net.autoencoder.parameters()), "lr": self.lr}]
        if self.net.prior is not None:
            groups.append({"params": list(self.net.prior.parameters()), "lr": self.prior_lr})
        return self.with_discriminator(torch.optim.Adam(groups, self.lr, self.betas), self.lr)

    def lr_scale(self, step: int, total: int | None) -> float:
        """Linear warm-up at the start of each stage."""
        begins = self.prior_begins
        since = step if begins is None or step < begins else step - begins
        return min(1.0, (since + 1) / WARMUP)

    @torch.no_grad()
    def finalise(self, x: Tensor, label: Tensor | None) -> None:
        """Calibrate sigma and look at the codebook on the training images; warn of what went wrong."""
        if self.net.prior is not None and int(self._eval_net.prior_steps) == 0:
            warnings.warn(
                f"The prior was never trained: the run ended at step {self.step}, its stage begins at step "
                f"{self.prior_begins}. Samples come from uniform codes. Train longer, or lower "
                "--model.first_stage_steps.",
                stacklevel=2,
            )
        codes = self.encode_codes(x)
        error = (self.decode_codes(codes) - x.to(self.device)).square().mean()
        self._eval_net.autoencoder.observation.calibrate(error)
        if not self.warned:
            self.warned = warn_if_collapsed(torch.bincount(codes.flatten(), minlength=self.codes))

    # --- autoencoder ------------------------------------------------------------------------------

    @property
    def _eval_net(self) -> VQNet:
        return cast(VQNet, self.sampling_net)

    @property
    def codes(self) -> int:
        """K, number of codes."""
        return self.net.autoencoder.quantiser.codes

    @property
    def grid(self) -> tuple[int, ...]:
        """G, positions of the code map per axis."""
        return self.net.autoencoder.grid

    @torch.no_grad()
    def encode_codes(self, x: Tensor) -> Tensor:
        """Codes (B, *G) int64 in 0 ... K - 1 of images x (B, C, *S) in [-1, 1]."""
        self.spec.check(x, "images to encode")
        with evaluating(self._eval_net) as net:
            return torch.cat([net.autoencoder.codes(part.to(self.device)) for part in x.split(CHUNK)])

    def encode(self, x: Tensor) -> Tensor:
        """Code vectors z_q (B, D, *G) of images x (B, C, *S) in [-1, 1]."""
        return self._eval_net.autoencoder.quantiser.embed(self.encode_codes(x)).detach()

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """E[x | z] (B, C, *S) in [-1, 1] of latents z (B, D, *G); they need not be code vectors."""
        want = (self.net.autoencoder.quantiser.codebook.shape[1], *self.grid)
        if tuple(z.shape[1:]) != want:
            raise VerisimError(
                f"Latents of shape {tuple(z.shape)}; this model takes (B, {', '.join(map(str, want))}), as "
                "encode() gives."
            )
        with evaluating(self._eval_net) as net:
            a = net.autoencoder
            return torch.cat([a.observation.mean(a.decoder(p.to(self.device))) for p in z.split(CHUNK)])

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Images (B, C, *S) in [-1, 1] of codes (B, *G) int64."""
        if tuple(codes.shape[1:]) != self.grid or codes.is_floating_point():
            raise VerisimError(
                f"Codes of shape {tuple(codes.shape)} and type {codes.dtype}; this model takes integers "
                f"(B, {', '.join(map(str, self.grid))}), as encode_codes() gives."
            )
        if len(codes) and not (0 <= int(codes.min()) and int(codes.max()) < self.codes):
            raise VerisimError(
                f"Codes from {int(codes.min())} to {int(codes.max())}; this model's codebook has "
                f"0...{self.codes - 1}."
            )
        return self.decode(self._eval_net.autoencoder.quantiser.embed(codes.to(self.device)))

    def reach(self, region: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        """Pixels (first, end) per axis that codes at positions (first, end) per axis reach by convolution."""
        return self.net.autoencoder.decoder.reach(region)

    # --- prior: sampling and likelihood -----------------------------------------------------------

    def configure_sampling(self, **options: object) -> None:
        super().configure_sampling(**options)
        check_sampling(self.options.temperature, self.options.top_k)
        self._learned()

    def _learned(self) -> bool:
        """True if options.prior means the learned prior; VerisimError if there is none."""
        asked = self.options.prior
        if asked not in ("auto", "uniform", "learned"):
            raise VerisimError(f"Sampling option prior is '{asked}'; it must be auto, uniform or learned.")
        if asked == "learned" and self.net.prior is None:
            raise VerisimError(
                "This VQ-VAE has no learned prior. Train one with --model.prior gated_pixelcnn (or "
                "transformer) and --model.first_stage RUN, or sample with --prior uniform."
            )
        return asked != "uniform" and self.net.prior is not None

    @torch.no_grad()
    def sample_codes(
        self, n: int, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Codes (n, *G) int64 of the learned prior, or uniform ones (source 001, section 5.4)."""
        condition = self.check_condition(n, condition)
        generator = generator or fresh_generator()
        if not self._learned():
            size = (n, *self.grid)
            return torch.randint(self.codes, size, generator=generator, device=generator.device)
        o = self.options
        with evaluating(self._eval_net) as net:
            assert net.prior is not None
            return net.prior.sample(n, condition, generator, o.temperature, o.top_k, o.cached)

    def sample(
        self, n: int, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """n images (n, C, *S) in [-1, 1]. The class (n,) acts through the learned prior; None = no class."""
        return self.decode_codes(self.sample_codes(n, condition, generator))

    @torch.no_grad()
    def code_bits(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """(B,) float64 bits that the codes of images x (B, C, *S) take under options.prior.

        Uniform codes take positions * log2 K; divide by net.positions for bits per code.
        """
        condition = self.check_condition(len(x), condition)
        codes = self.encode_codes(x)
        if not self._learned():
            return torch.full((len(x),), self.net.positions * math.log2(self.codes), dtype=torch.float64)
        bits = []
        with evaluating(self._eval_net) as net:
            assert net.prior is not None
            for rows in torch.arange(len(x)).split(CHUNK):
                label = None if condition is None else condition[rows.to(condition.device)]
                bits.append(
                    net.prior.nll_bits(codes[rows.to(codes.device)], label).double().flatten(1).sum(1)
                )
        return torch.cat(bits)

    def rate_bits(self, x: Tensor) -> Tensor:
        """(B,) float64: code_bits without a class."""
        return self.code_bits(x)

    @torch.no_grad()
    def bits_per_dim(
        self, x: Tensor, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """(B,) float64 upper bound in bits per dimension of 8-bit images x (B, C, *S) in [-1, 1].

        p(x) = sum_k p(k) p(x | k) >= p(k(x)) p(x | k(x)). Nothing is random; the generator is not used.
        """
        rate = self.code_bits(x, condition)  # bits
        z = self.encode(x)
        with evaluating(self._eval_net) as net:
            a = net.autoencoder
            parts = [
                a.observation.log_prob(a.decoder(p), part.to(self.device))
                for p, part in zip(z.split(CHUNK), x.split(CHUNK))
            ]
        return (rate.to(self.device) - torch.cat(parts) / math.log(2)) / self.spec.dims

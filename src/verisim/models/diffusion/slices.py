"""Slice-conditional diffusion of volumes (cDPM): a 2D network draws a volume a few slices at a time. Spec 003, 16-G.

    L = E || eps_P - eps_theta([x_t^P ; x_0^C], t, P, C) ||^2      on the slices P asked for alone (TRAP-C)

Slices C are given clean, slices P noisy. With C empty the first slices come from nothing; then each stage of a
plan draws slices given those nearest to them. A 2D image counts as a volume of one slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from verisim.data.spec import ImageSpec
from verisim.diffusion.guidance import check_scale, classifier_free
from verisim.diffusion.parametrisation import STEP_NUMBERED, Parametrisation
from verisim.diffusion.samplers import SAMPLERS
from verisim.diffusion.schedules import SCHEDULES, TABLES, check_steps, make_sigmas, vp_linear_table
from verisim.diffusion.stepping import draw_noise, noise_source
from verisim.errors import VerisimError, pick
from verisim.models.base import GenerativeModel, Loss, SamplingOptions
from verisim.models.diffusion.backbones import cropped, padded
from verisim.models.diffusion.options import DEFAULTS
from verisim.models.diffusion.slice_sets import PLANS, draw_slice_sets, plan_slices
from verisim.models.diffusion.slice_tv import smooth_slices
from verisim.models.diffusion.training_noise import Noise, distribution, draw_levels
from verisim.nets.slice_unet import Positions, SliceUNet

WALKS = ("euler", "ddpm", "heun", "dpmpp_2m", "dpmpp_2m_sde")


@dataclass(frozen=True)
class SliceOptions(SamplingOptions):
    """How volumes are drawn slice by slice."""

    steps: int = 18  # of the schedule, in each stage of the plan
    sampler: str = "heun"  # one of WALKS
    schedule: str = "karras"  # key of SCHEDULES
    plan: str = "autoregressive"  # or hierarchical: coarse slices first, which lessens stripes
    overlap: int = 0  # slices given in each stage; 0 = half of the model's budget
    tv: float = 0.0  # weight of total variation along the slices afterwards, on [-1, 1]; 0 = off
    guidance: float = 1.0  # classifier-free scale
    clip: bool = False  # clip every estimate of x0 to [-1, 1]
    batch: int = 16  # volumes at a time

    def __post_init__(self) -> None:
        check_steps(self.steps)
        check_steps(self.batch)
        pick(dict.fromkeys(WALKS), self.sampler, "sampler")
        pick(SCHEDULES, self.schedule, "schedule")
        pick(dict.fromkeys(PLANS), self.plan, "plan")
        check_scale("guidance", self.guidance)
        smooth_slices(torch.zeros(1, 1, 1), self.tv)


class SliceDiffusion(GenerativeModel):
    """cDPM on volumes (B, C, D, H, W); slices lie along `axis`. Raises VerisimError on bad settings."""

    family = "diffusion"
    Options = SliceOptions
    options: SliceOptions
    net: SliceUNet

    def __init__(
        self,
        spec: ImageSpec,
        num_classes: int = 0,
        *,
        axis: int = 0,  # along which the volume is cut: 0 = depth
        budget: int = 16,  # N: slices that the network sees at once
        positions: Positions = "both",  # relative: as published; absolute places tell it where a volume ends
        parametrisation: Literal["edm", "epsilon", "x0", "v", "flow"] = "edm",
        sigma_data: float = 0.5,  # standard deviation of the images in [-1, 1]
        noise: Noise = "auto",  # of training; vp_...: steps of that grid
        min_snr_gamma: float = 0.0,  # min-SNR weighting, e.g. 5; 0 = off
        channels: tuple[int, ...] = (64, 128, 128),  # width per level, finest first
        blocks: int = 2,  # residual blocks per level
        attention: tuple[bool, ...] = (),  # in and along slices, per level; () = the coarsest only
        head_channels: int = 32,  # channels per attention head
        dropout: float = 0.0,
        checkpointing: bool = False,  # recompute in the backward pass: less memory, a third slower
        label_dropout: float = 0.1,  # share of labels replaced by the null class in training
        lr: float = 1e-4,  # AdamW learning rate
        weight_decay: float = 0.01,
        steps: int = 0,  # default sampling options; 0 and "auto" = by parametrisation
        sampler: str = "auto",
        plan: Literal["autoregressive", "hierarchical"] = "autoregressive",
    ) -> None:
        super().__init__(spec, num_classes)
        self.axis = axis
        self.depth, self.plane = _cut(spec, axis)
        if budget < 2:
            raise VerisimError(f"budget = {budget}: at least 2 slices are seen at once, e.g. 16.")
        self.budget = budget
        self.training_noise = distribution(noise, parametrisation)
        self.table = TABLES.get(self.training_noise, vp_linear_table)()  # (T,) float64
        self.parametrisation = Parametrisation(parametrisation, sigma_data, self.table)
        self.sigma_data = sigma_data
        self.min_snr_gamma, self.label_dropout = min_snr_gamma, label_dropout
        self.lr, self.weight_decay = lr, weight_decay
        self.net = SliceUNet(
            spec.channels,
            spec.channels,
            self.depth,
            tuple(channels),
            blocks,
            tuple(attention) or None,
            head_channels,
            num_classes,
            "sinusoidal" if parametrisation in STEP_NUMBERED else "fourier",
            positions,
            dropout,
            checkpointing,
        )
        best, many, schedule = DEFAULTS[parametrisation]
        self.options = SliceOptions(
            steps=steps or many,
            sampler=best if sampler == "auto" else sampler,
            schedule=self.training_noise if schedule == "vp_linear" else schedule,
            plan=plan,
            clip=parametrisation == "epsilon",
        )

    # --- training ---------------------------------------------------------------------------------

    def training_loss(self, x: Tensor, label: Tensor | None) -> Loss:
        """Weighted denoising error (B,) of the slices asked for, volumes x (B, C, D, H, W)."""
        sets = [draw_slice_sets(self.depth, self.budget) for _ in range(len(x))]
        index, target, observed = (torch.stack(v).to(x.device) for v in zip(*sets))  # (B, N) each
        slices = self.cut(x)  # (B, D, C, H, W)
        frames = slices[torch.arange(len(x), device=x.device)[:, None], index]  # (B, N, C, H, W)
        given, present = _frame_wise(observed), target | observed

        def network(y: Tensor, c_noise: Tensor, label: Tensor | None) -> Tensor:
            return self._answer(
                self.net, torch.where(given, frames, y), index, observed, present, c_noise, label
            )

        weight = _frame_wise(target.float() * target.shape[1] / target.sum(1, keepdim=True))  # mean 1
        sigma = draw_levels(len(x), self.training_noise, self.table).to(x)
        eps, label = torch.randn_like(frames), self._drop_labels(label)
        loss = self.parametrisation.loss(network, frames, eps, sigma, label, self.min_snr_gamma, weight)
        return loss, {"sigma": sigma, "given": observed.float().mean(1)}

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW over the network."""
        return torch.optim.AdamW(self.net.parameters(), lr=self.lr, weight_decay=self.weight_decay)

    # --- sampling ---------------------------------------------------------------------------------

    def denoise_slices(
        self,
        x: Tensor,  # noisy slices (B, P, C, H, W)
        sigma: Tensor,  # (B,)
        targets: Tensor,  # their numbers (P,)
        given: Tensor,  # clean slices (B, Q, C, H, W); Q may be 0
        numbers: Tensor,  # theirs (Q,)
        label: Tensor | None = None,  # (B,)
    ) -> Tensor:
        """E[x0 | noisy slices, clean slices], (B, P, C, H, W)."""
        b, q = len(x), len(numbers)
        index = torch.cat([numbers, targets]).to(x.device).expand(b, -1)
        observed = (torch.arange(index.shape[1], device=x.device) < q).expand(b, -1)
        present = torch.ones_like(observed)
        net = self.sampling_net

        def network(y: Tensor, c_noise: Tensor, label: Tensor | None) -> Tensor:
            frames = torch.cat([given.to(y), y], 1)
            return self._answer(net, frames, index, observed, present, c_noise, label)[:, q:]

        return self.parametrisation.denoise(network, x, sigma, label)

    def sample(
        self, n: int, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """n volumes (n, C, D, H, W) float32 in [-1, 1], from nothing; condition (n,) classes or None."""
        if n < 1:
            raise VerisimError(f"{n} images asked; at least 1 is needed.")
        empty = torch.zeros(n, *self.spec.shape, device=self.device)
        return self.complete(empty, (), condition, generator)

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,  # volumes (B, C, D, H, W) in [-1, 1] of which some slices are known
        known: Sequence[int],  # their numbers
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The volumes with all other slices drawn; known slices come out unchanged."""
        label = self.check_condition(len(x), condition)
        generator = noise_source(generator, torch.empty(0, device=self.device))
        o = self.options
        stages = plan_slices(self.depth, self.budget, o.plan, o.overlap, known)
        net, done = self.sampling_net, []
        was_training = net.training
        net.eval()
        for rows in torch.arange(len(x)).split(o.batch):
            part = None if label is None else label[rows.to(label.device)]
            slices = self.cut(x[rows.to(x.device)].to(self.device)).clone()
            for given, targets in stages:
                slices[:, targets] = self._draw(slices[:, given], given, targets, part, generator)
            first = slices[:, list(known)].clone()
            slices = smooth_slices(slices, o.tv, dim=1).clamp(-1, 1)
            slices[:, list(known)] = first
            done.append(self.join(slices))
        net.train(was_training)
        return torch.cat(done)

    def _draw(
        self,
        given: Tensor,  # (B, Q, C, H, W)
        numbers: list[int],
        targets: list[int],
        label: Tensor | None,
        generator: torch.Generator,
    ) -> Tensor:
        """Slices (B, P, C, H, W) in [-1, 1] given others."""
        o, p, q = self.options, torch.tensor(targets), torch.tensor(numbers, dtype=torch.long)

        def plain(x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
            return self.denoise_slices(x, sigma, p, given, q, label)

        by_class = classifier_free(plain, o.guidance, self.num_classes)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            x0 = plain(x, sigma) if label is None else by_class(x, sigma, label)
            return x0.clamp(-1, 1) if o.clip else x0

        sigmas = make_sigmas(o.schedule, o.steps, self.sigma_data, self.sigma_max)
        empty = given.new_empty(len(given), len(targets), *given.shape[2:])
        x = float(sigmas[0]) * draw_noise(empty, generator)
        return SAMPLERS[o.sampler].run(denoise, x, sigmas, generator=generator).clamp(-1, 1)

    @property
    def sigma_max(self) -> float:
        """The noise level to start from: 160 sigma_data, within what the network was trained on."""
        top = 160 * self.sigma_data
        return min(top, float(self.table[-1])) if self.training_noise in TABLES else top

    # --- inside -----------------------------------------------------------------------------------

    def cut(self, x: Tensor) -> Tensor:
        """Volumes (B, C, D, H, W), or images as one slice, -> slices (B, D, C, H, W)."""
        return x[:, None] if self.spec.spatial_dims == 2 else x.movedim(2 + self.axis, 1)

    def join(self, slices: Tensor) -> Tensor:
        """The inverse of cut."""
        return slices[:, 0] if self.spec.spatial_dims == 2 else slices.movedim(1, 2 + self.axis).contiguous()

    def _answer(
        self,
        net: torch.nn.Module,
        frames: Tensor,  # (B, N, C, H, W)
        index: Tensor,
        observed: Tensor,
        present: Tensor,
        c_noise: Tensor,
        label: Tensor | None,
    ) -> Tensor:
        """The network on slices of any size: padded to its stride, cropped back; float32."""
        b, n = index.shape
        wide = padded(frames.flatten(0, 1), self.net.stride).unflatten(0, (b, n))
        f = net(wide, index, observed, present, c_noise, label)
        return cropped(f.flatten(0, 1), frames.shape[3:]).unflatten(0, (b, n)).float()

    def _drop_labels(self, label: Tensor | None) -> Tensor | None:
        """Classes with a share replaced by the null class; None for an unconditional model."""
        if self.num_classes == 0 or label is None:
            return None
        drop = torch.rand(len(label)).to(label.device) < self.label_dropout
        return label.masked_fill(drop, self.num_classes)


def _frame_wise(v: Tensor) -> Tensor:
    """(B, N) -> (B, N, 1, 1, 1)."""
    return v[..., None, None, None]


def _cut(spec: ImageSpec, axis: int) -> tuple[int, tuple[int, ...]]:
    """Number of slices and the size of one. VerisimError for an axis that is none."""
    if spec.spatial_dims == 2:
        return 1, spec.size
    if not 0 <= axis < 3:
        raise VerisimError(f"axis = {axis}: slices lie along 0 (depth), 1 (height) or 2 (width).")
    return spec.size[axis], tuple(s for i, s in enumerate(spec.size) if i != axis)

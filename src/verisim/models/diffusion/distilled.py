"""A few-step student of a trained diffusion model: progressive distillation. Salimans 2022; spec 003, 17-G.1.

In each phase a student learns to make in one step what its teacher makes in two; then it is the teacher of the
next phase, with half of the steps again. Any run of model `diffusion` can be the first teacher, whatever its
parametrisation and representation. The student's files hold all that sampling needs, not the teacher's network.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from verisim.data.spec import ImageSpec
from verisim.diffusion.distillation import distillation_target, distillation_weight, halved_grid
from verisim.diffusion.learned_variance import denoise_with_variance
from verisim.diffusion.parametrisation import wide
from verisim.diffusion.samplers import euler
from verisim.diffusion.schedules import TABLES, check_steps
from verisim.diffusion.stepping import Callback, draw_noise, noise_source
from verisim.errors import CheckpointError, VerisimError
from verisim.models.base import GenerativeModel, Loss, SamplingOptions
from verisim.models.diffusion.denoising import DenoisingDiffusion
from verisim.models.diffusion.first_stage import described_model, trained_model
from verisim.models.diffusion.walk import decoded_steps


@dataclass(frozen=True)
class DistilledOptions(SamplingOptions):
    """Sampling options of a distilled student: there is one way to walk its grid."""

    steps: int = 0  # the student's own number of steps, or 0; any other is refused
    batch: int = 128  # images at a time

    def __post_init__(self) -> None:
        check_steps(self.batch)


class Distilled(GenerativeModel):
    """The student: a copy of the teacher's network, trained to jump along a grid that is halved phase by phase.

    Steps of training beyond phases * phase_steps belong to the last phase; with fewer, `steps` is not reached and
    the student stays at the grid of the phase that it was in. CheckpointError for a teacher that does not fit.
    """

    family = "diffusion"
    Options = DistilledOptions
    options: DistilledOptions

    def __init__(
        self,
        spec: ImageSpec,
        num_classes: int = 0,
        *,
        teacher: str = "",  # run folder or weights file of model `diffusion`; in a saved model its description
        steps: int = 8,  # of the last student
        phases: int = 5,  # halvings: the first teacher walks steps * 2^phases steps
        phase_steps: int = 10000,  # training steps per phase
        schedule: str = "auto",  # angle, flow, shifted, or the vp_ grid of the teacher's training; auto by teacher
        lr: float = 1e-4,  # Adam learning rate; falls to 0 along a line within each phase
        betas: tuple[float, float] = (0.9, 0.999),  # Adam
    ) -> None:
        super().__init__(spec, num_classes)
        if not teacher:
            raise VerisimError(
                "Distillation needs a trained teacher: --model.teacher RUN, a run folder or weights file of a "
                "diffusion model."
            )
        check_steps(steps)
        if phases < 1 or phase_steps < 1:
            raise VerisimError(f"phases = {phases}, phase_steps = {phase_steps}: both must be 1 or more.")
        self.described = teacher.startswith("{")  # the teacher's weights are not here
        found, self.card = described_model(teacher, "teacher") if self.described else trained_model(teacher)
        self.teacher = self._checked(found, "described in the model's file" if self.described else teacher)
        self.teacher.requires_grad_(False)
        self.net = copy.deepcopy(self.teacher.net).requires_grad_(True)
        self.steps, self.phases, self.phase_steps = steps, phases, phase_steps
        self.schedule = _default_schedule(self.teacher) if schedule == "auto" else schedule
        halved_grid(self.schedule, self.student_steps(0), 1.0, 160.0)  # VerisimError if there is none
        self.lr, self.betas = lr, betas
        self.now: Tensor  # steps of the student in the present phase
        self.register_buffer("now", torch.tensor(self.student_steps(0)))

    def _checked(self, found: GenerativeModel, where: str) -> DenoisingDiffusion:
        if not isinstance(found, DenoisingDiffusion):
            raise CheckpointError(
                f"The teacher ({where}) is a {self.card.model} model; distillation takes model diffusion."
            )
        if (found.spec.shape, found.num_classes) != (self.spec.shape, self.num_classes):
            raise CheckpointError(
                f"The teacher ({where}) makes images of {found.spec.shape} with {found.num_classes} classes; these "
                f"are {self.spec.shape} with {self.num_classes}. Train both on the same data, size and label."
            )
        return found

    # --- phases -----------------------------------------------------------------------------------

    def student_steps(self, step: int) -> int:
        """Steps of the student's grid at training step `step`."""
        phase = min(step // self.phase_steps, self.phases - 1)
        return self.steps * 2 ** (self.phases - 1 - phase)

    def grid(self) -> tuple[Tensor, Tensor]:
        """The student's levels (n + 1,) and those half-way (n,), float64."""
        teacher = self.teacher
        return halved_grid(self.schedule, int(self.now), teacher.sigma_data, teacher.sigma_max)

    def begin_step(self) -> None:
        """Reseed; at the first step of a phase the student becomes the teacher."""
        super().begin_step()
        wanted = self.student_steps(self.step)
        if wanted < int(self.now):
            self.teacher.net.load_state_dict(self.net.state_dict())
            self.now.fill_(wanted)

    def train(self, mode: bool = True) -> Distilled:
        """The teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    # --- training ---------------------------------------------------------------------------------

    def prepare(self, x: Tensor) -> None:
        """VerisimError if only a description of the teacher is at hand."""
        if self.described:
            raise VerisimError(
                "The teacher is described but its weights are missing, so nothing can be learned from it. Give "
                "--model.teacher its run folder."
            )

    def training_loss(self, x: Tensor, label: Tensor | None) -> Loss:
        """Weighted squared error (B,) of the student's x0 against the teacher's two steps, x (B, C, *S)."""
        x0 = self.teacher.representation.encode(x)
        label = self.teacher._drop_labels(label)
        levels, middle = self.grid()
        i = torch.randint(len(middle), (len(x),))
        t, m, s = (v[i].to(x0) for v in (levels[:-1], middle, levels[1:]))  # (B,) each
        noisy = x0 + wide(t, x0) * torch.randn_like(x0)
        with torch.no_grad():
            teach = partial(self._clipped_x0, self.teacher.net, label=label)
            target = distillation_target(teach, noisy, t, m, s)
        error = (self._x0(self.net, noisy, t, label) - target).square().flatten(1).mean(1)
        weight = distillation_weight(t, self.teacher._parametrisation.name == "epsilon")
        return weight.to(error) * error, {"steps": self.now.float(), "error": error}

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam over the student."""
        return torch.optim.Adam(self.net.parameters(), lr=self.lr, betas=self.betas)

    def lr_scale(self, step: int, total: int | None) -> float:
        """A line from 1 towards 0 within each phase (Salimans 2022, algorithm 2)."""
        phase = min(step // self.phase_steps, self.phases - 1)
        return max(1e-3, 1 - (step - phase * self.phase_steps) / self.phase_steps)

    # --- sampling ---------------------------------------------------------------------------------

    @property
    def representation(self) -> nn.Module:
        """What the student, as its teacher, denoises in place of pixels."""
        return self.teacher.representation

    def configure_sampling(self, **options: Any) -> None:
        """Set sampling options by name. VerisimError for a number of steps that is not the student's own."""
        n = int(self.now)
        if options.get("steps", 0) not in (0, n):
            raise VerisimError(
                f"{options['steps']} steps asked of a student distilled to {n}: at each of its {n} noise levels it "
                f"learned to jump to the next one, and it knows no others. Leave steps out, sample its teacher, or "
                f"distil again with --model.steps {options['steps']}."
            )
        super().configure_sampling(**options)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """n images (n, C, *S) float32 in [-1, 1] by the student's own steps; condition (n,) classes or None."""
        if n < 1:
            raise VerisimError(f"{n} images asked; at least 1 is needed.")
        condition = self.check_condition(n, condition)
        generator = noise_source(generator, torch.empty(0, device=self.device))
        teacher, levels, images = self.teacher, self.grid()[0], []
        net = self.sampling_net
        was_training = net.training
        net.eval()
        for rows in torch.arange(n).split(self.options.batch):
            label = None if condition is None else condition[rows.to(condition.device)]
            empty = torch.empty(len(rows), *teacher.representation.spec.shape, device=self.device)
            x = float(levels[0]) * draw_noise(empty, generator)
            jump = partial(self._clipped_x0, net, label=label)
            x = euler(jump, x, levels, callback=decoded_steps(teacher, callback))
            images.append(teacher.representation.decode(x).clamp(-1, 1))
        net.train(was_training)
        return torch.cat(images)

    def _clipped_x0(self, net: nn.Module, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        """x0 by a network, clipped where the teacher clips when it samples."""
        x0 = self._x0(net, x, sigma, label)
        return self.teacher.representation.clip(x0) if self.teacher.options.clip else x0

    def _x0(self, net: nn.Module, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        """x0 (B, C, *S) by a network of the teacher's kind."""
        teacher = self.teacher
        network = partial(teacher._network, net, nullcontext())
        if teacher.learned_variance:
            return denoise_with_variance(teacher.parametrisation, network, x, sigma, label)[0]
        return teacher.parametrisation.denoise(network, x, sigma, label)

    # --- files ------------------------------------------------------------------------------------

    def settings_to_rebuild(self) -> dict[str, Any]:
        """The teacher's description in place of its path."""
        return {"teacher": self.card.to_json()}

    def extra_state(self) -> dict[str, Tensor]:
        """The number of steps, and the weights and statistics of the representation."""
        return {"now": self.now, **self.teacher.extra_state()}

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take back what extra_state() gave."""
        if "now" not in state:
            raise CheckpointError("The weights file does not say how many steps its student takes.")
        self.now.copy_(state["now"])
        self.teacher.load_extra_state({k: v for k, v in state.items() if k != "now"})


def _default_schedule(teacher: DenoisingDiffusion) -> str:
    """A grid that can be halved: the teacher's own training grid, else flow or angle."""
    if teacher.training_noise in TABLES:
        return teacher.training_noise
    return "flow" if teacher._parametrisation.name == "flow" else "angle"

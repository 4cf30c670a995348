"""Sampling options of diffusion models, and the defaults that suit each parametrisation."""

from __future__ import annotations

from dataclasses import dataclass

from verisim.diffusion.samplers import SAMPLERS
from verisim.diffusion.schedules import SCHEDULES, check_steps
from verisim.errors import VerisimError, pick
from verisim.models.base import SamplingOptions

DEFAULTS: dict[str, tuple[str, int, str]] = {  # parametrisation -> sampler, steps, schedule
    "edm": ("heun", 18, "karras"),
    "flow": ("dpmpp_2m", 20, "flow"),
    "v": ("dpmpp_2m", 20, "flow"),
    "x0": ("dpmpp_2m", 20, "flow"),
    "epsilon": ("ddpm", 1000, "vp_linear"),
}


@dataclass(frozen=True)
class DiffusionOptions(SamplingOptions):
    """How a diffusion model samples; the model's own defaults depend on its parametrisation."""

    steps: int = 18  # steps of the schedule; heun and flow_heun evaluate the network 2 steps - 1 times
    sampler: str = "heun"  # key of verisim.diffusion.samplers.SAMPLERS
    schedule: str = "karras"  # key of verisim.diffusion.schedules.SCHEDULES; "auto" = the sampler's best
    guidance: float = 1.0  # classifier-free scale: 0 = ignore the class, 1 = plain, 1.5...4 = stronger
    churn: float = 0.0  # heun only: noise added back along the way, 0 = deterministic
    eta: float = 0.0  # ddim only: 0 = deterministic, 1 = ancestral
    clip: bool = False  # clip every estimate of x0 to [-1, 1]
    batch: int = 128  # images denoised at a time

    def __post_init__(self) -> None:
        check_steps(self.steps)
        check_steps(self.batch)
        pick(SAMPLERS, self.sampler, "sampler")
        if self.schedule != "auto":
            pick(SCHEDULES, self.schedule, "schedule")
        for name, owner in (("churn", "heun"), ("eta", "ddim")):
            if getattr(self, name) != 0 and self.sampler != owner:
                raise VerisimError(
                    f"{name} = {getattr(self, name):g} has no meaning for sampler '{self.sampler}'. "
                    f"Choose sampler '{owner}' or {name} 0."
                )


def default_options(
    parametrisation: str,  # key of DEFAULTS
    noise: str,  # training noise; a training grid is the schedule of its own ancestral sampling
    sampler: str,  # key of SAMPLERS, or "auto"
    steps: int,  # 0 = automatic
    schedule: str,  # key of SCHEDULES, or "auto"
    clip: str,  # "auto", "on" or "off"
) -> DiffusionOptions:
    """The sampling options of a fresh model; what is automatic follows from its parametrisation."""
    best_sampler, best_steps, best_schedule = DEFAULTS[parametrisation]
    if best_schedule == "vp_linear":
        best_schedule = noise
    same = sampler in ("auto", best_sampler)
    return DiffusionOptions(
        sampler=best_sampler if same else sampler,
        steps=steps or (best_steps if same else 20),
        schedule=best_schedule if same and schedule == "auto" else schedule,
        clip=parametrisation == "epsilon" if clip == "auto" else clip == "on",
    )

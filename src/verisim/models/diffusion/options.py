"""Sampling options of diffusion models, and the defaults that suit each parametrisation."""

from __future__ import annotations

from dataclasses import dataclass, replace

from verisim.diffusion.guidance import check_scale
from verisim.diffusion.samplers import SAMPLERS
from verisim.diffusion.schedules import SCHEDULES, check_steps
from verisim.errors import VerisimError, pick
from verisim.models.base import SamplingOptions
from verisim.models.diffusion.representation import Representation
from verisim.models.power_ema import exponent

VARIANCES = {"auto": 0.0, "lower": 0.0, "upper": 1.0, "learned": 0.0}  # v where it is a constant
OWNERS: tuple[tuple[str, str, float | str | bool], ...] = (  # option, its one sampler, its "off"
    ("churn", "heun", 0.0),
    ("eta", "ddim", 0.0),
    ("variance", "ddpm", "auto"),
    ("fresh_noise", "renoise", False),
)
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
    variance: str = "auto"  # ddpm only: lower (beta-tilde), upper (beta) or learned; auto = learned if it is
    fresh_noise: bool = False  # renoise only: add new noise back instead of the predicted one
    guide: str = ""  # weaker network for autoguidance: weights file, run folder, or checkpoint of this run
    autoguidance: float = 1.0  # 1 = off, 1.5...3 = away from the guide's faults
    ema_length: float = (
        0.0  # relative length of the weight average, e.g. 0.1, if the run kept snapshots; 0 = its own
    )
    clip: bool = False  # clip every estimate of x0 to [-1, 1]
    batch: int = 128  # images denoised at a time

    def __post_init__(self) -> None:
        check_steps(self.steps)
        check_steps(self.batch)
        pick(SAMPLERS, self.sampler, "sampler")
        if self.schedule != "auto":
            pick(SCHEDULES, self.schedule, "schedule")
        pick(VARIANCES, self.variance, "variance")
        for name, owner, off in OWNERS:
            value = getattr(self, name)
            if value != off and self.sampler != owner:
                shown, rest = (f"{v:g}" if isinstance(v, float) else str(v) for v in (value, off))
                raise VerisimError(
                    f"{name} = {shown} has no meaning for sampler '{self.sampler}'. "
                    f"Choose sampler '{owner}' or {name} {rest}."
                )
        check_scale("guidance", self.guidance)
        check_scale("autoguidance", self.autoguidance)
        if self.autoguidance != 1 and not self.guide:
            raise VerisimError(
                f"autoguidance = {self.autoguidance:g} needs a guide: a weaker network, e.g. --guide with a "
                f"checkpoint of this run or the weights of a smaller model."
            )
        if self.ema_length != 0:
            exponent(self.ema_length)


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


def check_representation(
    options: DiffusionOptions,
    representation: Representation,
    learned_variance: bool = False,
    clip: str = "on",  # "auto" = clipping is a default that may be dropped
) -> DiffusionOptions:
    """The options, without automatic clipping where there is none. VerisimError for what cannot be combined."""
    if learned_variance and representation.name != "pixels":
        raise VerisimError(
            f"learned_variance is bounded by the grey values of pixels; representation '{representation.name}' has "
            f"none. Set it to false, or choose representation pixels."
        )
    if not options.clip or representation.clips:
        return options
    if clip == "auto":
        return replace(options, clip=False)
    raise VerisimError(
        f"clip = true has no meaning for representation '{representation.name}': its decoder already keeps images "
        f"within [-1, 1], and encoding them again would not give the latent back. Set clip to false."
    )

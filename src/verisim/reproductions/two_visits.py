"""Real people seen twice: what does a model of development add to 'nothing changes'?

The exercise of source 002, chapter 8, on what scanners deliver: volumes that lie differently and show different parts of
the head. Second visits are registered to first ones and first ones to each other, the model is trained on all other
people, fitted to a first visit and asked for the second (leave-one-out by patient). Age is the time since the first visit:
the people are adults, and what happens to them within a year is no growth. Its unit says how fast the network may change
with it: a year is a hundredth of what it sees, a week too, and so moves it 52 times as far within the same time. With three or four people nothing can be
learned of identity, so the claims are expected not to hold; the controls are what matters. Without --data: growing-brain
phantoms, moved between their visits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from verisim.data.spec import Images
from verisim.data.visits import Frame, Visits, on_one_grid, read_visits
from verisim.errors import VerisimError
from verisim.metrics.reconstruction import score_reconstructions
from verisim.models.implicit.development import Architecture, Development
from verisim.models.implicit.fitting import LatentFit, Training, fit, fit_latents
from verisim.models.implicit.progress import Progress
from verisim.phantoms.two_visits import phantom_visits
from verisim.reproductions.result import Options, Result
from verisim.reproductions.two_visits_claims import claims

CONTRAST = "flair"
UNITS = {
    "years": (1.0, 365.25),
    "weeks": (10.0, 7.0),
}  # age at the first visit, as ages must be above 0; days of a unit


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    frame: Frame  # of scans
    steps: int
    fit_steps: int
    latent: int = 16
    hidden: int = 48
    layers: int = 5
    scans: int = 4  # per step
    pixels: float = 0.05  # share of a scan's voxels per step
    lr: float = 2e-3
    latent_lr: float = 1e-2
    fit_lr: float = 1e-2
    fit_pixels: float = 0.2
    subjects: int = 6  # phantoms, where there are no data
    voxels: int = 32  # of a phantom's side


SCALES = {
    "smoke": Scale(Frame((16, 16, 16), 8.75), 30, 10, subjects=3, voxels=20),
    "small": Scale(Frame((24, 32, 32), 6.5), 400, 120),
    "full": Scale(
        Frame((72, 96, 96), 2.2),
        20000,
        1000,
        128,
        128,
        8,
        lr=1e-4,
        latent_lr=1e-3,
        fit_lr=1e-3,
        fit_pixels=0.05,
    ),
}


def run(options: Options) -> Iterator[Result]:
    """Register, train without each patient in turn, predict, measure; one result."""
    scale = SCALES[options.scale]
    if options.data:
        scans = read_visits(options.data, CONTRAST)
    else:
        scans = phantom_visits(scale.subjects, scale.voxels, seed=0)
    visits = on_one_grid(scans, scale.frame)
    rows = [without(options, scale, visits, patient) for patient in tested(visits)]
    numbers = {
        "rows": rows,
        "registrations": visits.registrations,
        "failed": list(visits.failed),
        "scale": asdict(scale),
    }
    notes = [
        f"{len(set(visits.images.patients or ()))} people, {len(rows)} of them seen twice; {what(options)}; grid "
        f"{'x'.join(map(str, scale.frame.size))} of {scale.frame.mm:g} mm, what all scans show",
        f"leave-one-out by patient, {scale.steps} steps of {scale.scans} scans per model, one seed; age = time since the "
        f"first visit; the network sees a hundredth of it, in years or in weeks",
        "a claim holds if it does for every person and fails if it does for none; so few people decide nothing about others",
    ]
    notes += [f"registration failed, left out: {name}" for name in visits.failed]
    part = "" if options.data else "phantoms"
    yield Result("002-visits", options.scale, claims(numbers), numbers, notes, part=part)


def what(options: Options) -> str:
    """What scans these are."""
    return (
        f"{CONTRAST.upper()} or what the manifest lists" if options.data else "growing-brain phantoms, moved"
    )


def tested(visits: Visits) -> list[str]:
    """Patients with a second visit; VerisimError if there are not two people to learn from and to ask for."""
    assert visits.images.patients is not None
    twice = [p for p, d in zip(visits.images.patients, visits.days.tolist()) if d > 0]
    if not twice or len(set(visits.images.patients)) < 2:
        failed = f" Registration failed for {', '.join(visits.failed)}." if visits.failed else ""
        raise VerisimError(
            f"002-visits needs two people or more, at least one of them seen twice; there are "
            f"{len(set(visits.images.patients))}, {len(twice)} of them seen twice.{failed}"
        )
    return list(dict.fromkeys(twice))


def without(options: Options, scale: Scale, visits: Visits, patient: str) -> dict[str, Any]:
    """Predict the last visit of a patient by a model of all others; scores beside those of every control."""
    Console(stderr=True).print(f"002-visits: without {patient}", highlight=False)
    patients = visits.images.patients
    assert patients is not None
    mine = torch.tensor([p == patient for p in patients])
    others, own = visits.images.subset(~mine), visits.images.subset(mine)
    first, last = own.subset(torch.tensor([0])), own.subset(torch.tensor([len(own) - 1]))
    made = {
        "copied": first.pixels,  # nothing changes
        "others": mean_of_people(others),
        "unregistered": visits.unregistered[mine][-1:],
    }
    for unit, (start, days) in UNITS.items():
        ages = start + visits.days / days
        model = trained(options, scale, others, ages[~mine], patient, unit)
        latent = fit_latents(
            model, first, ages[mine][:1], LatentFit(scale.fit_steps, scale.fit_lr, scale.fit_pixels)
        )
        then, now = model.render(latent, ages[mine][-1:]), model.render(latent, ages[mine][:1]).images.pixels
        made |= {
            f"predicted, {unit}": then.images.pixels,
            f"unchanged, {unit}": now,  # the model, no change of age
            f"changed, {unit}": (first.pixels + then.images.pixels - now).clamp(
                -1, 1
            ),  # the scan and the model's change
            f"reconstructed, {unit}": now,
        }
    against_first = {"unregistered", *(f"reconstructed, {unit}" for unit in UNITS)}
    return {
        "patient": patient,
        "years": round(float(visits.days[mine][-1]) / 365.25, 3),
        "extrapolated": bool(then.extrapolated[0]),
        **{name: scored(first if name in against_first else last, x) for name, x in made.items()},
    }


def trained(
    options: Options, scale: Scale, scans: Images, ages: Tensor, left_out: str, unit: str
) -> Development:
    """A model of these scans; what was trained before is read, what was killed goes on."""
    torch.manual_seed(0)
    model = Development.for_scans(scans, Architecture(True, scale.latent, scale.hidden, scale.layers))
    settings = Training(scale.steps, 0.1, min(scale.scans, len(scans)), scale.pixels, mirror=0.0, lr=scale.lr,
                        latent_lr=scale.latent_lr)  # fmt: skip
    kind = "data" if options.data else "phantoms"
    file = (
        options.out
        / "runs"
        / f"{kind}-{scale.steps}-{unit}"
        / f"without-{left_out.replace('/', '_')}.safetensors"
    )
    fit(model, scans, ages, settings, progress=Progress(file, every=200))
    return model


def mean_of_people(scans: Images) -> Tensor:
    """(1, C, *S): the mean of each person's scans, then of people."""
    assert scans.patients is not None
    who = dict.fromkeys(scans.patients)
    each = [scans.pixels[torch.tensor([p == name for p in scans.patients])].mean(0) for name in who]
    return torch.stack(each).mean(0, keepdim=True)


def scored(target: Images, x: Tensor) -> dict[str, float]:
    """PSNR in dB, SSIM, and MAE on [0, 1], of one image; whole image, as the source."""
    s = score_reconstructions(target, Images(x, target.spec))
    mae = float((target.pixels - x).abs().mean()) / 2
    return {"psnr": round(float(s.psnr), 3), "ssim": round(float(s.ssim), 4), "mae": round(mae, 5)}

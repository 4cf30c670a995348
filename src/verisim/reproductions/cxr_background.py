"""What source 004 mentions beside its four models and did not run (X-B1 to X-B3), at equal processor time.

Other GANs, diffusion in a VQ-VAE's codes, other VAEs and a flow, each beside the corrected system of its family and
judged by the same protocol. The fully connected GAN is the one that the others of its row must beat.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from verisim.metrics.bootstrap import Estimate, pool, tie
from verisim.reproductions.cxr_comparison import CORRECTED, Scale, data_settings, jobs, judged
from verisim.reproductions.result import Claim, Options, Result
from verisim.reproductions.runs import Job, train_all

REFERENCES = (CORRECTED["gan"], CORRECTED["vae"], CORRECTED["diffusion"])
BACKGROUND = ("X-B1", "X-B1-sn", "X-B1-fc", "X-B2", "X-B3", "X-B3-vamp", "X-B3-flow")
SYSTEMS = (*REFERENCES, *BACKGROUND)
FIRST_STAGE = {"X-B2": "X-B2.1"}  # gets half of the time
SCALES = {
    "smoke": Scale((32,), 1, 0.03, "small", 100, "smoke", 300),
    "small": Scale((32,), 1, 3.0, "small", 400, "full", 2500),
    "full": Scale((64,), 3, 0.0, "full", 5000, "full", 20000),
}


def run(options: Options) -> Iterator[Result]:
    """Train what is not trained yet and judge all in one table; one result per size."""
    systems = options.chosen(SYSTEMS)
    scale = SCALES[options.scale].changed_by(options)
    for size in scale.sizes:
        data = data_settings(options, scale, size)
        stages, wanted = [], []
        for job in jobs(options.out, data, systems, scale):
            job = replace(job, overrides={**job.overrides, "data.label": data.label})
            if job.recipe in FIRST_STAGE:
                stages.append(first_stage(job, scale))
                more = {"model.first_stage": str(stages[-1].folder)}
                job = replace(job, overrides={**job.overrides, **more, **_minutes(scale.minutes / 2)})
            wanted.append(job)
        train_all(stages)
        found = judged(options, scale, "004-background", wanted, data)
        found.claims = [c for c in found.claims if c.name.startswith("controls")]
        found.claims += claims(found.numbers[str(size)])
        yield found


def first_stage(job: Job, scale: Scale) -> Job:
    """The autoencoder that a latent system needs: the same data and seed, half of the time."""
    recipe = FIRST_STAGE[job.recipe]
    folder = job.folder.with_name(job.folder.name.replace(job.recipe, recipe))
    overrides = {**job.overrides, **_minutes(scale.minutes / 2), "data.label": ""}
    return Job(recipe, job.variant, folder, overrides)


def _minutes(minutes: float) -> dict[str, str | int | float]:
    return {"training.max_minutes": minutes, "training.max_steps": 0} if minutes else {}


def claims(results: dict[str, Any]) -> list[Claim]:
    """What the literature says of each against the reference of its family; None where the evidence ties."""
    fd = {n: Estimate.from_dict(e["fd/random"]) for n, e in results["summary"].items() if "fd/random" in e}
    bits = bits_of(results)
    lower = "lies nearer to the real images (FD, random features)"
    found = [
        _less(fd, "X-B1", "X-B1-fc", f"WGAN-GP {lower} than the fully connected GAN", "Gulrajani 2017"),
        _less(fd, "X-B1-sn", "X-B1-fc", f"SN-GAN {lower} than the fully connected GAN", "Miyato 2018"),
        _less(fd, "X-B1", "X-G-fix", f"WGAN-GP {lower} than DCGAN with R1", "Gulrajani 2017"),
        _less(fd, "X-B2", "X-D-fix", f"Diffusion of VQ codes {lower} than of pixels", "Rombach 2022"),
        _less(fd, "X-B3-vamp", "X-V-fix", f"VampPrior {lower} than the ex-post density", "Tomczak 2018"),
        _less(bits, "X-B3", "X-V-fix", "A hierarchy of latents takes fewer bits than one", "Sonderby 2016"),
        _less(bits, "X-B3-flow", "X-V-fix", "A flow takes fewer bits than a VAE's bound", "Kingma 2018"),
    ]
    return [c for c in found if c is not None]


def bits_of(results: dict[str, Any]) -> dict[str, Estimate]:
    """Bits per dimension on held-out images by system, over its seeds."""
    seeds: dict[str, list[Estimate]] = {}
    for name, facts in results["facts"].items():
        found = facts.get("likelihood") or {}
        if found.get("bits_per_dim") is not None:
            value, se = found["bits_per_dim"], found.get("se") or 0.0
            e = Estimate(value, value - 1.96 * se, value + 1.96 * se, se)
            seeds.setdefault(name.split("@")[0], []).append(e)
    return {name: pool(estimates) for name, estimates in seeds.items()}


def _less(values: dict[str, Estimate], ours: str, theirs: str, statement: str, source: str) -> Claim | None:
    if ours not in values or theirs not in values:
        return None
    a, b = values[ours], values[theirs]
    text = ", ".join(f"{n} {e.value:.2f} [{e.low:.2f}, {e.high:.2f}]" for n, e in ((ours, a), (theirs, b)))
    return Claim(f"{ours}<{theirs}", statement, source, None if tie(a, b) else a.value < b.value, text)

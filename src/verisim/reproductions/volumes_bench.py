"""Source 003, chapter 16: five ways to make volumes, side by side on the same brains with the same processor time.

Pixels (16-A), wavelet bands (16-H), latents (16-J, whose first stage takes half of the time), patches (16-F) and
slice sets (16-G, also with total variation along the slices). Each is measured by what a training step must keep
in memory, by time, by how its volumes are distributed, and by the rulers of the phantom's anatomy; beside two
controls, other real volumes and noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from verisim.data.folder import Dataset
from verisim.data.spec import Images
from verisim.metrics.slices import slice_consistency
from verisim.reproductions.bench import Bench, save_pictures, saved_megabytes
from verisim.reproductions.result import Options, Result
from verisim.reproductions.runs import Job, train_all
from verisim.reproductions.volumes_claims import claims
from verisim.tasks.comparison import held_out
from verisim.tasks.contestants import Contestant, from_model
from verisim.training.source import DataSettings, open_dataset

SYSTEMS = ("16-A", "16-H", "16-J", "16-F", "16-G")
FIRST_STAGE = {"16-J": "16-J.1"}
SLICES: dict[str, Any] = {"sampler": "dpmpp_2m", "schedule": "flow", "steps": 20}  # of 16-G
TV = 0.1  # weight of total variation on [-1, 1]: 0.05 on [0, 1]


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    size: int  # pixels of each side
    seeds: int  # training seeds
    minutes: float  # processor minutes per system; 0 = the recipes' own budgets
    variant: str
    count: int  # volumes drawn per run
    phantoms: int
    steps: int  # sampling steps; 0 = the recipe's own
    domain_steps: int  # training steps of the feature network; 0 = random features alone
    pairs: int  # of volumes for MS-SSIM
    channels: str = ""  # of every network, one width per level; "" = the recipes' own
    batch: int = 0  # volumes per training step; 0 = the recipes' own
    precision: str = ""  # of training; "" = the recipes' own


SCALES = {
    "smoke": Scale(16, 1, 0.03, "small-3d", 24, 150, 3, 0, 20, channels="[8,16]"),
    "small": Scale(
        24, 1, 10.0, "small-3d", 200, 1000, 50, 300, 200, channels="[16,32]", batch=4, precision="bf16"
    ),
    "full": Scale(64, 3, 0.0, "full", 1000, 5000, 0, 1000, 1000),
}


def run(options: Options) -> Iterator[Result]:
    """Train what is not trained yet, draw, measure; one result per size."""
    scale = options.changed(SCALES[options.scale])
    systems = options.chosen(SYSTEMS)
    for size in options.sizes or (scale.size,):
        yield _at_size(options, replace(scale, size=size), systems)


def _at_size(options: Options, scale: Scale, systems: tuple[str, ...]) -> Result:
    cube = "x".join([str(scale.size)] * 3)
    data = DataSettings(options.data, "brain", scale.phantoms, cube)
    dataset = open_dataset(data)
    stages, wanted = jobs(options.out, data, systems, scale)
    train_all(stages)
    train_all(wanted)
    contestants = draw(wanted, dataset, scale, options.out / "samples" / cube)
    bench = Bench(options, scale, dataset, "volume", "brain", _slices)
    memory = {j.folder.name: saved_megabytes(j.folder, dataset["train"]) for j in [*stages, *wanted]}
    numbers = {**bench.table(contestants), "memory": memory}
    minutes = f"{scale.minutes:g} processor minutes" if scale.minutes else "the recipe's own budget"
    notes = [
        f"volumes: {Path(options.data).name if options.data else 'brain phantoms'}, {cube}",
        f"{minutes} and one thread per system (latent: half of it for its first stage); {scale.seeds} training "
        f"seed(s); {scale.count} volumes per run",
        f"16-G draws each set of slices with the sets before it, so with {SLICES['steps']} steps of DPM-Solver++ at most",
        "memory: MiB that the forward pass of a training step keeps for the backward pass, one volume, weights left out",
        bench.note,
    ]
    found = Result("16-bench", options.scale, claims(numbers), {cube: numbers}, notes, part=f"{scale.size}px")
    save_pictures(options.results / "figures" / found.name, contestants, 16)
    return found


def _slices(images: Images, real: Images, rng: torch.Generator) -> dict[str, Any]:
    """Do the slices of the volumes fit together?"""
    return {"slices": {k: e.as_dict() for k, e in slice_consistency(images, real, rng).items()}}


def jobs(
    out: Path, data: DataSettings, systems: tuple[str, ...], scale: Scale
) -> tuple[list[Job], list[Job]]:
    """First stages, and the systems that need them or not, one run per system and seed."""
    stages, wanted = [], []
    for seed in range(scale.seeds):
        for system in systems:
            stage = FIRST_STAGE.get(system)
            minutes = scale.minutes / 2 if stage else scale.minutes
            job = _job(out, data, system, seed, minutes, scale)
            if stage:
                stages.append(_job(out, data, stage, seed, minutes, scale))
                job.overrides["model.first_stage"] = str(stages[-1].folder)
            wanted.append(job)
    return stages, wanted


def _job(out: Path, data: DataSettings, recipe: str, seed: int, minutes: float, scale: Scale) -> Job:
    overrides: dict[str, str | int | float] = {
        "data.folder": data.folder,
        "data.phantom": data.phantom,
        "data.count": data.count,
        "data.size": str(data.size),
        "training.seed": seed,
        "training.sample_minutes": 0,
    }
    diffusion = recipe not in FIRST_STAGE.values()
    if scale.channels:
        overrides |= {"model.channels": scale.channels, **({"model.head_channels": 8} if diffusion else {})}
    if scale.batch:
        overrides["training.batch_size"] = scale.batch
    if scale.precision:
        overrides["training.precision"] = scale.precision
    if scale.size < 32 and diffusion and recipe != "16-G":
        overrides["model.allow_small_features"] = "true"
    if scale.steps and diffusion:
        overrides["model.steps"] = scale.steps
    if minutes:
        overrides |= {"training.max_minutes": minutes, "training.clock": "cpu", "training.max_steps": 0}
    return Job(recipe, scale.variant, out / "runs" / str(data.size) / f"{recipe}@{seed}", overrides)


def draw(wanted: list[Job], dataset: Dataset, scale: Scale, cache: Path) -> list[Contestant]:
    """Volumes of every run; those drawn slice by slice also with total variation."""
    real, found = held_out(dataset), []
    common = {"steps": scale.steps} if scale.steps else {}
    for job in wanted:
        system, _, seed = job.folder.name.partition("@")
        for name, more in ((job.folder.name, {}), (f"{system}:tv@{seed}", {"tv": TV})):
            if more and system != "16-G":
                continue
            few = SLICES if system == "16-G" and scale.steps > SLICES["steps"] else {}
            options, file = {**common, **few, **more}, cache / f"{name}.safetensors"
            found.append(
                from_model(job.folder, name, scale.count, real, seed=int(seed), cache=file, options=options)
            )
    return found

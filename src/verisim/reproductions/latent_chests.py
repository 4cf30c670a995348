"""Source 000, C5c: unconditional diffusion of the latents of chest X-rays, beside diffusion of pixels in the same time.

The autoencoder (W-C5b) takes half of the time of the latent system (W-C5c); diffusion of pixels (X-D-fix) has all of
it. What the diffusion adds is shown by the same decoder fed with latents drawn without it: from N(0, I), and from one
Gaussian fitted to the training images' latents. Training images through the autoencoder are the ceiling.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from verisim.data.folder import Dataset
from verisim.hub.weights import load_model
from verisim.reproductions.bench import Bench, save_pictures, saved_megabytes
from verisim.reproductions.bench_claims import against, controls, nearer
from verisim.reproductions.result import Claim, Options, Result
from verisim.reproductions.runs import Job, train_all
from verisim.tasks.autoencoding import reconstruct, require_autoencoder
from verisim.tasks.comparison import held_out
from verisim.tasks.contestants import Contestant, from_model
from verisim.training.source import DataSettings, open_dataset

LATENT, STAGE, PIXELS = "W-C5c", "W-C5b", "X-D-fix"
VARIANTS = {LATENT: "small", STAGE: "small", PIXELS: "small-64"}
PRIORS = ("normal", "gaussian")  # of the autoencoder by itself
CEILING = f"{STAGE}:reconstructions"
SOURCE = "spec 000, C5c"


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    size: int  # pixels
    seeds: int  # training seeds
    minutes: float  # processor minutes per system; half of the latent system's for its autoencoder
    count: int  # images drawn per contestant
    phantoms: int
    domain_steps: int  # training steps of the feature network; 0 = random features alone
    pairs: int  # of images for MS-SSIM


SCALES = {
    "smoke": Scale(32, 1, 0.03, 30, 150, 0, 20),
    "small": Scale(64, 1, 10.0, 400, 2500, 300, 200),
    "full": Scale(64, 3, 120.0, 5000, 20000, 1000, 1000),
}


def run(options: Options) -> Iterator[Result]:
    """Train what is not trained yet, draw, measure; one result per size."""
    scale = options.changed(SCALES[options.scale])
    for size in options.sizes or (scale.size,):
        yield _at_size(options, replace(scale, size=size))


def _at_size(options: Options, scale: Scale) -> Result:
    data = DataSettings(options.data, "chest_findings", scale.phantoms, scale.size)
    dataset = open_dataset(data)
    source = Path(options.data).name
    runs = options.out / "runs" / (source or "phantoms") / str(scale.size)
    stages, systems = jobs(runs, data, scale)
    train_all(stages)
    train_all(systems)
    cache = options.out / "samples" / (source or "phantoms") / str(scale.size)
    contestants = draw(stages, systems, dataset, scale, cache)
    bench = Bench(options, scale, dataset, "image", "chest_findings")
    memory = {j.folder.name: saved_megabytes(j.folder, dataset["train"]) for j in [*stages, *systems]}
    numbers = {**bench.table(contestants), "memory": memory}
    notes = [
        f"images: {source or 'chest_findings phantoms'}, {scale.size} pixels",
        f"{scale.minutes:g} processor minutes and one thread per system (latents: half of it for their autoencoder); "
        f"{scale.seeds} training seed(s); {scale.count} images per row",
        f"{STAGE}:PRIOR: the autoencoder's decoder fed with latents from N(0, I) or from a fitted Gaussian; "
        f"{CEILING}: training images through the autoencoder",
        "memory: MiB that the forward pass of a training step keeps for the backward pass, one image, weights left out",
        bench.note,
    ]
    part = f"{source}-{scale.size}px" if source else f"{scale.size}px"
    found = Result("000-C5c", options.scale, claims(numbers), {str(scale.size): numbers}, notes, part=part)
    shown = [c for c in contestants if not (options.data and c.name.startswith(CEILING))]  # no real image
    save_pictures(options.results / "figures" / found.name, shown, 32)
    return found


def jobs(runs: Path, data: DataSettings, scale: Scale) -> tuple[list[Job], list[Job]]:
    """Autoencoders, and the systems: diffusion of their latents and of pixels, one run per seed."""
    stages, systems = [], []
    for seed in range(scale.seeds):
        grid = 3 * (scale.size // 4) ** 2
        stages.append(_job(runs, data, STAGE, seed, scale.minutes / 2, {"model.latent": grid}))
        first = {"model.first_stage": str(stages[-1].folder)}
        systems.append(_job(runs, data, LATENT, seed, scale.minutes / 2, first))
        systems.append(_job(runs, data, PIXELS, seed, scale.minutes, {"training.precision": "float32"}))
    return stages, systems


def _job(runs: Path, data: DataSettings, recipe: str, seed: int, minutes: float, more: dict[str, Any]) -> Job:
    common: dict[str, str | int | float] = {
        "data.folder": data.folder,
        "data.phantom": data.phantom,
        "data.count": data.count,
        "data.size": data.size,
        "training.max_steps": 0,
        "training.max_minutes": minutes,
        "training.clock": "cpu",
        "training.seed": seed,
        "training.sample_minutes": 0,
    }
    return Job(recipe, VARIANTS[recipe], runs / f"{recipe}@{seed}", {**common, **more})


def draw(
    stages: list[Job], systems: list[Job], dataset: Dataset, scale: Scale, cache: Path
) -> list[Contestant]:
    """Images of every system, of every autoencoder by itself, and training images through it."""
    real, found = held_out(dataset), []
    some = dataset["train"].subset(torch.arange(min(scale.count, len(dataset["train"])))).quantise()
    ways = [(j, f":{prior}", {"prior": prior}) for j in stages for prior in PRIORS]
    for job, suffix, options in [*((j, "", {}) for j in systems), *ways]:
        recipe, _, seed = job.folder.name.partition("@")
        name = f"{recipe}{suffix}@{seed}"
        file = cache / f"{name.replace(':', '-')}.safetensors"
        found.append(
            from_model(
                job.folder, name, scale.count, real, seed=int(seed), cache=file, options=options, likelihood=False
            )
        )  # fmt: skip
    for job in stages:
        again = reconstruct(require_autoencoder(load_model(job.folder)[0]), some)
        found.append(Contestant(f"{CEILING}@{job.folder.name.partition('@')[2]}", again))
    return found


def claims(numbers: dict[str, Any]) -> list[Claim]:
    """What diffusing latents is worth, held against the numbers ("rows", "controls", "memory")."""
    words = "Diffusion of latents is nearer to real images than"
    alone = [f"{STAGE}:{prior}" for prior in PRIORS]
    found = [
        controls(numbers),
        against(numbers, "prior", f"{words} the same decoder without it", SOURCE, LATENT, alone, nearer),
        against(
            numbers, "pixels", f"{words} diffusion of pixels in the same time", SOURCE, LATENT, [PIXELS], nearer
        ),
        against(
            numbers,
            "ceiling",
            "Images through the autoencoder are nearer to real ones than what is drawn: its loss is not the limit",
            SOURCE,
            CEILING,
            [LATENT],
            nearer,
        ),
        _memory(numbers["memory"]),
    ]  # fmt: skip
    return [c for c in found if c is not None]


def _memory(memory: dict[str, float]) -> Claim:
    latent, pixels = memory[f"{LATENT}@0"], memory[f"{PIXELS}@0"]
    return Claim(
        "memory",
        "A training step on latents keeps less than one on pixels",
        SOURCE,
        latent < pixels,
        f"{latent:.2f} MiB against {pixels:.2f} MiB for one image (the autoencoder's own: {memory[f'{STAGE}@0']:.2f})",
    )

"""Source 003, 16-I (ii): a diffusion transformer of brain volumes that leaves out half of its tokens in training.

The same network twice, trained for as long: with half of the tokens left out of all blocks but the last, and with all
of them. Measured are the speed of training, what a step keeps in memory, the denoising error of held-out volumes with
every token present, and what the samples are worth. The third row is what the error is held against: the mean volume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from verisim.data.spec import Images
from verisim.hub.weights import load_model, read_card
from verisim.metrics.bootstrap import Estimate, mean_estimate
from verisim.metrics.memo import Memo
from verisim.reproductions.bench import Bench, of_system, save_pictures, saved_megabytes, shown
from verisim.reproductions.bench_claims import against, controls, within
from verisim.reproductions.result import Claim, Options, Result
from verisim.reproductions.runs import Job, train_all
from verisim.seeding import generator
from verisim.tasks.contestants import Contestant, from_model
from verisim.training.checkpoint import read_metadata
from verisim.training.source import DataSettings, open_dataset

RECIPE, WHOLE = "16-I.2", "16-I.2:all"
SHARES = {RECIPE: 0.5, WHOLE: 0.0}  # of the tokens that are left out
LEVELS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.3, 2.0)  # of noise, at which the error is measured
SIGMA_DATA, BATCH = 0.5, 16
SPEED, CLOSE = 1.6, 1.1  # times as fast, and the error at most a tenth larger
SOURCE = "spec 003, 16-I"


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    size: int  # voxels of each side
    seeds: int  # training seeds
    minutes: float  # processor minutes per run
    count: int  # volumes drawn per run
    phantoms: int
    domain_steps: int  # training steps of the feature network; 0 = random features alone
    pairs: int  # of volumes for MS-SSIM
    variant: str = "small-3d"


SCALES = {
    "smoke": Scale(16, 1, 0.03, 24, 150, 0, 20),
    "small": Scale(32, 1, 10.0, 200, 1000, 300, 200),
    "full": Scale(64, 3, 120.0, 1000, 5000, 1000, 1000),
}


def run(options: Options) -> Iterator[Result]:
    """Train what is not trained yet, draw, measure; one result per size."""
    scale = options.changed(SCALES[options.scale])
    for size in options.sizes or (scale.size,):
        yield _at_size(options, replace(scale, size=size))


def _at_size(options: Options, scale: Scale) -> Result:
    cube = "x".join([str(scale.size)] * 3)
    data = DataSettings(options.data, "brain", scale.phantoms, cube)
    dataset = open_dataset(data)
    runs = options.out / "runs" / cube
    wanted = [_job(runs, data, system, seed, scale) for seed in range(scale.seeds) for system in SHARES]
    train_all(wanted)
    bench = Bench(options, scale, dataset, "volume", "brain")
    contestants = [_drawn(j, scale, bench.real, options.out / "samples" / cube) for j in wanted]
    numbers = bench.table(contestants)
    for job, c in zip(wanted, contestants, strict=True):
        numbers["rows"][c.name] |= costs(job.folder, dataset["train"])
        numbers["rows"][c.name]["error"] = error_of_run(job.folder, bench.real, bench.memo)
    mean = dataset["train"].pixels.mean(0, keepdim=True)
    flat = denoising_error(lambda x, _: mean.expand_as(x), bench.real.pixels)
    numbers["controls"]["mean volume"] = {"error": _estimate(flat)}
    notes = [
        f"volumes: {Path(options.data).name if options.data else 'brain phantoms'}, {cube}",
        f"{scale.minutes:g} processor minutes and one thread per run; {scale.seeds} training seed(s); {scale.count} volumes per run",
        "error: of denoised held-out volumes with all tokens present, weighted as in training, mean over the noise levels "
        + ", ".join(f"{v:g}" for v in LEVELS)
        + "; 'mean volume' gives the same answer at all of them",
        "memory: MiB that the forward pass of a training step keeps for the backward pass, one volume, weights left out",
        bench.note,
    ]
    part = f"{scale.size}vox"
    found = Result("16-masked", options.scale, claims(numbers), {cube: numbers}, notes, part=part)
    save_pictures(options.results / "figures" / found.name, contestants, 16)
    return found


def _job(runs: Path, data: DataSettings, system: str, seed: int, scale: Scale) -> Job:
    overrides: dict[str, str | int | float] = {
        "model.mask_share": SHARES[system],
        "data.folder": data.folder,
        "data.count": data.count,
        "data.size": str(data.size),
        "training.max_steps": 0,
        "training.max_minutes": scale.minutes,
        "training.clock": "cpu",
        "training.seed": seed,
        "training.sample_minutes": 0,
    }
    return Job(RECIPE, scale.variant, runs / f"{system.replace(':', '-')}@{seed}", overrides)


def _drawn(job: Job, scale: Scale, real: Images, cache: Path) -> Contestant:
    name = job.folder.name.replace("-all", ":all")
    seed, file = int(name.partition("@")[2]), cache / f"{job.folder.name}.safetensors"
    return from_model(job.folder, name, scale.count, real, seed=seed, cache=file, likelihood=False)


def costs(run: Path, train: Images) -> dict[str, float]:
    """Speed of the training that was, in steps per processor minute, and memory of a step, in MiB."""
    spent = read_card(run / "weights.safetensors").training
    return {
        "steps_per_minute": round(60 * spent["steps"] / spent["seconds"], 1),
        "memory": saved_megabytes(run, train),
    }


def error_of_run(run: Path, real: Images, memo: Memo) -> dict[str, float]:
    """Denoising error of a run's model on held-out images; kept."""

    def measure() -> tuple[dict[str, Any], dict[str, Tensor]]:
        model: Any = load_model(run, "cpu")[0]
        return _estimate(denoising_error(model.denoise, real.pixels)), {}

    digest = read_metadata(run / "weights.safetensors")["sha256"]
    return memo.fetch(["denoising error", digest, real, LEVELS], measure)[0]


@torch.no_grad()
def denoising_error(denoise: Callable[[Tensor, Tensor], Tensor], x0: Tensor) -> Tensor:
    """(N,) mean over LEVELS of the squared error of denoise(x0 + sigma eps, sigma) in EDM's weights; x0 (N, C, *S)."""
    total = torch.zeros(len(x0), dtype=torch.float64)
    for k, sigma in enumerate(LEVELS):
        weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2  # Karras 2022, table 1
        noise = torch.randn(x0.shape, generator=generator("denoising error", k))
        found = [
            denoise(x + sigma * e, torch.full((len(x),), sigma)) - x
            for x, e in zip(x0.split(BATCH), noise.split(BATCH))
        ]
        total += weight * torch.cat(found).double().square().flatten(1).mean(1)
    return total / len(LEVELS)


def _estimate(errors: Tensor) -> dict[str, float]:
    return mean_estimate(errors, 1000, generator("denoising error", len(LEVELS))).as_dict()


def claims(numbers: dict[str, Any]) -> list[Claim]:
    """What leaving out half of the tokens costs and saves, held against the numbers ("rows", "controls")."""
    rows = numbers["rows"]
    fd = against(
        numbers,
        "samples",
        "In the same time, volumes of the masked transformer are as near to real ones as of the one with all tokens",
        SOURCE,
        RECIPE,
        [WHOLE],
        within,
    )
    found = [controls(numbers), _speed(rows), _error(numbers), _less_memory(rows), fd]
    return [c for c in found if c is not None]


def _mean(rows: dict[str, Any], system: str, key: str) -> float:
    values = [row[key] for name, row in rows.items() if name.split("@")[0] == system]
    return sum(values) / len(values)


def _speed(rows: dict[str, Any]) -> Claim:
    ours, whole = (_mean(rows, s, "steps_per_minute") for s in (RECIPE, WHOLE))
    statement = f"Steps with half of the tokens are at least {SPEED} times as fast"
    evidence = f"{ours:.0f} against {whole:.0f} steps per processor minute: {ours / whole:.2f} times"
    return Claim("speed", statement, SOURCE, ours >= SPEED * whole, evidence)


def _error(numbers: dict[str, Any]) -> Claim:
    ours, whole = (of_system(numbers["rows"], s, "error") for s in (RECIPE, WHOLE))
    flat = Estimate.from_dict(numbers["controls"]["mean volume"]["error"])
    assert ours is not None and whole is not None
    holds = ours.value <= CLOSE * whole.value and flat.low > ours.high
    evidence = f"{shown(RECIPE, ours)}, {shown(WHOLE, whole)}, {shown('mean volume', flat)}"
    statement = "In the same time, its error on held-out volumes is at most a tenth larger, and both beat the mean volume"
    return Claim("error", statement, SOURCE, holds, evidence)


def _less_memory(rows: dict[str, Any]) -> Claim:
    ours, whole = (_mean(rows, s, "memory") for s in (RECIPE, WHOLE))
    statement = "A step with half of the tokens keeps less than one with all"
    return Claim(
        "memory", statement, SOURCE, ours < whole, f"{ours:.2f} MiB against {whole:.2f} MiB for one volume"
    )

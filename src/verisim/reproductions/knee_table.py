"""Source 001, Table 6.1: eight autoencoders on knee X-rays, reconstruction beside sampling, and what it lacked.

Every system gets the same processor time. Reconstructions of held-out patients are scored from the
posterior mean (or the nearest codes), at the rate that they cost; samples are judged twice: as the source
drew them (N(0, I), uniform codes) and from what was fitted afterwards (ex-post density, learned prior).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from verisim.data.folder import Dataset
from verisim.data.mosaic import save_mosaic
from verisim.hub.weights import load_model, read_card
from verisim.metrics.memo import Measured, Memo
from verisim.metrics.protocols.fair import PRESETS
from verisim.recipes import load_recipe
from verisim.reports.html import comparison_report
from verisim.reproductions.cxr_comparison import committable
from verisim.reproductions.knee_bits import bit_claims, rate_rows
from verisim.reproductions.knee_claims import claims
from verisim.reproductions.knee_figures import write_curves, write_rate_distortion
from verisim.reproductions.knee_grades import grade_claims, grade_rows
from verisim.reproductions.result import Options, Result
from verisim.reproductions.runs import Job, train_all
from verisim.tasks.autoencoding import (
    label_consistency,
    latent_return,
    reconstruct,
    reconstruction_scores,
    trivial_scores,
)
from verisim.tasks.comparison import compare, held_out, show_progress
from verisim.tasks.contestants import Contestant, from_model
from verisim.training.checkpoint import read_metadata
from verisim.training.source import DataSettings, open_dataset

SYSTEMS = (
    "K-S1",
    "K-S2",
    "K-S3",
    "K-S4",
    "K-S5",
    "K-S6",
    "K-S7",
    "K-S8",
    "K-X1",
    "K-X3",
    "K-S9.1",
    "K-S5-literal",
)
RETURNING = ("K-S1", "K-S5", "K-S5-literal")  # whose encoders are to undo their decoders, and the VAE
UNCONDITIONAL = ("K-S6", "K-S7")  # a VQ-VAE without a prior knows no classes
SOURCE_PRIOR = {"K-S6": "uniform", "K-S7": "uniform", "K-X1": "uniform"}  # others: N(0, I)


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    size: int  # pixels
    seeds: int  # training seeds
    minutes: float  # processor minutes per run; 0 = the recipe's own budget
    variant: str
    count: int  # images drawn per run and prior
    preset: str  # of the fair protocol
    phantoms: int


SCALES = {
    "smoke": Scale(16, 1, 0.05, "small", 120, "smoke", 250),
    "small": Scale(64, 2, 4.0, "small", 400, "full", 1200),
    "full": Scale(256, 4, 0.0, "full", 5000, "full", 10000),
}


def run(options: Options) -> Iterator[Result]:
    """Train what is not trained yet, score reconstructions and samples; one result per size."""
    scale = options.changed(SCALES[options.scale])
    systems = options.chosen(SYSTEMS)
    for size in options.sizes or (scale.size,):
        yield _table(options, replace(scale, size=size), systems)


def _table(options: Options, scale: Scale, systems: tuple[str, ...]) -> Result:
    data = knee_data(options, scale)
    dataset = open_dataset(data)
    wanted = knee_jobs(options.out, data, systems, scale)
    train_all(wanted)
    memo = Memo(options.out / "measured")
    contestants = _contestants(wanted, dataset, scale, options.out / "samples" / str(scale.size))
    progress = show_progress(f"001, {scale.size} px")
    preset = PRESETS[scale.preset]
    results = compare(contestants, dataset, preset, progress=progress, memory=options.out / "measured")
    rows = {j.folder.name: _reconstructions(j.folder, dataset, memo) for j in wanted}
    numbers: dict[str, Any] = {
        "reconstruction": rows,
        "trivial": trivial_scores(dataset["train"].quantise(), held_out(dataset)),
        "sampling": committable(results),
    }
    minutes = f"{scale.minutes:g} processor minutes" if scale.minutes else "the recipe's own budget"
    notes = [
        f"images: {Path(options.data).name if options.data else 'knee phantoms'}",
        f"{minutes} and one thread per run; {scale.seeds} training seed(s); {scale.count} samples per run and prior",
        "reconstructions: posterior mean or nearest codes, 8-bit, of held-out patients; weights of the last step, "
        "averaged; nothing was selected on test images",
        "latent_return: mean of |encode(decode(z)) - z|^2 per latent, z from N(0, I)",
        "'NAME:source' draws as the source did: N(0, I) or uniform codes",
        "bits: KL to N(0, I), the least that a coder could need, or the length of the codes; 'at equal "
        "bits' is by time sharing, a share of the images coded with one system and the rest with another",
    ]
    sizes = {j.folder.name.split("@")[0]: _parameters(j.folder) for j in wanted}
    numbers["latent_return"] = {
        j.folder.name: _latent_return(j.folder, memo, scale.count) for j in wanted if j.recipe in RETURNING
    }
    numbers["rate_distortion"] = rate_rows(numbers, scale.size, sizes)
    numbers["grades"] = grade_rows(numbers)
    part = f"{scale.size}px" if options.data else f"phantoms-{scale.size}px"
    if options.systems:  # some of the table, beside the whole one
        part += "-" + "+".join(options.systems)
    told = [c for f in (claims, bit_claims, grade_claims) for c in f(numbers, scale.size)]
    found = Result("001", options.scale, told, {}, notes, part=part)
    found.report = _report(options, found, results, contestants, dataset)
    figures = options.results / "figures" / found.name
    write_curves([j.folder for j in wanted], figures)
    write_rate_distortion(numbers, figures)
    found.numbers = {str(scale.size): numbers}
    return found


def _parameters(folder: Path) -> int:
    """Number of weights, off the model card."""
    return read_card(folder / "weights.safetensors").training["parameters"]


def knee_data(options: Options, scale: Scale) -> DataSettings:
    """The images that all runs of this scale learn from."""
    label = "kl_grade" if options.data else "label"
    return DataSettings(options.data, "knee", scale.phantoms, scale.size, label=label)


def knee_jobs(out: Path, data: DataSettings, systems: tuple[str, ...], scale: Scale) -> list[Job]:
    """A run per seed and system, in OUT/runs/SIZE/SYSTEM@SEED, whichever reproduction asks for it."""
    return [
        knee_job(out, data, system, scale.variant, system, seed, scale)
        for seed in range(scale.seeds)
        for system in systems
    ]


def knee_job(
    out: Path,
    data: DataSettings,
    system: str,
    variant: str,
    name: str,  # of its folder, before @SEED
    seed: int,
    scale: Scale,
) -> Job:
    """One run: the recipe's variant with the data and the budget that all runs share."""
    overrides: dict[str, str | int | float] = {
        "data.folder": data.folder,
        "data.count": data.count,
        "data.size": data.size,
        "data.label": "" if system in UNCONDITIONAL else data.label,
        "training.seed": seed,
        "training.sample_minutes": 0,
    }
    if scale.minutes:
        overrides |= {"training.max_minutes": scale.minutes, "training.clock": "cpu"}
        overrides |= _stages(system, variant)
    return Job(system, variant, out / "runs" / str(data.size) / f"{name}@{seed}", overrides)


def _stages(system: str, variant: str) -> dict[str, str | int | float]:
    """Budgets in time need no end in steps; stages that begin at a step keep their recipe's place."""
    training = load_recipe(system).settings(variant)["training"]
    return {"training.max_steps": 0} if training.get("max_steps") else {}


def _contestants(wanted: list[Job], dataset: Dataset, scale: Scale, cache: Path) -> list[Contestant]:
    """Samples of every run as its model draws them by default, and as the source drew them."""
    real, found = held_out(dataset), []
    for seed, job in enumerate(wanted):
        system, _, number = job.folder.name.partition("@")
        prior = SOURCE_PRIOR.get(system, "normal")
        for name, options in ((job.folder.name, {}), (f"{system}:source@{number}", {"prior": prior})):
            file = cache / f"{name}.safetensors"
            found.append(
                from_model(job.folder, name, scale.count, real, seed=seed, cache=file, options=options)
            )
    return found


def _reconstructions(folder: Path, dataset: Dataset, memo: Memo) -> dict[str, Any]:
    """Scores on training and held-out images, and whether grades survive."""
    train, test = dataset["train"].quantise(), held_out(dataset)
    digest = read_metadata(folder / "weights.safetensors")["sha256"]

    def measure() -> Measured:
        model: Any = load_model(folder)[0]
        row: dict[str, Any] = {"test": reconstruction_scores(model, test)}
        row["train"] = reconstruction_scores(model, train)
        if dataset.class_names:
            row["labels"] = label_consistency(train, test, reconstruct(model, test), dataset.class_names)
        return row, {}

    return memo.fetch(["reconstruction", digest, train, test], measure)[0]


def _latent_return(folder: Path, memo: Memo, n: int) -> dict[str, float]:
    """Does the encoder find the latents that the decoder was given?"""
    digest = read_metadata(folder / "weights.safetensors")["sha256"]

    def measure() -> Measured:
        model: Any = load_model(folder)[0]
        return latent_return(model, n).as_dict(), {}

    return memo.fetch(["latent return", digest, n], measure)[0]


def _report(
    options: Options, found: Result, results: dict[str, Any], contestants: list[Contestant], dataset: Dataset
) -> Path:
    """Grids of samples (committable) and the HTML report (local: it shows real images)."""
    folder = options.results / "figures" / found.name
    for c in contestants:
        if c.name.endswith("@0"):
            save_mosaic(folder / f"{c.name[:-2].replace(':', '-')}.png", c.images.pixels[:32], 8, scale=1)
    grids = options.out / f"reconstructions.{found.part}" if options.data else folder  # may hold real images
    _draw_reconstructions(
        grids, contestants, options.out / "runs" / str(dataset["train"].spec.size[0]), dataset
    )
    return comparison_report(
        options.out / f"report.{found.part}.html",
        results,
        samples={c.name: c.images for c in contestants},
        real=held_out(dataset),
        runs={c.name: c.report() for c in contestants},
        title=f"Knee X-ray autoencoders as generators, {found.part}",
        notes=[],
        train=dataset["train"],
    )


def _draw_reconstructions(folder: Path, contestants: list[Contestant], runs: Path, dataset: Dataset) -> None:
    """SYSTEM.reconstructions.png: a row per grade (or one row), four held-out images and what comes back of them."""
    test = held_out(dataset)
    grade = torch.zeros(len(test)) if test.labels is None else test.labels
    index = [(grade == g).nonzero()[:4, 0] for g in grade.unique()]
    rows = torch.cat([i[torch.arange(4) % len(i)] for i in index])  # rare grades are shown twice
    shown = test.subset(rows)
    for c in contestants:
        if c.name.endswith("@0") and ":" not in c.name:
            again = reconstruct(load_model(runs / c.name)[0], shown)  # type: ignore[arg-type]
            pairs = torch.cat(
                [shown.pixels.view(-1, 4, *test.spec.shape), again.pixels.view(-1, 4, *test.spec.shape)], 1
            )
            save_mosaic(folder / f"{c.name[:-2]}.reconstructions.png", pairs.flatten(0, 1), 8, scale=1)

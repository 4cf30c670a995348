"""Source 004: GAN, VAE, autoregressive and diffusion models for chest X-rays, compared fairly.

Every system is trained in the source's literal form and in the corrected form, with the same processor
time, several seeds, at one size; all are judged on held-out patients by the fair protocol, beside
controls that must come out best (real images) and worst (noise).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from verisim.data.atomic import atomic_write
from verisim.data.folder import Dataset
from verisim.data.mosaic import save_mosaic
from verisim.data.spec import Images
from verisim.metrics.protocols.fair import PRESETS, rank
from verisim.models.autoregressive.baselines import left_neighbour_laplace_bits, pixel_histogram_bits
from verisim.recipes import load_recipe
from verisim.reports.figures import curves_png, read_curves
from verisim.reports.html import comparison_report
from verisim.reproductions.cxr_claims import claims
from verisim.reproductions.result import Options, Result
from verisim.reproductions.runs import Job, at_once, train_all
from verisim.tasks.comparison import compare, held_out, show_progress
from verisim.tasks.contestants import Contestant, from_model
from verisim.training.source import DataSettings, open_dataset

LITERAL = {"gan": "X-G0", "vae": "X-V0", "autoregressive": "X-A0", "diffusion": "X-D0"}
CORRECTED = {"gan": "X-G-fix", "vae": "X-V-fix", "autoregressive": "X-A-fix", "diffusion": "X-D-fix"}
SYSTEMS = (*LITERAL.values(), *CORRECTED.values())


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    sizes: tuple[int, ...]
    seeds: int  # training seeds of corrected systems
    minutes: float  # processor minutes per run; 0 = the recipe's own budget
    variant: str
    count: int  # images drawn per run
    preset: str  # of the fair protocol
    phantoms: int  # number of phantoms where no folder is given
    literal_seeds: int = 0  # training seeds of literal systems; 0 = as many

    def changed_by(self, options: Options) -> Scale:
        """This scale with what the user asked for."""
        return replace(
            self,
            sizes=options.sizes or self.sizes,
            seeds=options.seeds or self.seeds,
            count=options.count or self.count,
            minutes=options.minutes or self.minutes,
        )


SCALES = {
    "smoke": Scale((16,), 1, 0.05, "small", 120, "smoke", 300),
    "small": Scale((32, 64), 3, 3.0, "small", 400, "full", 2500, literal_seeds=1),
    "full": Scale((64, 128), 3, 0.0, "full", 5000, "full", 20000),
}


def run(options: Options) -> Iterator[Result]:
    """Train what is not trained yet, judge, and write figures and report; one result per size."""
    return run_at(options, SCALES[options.scale], "004", SYSTEMS)


def run_at(options: Options, scale: Scale, name: str, known: tuple[str, ...]) -> Iterator[Result]:
    """The comparison of the `known` systems (or those that options name) at a scale, size by size."""
    systems = options.chosen(known, "comparison")
    scale = scale.changed_by(options)
    for size in scale.sizes:
        yield _at_size(options, scale, name, systems, size)


def _at_size(options: Options, scale: Scale, name: str, systems: tuple[str, ...], size: int) -> Result:
    data = data_settings(options, scale, size)
    found = judged(options, scale, name, jobs(options.out, data, systems, scale), data)
    found.notes[1:1] = [
        f"training seeds: {scale.seeds} (literal systems: {scale.literal_seeds or scale.seeds})",
        "corrected systems are class-conditional and draw classes by training frequency; literal ones are not",
    ]
    return found


def judged(
    options: Options, scale: Scale, name: str, wanted: list[Job], data: DataSettings, part: str = ""
) -> Result:
    """Train and sample the wanted runs, judge all in one table, write pictures and report.

    part: appended to the name of the result, where it is of some systems only.
    """
    size = data.shape[-1]
    dataset = open_dataset(data)
    contestants = contestants_of(wanted, dataset, scale.count, options.out / "samples" / str(size))
    results = compare(
        contestants,
        dataset,
        PRESETS[scale.preset],
        anatomy="chest",
        progress=show_progress(f"{name}, {size} px"),
        memory=options.out / "measured",
    )
    results["baselines"] = _bits_baselines(dataset)
    results["verdict"] = rank(results)
    notes = [
        f"images: {Path(options.data).name if options.data else 'phantoms'}",
        f"{_budget(scale, contestants)}; {scale.count} samples per run",
    ]
    gpu = "" if _devices(contestants) == {"CPU"} else "-gpu"
    found = Result(name, options.scale, claims(results, size), {}, notes, part=f"{size}px{gpu}{part}")
    found.report = _pictures(options, found, size, results, contestants, dataset)
    found.numbers = {str(size): committable(results)}
    return found


def _budget(scale: Scale, contestants: list[Contestant]) -> str:
    """How long runs were trained, and on what."""
    minutes = f"{scale.minutes:g} minutes" if scale.minutes else "the recipe's own budget"
    clocks = {c.facts.get("clock", "cpu") for c in contestants}
    devices = _devices(contestants)
    where = "one thread of a CPU" if devices == {"CPU"} else ", ".join(sorted(devices))
    return f"{minutes} of {' and '.join(sorted(clocks))} time per run on {where}"


def _devices(contestants: list[Contestant]) -> set[str]:
    return {c.facts.get("device", "CPU") for c in contestants}


def data_settings(options: Options, scale: Scale, size: int) -> DataSettings:
    """The user's folder, labelled by its `group` column, or phantoms labelled by findings."""
    label = "group" if options.data else "label"
    return DataSettings(folder=options.data, count=scale.phantoms, size=size, label=label)


def jobs(out: Path, data: DataSettings, systems: tuple[str, ...], scale: Scale) -> list[Job]:
    """One training run per system and seed, in OUT/runs/SIZE."""
    wanted = []
    for seed in range(scale.seeds):
        for system in systems:
            if system in LITERAL.values() and scale.literal_seeds and seed >= scale.literal_seeds:
                continue
            overrides: dict[str, str | int | float] = {
                "data.folder": data.folder,
                "data.count": data.count,
                "data.size": data.size,
                "data.label": data.label if system in CORRECTED.values() else "",
                "training.seed": seed,
                "training.sample_minutes": 0,
            }
            if scale.minutes:
                overrides |= {"training.max_minutes": scale.minutes, "training.clock": "cpu"}
            folder = out / "runs" / str(data.size) / f"{system}@{seed}"
            variants = load_recipe(system).variants
            sized = f"{scale.variant}-{data.size}"
            variant = sized if sized in variants else scale.variant
            wanted.append(Job(system, variant, folder, overrides))
    return wanted


def contestants_of(wanted: list[Job], dataset: Dataset, count: int, cache: Path) -> list[Contestant]:
    """Trained and sampled systems, each in processes of one thread; what was done before is reused.

    The n-th system is sampled with seed n.
    """
    train_all(wanted)
    real = held_out(dataset)
    tasks = [
        (j.folder, j.folder.name, count, real, seed, cache / f"{j.folder.name}.safetensors")
        for seed, j in enumerate(wanted)
    ]
    console, found = Console(stderr=True), []
    with ProcessPoolExecutor(at_once(), get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for task, contestant in zip(tasks, pool.map(_draw, tasks)):
            console.print(f"sampled {task[1]}", markup=False, highlight=False)
            found.append(contestant)
    return found


def _draw(task: tuple[Path, str, int, Images, int, Path]) -> Contestant:
    path, name, count, real, seed, cache = task
    return from_model(path, name, count, real, seed=seed, cache=cache)


def _bits_baselines(dataset: Dataset) -> dict[str, float]:
    """Bits per dimension of two models that know no shapes."""
    train, test = dataset["train"].quantise().pixels, held_out(dataset).pixels
    return {
        "pixel histogram": float(pixel_histogram_bits(train, test).double().mean()),
        "left neighbour": float(left_neighbour_laplace_bits(train, test).double().mean()),
    }


def committable(results: dict[str, Any]) -> dict[str, Any]:
    """Results without the indices of nearest training images, which belong to local reports."""
    text = json.loads(json.dumps(results))
    for row in [*text["rows"].values(), *text["controls"].values()]:
        for space in row["memorisation"].values():
            space.pop("nearest", None)
    return text


def _pictures(
    options: Options,
    found: Result,
    size: int,
    results: dict[str, Any],
    contestants: list[Contestant],
    dataset: Dataset,
) -> Path:
    """Samples and learning curves per system (committable), and the HTML report (local: shows real images)."""
    folder = options.results / "figures" / found.name
    for c in contestants:
        if c.name.endswith("@0"):
            save_mosaic(folder / f"{c.name[:-2]}.png", c.images.pixels[:32], 8, scale=1)
            curves = read_curves(c.metrics)[0] if c.metrics else {}
            if curves:
                atomic_write(folder / f"{c.name[:-2]}.curves.png", curves_png(c.name, curves))
    path = options.out / f"report.{size}.html"
    comparison_report(
        path,
        results,
        samples={c.name: c.images for c in contestants},
        real=held_out(dataset),
        runs={c.name: c.report() for c in contestants},
        title=f"Chest X-ray generators at {size} pixels",
        notes=[],
        train=dataset["train"],
    )
    return path

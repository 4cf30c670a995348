"""Source 003, section 17-G: images in 1 to 8 steps, from students of a diffusion model and from adversarial diffusion.

A teacher (X-D-fix), a student distilled from it for each number of steps (17-G.1), and adversarial diffusion in four
steps (17-G.4), on the same images, with networks of the same widths. Adversarial diffusion trains for as long as a
teacher and one student together. Controls: the teacher itself in as many steps, by two samplers, of which DDIM on the
student's grid is what an untrained student makes; other real images; noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from verisim.data.atomic import atomic_write
from verisim.data.folder import Dataset
from verisim.data.spec import Images
from verisim.hub.weights import load_model, read_card
from verisim.metrics.bootstrap import Estimate
from verisim.metrics.diversity import diversity_ratio
from verisim.metrics.features import random_features
from verisim.reports.figures import dots_png
from verisim.reproductions.bench import Bench, save_pictures
from verisim.reproductions.few_steps_claims import ADVERSARIAL, STUDENT, TEACHER, claims, in_steps
from verisim.reproductions.result import Options, Result
from verisim.reproductions.runs import Job, train_all
from verisim.seeding import generator
from verisim.tasks.comparison import held_out
from verisim.tasks.contestants import Contestant, from_model
from verisim.training.source import DataSettings, open_dataset

SYSTEMS = (TEACHER, STUDENT, ADVERSARIAL)
SAMPLERS = {"ddim": "angle", "dpmpp_2m": "flow"}  # of the teacher in few steps, each on its best grid
STUDENT_STEP = 5 / 3  # cost of a student's training step in its teacher's: two more passes, forward only
ADVERSARIAL_STEPS = 4


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    size: int  # pixels
    seeds: int  # training seeds
    minutes: float  # processor minutes of the teacher; a student has half, adversarial diffusion one and a half times
    steps: tuple[int, ...]  # of the students
    fine: int  # steps that are halved first
    channels: tuple[int, ...]  # width per level of every network
    critic: tuple[int, ...]  # and of the critic of adversarial diffusion
    count: int  # images drawn per contestant
    phantoms: int
    domain_steps: int  # training steps of the feature network; 0 = random features alone
    pairs: int  # of images for MS-SSIM


SCALES = {
    "smoke": Scale(16, 1, 0.03, (4,), 16, (8, 16), (8, 16, 16), 30, 150, 0, 20),
    "small": Scale(32, 1, 5.5, (1, 2, 4, 8), 32, (32, 64, 64), (32, 64, 128, 128), 400, 2500, 300, 200),
    "full": Scale(
        64, 3, 120.0, (1, 2, 4, 8), 64, (128, 256, 256), (128, 256, 512, 512), 5000, 20000, 1000, 1000
    ),
}


def run(options: Options) -> Iterator[Result]:
    """Train what is not trained yet, draw, measure; one result per size."""
    scale = options.changed(SCALES[options.scale])
    systems = options.chosen(SYSTEMS)
    for size in options.sizes or (scale.size,):
        yield _at_size(options, replace(scale, size=size), systems)


def _at_size(options: Options, scale: Scale, systems: tuple[str, ...]) -> Result:
    data = DataSettings(options.data, "chest", scale.phantoms, scale.size)
    dataset = open_dataset(data)
    runs, part = options.out / "runs" / str(scale.size), f"{scale.size}px"
    first = first_jobs(runs, data, systems, scale)
    train_all(first)
    students = student_jobs(runs, data, scale) if STUDENT in systems else []
    train_all(students)
    contestants = draw([*first, *students], dataset, scale, options.out / "samples" / str(scale.size))
    bench = Bench(options, scale, dataset, "image", "chest", _diversity)
    numbers = bench.table(contestants)
    notes = [
        f"images: {Path(options.data).name if options.data else 'chest phantoms'}, {scale.size} pixels",
        f"{scale.minutes:g} processor minutes for the teacher, half of it for a student, one and a half times for "
        f"adversarial diffusion, one thread each; {scale.seeds} training seed(s); {scale.count} images per row",
        f"students: {scale.fine} steps halved until theirs; the length of a phase follows from the teacher's speed",
        f"{TEACHER}:SAMPLER-N: the teacher in N steps, by " + ", ".join(f"{k} on the grid '{v}'" for k, v in SAMPLERS.items()),
        "seconds_per_image: wall clock while drawing; network_evaluations: counted",
        bench.note,
    ]  # fmt: skip
    found = Result("17-few", options.scale, claims(numbers), {str(scale.size): numbers}, notes, part=part)
    _pictures(options.results / "figures" / found.name, contestants, numbers)
    return found


def _diversity(images: Images, real: Images, rng: torch.Generator) -> dict[str, Any]:
    """Distance of pairs in random features, over that of real pairs."""
    net = random_features(real)
    return {"diversity": diversity_ratio(net.embed(images), net.embed(real), rng).as_dict()}


def first_jobs(runs: Path, data: DataSettings, systems: tuple[str, ...], scale: Scale) -> list[Job]:
    """The teachers, which everything is measured by, and adversarial diffusion, one run per seed."""
    found = []
    attention = [False] * (len(scale.channels) - 1) + [True]
    net: dict[str, str | int | float] = {
        "model.channels": _list(scale.channels),
        "model.blocks": 1,
        "model.attention": _list(attention),
        "model.head_channels": min(32, scale.channels[-1]),
    }
    for seed in range(scale.seeds):
        plain = {"model.bf16_sampling": "false", "training.ema": 0.998}
        found.append(_timed(runs, data, TEACHER, seed, scale.minutes, {**net, **plain}))
        if ADVERSARIAL in systems:
            own = {"model.steps": ADVERSARIAL_STEPS, "model.critic_channels": _list(scale.critic)}
            found.append(_timed(runs, data, ADVERSARIAL, seed, 1.5 * scale.minutes, {**net, **own}))
    return found


def student_jobs(runs: Path, data: DataSettings, scale: Scale) -> list[Job]:
    """A student per seed and number of steps; as many training steps as fill its minutes at its teacher's speed."""
    found = []
    for seed in range(scale.seeds):
        teacher = runs / f"{TEACHER}@{seed}"
        spent = read_card(teacher / "weights.safetensors").training
        one = STUDENT_STEP * spent["seconds"] / spent["steps"]  # seconds of a student's step
        for n in scale.steps:
            phases = round(math.log2(scale.fine / n))
            length = max(1, int(30 * scale.minutes / one / phases))
            more: dict[str, str | int | float] = {
                "model.teacher": str(teacher),
                "model.steps": n,
                "model.phases": phases,
                "model.phase_steps": length,
                "training.max_steps": phases * length,
            }
            found.append(_job(runs, data, in_steps(STUDENT, n), STUDENT, seed, more))
    return found


def _timed(
    runs: Path, data: DataSettings, recipe: str, seed: int, minutes: float, more: dict[str, Any]
) -> Job:
    budget = {"training.max_minutes": minutes, "training.max_steps": 0}
    return _job(runs, data, recipe, recipe, seed, {**budget, **more})


def _job(
    runs: Path, data: DataSettings, name: str, recipe: str, seed: int, more: dict[str, str | int | float]
) -> Job:
    common: dict[str, str | int | float] = {
        "data.folder": data.folder,
        "data.phantom": data.phantom,
        "data.count": data.count,
        "data.size": data.size,
        "training.clock": "cpu",
        "training.precision": "float32",
        "training.seed": seed,
        "training.sample_minutes": 0,
    }
    return Job(recipe, "small", runs / f"{name}@{seed}", {**common, **more})


def _list(values: Any) -> str:
    """A list as the command line takes it."""
    return "[" + ",".join(str(v).lower() for v in values) + "]"


def draw(jobs: list[Job], dataset: Dataset, scale: Scale, cache: Path) -> list[Contestant]:
    """Images of every run, and of the teachers in few steps by both samplers, with their cost."""
    real, found = held_out(dataset), []
    for job in jobs:
        name, _, seed = job.folder.name.partition("@")
        ways: dict[str, dict[str, Any]] = {name: {}}
        if name == TEACHER:
            for n in (*scale.steps, scale.fine):
                for sampler, schedule in SAMPLERS.items():
                    if n < scale.fine or sampler == "ddim":  # what students are to reach
                        way = {"sampler": sampler, "schedule": schedule, "steps": n}
                        ways[in_steps(f"{TEACHER}:{sampler}", n)] = way
        for way_name, options in ways.items():
            full = f"{way_name}@{seed}"
            file = cache / f"{full.replace(':', '-')}.safetensors"
            made = from_model(
                job.folder,
                full,
                scale.count,
                real,
                seed=int(seed),
                cache=file,
                options=options,
                likelihood=False,
            )
            cost = {
                "network_evaluations": evaluations(job.folder, options),
                "seconds_per_image": round(1 / made.facts["samples_per_second"], 5),
            }
            found.append(replace(made, facts={**made.facts, **cost}))
    return found


def evaluations(run: Path, options: dict[str, Any]) -> int:
    """How often a run's network is asked for one image, counted."""
    model = load_model(run)[0]
    model.configure_sampling(**options)
    calls = []
    hook = model.sampling_net.register_forward_hook(lambda *_: calls.append(1))
    model.sample(1, generator=generator("evaluations", 0))
    hook.remove()
    return len(calls)


def _pictures(folder: Path, contestants: list[Contestant], numbers: dict[str, Any]) -> None:
    """Samples of each contestant of the first seed, and their distances side by side."""
    save_pictures(folder, contestants, 32)
    first = [c for c in contestants if c.name.endswith("@0")]
    shown = [(c.name[:-2], numbers["rows"][c.name], "system") for c in first]
    shown.append(("other real images", numbers["controls"]["real"], "control"))
    for label in numbers["controls"]["real"]["fd"]:
        dots = []
        for name, row, kind in shown:
            e = Estimate.from_dict(row["fd"][label])
            evaluations = row.get("facts", {}).get("network_evaluations")
            said = name if evaluations is None else f"{name} ({evaluations})"
            dots.append((said, e.value, e.low, e.high, kind))
        dots.sort(key=lambda d: d[1])
        xlabel = f"{label} to held-out images (network evaluations in brackets)"
        atomic_write(folder / f"{label.strip('FD()')}.dots.png", dots_png(dots, xlabel))

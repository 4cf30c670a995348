"""The diffusion core, with known denoisers and trained: DDPM, DDIM, learned variance, guidance, re-noising.

Source 003, chapters 2, 4 and 13, and source 000, BG8. The first result needs no training (core_truth). For the second,
four models are trained on the same images with the same processor time and drawn by the samplers that the sources
name; controls: other real images, noise, labels that were shuffled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from verisim.data.folder import Dataset
from verisim.data.spec import Images
from verisim.hub.weights import load_model
from verisim.metrics.bootstrap import mean_estimate
from verisim.metrics.judges import JudgeSettings
from verisim.metrics.memo import Memo
from verisim.metrics.utility import shuffled_labels, train_and_test
from verisim.models.diffusion.denoising import DenoisingDiffusion
from verisim.reproductions import core_claims, core_truth
from verisim.reproductions.bench import Bench, save_pictures
from verisim.reproductions.result import Options, Result
from verisim.reproductions.runs import Job, train_all
from verisim.seeding import generator
from verisim.tasks.comparison import held_out
from verisim.tasks.contestants import Contestant, from_model
from verisim.training.source import DataSettings, open_dataset

SYSTEMS = ("2-DDPM", "2-LearnedVar", "2-CFG", "4-ReNoise")
SHORT = 50  # steps of the chains whose bounds are compared
WAYS: dict[str, dict[str, dict[str, Any]]] = {  # trained model -> row -> sampling options
    "2-DDPM": {
        "2-DDPM": {"sampler": "ddpm", "schedule": "vp_linear", "steps": 1000},
        "2-DDPM:50": {"sampler": "ddpm", "schedule": "vp_linear", "steps": 50},
        "13-DDIM": {"sampler": "ddim", "schedule": "vp_linear", "steps": 50},
        "W-BG8": {"sampler": "ddim", "schedule": "vp_linear", "steps": 100},
        "dpmpp_2m:20": {"sampler": "dpmpp_2m", "schedule": "flow", "steps": 20},
        "dpmpp_2m_sde:20": {"sampler": "dpmpp_2m_sde", "schedule": "flow", "steps": 20},
    },
    "2-LearnedVar": {"2-LearnedVar": {"sampler": "ddpm", "schedule": "vp_linear", "steps": SHORT}},
    "2-CFG": {f"2-CFG:{w:g}": {"guidance": w, "steps": SHORT} for w in (0.0, 1.0, 1.5, 3.0)},
    "4-ReNoise": {"4-ReNoise": {"sampler": "renoise", "schedule": "vp_cosine", "steps": 50}},
}


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    size: int  # pixels
    seeds: int  # training seeds
    minutes: float  # processor minutes per model
    count: int  # images drawn per row
    phantoms: int
    domain_steps: int  # training steps of the feature network; 0 = random features alone
    judge_steps: int  # of the classifier that reads the classes of guided samples
    bound_images: int  # held-out images whose bound is measured
    values: int  # per cell of the table with known denoisers
    steps: tuple[int, ...]  # its columns
    starts: int
    longest: int = 1000  # steps of the longest chain that is drawn
    tiny: bool = False  # networks of a few channels, to see that it runs

    @property
    def pairs(self) -> int:
        """Of images for MS-SSIM."""
        return min(200, self.count)


SCALES = {
    "smoke": Scale(16, 1, 0.03, 64, 200, 0, 5, 4, 128, (1, 2, 250), 2, longest=10, tiny=True),
    "small": Scale(32, 1, 5.0, 300, 2500, 300, 200, 64, 4096, (1, 2, 5, 10, 20, 50, 100, 250, 999, 1000), 5),
    "full": Scale(
        64, 3, 120.0, 5000, 20000, 1000, 2000, 512, 65536, (1, 2, 5, 10, 20, 50, 100, 250, 999, 1000), 10
    ),
}


def run(options: Options) -> Iterator[Result]:
    """What is true without training, then the trained models; one result each, and one per size."""
    scale = options.changed(SCALES[options.scale])
    systems = options.chosen(SYSTEMS)
    numbers = core_truth.measure_truth(scale.values, scale.steps, scale.starts)
    notes = [
        f"{scale.values} values per cell; denoisers in closed form: N(0.3, 0.2^2) and a mixture of three",
        "samplers: W2 distance to the data by network evaluations; a sampler whose step takes two evaluations takes half "
        "as many steps, one at least",
        "misprints: exact mean and spread of the chain of 1000 steps for N(0.3, 0.2^2)",
    ]
    yield Result("core", options.scale, core_truth.claims(numbers), numbers, notes, part="truth")
    for size in options.sizes or (scale.size,):
        yield _trained(options, replace(scale, size=size), systems)


def _trained(options: Options, scale: Scale, systems: tuple[str, ...]) -> Result:
    data = DataSettings(options.data, "chest", scale.phantoms, scale.size, label="label")
    dataset = open_dataset(data)
    jobs = [_job(options.out, data, s, seed, scale) for seed in range(scale.seeds) for s in systems]
    train_all(jobs)
    contestants = draw(jobs, dataset, scale, options.out / "samples" / str(scale.size))
    bench = Bench(options, scale, dataset, "image", "chest")
    memo = bench.memo
    classes = {
        c.name: _classes(c.images, dataset, scale, memo) for c in contestants if c.name.startswith("2-CFG")
    }
    classes["real"] = _classes(held_out(dataset), dataset, scale, memo)
    classes["shuffled"] = _classes(held_out(dataset), dataset, scale, memo, shuffle=True)
    bounds = {j.folder.name: bound(j.folder, dataset, scale) for j in jobs if _is_chain(j.recipe)}
    numbers = {**bench.table(contestants), "classes": classes, "bounds": bounds}
    notes = [
        f"images: {Path(options.data).name if options.data else 'chest phantoms'}, {scale.size} pixels",
        f"{scale.minutes:g} processor minutes and one thread per model; {scale.seeds} training seed(s); {scale.count} "
        f"images per row",
        "rows 2-DDPM, 2-DDPM:50, 13-DDIM, W-BG8, dpmpp_2m:20 and dpmpp_2m_sde:20 are draws of one trained model",
        f"bounds: bits per dimension of the chain of {SHORT} steps on {scale.bound_images} held-out images",
        "classes: AUC of a classifier trained on real images, on samples with the classes they were asked for; "
        "'shuffled': trained with shuffled labels",
    ]  # fmt: skip
    found = Result(
        "core", options.scale, core_claims.claims(numbers), {str(scale.size): numbers}, notes, part=f"{scale.size}px"
    )  # fmt: skip
    save_pictures(options.results / "figures" / found.name, contestants, 32)
    return found


def _job(out: Path, data: DataSettings, recipe: str, seed: int, scale: Scale) -> Job:
    settings: dict[str, str | int | float] = {
        "data.folder": data.folder,
        "data.phantom": data.phantom,
        "data.count": data.count,
        "data.size": data.size,
        "training.seed": seed,
        "training.sample_minutes": 0,
        "training.max_minutes": scale.minutes,
        "training.max_steps": 0,
        "training.clock": "cpu",
        "training.precision": "float32",
    }
    if recipe == "2-CFG":
        settings["data.label"] = data.label
    if scale.tiny:
        settings |= {
            "model.channels": "[8,16]",
            "model.head_channels": 8,
            "model.allow_small_features": "true",
        }
    return Job(recipe, "small", out / "runs" / str(data.size) / f"{recipe}@{seed}", settings)


def draw(jobs: list[Job], dataset: Dataset, scale: Scale, cache: Path) -> list[Contestant]:
    """Images of every run in every way of WAYS."""
    real, found = held_out(dataset), []
    for job in jobs:
        recipe, _, seed = job.folder.name.partition("@")
        for name, way in WAYS[recipe].items():
            options = {**way, "steps": min(way["steps"], scale.longest)}
            file = cache / f"{name.replace(':', '-')}@{seed}.safetensors"
            found.append(
                from_model(
                    job.folder,
                    f"{name}@{seed}",
                    scale.count,
                    real,
                    seed=int(seed),
                    cache=file,
                    options=options,
                    likelihood=False,
                )
            )
    return found


def _is_chain(recipe: str) -> bool:
    """Whose bounds are compared: the same chain with a fixed and with a learned variance."""
    return recipe in ("2-DDPM", "2-LearnedVar")


def bound(run: Path, dataset: Dataset, scale: Scale) -> dict[str, Any]:
    """Bits per dimension of held-out images by the chain of SHORT steps."""
    model, _ = load_model(run)
    assert isinstance(model, DenoisingDiffusion)
    model.configure_sampling(sampler="ddpm", schedule="vp_linear", steps=SHORT)
    x = held_out(dataset).quantise().pixels[: scale.bound_images]
    bits = model.chain_bound(x, generator=generator("core bound", 0)).total.cpu()
    return mean_estimate(bits.double(), 1000, generator("core bound", 1)).as_dict()


def _classes(
    images: Images, dataset: Dataset, scale: Scale, memo: Memo, shuffle: bool = False
) -> dict[str, Any]:
    """AUC of a classifier of real images on labelled images; with shuffle, of some trained with shuffled labels."""
    train, settings = dataset["train"].quantise(), JudgeSettings(steps=scale.judge_steps)

    def measure() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        if shuffle:
            return shuffled_labels(train, images, settings, 0, 3, 1000).as_dict(), {}
        return train_and_test(train, images, settings, n_seeds=1).auc.as_dict(), {}

    return memo.fetch(["core classes", train, images, repr(settings), shuffle], measure)[0]

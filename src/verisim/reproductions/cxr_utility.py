"""Source 004's future work (X-E5): ten thousand images of every model, for a classifier of real patients.

The corrected systems draw them, class by training frequency; a classifier learns from them alone, and from real and
synthetic images together, and is tested on held-out patients. The source proposed it and did not do it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from rich.console import Console

from verisim.data.folder import Dataset
from verisim.metrics.bootstrap import Estimate, tie
from verisim.reports.html import write_report
from verisim.reports.utility import utility_report
from verisim.reproductions.cxr_comparison import CORRECTED, Scale, data_settings, jobs
from verisim.reproductions.result import Claim, Options, Result
from verisim.reproductions.runs import Job, train_all
from verisim.tasks.comparison import held_out
from verisim.tasks.contestants import Contestant, from_model
from verisim.tasks.utility import UtilitySettings, measure_utility
from verisim.training.source import open_dataset

SYSTEMS = tuple(CORRECTED.values())
FASTER = {"X-D-fix": {"sampler": "dpmpp_2m", "steps": 12}}  # a third of the evaluations of its own sampler
SCALES = {
    "smoke": Scale((32,), 1, 0.03, "small", 120, "", 300),
    "small": Scale((32,), 1, 3.0, "small", 10_000, "", 2500),
    "full": Scale((64,), 1, 0.0, "full", 10_000, "", 20000),
}
SETTINGS = {
    "smoke": UtilitySettings(ratios=(0.5,), n_seeds=1, steps=20, bootstrap=100, permutations=2),
    "small": UtilitySettings(ratios=(1.0, 4.0, 16.0)),
    "full": UtilitySettings(ratios=(1.0, 4.0, 16.0), steps=1000, width=32),
}


def run(options: Options) -> Iterator[Result]:
    """Train what is not trained yet, draw, and measure; one result per size."""
    systems = options.chosen(SYSTEMS)
    scale = replace(SCALES[options.scale].changed_by(options), seeds=1)
    for size in scale.sizes:
        data = data_settings(options, scale, size)
        dataset = open_dataset(data)
        wanted = jobs(options.out, data, systems, scale)
        train_all(wanted)
        made = [draw(job, dataset, scale.count, options) for job in wanted]
        results = measure_utility(made, dataset, SETTINGS[options.scale], Console(stderr=True).print)
        minutes = f"{scale.minutes:g} processor minutes" if scale.minutes else "the recipe's own budget"
        notes = [
            f"images: {options.data.rpartition('/')[2] or 'phantoms'}; {minutes} and one seed per generator",
            f"{scale.count} images per generator; X-D-fix with {FASTER['X-D-fix']['steps']} steps of DPM-Solver++ 2M",
        ]
        found = Result(
            "004-utility", options.scale, claims(results), {str(size): results}, notes, part=f"{size}px"
        )
        found.report = write_report(options.out / f"utility.{size}.html", utility_report(results))
        yield found


def draw(job: Job, dataset: Dataset, count: int, options: Options) -> Contestant:
    """`count` labelled images of a trained run; drawn once."""
    name, size = job.folder.name, job.folder.parent.name
    cache = options.out / "samples" / size / f"{name}.{count}.safetensors"
    return from_model(
        job.folder,
        name,
        count,
        held_out(dataset),
        cache=cache,
        options=FASTER.get(job.recipe),
        likelihood=False,
    )


def claims(results: dict[str, Any]) -> list[Claim]:
    """Does the control fail as it must, does each generator help, do its images alone do as well as real ones?"""
    real = Estimate.from_dict(results["trtr"]["auc"])
    chance = Estimate.from_dict(results["shuffled"]["auc"])
    holds = chance.low <= 0.5 <= chance.high and real.low > 0.5
    text = f"AUC: {_shown('shuffled labels', chance)}, {_shown('real images', real)}"
    found = [Claim("controls", "Shuffled labels teach nothing, real images do", "controls", holds, text)]
    for name, row in results["rows"].items():
        system = name.split("@")[0]
        usable = [g for g in row.get("gains", []) if "gain_auc" in g]
        if not usable:
            continue
        gain = Estimate.from_dict(usable[-1]["gain_auc"])
        alone = Estimate.from_dict(row["tstr"]["auc"])
        found.append(
            Claim(
                f"helps-{system}",
                f"{usable[-1]['n_synthetic']} images of {system} beside the real ones raise the classifier's AUC",
                "source 004, future work",
                True if gain.low > 0 else False if gain.high < 0 else None,
                _shown("gain", gain, "+"),
            )
        )
        found.append(
            Claim(
                f"alone-{system}",
                f"{row['n_synthetic']} images of {system} alone teach as much as the real ones",
                "source 004, future work",
                None if tie(alone, real) else alone.value > real.value,
                f"AUC: {_shown(system, alone)}, {_shown('real', real)}",
            )
        )
    return found


def _shown(name: str, e: Estimate, sign: str = "") -> str:
    return f"{name} {e.value:{sign}.3f} [{e.low:{sign}.3f}, {e.high:{sign}.3f}]"

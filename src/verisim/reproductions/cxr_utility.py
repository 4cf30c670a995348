"""Source 004's future work (X-E5): ten thousand images of every model, for those who learn from X-rays (X-U1).

The corrected systems draw them, class by training frequency. A classifier learns from them alone, and from real and
synthetic images together, and is tested on held-out patients; so do the other downstream users that the source surveys,
with one network each and all images at once. The source proposed it and did not do it.
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
    "smoke": UtilitySettings(
        ratios=(0.5,), n_seeds=1, steps=20, bootstrap=100, permutations=2, detector_steps=5
    ),
    "small": UtilitySettings(ratios=(1.0, 4.0, 16.0), permutations=4),
    "full": UtilitySettings(
        ratios=(1.0, 4.0, 16.0), steps=1000, width=32, detector_steps=3000, densenet_steps=3000
    ),
}
TASKS = (
    "classifier",
    "reconstruction",
    "uncertainty",
    "confidence",
    "residual",
    "one_class_gan",
    "densenet121",
)


def run(options: Options) -> Iterator[Result]:
    """Train what is not trained yet, draw, and measure; one result per size and downstream user."""
    systems = options.chosen(SYSTEMS)
    scale = replace(SCALES[options.scale].changed_by(options), seeds=1)
    for size in scale.sizes:
        data = data_settings(options, scale, size)
        dataset = open_dataset(data)
        wanted = jobs(options.out, data, systems, scale)
        train_all(wanted)
        made = [draw(job, dataset, scale.count, options) for job in wanted]
        settings = SETTINGS[options.scale]
        minutes = f"{scale.minutes:g} processor minutes" if scale.minutes else "the recipe's own budget"
        notes = [
            f"images: {options.data.rpartition('/')[2] or 'phantoms'}; {minutes} and one seed per generator",
            f"{scale.count} images per generator; X-D-fix with {FASTER['X-D-fix']['steps']} steps of DPM-Solver++ 2M",
        ]
        one = replace(settings, n_seeds=1, ratios=settings.ratios[-1:])
        for task in TASKS if options.scale != "smoke" else TASKS[:2]:
            how = settings if task == "classifier" else replace(one, tasks=(task,))
            results = measure_utility(made, dataset, how, Console(stderr=True).print)
            part = f"{size}px" + (f"-{task}" if task != "classifier" else "")
            found = Result(
                "004-utility", options.scale, claims(results), {str(size): results}, notes, part=part
            )
            found.report = write_report(options.out / f"utility.{part}.html", utility_report(results))
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
    """Of every task: is real images' teaching beyond the control's, and does a generator help where it is?"""
    found = _of_task("", results, results["shuffled"]["auc"], True) if "shuffled" in results else []
    for name, task in results.get("tasks", {}).items():
        if "reason" not in task:
            control = task["control"]
            found += _of_task(f"{name}: ", task, control["auc"], control["must_be"] is not None)
    return found


def _of_task(task: str, results: dict[str, Any], control: dict[str, float], at_chance: bool) -> list[Claim]:
    """Claims of one task. at_chance: its control must be at 0.5; else real images must come out above it."""
    real, floor = Estimate.from_dict(results["trtr"]["auc"]), Estimate.from_dict(control)
    if at_chance:
        holds, statement = floor.low <= 0.5 <= floor.high and real.low > 0.5, "is at chance, and they are not"
    else:
        more = Estimate.from_dict(results["control"]["real_minus_this"])
        holds, statement = more.low > 0 and real.low > 0.5, "is below them, and they are above chance"
    text = f"AUC: {_shown('control', floor)}, {_shown('real images', real)}"
    found = [
        Claim(f"{task}controls", f"{task}The control of real images {statement}", "controls", holds, text)
    ]
    for name, row in results["rows"].items() if holds else ():
        found += _of_generator(task, name.split("@")[0], row, real)
    return found


def _of_generator(task: str, system: str, row: dict[str, Any], real: Estimate) -> list[Claim]:
    """Does it help beside real images, and do its images alone teach more than they?"""
    usable = [g for g in row.get("gains", []) if "gain_auc" in g]
    if not usable:
        return []
    gain, alone = Estimate.from_dict(usable[-1]["gain_auc"]), Estimate.from_dict(row["tstr"]["auc"])
    return [
        Claim(
            f"{task}helps-{system}",
            f"{task}{usable[-1]['n_synthetic']} images of {system} beside the real ones raise the AUC",
            "source 004, future work",
            True if gain.low > 0 else False if gain.high < 0 else None,
            _shown("gain", gain, "+"),
        ),
        Claim(
            f"{task}alone-{system}",
            f"{task}{row['n_synthetic']} images of {system} alone teach more than the real ones",
            "source 004, future work",
            None if tie(alone, real) else alone.value > real.value,
            f"AUC: {_shown(system, alone)}, {_shown('real', real)}",
        ),
    ]


def _shown(name: str, e: Estimate, sign: str = "") -> str:
    return f"{name} {e.value:{sign}.3f} [{e.low:{sign}.3f}, {e.high:{sign}.3f}]"

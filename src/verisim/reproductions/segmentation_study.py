"""Source 002, chapter 7: PatchDDM beside its baselines at equal processor time, and steps against ensemble size.

Systems: crops with coordinates (B-D), whole volumes (B-E), half resolution (B-F), crops without coordinates (B-G),
concatenated skips (B-H), a supervised U-Net (B-J); on request variants of B-H: skips that are summed, divided by the
root of two, or averaged with attention. Controls: B-D trained with the masks of other cases, and the best
single threshold, which knows nothing of shape. Tumour phantoms by default; with --data a folder whose manifest has the
columns t1c, flair and seg, each patient is held out once (leave one subject out).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from verisim.data.atomic import atomic_write
from verisim.data.folder import load_images
from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.hub.weights import load_model
from verisim.metrics.memo import Memo
from verisim.metrics.segmentation import dice
from verisim.models.diffusion.segmentation import DiffusionSegmenter
from verisim.models.segmentation.base import Prediction
from verisim.recipes import load_recipe
from verisim.reports.segmentation import overlay_png, sweep_png
from verisim.reproductions.bench import saved_megabytes
from verisim.reproductions.result import Options, Result
from verisim.reproductions.segmentation_claims import claims
from verisim.tasks.segmentation import CaseScore, evaluate, masks_of, score_case, summary, sweep
from verisim.training.checkpoint import read_metadata
from verisim.training.run_folder import RunFolder
from verisim.training.settings import TrainSettings
from verisim.training.source import DataSettings, open_dataset
from verisim.training.train import ModelPlan, train

SYSTEMS = ("B-D", "B-E", "B-F", "B-G", "B-H", "B-J")
VARIANTS = ("B-H:sum", "B-H:root", "B-H:attention")  # only if asked for
CONTROL = "B-D:shuffled"  # trained with the masks of other cases
BATCH = {"B-E": 1}  # whole volumes one at a time, as in the source
IMAGES, MASKS = "t1c,flair", "seg"  # manifest columns of a folder given with --data


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    size: str  # of images, as in --data.size
    count: int  # phantoms, a fifth of them for testing
    variant: str  # of the recipes
    minutes: float  # processor minutes per trained model
    steps: tuple[int, ...]  # of the study
    members: tuple[int, ...]
    judged: tuple[int, int]  # steps and members with which systems are compared
    reference: tuple[int, int]  # steps of a single sample that the judged one is held against, and test cases


SCALES = {
    "smoke": Scale("32", 40, "small-2d", 0.05, (2, 4), (1, 2), (4, 2), (8, 2)),
    "small": Scale("32x32x32", 60, "small", 6.0, (3, 5, 10, 20, 50), (1, 3, 5), (20, 5), (1000, 4)),
    "full": Scale(
        "256x256x256",
        80,
        "full",
        60.0,
        (3, 5, 7, 11, 15, 20, 25, 30, 100),
        (1, 3, 5, 9, 15),
        (20, 5),
        (1000, 16),
    ),
}


def run(options: Options) -> Iterator[Result]:
    """Train what is not trained yet, score every system on held-out cases, run the study; one result."""
    scale = SCALES[options.scale]
    scale = replace(scale, minutes=options.minutes or scale.minutes, count=options.count or scale.count)
    if options.data and scale.size.count("x") < 2:  # folders hold volumes
        scale = replace(scale, size="24x24x24", variant="small")
    systems = options.chosen(SYSTEMS + VARIANTS, "study") if options.systems else SYSTEMS
    for size in [_size(s, scale) for s in options.sizes] or [scale.size]:
        yield _study(options, replace(scale, size=size), systems)


def _size(side: int, scale: Scale) -> str:
    return "x".join([str(side)] * max(2, scale.size.count("x") + 1))


def _study(options: Options, scale: Scale, systems: tuple[str, ...]) -> Result:
    names = (*systems, *((CONTROL,) if "B-D" in systems else ()))
    scores: dict[str, list[CaseScore]] = {name: [] for name in (*names, "threshold")}
    grid: list[dict[str, Any]] = []
    long: list[CaseScore] = []  # many steps, one sample
    facts: dict[str, Any] = {}
    memory = options.out / "measured"
    found = Result("002-segmentation", options.scale, [], {}, part=Path(options.data).name)
    figures = options.results / "figures" / found.name
    folds = _folds(options.data, scale)
    for fold, (training, test) in folds.items():
        for name in names:
            folder = options.out / "runs" / scale.size / f"{name.replace(':', '-')}@{fold}"
            model = _trained(folder, name, training, scale)
            facts[name] = {**_facts(folder), "memory": saved_megabytes(folder, training)}
            chosen = {"steps": scale.judged[0], "ensemble": scale.judged[1]}
            if isinstance(model, DiffusionSegmenter):
                model.configure_sampling(**chosen)
            digest = facts[name]["sha256"]
            scores[name] += evaluate(model, test, memory=memory, identity=digest)
            if name == "B-D":
                grid += _grid(model, test, scale, memory, digest)
                if not options.data:
                    few = test.subset(torch.arange(min(scale.reference[1], len(test))))
                    model.configure_sampling(steps=scale.reference[0], ensemble=1)
                    long = evaluate(model, few, memory=memory, identity=digest)
                    model.configure_sampling(**chosen)
            if not options.data and fold == next(iter(folds)):
                _picture(figures / f"{name.replace(':', '-')}.png", model, test, name)
        scores["threshold"] += threshold_baseline(training, test)
    table = {name: summary(s) for name, s in scores.items()}
    cells = _pooled(grid)
    if cells:
        for measure in ("dice", "hd95"):
            atomic_write(figures / f"sweep.{measure}.png", sweep_png(cells, measure))
    cases = {name: [_brief(s) for s in each] for name, each in scores.items()}
    numbers = {"systems": table, "cases": cases, "sweep": cells, "facts": facts, "scale": asdict(scale)}
    numbers["reference"] = [_brief(s) for s in long]
    numbers["phantoms"] = not options.data
    notes = [
        f"images: {Path(options.data).name + ', leave one subject out' if options.data else 'tumour phantoms of the brain'}",
        f"{scale.minutes:g} processor minutes and one training seed per model; averaged weights; nothing was selected on "
        f"test images",
        f"systems are compared at {scale.judged[0]} steps and {scale.judged[1]} members",
        "memory: MiB that the forward pass of a training step keeps for the backward pass, one volume, weights left out",
        "'threshold': the channel, side and level with the best Dice on training images",
    ]
    return replace(found, claims=claims(numbers), numbers=numbers, notes=notes)


def _grid(
    model: DiffusionSegmenter, test: Images, scale: Scale, memory: Path, digest: str
) -> list[dict[str, Any]]:
    """The study of steps and members, made once."""
    parts = ["segmentation sweep", digest, scale.steps, scale.members, test]
    return Memo(memory).fetch(parts, lambda: ({"cells": sweep(model, test, scale.steps, scale.members)}, {}))[
        0
    ]["cells"]


def _folds(folder: str, scale: Scale) -> dict[str, tuple[Images, Images]]:
    """Name of the fold -> training and test images: one fold of phantoms, or each patient of a folder held out."""
    settings = DataSettings(size=scale.size)
    if not folder:
        data = replace(
            settings,
            phantom="brain",
            count=scale.count,
            contrasts="T1,T1c,T2,FLAIR",
            mask="lesion",
            findings="tumour",
        )
        dataset = open_dataset(data)
        return {"phantoms": (dataset["train"], dataset["test"])}
    found = load_images(
        folder, settings.shape, image=IMAGES, mask=MASKS, split=None, fit="pad", on_error="skip"
    )["all"]
    people = found.patients or ()
    if len(set(people)) < 3:
        raise VerisimError(
            f"{folder}: {len(set(people))} patient(s) with masks; at least 3 are needed to hold one out."
        )
    folds = {}
    for person in dict.fromkeys(people):
        held = torch.tensor([p == person for p in people])
        folds[person] = (found.subset(~held), found.subset(held))
    return folds


def _trained(folder: Path, name: str, images: Images, scale: Scale) -> Any:
    """The model of a run folder, trained first if it is not yet."""
    run_folder, (recipe, _, suffix) = RunFolder(folder), name.partition(":")
    variant = f"{scale.variant}-{suffix}" if name in VARIANTS else scale.variant
    settings = load_recipe(recipe).settings(variant)
    model = dict(settings["model"])
    kind = model.pop("name")
    if "cosine_decay" in model or kind == "supervised_segmentation":
        model |= {"cosine_decay": False, "lr": 1e-3}  # a budget in time has no known last step
    training = {**settings["training"], "max_steps": 0, "max_minutes": scale.minutes, "clock": "cpu"}
    training |= {"sample_minutes": 0.0, "batch_size": BATCH.get(recipe, training["batch_size"])}
    if not run_folder.weights.exists():
        fresh = not run_folder.config_path.exists()
        if fresh:
            run_folder.create({"recipe": recipe, "variant": variant, "model": {"name": kind, **model}, "training": training})  # fmt: skip
        if name == CONTROL:
            images = replace(images, segmentation=masks_of(images).roll(1, 0))
        plan = ModelPlan(kind, model, recipe)
        outcome = train(run_folder, plan, images, TrainSettings(**training), resume=not fresh, quiet=True)
        if outcome.card is None:
            raise VerisimError(f"Stopped while training {folder}. Run the same command again to go on.")
    return load_model(folder)[0]


def _facts(folder: Path) -> dict[str, Any]:
    """What a run says of itself."""
    from verisim.hub.weights import read_card

    weights = RunFolder(folder).weights
    known = read_card(weights).training
    return {
        "sha256": read_metadata(weights)["sha256"],
        **{k: known[k] for k in ("steps", "seconds", "parameters")},
    }


def threshold_baseline(training: Images, test: Images) -> list[CaseScore]:
    """Scores of the one rule 'channel c above (or below) a level' that has the best mean Dice on training images."""
    truth = masks_of(training)
    best, rule = -1.0, (0, 1.0, 0.0)
    for c in range(training.spec.channels):
        for sign in (1.0, -1.0):
            for level in torch.linspace(-0.95, 0.95, 39).tolist():
                score = float(dice(_marked(training, c, sign, level), truth).mean())
                if score > best:
                    best, rule = score, (c, sign, level)
    found = _marked(test, *rule).float()
    variance = torch.zeros_like(found)
    names = test.names or tuple(map(str, range(len(test))))
    rows = zip(found.split(1), variance.split(1), masks_of(test).split(1), names)
    return [score_case(Prediction(p, v, 1), t, test.spec.spacing, n) for p, v, t, n in rows]


def _marked(images: Images, channel: int, sign: float, level: float) -> Tensor:
    return sign * images.pixels[:, channel : channel + 1] > sign * level


def _picture(path: Path, model: Any, test: Images, name: str) -> None:
    found = model.predict(test.pixels[:1])
    mean, variance = found.mean[0].cpu(), found.variance[0].cpu()
    atomic_write(path, overlay_png(test.pixels[0], mean, variance, name, masks_of(test)[0]))


def _pooled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cells of all folds averaged."""
    cells: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for r in rows:
        cells.setdefault((r["steps"], r["members"]), []).append(r)
    return [
        {**group[0], **{m: sum(r[m] for r in group) / len(group) for m in ("dice", "hd95")}}
        for group in cells.values()
    ]


def _brief(s: CaseScore) -> dict[str, Any]:
    return {"case": s.name, "dice": s.dice, "hd95": s.hd95, "predicted": s.predicted, "true": s.true}

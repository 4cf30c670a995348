"""Source 002, chapter 6: position regression against an autoencoder on head CT, with the controls it needs.

All models learn from normal phantoms alone, with equal processor time each: position regression at less than a tenth
of the autoencoder's parameters, the same with shuffled positions, and the autoencoder with whichever filter serves it
best on the test set. The intensity threshold learns nothing. Then the width sweep: AUROC, parameters, memory; and
position regression by the size of its patches.

Phantoms are shown from -100 to 950 HU, equalised by the training heads, as the source does without windowing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from verisim.data.atomic import atomic_write
from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.hub.weights import load_model
from verisim.models.anomaly.dense_autoencoder import DenseAutoencoder, filtered
from verisim.models.anomaly.position_regression import PositionRegression
from verisim.phantoms import head_ct
from verisim.phantoms.volume import spacing
from verisim.recipes import load_recipe
from verisim.reports.anomaly import side_by_side_png
from verisim.reproductions.head_ct_claims import claims, patch_claims, sweep_claims
from verisim.reproductions.head_ct_memory import memory_rows, saved_bytes
from verisim.reproductions.result import Options, Result
from verisim.tasks.detection import by_kind, grouped_auroc, structure_scores
from verisim.tasks.head_parts import bone_level, head_parts
from verisim.tasks.intensity_threshold import IntensityThreshold
from verisim.training.run_folder import RunFolder
from verisim.training.settings import TrainSettings
from verisim.training.train import ModelPlan, train

WINDOW = (-100.0, 950.0)  # HU
PPR, SHUFFLED, AE, THRESHOLD = "B-A", "B-A:shuffled", "B-B", "B-S5"
FILTERS = (
    ("none", 1),
    ("median", 3),
    ("median", 5),
    ("erosion", 3),
)  # the autoencoder may choose, for each question
FIGURE_STRIDE = 2
PARTS = ("B-A", "B-B2", "B-A1")  # the comparison, the widths, the sizes of the patch


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    size: int  # voxels per side
    train: int  # normal heads to learn from
    normal: int  # normal heads to test with
    each: int  # test heads of every finding
    minutes: float  # processor minutes per model
    width: int  # m of position regression
    patch: int  # voxels per side
    patches: int  # per step
    ae_width: int  # m of the autoencoder
    stride: int  # of the maps
    widths: tuple[int, ...]  # of the sweep, trained
    sides: tuple[int, ...]  # of patches, trained
    seeds: int = 1
    lr: float = 1e-3


SCALES = {
    "smoke": Scale(24, 12, 8, 4, 0.02, 2, 9, 16, 8, 6, (1, 2), (7, 9), lr=3e-3),
    "small": Scale(48, 40, 40, 24, 4.0, 4, 15, 48, 8, 4, (1, 2, 4, 8, 16), (7, 11, 15, 19), seeds=2, lr=3e-3),
    "full": Scale(
        256,
        110,
        60,
        40,
        600.0,
        8,
        31,
        256,
        32,
        4,
        (1, 2, 4, 8, 16, 32, 64),
        (19, 23, 27, 31, 35, 39),
        lr=1e-4,
    ),
}


@dataclass(frozen=True)
class Heads:
    """What is learned from and tested with."""

    train: Images
    test: Images  # labels: classes of the phantom
    side: Tensor  # (n,) +1 = the patient's left, -1 = right, 0 = normal
    parts: dict[str, Tensor]  # left, right, skull, found in the test images themselves


def run(options: Options) -> Iterator[Result]:
    """The comparison, the width sweep and the sizes of the patch, or those of them whose recipes were asked for."""
    if options.data:
        raise VerisimError(
            "002-detection runs on head CT phantoms, whose findings are known voxel by voxel; leave out --data."
        )
    scale = SCALES[options.scale]
    size = options.sizes[0] if options.sizes else scale.size
    scale = replace(
        scale, size=size, minutes=options.minutes or scale.minutes, seeds=options.seeds or scale.seeds
    )
    asked = options.chosen(PARTS, "study")
    heads = make_heads(scale)
    for name, part in zip(PARTS, (compare, sweep, patch_sizes), strict=True):
        if name in asked:
            yield part(options, scale, heads)


def make_heads(scale: Scale) -> Heads:
    """Normal heads to learn from; normal ones and every finding to test with."""
    size = (scale.size,) * 3
    train_set = head_ct.make(scale.train, 1, size, findings="normal", window=WINDOW).images
    made = [
        head_ct.make(scale.each if k else scale.normal, 200 + k, size, findings=name, window=WINDOW)  # type: ignore[arg-type]
        for k, name in enumerate(head_ct.CLASS_NAMES)
    ]
    pixels = torch.cat([m.images.pixels for m in made])
    labels = torch.cat([m.images.labels for m in made if m.images.labels is not None])
    test = Images(pixels, train_set.spec, labels)
    side = torch.cat([m.factors["side"] for m in made])
    return Heads(replace(train_set, labels=None), test, side, head_parts(pixels, bone_level(WINDOW)))


# --- the comparison -------------------------------------------------------------------------------


def compare(options: Options, scale: Scale, heads: Heads) -> Result:
    """Every system on the same heads; one row per system and seed."""
    rows: dict[str, dict[str, Any]] = {}
    for seed in range(scale.seeds):
        for name in (PPR, SHUFFLED, AE):
            width = scale.ae_width if name == AE else scale.width
            rows[f"{name}@{seed}"] = measured(options, scale, heads, name, width, seed)
    bright = IntensityThreshold(bone_level(WINDOW))
    maps = bright.anomaly_map(heads.test.pixels)
    rows[f"{THRESHOLD}@0"] = judged(maps, maps, heads)
    notes = [
        f"{scale.train} normal phantoms of {scale.size}^3 to learn from; tested on {scale.normal} normal heads and "
        f"{scale.each} of each finding",
        f"{scale.minutes:g} processor minutes per model, last weights, no average",
        "blood: left and right half of every head are two decisions; the bootstrap draws heads. Fracture: the skull, all "
        "heads. Scores: 99.9th percentile of the map within the structure",
        "the autoencoder's filter is the one of " + ", ".join(f"{k} {n}" for k, n in FILTERS) + " with the best AUROC on "
        "the test heads, for each question: in its favour",
    ]  # fmt: skip
    found = Result(
        "002-detection", options.scale, claims(rows), {str(scale.size): rows}, notes, part=f"{scale.size}vox"
    )
    draw_figure(options, scale, heads, found.name)
    return found


def measured(
    options: Options, scale: Scale, heads: Heads, name: str, width: int, seed: int
) -> dict[str, Any]:
    """Train one model if it is not trained yet, and judge it."""
    Console(stderr=True).print(f"002-detection: {name}, width {width}, seed {seed}", highlight=False)
    model, card = trained(options.out / "runs" / str(scale.size), scale, heads, name, width, seed)
    x, label = heads.train.pixels[: 1 if isinstance(model, PositionRegression) else 4], None
    row: dict[str, Any] = {
        "width": width,
        "parameters": sum(p.numel() for p in model.net.parameters()),
        "saved_bytes": saved_bytes(model, lambda: model.training_loss(x, label)[0].mean()),
        "steps": card.training["steps"],
        "seconds": card.training["seconds"],
    }
    model.eval()
    if isinstance(model, PositionRegression):
        model.configure_sampling(stride=scale.stride)
        maps = model.anomaly_map(heads.test.pixels)
        return {**row, "position_error": position_error(model, heads), **judged(maps, maps, heads)}
    assert isinstance(model, DenseAutoencoder)
    residual = model.residual(heads.test.pixels)
    each = {
        f"{k} {n}": judged(m, m, heads) for k, n, m in ((k, n, filtered(residual, k, n)) for k, n in FILTERS)
    }
    best = {q: max(each, key=lambda f: each[f][q]["value"]) for q in ("blood", "fracture")}
    kinds = {k: v for q in ("blood", "fracture") for k, v in each[best[q]]["kinds"].items() if (k == "fracture") == (q == "fracture")}  # fmt: skip
    tried = {f: {q: r[q]["value"] for q in ("blood", "fracture")} for f, r in each.items()}
    return {**row, "blood": each[best["blood"]]["blood"], "fracture": each[best["fracture"]]["fracture"],
            "kinds": kinds, "filters": best, "tried": tried}  # fmt: skip


def trained(folder: Path, scale: Scale, heads: Heads, name: str, width: int, seed: int) -> tuple[Any, Any]:
    """The model of a run that is finished, or is trained (on) now, and its card."""
    run = RunFolder(folder / f"{name.replace(':', '-')}-m{width}@{seed}")
    recipe = load_recipe(name.partition(":")[0])
    settings = dict(recipe.model)
    kind = settings.pop("name")
    settings |= {"width": width}
    if kind == "position_regression":
        settings |= {
            "patch": scale.patch,
            "patches": scale.patches,
            "lr": scale.lr,
            "shuffled": name == SHUFFLED,
        }
    training = TrainSettings(
        batch_size=recipe.training["batch_size"], max_minutes=scale.minutes, clock="cpu", ema=0, clip=0,
        precision="float32", seed=seed, sample_minutes=0, accelerator="auto",
        channels_last=True,  # with few channels faster on CPUs too, for both kinds of model
    )  # fmt: skip
    if not run.weights.exists():
        fresh = not run.config_path.exists()
        if fresh:
            run.create(
                {
                    "recipe": recipe.id,
                    "model": {"name": kind, **settings},
                    "heads": scale.train,
                    "size": scale.size,
                }
            )
        plan = ModelPlan(kind, settings, recipe.id)
        outcome = train(
            run, plan, heads.train, training, fingerprint=f"head_ct {WINDOW}", resume=not fresh, quiet=True
        )
        if outcome.card is None:
            raise VerisimError(f"Stopped while training {name}. Run the same command again to go on.")
    return load_model(run.path, "cpu")


def position_error(model: PositionRegression, heads: Heads) -> float:
    """Mean distance, in edges of the volume, between true and regressed places of patches of held-out normal heads."""
    shuffled, model.shuffled = model.shuffled, False
    with torch.no_grad():
        losses = [
            model.training_loss(x[None], None)[0] for x in heads.test.pixels[heads.test.labels == 0][:20]
        ]
    model.shuffled = shuffled
    return float(torch.cat(losses).mean())


def judged(blood_maps: Tensor, fracture_maps: Tensor, heads: Heads) -> dict[str, Any]:
    """AUROC of blood (two decisions a head) and of fractures (the skull), and of every kind against normal heads."""
    labels, n = heads.test.labels, len(heads.test)
    assert labels is not None
    scores = structure_scores(blood_maps, {k: heads.parts[k] for k in ("left", "right")})
    bone = structure_scores(fracture_maps, {"skull": heads.parts["skull"]})["skull"]
    fracture = labels == head_ct.CLASS_NAMES.index("fracture")
    bleeds = (labels > 0) & ~fracture
    both = torch.cat([scores["left"], scores["right"]])
    truth = torch.cat([bleeds & (heads.side > 0), bleeds & (heads.side < 0)])
    worse = torch.maximum(scores["left"], scores["right"])
    kinds = by_kind(worse, labels, head_ct.CLASS_NAMES)
    kinds["fracture"] = by_kind(bone, labels, head_ct.CLASS_NAMES)["fracture"]
    return {
        "blood": grouped_auroc(both, truth, [str(i % n) for i in range(2 * n)]).as_dict(),
        "fracture": grouped_auroc(bone, fracture).as_dict(),
        "kinds": {k: e.as_dict() for k, e in kinds.items()},
    }


def draw_figure(options: Options, scale: Scale, heads: Heads, name: str) -> None:
    """A head of every finding beside the maps of position regression and of the autoencoder."""
    folder = options.out / "runs" / str(scale.size)
    labels = heads.test.labels
    assert labels is not None
    first = torch.stack([(labels == k).nonzero()[0, 0] for k in range(len(head_ct.CLASS_NAMES))])
    x = heads.test.pixels[first]
    ppr = trained(folder, scale, heads, PPR, scale.width, 0)[0]
    ppr.configure_sampling(stride=min(scale.stride, FIGURE_STRIDE))
    ae = trained(folder, scale, heads, AE, scale.ae_width, 0)[0]
    truth = head_ct.SLICE_AT / spacing((scale.size,) * 3) + scale.size / 2
    picture = side_by_side_png(
        x[:, 0, round(truth)], {"position regression": ppr.anomaly_map(x)[:, 0, round(truth)],
                                "autoencoder": ae.residual(x)[:, 0, round(truth)]}, head_ct.CLASS_NAMES,
    )  # fmt: skip
    atomic_write(options.results / "figures" / name / "maps.png", picture)


# --- the width sweep ------------------------------------------------------------------------------


def sweep(options: Options, scale: Scale, heads: Heads) -> Result:
    """AUROC over parameters and memory at every trained width; parameters and memory at the source's own scale."""
    rows = {}
    for name in (PPR, AE):
        for width in scale.widths:
            rows[f"{name} m={width}"] = measured(options, scale, heads, name, width, 0)
    paper = memory_rows()
    notes = [
        f"trained: volumes of {scale.size}^3, {scale.minutes:g} processor minutes each, seed 0",
        "source_scale: what the forward pass of a training step keeps for the backward pass, float32, volumes of 256^3, "
        "patches of 31^3, computed without running it; weights, gradients and Adam add 16 bytes a parameter",
    ]  # fmt: skip
    numbers = {str(scale.size): rows, "source_scale": paper}
    return Result("002-detection", options.scale, sweep_claims(rows, paper), numbers, notes, part="widths")


# --- the sizes of the patch -----------------------------------------------------------------------


def patch_sizes(options: Options, scale: Scale, heads: Heads) -> Result:
    """Position regression for every size of patch, and with shuffled positions, from as many patches a step."""
    rows = {SHUFFLED: measured(options, scale, heads, SHUFFLED, scale.width, 0)}
    for side in scale.sides:
        own = options if side == scale.patch else replace(options, out=options.out / f"patch-{side}")
        rows[f"{PPR} {side}"] = measured(own, replace(scale, patch=side), heads, PPR, scale.width, 0)
    notes = [
        f"{scale.train} normal phantoms of {scale.size}^3 to learn from, {scale.minutes:g} processor minutes each, "
        f"seed 0; patches of {', '.join(map(str, scale.sides))} voxels per side",
        f"{SHUFFLED}: patches of {scale.patch} voxels with the positions of others",
    ]
    return Result(
        "002-detection", options.scale, patch_claims(rows), {str(scale.size): rows}, notes, part="patches"
    )

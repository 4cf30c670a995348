"""How well a model segments held-out images, and whether its variance knows where it errs (source 002, C.7, I)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.metrics.bootstrap import Estimate, from_draws, resample_weights
from verisim.metrics.memo import Memo
from verisim.metrics.segmentation import dice, hd95, variance_calibration
from verisim.models.segmentation.base import Prediction, SegmentationModel
from verisim.seeding import derive_seed


@dataclass(frozen=True)
class CaseScore:
    """One image's scores."""

    name: str
    dice: float
    hd95: float  # mm, or pixels where the spacing is unknown
    predicted: int  # pixels of foreground
    true: int
    edges: list[float]  # of the bins of variance
    count: list[int]  # pixels per bin
    errors: list[float]  # wrong pixels per bin
    auroc: float | None  # of the variance for errors; None = no errors


def score_case(found: Prediction, true: Tensor, spacing: tuple[float, ...] | None, name: str) -> CaseScore:
    """Scores of the prediction for one image against its mask (1, 1, *S), non-zero = foreground."""
    mask, t = found.mask.cpu(), true.cpu() > 0
    known = variance_calibration(found.variance.cpu(), mask != t)
    errors = [0.0 if not n else r * n for r, n in zip(known.error_rate, known.count)]
    return CaseScore(
        name=name,
        dice=float(dice(mask, t)),
        hd95=float(hd95(mask, t, spacing)),
        predicted=int(mask.sum()),
        true=int(t.sum()),
        edges=list(known.edges),
        count=list(known.count),
        errors=errors,
        auroc=None if math.isnan(known.auroc) else known.auroc,
    )


def evaluate(
    model: SegmentationModel,
    images: Images,  # with segmentation
    *,
    seed: int = 0,
    memory: Path | None = None,  # folder of finished cases, so that a killed evaluation goes on
    identity: str = "",  # what the model is, e.g. the SHA-256 of its weights; needed with `memory`
    progress: Callable[[int, int], None] | None = None,
) -> list[CaseScore]:
    """Scores of every image. VerisimError without masks, or with a memory but no identity."""
    truth = masks_of(images)
    if memory is not None and not identity:
        raise VerisimError("A memory of finished cases needs to know which model they are of: give identity.")
    memo = Memo(memory)
    scores = []
    for i in range(len(images)):
        one = images.subset(torch.tensor([i]))
        name = name_of(images, i)

        def measure(
            one: Images = one, name: str = name, true: Tensor = truth[i : i + 1]
        ) -> tuple[dict, dict]:
            return asdict(
                score_case(model.predict(one.pixels, case_seed(seed, name)), true, one.spec.spacing, name)
            ), {}

        key = ["segmentation", identity, repr(model.options), seed, one, truth[i].sum().item(), name]
        scores.append(CaseScore(**memo.fetch(key, measure)[0]))
        if progress is not None:
            progress(i + 1, len(images))
    return scores


def name_of(images: Images, i: int) -> str:
    """The image's name, else its number."""
    return str(i) if images.names is None else images.names[i]


def case_seed(seed: int, name: str) -> int:
    """Each case has noise of its own, so that a lucky or unlucky draw is not that of all."""
    return derive_seed("case", seed, name)


def masks_of(images: Images) -> Tensor:
    """(N, 1, *S) codes of the images; VerisimError if there are none, or nothing but background."""
    if images.segmentation is None:
        raise VerisimError(
            "These images have no masks to compare with. Name them with --data.mask: a column of manifest.csv, or "
            "a structure of the phantom, e.g. lesion."
        )
    if not bool((images.segmentation > 0).any()):
        raise VerisimError(
            f"None of the {len(images)} masks marks anything: all pixels are background (code 0). Name another "
            f"column with --data.mask."
        )
    return images.segmentation


def summary(scores: Sequence[CaseScore], seed: int = 0, draws: int = 1000) -> dict[str, Any]:
    """Mean and spread of Dice and HD95 with bootstrap intervals over cases, and the pooled calibration; JSON values."""
    rng = torch.Generator().manual_seed(seed)
    weights = resample_weights(len(scores), draws, rng)
    table: dict[str, Any] = {"cases": len(scores)}
    for name in ("dice", "hd95"):
        values = torch.tensor([getattr(s, name) for s in scores], dtype=torch.float64)
        table[name] = _estimate(values, weights).as_dict()
        table[f"{name}_sd"] = float(values.std(correction=0))
    count = [sum(column) for column in zip(*(s.count for s in scores))]
    errors = [sum(column) for column in zip(*(s.errors for s in scores))]
    known = [s.auroc for s in scores if s.auroc is not None]
    table["calibration"] = {
        "variance_up_to": scores[0].edges[1:],
        "pixels": count,
        "error_rate": [e / n if n else None for e, n in zip(errors, count)],
        "auroc": sum(known) / len(known) if known else None,
        "cases_with_errors": len(known),
    }
    return table


def _estimate(values: Tensor, weights: Tensor) -> Estimate:
    """Mean of (n,) and its bootstrap interval over rows of weights (draws, n)."""
    return from_draws(float(values.mean()), (weights @ values) / weights.sum(1))


def sweep(
    model: Any,  # a DiffusionSegmenter
    images: Images,
    steps: Sequence[int],
    members: Sequence[int],
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Mean Dice and HD95 for every number of steps and size of ensemble (system B-I); smaller ensembles are the
    first members of larger ones, so that no network evaluation is made twice. The model's options are restored.
    """
    truth, before, rows = masks_of(images), model.options, []
    seeds = [case_seed(seed, name_of(images, i)) for i in range(len(images))]
    try:
        for k, n in enumerate(steps):
            model.configure_sampling(steps=n)
            total = torch.zeros(1)
            for m, p in enumerate(model.members(images.pixels, max(members), seeds), start=1):
                total = total.to(p) + p
                if m in members:
                    mask = (total / m > 0.5).cpu()
                    far = hd95(mask, truth, images.spec.spacing)
                    cell = {"steps": n, "members": m, "evaluations": n * m}
                    rows.append({**cell, "dice": float(dice(mask, truth).mean()), "hd95": float(far.mean())})
            if progress is not None:
                progress(k + 1, len(steps))
    finally:
        model.options = before
    return rows

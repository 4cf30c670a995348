"""Planted findings in knee phantoms: maps by reconstruction, their p-values, and what needs no model (K-X5).

No training phantom has a disc, whatever its grade, so every phantom without one is normal here. Discs are bright (an
implant) or dark (a defect of bone), of several sizes and contrasts, at the same places for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from verisim.data.spec import Images
from verisim.metrics.bootstrap import Estimate, from_draws, from_se, mean_estimate
from verisim.metrics.controls import gaussian_blur
from verisim.metrics.memo import Measured
from verisim.phantoms.planted import plant
from verisim.reproductions.knee_inside_latents import DRAWS
from verisim.reproductions.knee_inside_phantoms import Looks, fresh
from verisim.roles import AnomalyDetector
from verisim.seeding import generator
from verisim.tasks.anomaly import Calibration, ReconstructionDetector, calibrate, scores
from verisim.tasks.detection import auroc_draws, grouped_auroc, pixel_scores

RADII = (0.03, 0.06, 0.10)  # of the image's side
CONTRASTS = (0.1, 0.2, 0.4)  # of the range of grey values
KINDS = {"bright": 1, "dark": -1}
LEVELS = (0.05, 0.1, 0.2)
BLUR = 1.0  # pixels; of every map, as ReconstructionDetector has it
SHUFFLED = "shuffled labels"


class MeanImage:
    """Role Autoencoder of a model that knows nothing: always the mean training image."""

    def __init__(self, train: Images) -> None:
        self.mean = train.pixels.mean(0, keepdim=True)

    def encode(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), 1)

    def decode(self, z: Tensor) -> Tensor:
        return self.mean.expand(len(z), -1, -1, -1)


class Brightness:
    """Role AnomalyDetector: the grey value itself, smoothed as the other maps are."""

    def anomaly_map(self, x: Tensor) -> Tensor:
        return gaussian_blur((x.mean(1, keepdim=True) + 1) / 2, BLUR)


def mean_residual(train: Images) -> AnomalyDetector:
    """The distance from the mean training image."""
    return ReconstructionDetector(MeanImage(train), BLUR)


BASELINES: dict[
    str, Callable[[Images], AnomalyDetector]
] = {  # what a model has to beat; made of training images
    "mean image": mean_residual,
    "brightness": lambda _: Brightness(),
}


@dataclass(frozen=True)
class Cell:
    """One kind, size and contrast of disc."""

    kind: str
    radius: float
    contrast: float

    @property
    def name(self) -> str:
        return f"{self.kind} {self.radius:g} {self.contrast:g}"


CELLS = [Cell(k, r, c) for k in KINDS for r in RADII for c in CONTRASTS]


@dataclass(frozen=True)
class Cases:
    """Phantoms without a disc, for calibration and for testing, and others to plant discs in."""

    calibration: Images
    normal: Images
    bare: Images

    def planted(self) -> Iterator[tuple[Cell, Images, Tensor]]:
        """Every cell with its images and masks (N, 1, H, W)."""
        for cell in CELLS:
            yield cell, *plant(self.bare, cell.radius, KINDS[cell.kind] * cell.contrast)


def cases(looks: Looks, size: int) -> Cases:
    counts = {k: getattr(looks, k) for k in ("calibration", "normal", "planted")}
    return Cases(*(fresh(k, n, size).images for k, n in counts.items()))


def anomaly_row(detector: AnomalyDetector, known: Cases, train: Images) -> Measured:
    """False positives of the p-values at LEVELS, AUROC over images and within them by cell; and the scores themselves.

    Scores: "loud" (cells, N) with discs, "quiet" (M,) without.
    """
    limits, seen = calibrate(detector, known.calibration), calibrate(detector, train)
    quiet = scores(_maps(detector, known.normal))
    cells, loud = {}, []
    for cell, images, masks in known.planted():
        maps = _maps(detector, images)
        loud.append(scores(maps))
        inside = {
            k: mean_estimate(v, DRAWS, generator(k, 0)).as_dict()
            for k, v in pixel_scores(maps, masks).items()
        }
        found = float((limits.p_values(loud[-1]) <= LEVELS[0]).double().mean())
        image = told(loud[-1][None], quiet).as_dict()
        cells[cell.name] = {"image": image, "pixels": inside, "flagged": found}
    both = torch.stack(loud)  # (cells, N)
    kinds = {k: both[[i for i, c in enumerate(CELLS) if c.kind == k]] for k in KINDS}
    row = {
        "false_positives": _rates(limits, quiet),
        "calibrated_on_training_images": _rates(seen, quiet),
        "image": {k: told(v, quiet).as_dict() for k, v in {"all": both, **kinds}.items()},
        SHUFFLED: told(both, quiet, shuffle=True).as_dict(),
        "cells": cells,
    }
    return row, {"loud": both, "quiet": quiet}


def _rates(limits: Calibration, quiet: Tensor) -> dict[str, dict[str, float]]:
    """Level -> share of images without a disc that are flagged."""
    p = limits.p_values(quiet)
    return {f"{a:g}": flagged(p, a, len(limits.normal)).as_dict() for a in LEVELS}


def _maps(detector: AnomalyDetector, images: Images) -> Tensor:
    return torch.cat([detector.anomaly_map(p).cpu() for p in images.pixels.split(64)])


def flagged(p_values: Tensor, level: float, calibration: int) -> Estimate:
    """Share of p-values (n,) at or below the level; its error holds the tested and the calibration images.

    At the level itself the share varies by level (1 - level) (1 / n + 1 / calibration): both sets are samples.
    """
    share = float((p_values <= level).double().mean())
    return from_se(share, math.sqrt(level * (1 - level) * (1 / len(p_values) + 1 / calibration)))


def told(loud: Tensor, quiet: Tensor, shuffle: bool = False) -> Estimate:
    """AUROC of scores (cells, N) with discs against (M,) without; phantoms are drawn with all of their discs.

    shuffle: labels in random order, which must come out at 0.5.
    """
    return grouped_auroc(*_decisions(loud, quiet, shuffle))


def _decisions(loud: Tensor, quiet: Tensor, shuffle: bool = False) -> tuple[Tensor, Tensor, list[str]]:
    """All scores, which of them are of images with a disc, and of which phantom."""
    both = torch.cat([loud.flatten(), quiet])
    labels = torch.arange(len(both)) < loud.numel()
    names = [f"disc {i}" for _ in loud for i in range(loud.shape[1])]
    names += [f"plain {i}" for i in range(len(quiet))]
    if shuffle:
        labels = labels[torch.randperm(len(labels), generator=generator("shuffled labels", 0))]
    return both, labels, names


def ranked(found: Mapping[str, Mapping[str, Tensor]]) -> list[dict[str, Any]]:
    """Detectors by AUROC over all discs, best first; each with its lead over every one behind it.

    found: SYSTEM@SEED, or a name -> the scores of anomaly_row. All have seen the same phantoms, so leads are paired:
    taken on the same resamples. An entry shares the rank of the best of its group while that one's lead covers 0.
    """
    each: dict[str, list[tuple[float, Tensor]]] = {}
    for name, s in found.items():
        each.setdefault(name.split("@")[0], []).append(auroc_draws(*_decisions(s["loud"], s["quiet"])))
    draws = {n: torch.stack([d for _, d in parts]).mean(0) for n, parts in each.items()}  # mean over seeds
    value = {n: sum(v for v, _ in parts) / len(parts) for n, parts in each.items()}
    order = sorted(value, key=lambda n: -value[n])
    rows: list[dict[str, Any]] = []
    leader, rank = "", 0
    for position, name in enumerate(order, start=1):
        if not leader or lead(rows, leader, name).low > 0:
            leader, rank = name, position
        leads = {
            o: from_draws(value[name] - value[o], draws[name] - draws[o]).as_dict() for o in order[position:]
        }
        rows.append(
            {"name": name, "rank": rank, **from_draws(value[name], draws[name]).as_dict(), "leads": leads}
        )
    return rows


def lead(rows: list[dict[str, Any]], a: str, b: str) -> Estimate:
    """AUROC of a less that of b, from rows of `ranked`, whichever is ahead."""
    for row in rows:
        if row["name"] == a and b in row["leads"]:
            return Estimate.from_dict(row["leads"][b])
        if row["name"] == b and a in row["leads"]:
            e = Estimate.from_dict(row["leads"][a])
            return Estimate(-e.value, -e.high, -e.low, e.se)
    raise KeyError(f"{a}, {b}")

"""Planted findings in knee phantoms: maps by reconstruction, their p-values, and what needs no model (K-X5).

No training phantom has a disc, whatever its grade, so every phantom without one is normal here. Discs are bright (an
implant) or dark (a defect of bone), of several sizes and contrasts, at the same places for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from verisim.data.spec import Images
from verisim.metrics.bootstrap import Estimate, from_se, mean_estimate
from verisim.metrics.controls import gaussian_blur
from verisim.phantoms.planted import plant
from verisim.reproductions.knee_inside_latents import DRAWS
from verisim.reproductions.knee_inside_phantoms import Looks, fresh
from verisim.roles import AnomalyDetector
from verisim.seeding import generator
from verisim.tasks.anomaly import ReconstructionDetector, calibrate, scores
from verisim.tasks.detection import grouped_auroc, pixel_scores

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


def baselines(train: Images) -> dict[str, AnomalyDetector]:
    """Detectors that need no training: controls that a model has to beat."""
    return {"mean image": ReconstructionDetector(MeanImage(train), BLUR), "brightness": Brightness()}


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


def anomaly_row(detector: AnomalyDetector, known: Cases, train: Images) -> dict[str, Any]:
    """False positives of the p-values at LEVELS, and AUROC over images and within them, by cell."""
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
        cells[cell.name] = {
            "image": told(loud[-1][None], quiet).as_dict(),
            "pixels": inside,
            "flagged": found,
        }
    both = torch.stack(loud)  # (cells, N)
    kinds = {k: both[[i for i, c in enumerate(CELLS) if c.kind == k]] for k in KINDS}
    return {
        "false_positives": {
            f"{a:g}": flagged(limits.p_values(quiet), a, len(limits.normal)).as_dict() for a in LEVELS
        },
        "calibrated_on_training_images": {
            f"{a:g}": flagged(seen.p_values(quiet), a, len(seen.normal)).as_dict() for a in LEVELS
        },
        "image": {k: told(v, quiet).as_dict() for k, v in {"all": both, **kinds}.items()},
        SHUFFLED: told(both, quiet, shuffle=True).as_dict(),
        "cells": cells,
    }


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
    both = torch.cat([loud.flatten(), quiet])
    labels = torch.arange(len(both)) < loud.numel()
    names = [f"disc {i}" for _ in loud for i in range(loud.shape[1])] + [
        f"plain {i}" for i in range(len(quiet))
    ]
    if shuffle:
        labels = labels[torch.randperm(len(labels), generator=generator("shuffled labels", 0))]
    return grouped_auroc(both, labels, names)

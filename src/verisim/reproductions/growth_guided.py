"""The baseline DDM+GG of source 002's table: recipe B-M on the scans that the implicit systems learn from (section M).

The source chose the number of encoded steps L and the strength of guidance c on its test set (T17), to this baseline's
advantage; here they are chosen by the training subjects who are seen twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.hub.weights import load_model
from verisim.metrics.reconstruction import mse, psnr
from verisim.models.diffusion.age_guided import AgeGuidedDiffusion
from verisim.recipes import load_recipe
from verisim.reproductions.growth_claims import GUIDED
from verisim.training.run_folder import RunFolder
from verisim.training.settings import TrainSettings
from verisim.training.train import ModelPlan, train


@dataclass(frozen=True)
class Choice:
    """What is tried on the training subjects seen twice."""

    levels: tuple[int, ...] = (200, 400, 600)  # L of 1000; the source: 600
    strengths: tuple[float, ...] = (
        0.0,
        0.1,
        0.3,
        1.0,
        3.0,
    )  # c, ages in standard deviations; 0 = no guidance
    steps: int = 20  # of the L that are evaluated, each way


@dataclass(frozen=True)
class Guidance:
    """How a scan is taken to another age."""

    level: int  # L
    c: float
    steps: int  # of the L that are evaluated, each way
    psnr: float  # dB, of the training subjects seen twice


def trained_guided(
    folder: Path, scans: Images, ages: Tensor, minutes: float, seed: int
) -> tuple[AgeGuidedDiffusion, Any]:
    """Denoiser and regressor after so many processor minutes, and their card; a finished run is read, a killed one goes on."""
    Console(stderr=True).print(f"002-growth: {GUIDED}, {60 * minutes:.0f} processor seconds", highlight=False)
    run, recipe = RunFolder(folder), load_recipe("B-M")
    settings = recipe.settings("small")
    model = dict(settings["model"])
    kind = model.pop("name")
    training = TrainSettings(
        batch_size=settings["training"]["batch_size"], max_minutes=minutes, clock="cpu", ema=settings["training"]["ema"],
        precision="float32", seed=seed, sample_minutes=0, accelerator="auto",
    )  # fmt: skip
    if not run.weights.exists():
        fresh = not run.config_path.exists()
        if fresh:
            run.create({"recipe": recipe.id, "model": {"name": kind, **model}, "minutes": minutes})
        outcome = train(run, ModelPlan(kind, model, recipe.id), replace(scans, ages=ages, labels=None), training,
                        fingerprint="growing brains", resume=not fresh, quiet=True)  # fmt: skip
        if outcome.card is None:
            raise VerisimError(f"Stopped while training {GUIDED}. Run the same command again to go on.")
    found, card = load_model(run.path)
    assert isinstance(found, AgeGuidedDiffusion)
    return found.eval(), card


def choose(
    model: AgeGuidedDiffusion, scans: Images, ages: Tensor, before: Tensor, after: Tensor, among: Choice
) -> Guidance:
    """L and c by which scans `before` (n,) become scans `after` (n,) best, mean PSNR; pairs that break an image lose."""
    tried = []
    for level, c in product(among.levels, among.strengths):
        how = Guidance(level, c, among.steps, 0.0)
        made = guided_images(model, scans.pixels[before], ages[after], how)
        score = float(psnr(mse(scans.pixels[after], made, scans.spec)).mean())
        tried.append(replace(how, psnr=round(score, 3)))
    return max(tried, key=lambda how: how.psnr)


def guided_images(model: AgeGuidedDiffusion, x: Tensor, ages: Tensor | None, how: Guidance) -> Tensor:
    """x (n, C, *S) at ages (n,), None = encoded and decoded only; black where guidance breaks an image."""
    try:
        return model.at_age(x, ages, how.level, how.c, how.steps).cpu()
    except VerisimError:
        if len(x) == 1:
            return torch.full_like(x, -1.0)
    parts = [
        guided_images(model, x[k : k + 1], None if ages is None else ages[k : k + 1], how)
        for k in range(len(x))
    ]
    return torch.cat(parts)

"""Which weights of a run are reported: the best test epoch of every metric, or one validated step (source 001, 5.7; K-E5).

The source took, for each metric apart, the best value along the curve on its test images, which were its only held-out ones.
Here one VAE is scored along its training on many fresh phantoms, in averages of its weights (power-function averages of a
twentieth of the run so far). From their scores any number of studies can be drawn: test images, validation images, and the rest,
which says what a step is worth. Optimism is what a study reports beyond that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from verisim.data.folder import Dataset
from verisim.data.spec import Images
from verisim.hub.weights import load_model
from verisim.metrics.bootstrap import Estimate, from_se
from verisim.metrics.reconstruction import score_reconstructions
from verisim.reproductions.knee_inside_latents import BLOCKS
from verisim.reproductions.knee_table import Scale, knee_job
from verisim.reproductions.runs import Job
from verisim.seeding import generator
from verisim.tasks.autoencoding import reconstruct
from verisim.tasks.comparison import held_out
from verisim.training.checkpoint import load_state
from verisim.training.run_folder import RunFolder
from verisim.training.selection import hold_out
from verisim.training.settings import TrainSettings
from verisim.training.source import DataSettings

NAME, SYSTEM = "K-E5", "K-S1"
EVERY = {"smoke": 3, "small": 50, "full": 1000}  # steps between the points of the curve
SIGNS = {"mse_1e-5": -1.0, "ms_ssim_1e-2": 1.0}  # + where more is better; the source's units
TEST, VALIDATION = 0.30, 0.12  # shares of the fresh phantoms in a study: 240 and 96 of 800, as the run's own
STUDIES = 400
Curve = dict[str, Tensor]  # metric -> (steps, images) float64


def selection_job(out: Path, data: DataSettings, scale: Scale, seed: int, every: int) -> Job:
    """A run of K-S1 that holds a tenth of its training patients out, and keeps snapshots of its averages."""
    job = knee_job(out, data, SYSTEM, scale.variant, NAME, seed, scale)
    return replace(job, overrides={**job.overrides, **_held(seed), "training.snapshot_steps": every})


def _held(seed: int) -> dict[str, str | int | float]:
    return {"training.select": "best", "training.seed": seed}


def selection_row(folder: Path, dataset: Dataset, fresh: Images, seed: int) -> dict[str, Any]:
    """What this run would report by either rule, and the optimism of either over many studies."""
    settings = TrainSettings(max_steps=1, select="best", seed=seed)
    validation = hold_out(dataset["train"], settings)[1]
    assert validation is not None
    sets = {"validation": validation.quantise(), "test": held_out(dataset), "fresh": fresh}
    steps, curves = along(folder, sets)
    known = {name: {k: v.mean(1) for k, v in c.items()} for name, c in curves.items()}
    one = best(known["validation"]["mse_1e-5"], "mse_1e-5")
    told: dict[str, Any] = {
        "steps": steps,
        "curves": {n: {k: v.tolist() for k, v in c.items()} for n, c in known.items()},
    }
    for rule in ("validated", "source"):
        told[rule] = {}
        for k in SIGNS:
            i = one if rule == "validated" else best(known["test"][k], k)
            told[rule][k] = {
                "step": steps[i],
                "test": float(known["test"][k][i]),
                "fresh": float(known["fresh"][k][i]),
            }
    return {
        **told,
        "optimism": {r: {k: e.as_dict() for k, e in m.items()} for r, m in optimism(curves["fresh"]).items()},
    }


def along(folder: Path, sets: Mapping[str, Images]) -> tuple[list[int], dict[str, Curve]]:
    """Steps of the snapshots, and scores of the reconstructions of each set at each of them."""
    model: Any = load_model(folder, "cpu")[0]
    files = sorted(RunFolder(folder).averages.glob("step-*.safetensors"))
    parts: dict[str, list[dict[str, Tensor]]] = {name: [] for name in sets}
    for file in files:
        model.sampling_net.load_state_dict(load_state(file)["tracks"][0])
        for name, images in sets.items():
            found = score_reconstructions(images, reconstruct(model, images))
            parts[name].append({"mse_1e-5": 1e5 * found.mse, "ms_ssim_1e-2": 100 * found.ms_ssim})
    curves = {n: {k: torch.stack([p[k] for p in each]) for k in SIGNS} for n, each in parts.items()}
    return [int(f.stem.split("-")[1]) for f in files], curves


def best(values: Tensor, metric: str) -> int:
    """Index of the best of values (S,)."""
    return int((SIGNS[metric] * values).argmax())


def optimism(scores: Curve, seed: int = 0) -> dict[str, dict[str, Estimate]]:
    """Rule -> metric -> how much better than its worth a study reports a run; jackknife intervals over the phantoms.

    scores: metric -> (S, P). 0 for a step that was chosen on other images, whatever the step.
    """
    p = next(iter(scores.values())).shape[1]
    whole = _studies(scores, seed)
    parts = []
    for b in range(BLOCKS):
        left = torch.arange(p) % BLOCKS != b
        parts.append(_studies({k: v[:, left] for k, v in scores.items()}, seed))
    found: dict[str, dict[str, Estimate]] = {}
    for rule, each in whole.items():
        found[rule] = {}
        for k, value in each.items():
            ones = torch.tensor([q[rule][k] for q in parts]).double()
            se = math.sqrt((BLOCKS - 1) * float(ones.var(correction=0)))
            found[rule][k] = from_se(value, se)
    return found


def _studies(scores: Curve, seed: int) -> dict[str, dict[str, float]]:
    """Mean optimism over STUDIES random divisions of the images."""
    p = next(iter(scores.values())).shape[1]
    rng = generator("studies", seed)
    order = torch.stack([torch.randperm(p, generator=rng) for _ in range(STUDIES)])  # (R, P)
    test, rest = round(TEST * p), round((TEST + VALIDATION) * p)
    drawn = {"test": order[:, :test], "validation": order[:, test:rest], "rest": order[:, rest:]}
    share = {n: _share(i, p) for n, i in drawn.items()}  # (R, P)
    mean = {n: {k: w @ v.T for k, v in scores.items()} for n, w in share.items()}  # (R, S)
    one = (SIGNS["mse_1e-5"] * mean["validation"]["mse_1e-5"]).argmax(1)
    found: dict[str, dict[str, float]] = {"source": {}, "validated": {}}
    for k, sign in SIGNS.items():
        beyond = sign * (mean["test"][k] - mean["rest"][k])  # (R, S)
        for rule, at in (("source", (sign * mean["test"][k]).argmax(1)), ("validated", one)):
            found[rule][k] = float(beyond.gather(1, at[:, None]).mean())
    return found


def _share(index: Tensor, p: int) -> Tensor:
    """(R, P) float64 weights of the mean over images `index` (R, m)."""
    return torch.zeros(len(index), p, dtype=torch.float64).scatter_(1, index, 1 / index.shape[1])

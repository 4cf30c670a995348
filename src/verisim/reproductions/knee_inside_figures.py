"""Figures of what is inside: a traversal, a swap, code usage, anomaly maps, AUROC by disc; phantoms only, so they may be shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from verisim.data.atomic import atomic_write
from verisim.hub.weights import load_model
from verisim.reports.anomaly import side_by_side_png
from verisim.reports.exploration import swap_png, traversal_png, usage_png
from verisim.reports.figures import dots_png
from verisim.reports.rate_distortion import rate_distortion_png
from verisim.reproductions.knee_inside_anomaly import mean_residual
from verisim.reproductions.knee_inside_claims import betas
from verisim.reproductions.knee_inside_codes import band
from verisim.reproductions.knee_inside_latents import FRAMES, SPAN, chosen
from verisim.reproductions.knee_inside_reading import of
from verisim.roles import AnomalyDetector, CodeSpace
from verisim.tasks.anomaly import ReconstructionDetector
from verisim.tasks.code_probe import code_use
from verisim.tasks.code_swap import swap_codes
from verisim.tasks.exploration import latent_use, traverse

if TYPE_CHECKING:
    from verisim.reproductions.knee_inside import Setting

SHOWN = ("K-S1", "K-S2", "K-S7", "K-S9.1")  # beside one another in the figure of maps
CASES = (1, 5, 8, 14, 17)  # cells shown: small to large, bright then dark


def write_figures(runs: Sequence[Path], setting: Setting, numbers: Mapping[str, Any], folder: Path) -> None:
    """All figures of the first seed's runs (folders SYSTEM@0)."""
    first = {r.name[:-2]: r for r in runs if r.name.endswith("@0")}
    for system in ("K-S1", "K-S7"):
        if system in first:
            _one_model(system, first[system], setting, folder)
    _maps({s: first[s] for s in SHOWN if s in first}, setting, folder)
    rows = [
        (
            r["name"],
            r["value"],
            r["low"],
            r["high"],
            "control" if r["name"] in numbers["baselines"] else "system",
        )
        for r in numbers["ranking"]
    ]
    atomic_write(folder / "anomaly.dots.png", dots_png(rows, "AUROC over all planted discs"))
    _sweep(numbers, folder)


def _one_model(system: str, run: Path, setting: Setting, folder: Path) -> None:
    """What its latents do to a phantom; or what a swap of codes does, and how they are used."""
    model: Any = load_model(run, "cpu")[0]
    a, b = setting.moved.images.pixels[:2]
    if isinstance(model, CodeSpace):
        atomic_write(folder / f"{system}.swap.png", swap_png(swap_codes(model, a, b, band(model.grid))))
        atomic_write(folder / f"{system}.usage.png", usage_png(code_use(model, setting.known.images.pixels)))
        return
    use = latent_use(model, setting.train.pixels)
    found = traverse(model, a, use, chosen(use, setting.looks.latents), frames=FRAMES, span=SPAN)
    atomic_write(folder / f"{system}.traversal.png", traversal_png(found, use))


def _maps(runs: Mapping[str, Path], setting: Setting, folder: Path) -> None:
    """One phantom without a disc and some with one, beside the maps of several systems."""
    bare = setting.cases.bare
    images, names = [bare.pixels[0, 0]], ["no disc"]
    for k, (cell, planted, _) in enumerate(setting.cases.planted()):
        if k in CASES:
            i = len(images) % len(bare)
            images.append(planted.pixels[i, 0])
            names.append(cell.name)
    x = torch.stack(images)
    found: dict[str, AnomalyDetector] = {}
    for name, run in runs.items():
        model: Any = load_model(run, "cpu")[0]
        found[name] = ReconstructionDetector(model)
    found["mean image"] = mean_residual(setting.train)
    maps = {name: d.anomaly_map(x[:, None])[:, 0].cpu() for name, d in found.items()}
    atomic_write(folder / "anomaly.maps.png", side_by_side_png(x, maps, names))


def _sweep(numbers: Mapping[str, Any], folder: Path) -> None:
    """Rate against distortion over beta, if it was swept."""
    rows = numbers["rows"]
    dots, line = [], []
    for beta, system in betas(rows).items():
        bits, error = of(rows, system, "rate_bits"), of(rows, system, "mse_1e-5")
        if bits is not None and error is not None and bits.value > 0:
            dots.append((f"beta {beta:g}", bits, error, "beta-VAE"))
            line.append((bits.value, error.value))
    if len(dots) > 1:
        png = rate_distortion_png(dots, [], "mean squared error x 1e5, fresh phantoms")
        atomic_write(folder / "beta.png", png)

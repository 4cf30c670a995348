"""Cached against naive sampling of both PixelCNNs: the same images, how much less work?

    OMP_NUM_THREADS=1 python benchmarks/autoregressive_sampling.py

Naive runs the whole network for every pixel; every pixel then costs the same, so it is timed on the first
rows only where a whole image would take too long (the `naive_rows` column says how many). Nothing is
extrapolated: the ratio is of process CPU seconds per pixel, cached over all rows, naive over its rows.
Rounds are interleaved, and in each round both must draw identical rows from the same generator.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from verisim.data.spec import ImageSpec
from verisim.models import build_model
from verisim.models.autoregressive.model import AutoregressiveModel
from verisim.models.autoregressive.raster import FullForward, raster_scan, uniforms

RESULT = Path(__file__).parents[1] / "results" / "benchmarks" / "autoregressive_sampling.json"
IMAGES = 2  # images side by side
ROUNDS = 3
# model, side in pixels, rows timed for the naive sampler
CELLS = [
    ("gated_pixelcnn", 16, 16),
    ("gated_pixelcnn", 32, 2),
    ("gated_pixelcnn", 64, 1),
    ("pixelcnn", 16, 16),
    ("pixelcnn", 32, 2),
    ("pixelcnn", 64, 1),
]


def shaken(model: AutoregressiveModel) -> AutoregressiveModel:
    """Every weight moved at random: time does not depend on it, agreement is worth more."""
    g = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data += torch.randn(p.shape, generator=g) * 0.02
    return model


def timed(
    model: AutoregressiveModel, side: int, rows: int, cached: bool, seed: int
) -> tuple[float, torch.Tensor]:
    """Process CPU seconds, and the grey levels (n, rows, W), of drawing the first rows."""
    u = uniforms(IMAGES, (side, side), torch.Generator().manual_seed(seed), "cpu")
    start = time.process_time()
    stepper = (
        model.cached_stepper(model.net, IMAGES, None)
        if cached
        else FullForward(model.net, IMAGES, (side, side), None)
    )
    level = raster_scan(stepper, model.draw, model.to_input, u, rows)
    return time.process_time() - start, level[:, :rows]


@torch.no_grad()
def measure(name: str, side: int, naive_rows: int) -> dict[str, Any]:
    """One row of the table: median milliseconds per pixel of both ways and their ratio."""
    model = build_model(name, {}, ImageSpec((side, side)))
    assert isinstance(model, AutoregressiveModel)
    shaken(model).eval()
    timed(model, side, 1, True, 0)  # warm up
    cached, naive, ratio, same = [], [], [], True
    for seed in range(ROUNDS):
        fast_s, fast = timed(model, side, side, True, seed)
        slow_s, slow = timed(model, side, naive_rows, False, seed)
        same = same and torch.equal(fast[:, :naive_rows], slow)
        cached.append(1e3 * fast_s / side**2)
        naive.append(1e3 * slow_s / (naive_rows * side))
        ratio.append(naive[-1] / cached[-1])
    return {
        "model": name,
        "size": side,
        "images": IMAGES,
        "parameters": sum(p.numel() for p in model.net.parameters()),
        "naive_rows": naive_rows,
        "cached_ms_per_pixel": statistics.median(cached),
        "naive_ms_per_pixel": statistics.median(naive),
        "cached_s_per_batch": statistics.median(cached) * side**2 / 1e3,
        "ratio": statistics.median(ratio),
        "ratio_range": [min(ratio), max(ratio)],
        "identical_images": same,
    }


def main() -> None:
    rows = [measure(*cell) for cell in CELLS]
    table = Table(title=f"Autoregressive sampling, {IMAGES} images side by side, process CPU time")
    for column in (
        "model",
        "size",
        "naive rows",
        "cached ms/px",
        "naive ms/px",
        "ratio (range)",
        "same",
    ):
        table.add_column(column, justify="left" if column == "model" else "right")
    for r in rows:
        low, high = r["ratio_range"]
        table.add_row(
            str(r["model"]),
            f"{r['size']}",
            f"{r['naive_rows']} of {r['size']}",
            f"{r['cached_ms_per_pixel']:.3f}",
            f"{r['naive_ms_per_pixel']:.1f}",
            f"{r['ratio']:.0f}x ({low:.0f}-{high:.0f})",
            "yes" if r["identical_images"] else "NO",
        )
    Console(width=110).print(table)
    setting = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "rounds": ROUNDS,
        "time": "process CPU seconds, median of interleaved rounds",
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps({"setting": setting, "rows": rows}, indent=2) + "\n")
    Console().print(f"Written to {RESULT}")


if __name__ == "__main__":
    main()

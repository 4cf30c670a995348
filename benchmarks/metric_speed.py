"""FD and KID beside MONAI and torchmetrics: time, ratio and agreement, interleaved in one process.

python benchmarks/metric_speed.py  ->  results/benchmarks/metric_speed.json   (less than two minutes)

Times are process CPU seconds, single-threaded, the best of the rounds; ratios are peer / ours, so above 1
we are faster. Cells that we lose stay in the table.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from verisim.metrics.frechet import frechet_distance
from verisim.metrics.kid import kernel_distance

SIZES = ((200, 1024), (1200, 1024), (2000, 256))  # (N images per set, D features)


def peers(n: int, d: int) -> dict[str, dict[str, Callable[[Tensor, Tensor], float]]]:
    """measure -> implementation -> function of two (N, D) float64 feature sets."""
    from monai.metrics.fid import get_fid_score
    from torchmetrics.image.fid import _compute_fid
    from torchmetrics.image.kid import poly_mmd

    def monai(x: Tensor, y: Tensor) -> float:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints when it has to repair
            return float(get_fid_score(x, y))

    def torchmetrics_fid(x: Tensor, y: Tensor) -> float:
        return float(_compute_fid(x.mean(0), torch.cov(x.T), y.mean(0), torch.cov(y.T)))

    return {
        "fd": {"verisim": frechet_distance, "monai": monai, "torchmetrics": torchmetrics_fid},
        "kid": {"verisim": kernel_distance, "torchmetrics": lambda x, y: float(poly_mmd(x, y))},
    }


def timed(function: Callable[[Tensor, Tensor], float], x: Tensor, y: Tensor) -> tuple[float | None, float]:
    """(value or None if it failed, CPU seconds)."""
    start = time.process_time()
    try:
        value = function(x, y)
    except (ValueError, RuntimeError, TypeError) as e:
        print(f"    failed: {type(e).__name__}: {str(e)[:90]}")
        return None, time.process_time() - start
    return value if math.isfinite(value) else None, time.process_time() - start


def measure(n: int, d: int, rounds: int) -> list[dict]:
    """All implementations at one size, taking turns in every round."""
    rng = torch.Generator().manual_seed(0)
    mix = torch.randn(d, d, generator=rng, dtype=torch.float64) / d**0.5  # correlated features
    x = torch.randn(n, d, generator=rng, dtype=torch.float64) @ mix
    y = 1.2 * torch.randn(n, d, generator=rng, dtype=torch.float64) @ mix + 0.1
    rows = []
    for what, functions in peers(n, d).items():
        values: dict[str, float | None] = {}
        seconds: dict[str, list[float]] = {name: [] for name in functions}
        for _ in range(rounds):
            for name, function in functions.items():
                values[name], spent = timed(function, x, y)
                seconds[name].append(spent)
        ours, best = values["verisim"], min(seconds["verisim"])
        assert ours is not None
        for name in functions:
            peer = values[name]
            each = [a / b for a, b in zip(seconds[name], seconds["verisim"])]
            rows.append(
                {
                    "measure": what,
                    "n": n,
                    "d": d,
                    "implementation": name,
                    "milliseconds": 1e3 * min(seconds[name]),
                    "ratio": min(seconds[name]) / best,
                    "ratio_low": min(each),
                    "ratio_high": max(each),
                    "value": peer,
                    "relative_difference": None if peer is None else abs(peer - ours) / abs(ours),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/metric_speed.json"))
    parser.add_argument("--rounds", type=int, default=3, help="how often each implementation is timed")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    measure(20, 16, 1)  # imports and first calls
    rows = []
    print(f"{'measure':8}{'N':>6}{'D':>6}  {'by':14}{'ms':>10}{'ratio':>9}   relative difference")
    for n, d in SIZES:
        for r in measure(n, d, args.rounds):
            rows.append(r)
            gap = "failed" if r["value"] is None else f"{r['relative_difference']:.1e}"
            print(
                f"{r['measure']:8}{n:6}{d:6}  {r['implementation']:14}{r['milliseconds']:10.1f}"
                f"{r['ratio']:9.2f}   {gap}"
            )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "processor": platform.machine(),
        "threads": 1,
        "torch": torch.__version__,
        "rounds": args.rounds,
    }
    args.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()

"""Our networks on a GPU beside MONAI's and diffusers', and beside what the card can do.

    python benchmarks/gpu_speed.py [--seconds 1] [--out results/benchmarks/gpu_speed.json]

First the card's own ceilings: a product of 8192 x 8192 matrices (TFLOP/s) and a copy within its memory (GB/s). Then all
networks in turn (A/B/C/A/B/C...), timed by CUDA events, at equal parameter counts (within 5 %): U-Nets of images and
volumes four and twice as wide as those of network_speed.py, transformers three times as wide as those of
transformer_speed.py. PyTorch's own settings: TF32 in convolutions, not in matrix products, so that fp32
rows of U-Nets exceed the ceiling of fp32 products. Needs `pip install diffusers
einops`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import network_speed
import torch
import transformer_speed
from network_speed import CELLS, job, version
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

CASES: dict[str, tuple[tuple[int, ...], str, Callable[[], dict[str, nn.Module]]]] = {
    "U-Net, images": ((64, 1, 64, 64), network_speed.BASE, partial(network_speed.competitors, 2, 4)),
    "U-Net, volumes": ((2, 1, 64, 64, 64), network_speed.BASE, partial(network_speed.competitors, 3, 2)),
    "transformer": ((256, 1, 32, 32), transformer_speed.BASE, partial(transformer_speed.competitors, 12, 3)),
}  # (B, C, *S), whom the others are compared with, the networks


def seconds_of(run: Callable[[], object]) -> float:
    """Seconds on the GPU between two events around one call."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def interleaved(jobs: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Seconds of each job, three calls to warm up and then in turn for `seconds` per job (5 to 200 rounds)."""
    for run in jobs.values():
        for _ in range(3):
            run()
    times: dict[str, list[float]] = {name: [] for name in jobs}
    spent, rounds = 0.0, 0
    while rounds < 5 or (spent < seconds * len(jobs) and rounds < 200):
        for name, run in jobs.items():
            times[name].append(seconds_of(run))
            spent += times[name][-1]
        rounds += 1
    return times


def ceilings() -> dict[str, float]:
    """Best of 10: TFLOP/s of a matrix product per precision, GB/s of a copy, read and written bytes counted."""
    found, n = {}, 8192
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.randn(n, n, device="cuda", dtype=dtype) for _ in range(2))
        t = interleaved({"product": partial(torch.mm, a, b)}, 0.3)["product"]
        found[f"{name}_tflops"] = 2 * n**3 / min(t) / 1e12
    x = torch.empty(2**30, device="cuda")  # 4 GiB
    y = torch.empty_like(x)
    t = interleaved({"copy": partial(y.copy_, x)}, 0.3)["copy"]
    found["copy_gb_per_s"] = 2 * x.numel() * 4 / min(t) / 1e9
    return found


def operations(net: nn.Module, x: Tensor) -> dict[str, float]:
    """10^12 floating-point operations of a forward pass, and of one with its backward pass."""
    noise = torch.full((len(x),), 0.5, device=x.device)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        net(x, noise)
    with FlopCounterMode(display=False) as both:
        net(x, noise).square().mean().backward()
    net.zero_grad(set_to_none=True)
    return {"forward": forward.get_total_flops() / 1e12, "train": both.get_total_flops() / 1e12}


def peak_gib(run: Callable[[], object]) -> float:
    """Most bytes that a call adds to what is already there."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def measure(case: str, seconds: float, best: dict[str, float]) -> dict[str, dict]:
    """{network: {parameters, tflop, cells}} of one case."""
    shape, base, make = CASES[case]
    torch.manual_seed(0)
    nets = {name: net.cuda() for name, net in make().items()}
    x = torch.randn(shape, device="cuda")
    rows: dict[str, dict] = {
        name: {
            "parameters": sum(p.numel() for p in net.parameters()),
            "tflop": operations(net, x),
            "cells": {},
        }
        for name, net in nets.items()
    }
    for task, precision in CELLS:
        jobs = {name: job(net, x, task, precision) for name, net in nets.items()}
        times = interleaved(jobs, seconds)
        for name, t in times.items():
            quartiles = statistics.quantiles([p / q for p, q in zip(times[base], t)], n=4)
            rate = rows[name]["tflop"][task] / statistics.median(t)
            rows[name]["cells"][f"{task} {precision}"] = {
                "median_ms": 1e3 * statistics.median(t),
                "min_ms": 1e3 * min(t),
                "images_per_second": shape[0] / statistics.median(t),
                "tflops": rate,
                "share_of_ceiling": rate / best[f"{precision}_tflops"],
                "times_as_fast": quartiles[1],
                "quartile_low": quartiles[0],
                "quartile_high": quartiles[2],
                "rounds": len(t),
                "peak_gib": peak_gib(jobs[name]),
            }
        for net in nets.values():
            net.zero_grad(set_to_none=True)
    return rows


def show(case: str, rows: dict[str, dict], console: Console) -> None:
    shape, base, _ = CASES[case]
    title = (
        f"{case}, {'x'.join(map(str, shape))}: images/s (times as fast as {base}; share of the ceiling; GiB)"
    )
    table = Table(title=title)
    for head in ("network", "M param", *(f"{t} {p}" for t, p in CELLS)):
        table.add_column(head, justify="left" if head == "network" else "right")
    for name, row in rows.items():
        cells = [
            f"{c['images_per_second']:.0f} ({c['times_as_fast']:.2f}; {c['share_of_ceiling']:.0%}; {c['peak_gib']:.2f})"
            for c in row["cells"].values()
        ]
        table.add_row(name, f"{row['parameters'] / 1e6:.2f}", *cells)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1, help="time per network and cell")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/gpu_speed.json"))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "PyTorch sees no CUDA GPU here, so there is nothing to measure; network_speed.py compares on a CPU."
        )
        return
    console, best = Console(width=160), ceilings()
    console.print(f"{torch.cuda.get_device_name()}: " + ", ".join(f"{k} {v:.0f}" for k, v in best.items()))
    result: dict = {
        "versions": {p: version(p) or None for p in ("torch", "monai", "diffusers", "einops")},
        "gpu": torch.cuda.get_device_name(),
        "ceilings": best,
        "method": "CUDA events, networks in turn, median; quartiles of the per-round ratio",
        "differences": [*network_speed.DIFFERENCES[:-1], *transformer_speed.DIFFERENCES],
        "cases": {},
    }
    for case in CASES:
        result["cases"][case] = measure(case, args.seconds, best)
        show(case, result["cases"][case], console)
        torch.cuda.empty_cache()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"Written to {args.out}")


if __name__ == "__main__":
    main()

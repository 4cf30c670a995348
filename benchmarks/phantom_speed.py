"""Phantoms per second: `python benchmarks/phantom_speed.py [--threads 1 2] [--sizes 32 64 128] [--volumes 32 64]`.

Rates of `make` per second of wall-clock time, meaningful on an idle machine only, and per second of processor
time; writes results/benchmarks/phantom_speed.json.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from pathlib import Path

import torch

from verisim.phantoms import PHANTOMS


def rate(kind: str, size: tuple[int, ...], n: int, repeats: int) -> tuple[list[float], list[float]]:
    """Images per second and per processor second of each repeat, after one warm-up."""
    PHANTOMS[kind].make(min(n, 64), 0, size)
    wall, processor = [], []
    for seed in range(repeats):
        start = time.perf_counter(), time.process_time()
        PHANTOMS[kind].make(n, seed, size)
        wall.append(n / (time.perf_counter() - start[0]))
        processor.append(n / (time.process_time() - start[1]))
    return wall, processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128], help="sides of images")
    parser.add_argument("--volumes", type=int, nargs="*", default=[32, 64], help="sides of volumes")
    parser.add_argument("--n", type=int, default=512, help="images of 64 x 64 pixels per repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/phantom_speed.json"))
    args = parser.parse_args()
    rows = []
    print("phantom           size  threads  images/s: median (min to max); per processor second")
    for kind, entry in PHANTOMS.items():
        sides = {2: args.sizes, 3: args.volumes}
        for size in [(s,) * d for d in entry.spatial_dims for s in sides[d]]:
            n = min(args.n, max(16, args.n * 64**2 // math.prod(size)))  # about as many pixels at all sizes
            for threads in args.threads:
                torch.set_num_threads(threads)
                r, cpu = rate(kind, size, n, args.repeats)
                row = {
                    "phantom": kind,
                    "size": size,
                    "threads": threads,
                    "images": n,
                    "repeats": args.repeats,
                }
                per_cpu = statistics.median(cpu)
                row |= {"median": statistics.median(r), "min": min(r), "max": max(r)}
                rows.append({**row, "median_per_processor_second": per_cpu})
                name = "x".join(map(str, size))
                spread = f"({min(r):.0f} to {max(r):.0f})"
                print(
                    f"{kind:13} {name:>8} {threads:8}  {statistics.median(r):8.0f} {spread:20} {per_cpu:8.0f}"
                )
    result = {
        "versions": {"torch": torch.__version__},
        "machine": {"processor": platform.processor() or platform.machine()},
        "method": "images per second of wall-clock and of processor time, one warm-up, median of the repeats",
        "rates": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"Written to {args.out}")


if __name__ == "__main__":
    main()

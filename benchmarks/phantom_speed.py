"""Chest phantoms per second: `python benchmarks/phantom_speed.py [--threads 1 2] [--sizes 32 64 128]`."""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from verisim.phantoms import PHANTOMS


def rate(kind: str, size: int, n: int, repeats: int) -> list[float]:
    """Images per second of each repeat, after one warm-up."""
    PHANTOMS[kind].make(64, 0, size)
    rates = []
    for seed in range(repeats):
        start = time.perf_counter()
        PHANTOMS[kind].make(n, seed, size)
        rates.append(n / (time.perf_counter() - start))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--n", type=int, default=512, help="images per repeat")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print("phantom  size  threads  images/s: median (min to max)")
    for kind in PHANTOMS:
        for size in args.sizes:
            for threads in args.threads:
                torch.set_num_threads(threads)
                r = rate(kind, size, args.n, args.repeats)
                print(
                    f"{kind:8} {size:4} {threads:8}  {statistics.median(r):8.0f} ({min(r):.0f} to {max(r):.0f})"
                )


if __name__ == "__main__":
    main()

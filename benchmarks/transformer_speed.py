"""Speed of our diffusion transformer beside diffusers' DiTTransformer2DModel, and with half of the tokens left out.

    python benchmarks/transformer_speed.py [--seconds 15] [--out results/benchmarks/transformer_speed.json]

One process, one thread, all networks in turn, process CPU time, at equal parameter counts (within 5 %) and at equal
numbers of blocks, 256 tokens of an image of 32x32. Needs `pip install diffusers`. MONAI 1.6 has no diffusion transformer.
"""

from __future__ import annotations

import argparse
import json
import platform
from functools import partial
from pathlib import Path

import torch
from network_speed import CELLS, gflops, interleaved, job, ratio, version
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from verisim.nets.dit import DiT

SHAPE = (4, 1, 32, 32)
BASE = "diffusers"
DIFFERENCES = [
    "Both: patches of 2x2, width 128, heads of 32 channels, adaLN-Zero in every block.",
    "diffusers embeds the noise level (and a class) anew in every block, an eighth of its parameters, which no token passes; "
    "ours once, so that it has a block more for the same number of parameters. Equal blocks: ours without that block.",
    "Half masked: training steps see half of the tokens in all blocks but the last; its forward pass is that of the whole.",
]


class Diffusers(nn.Module):
    """DiTTransformer2DModel with the call of the others and one class."""

    def __init__(self, depth: int, times: int = 1) -> None:
        super().__init__()
        from diffusers import DiTTransformer2DModel

        self.net = DiTTransformer2DModel(
            num_attention_heads=4 * times,
            attention_head_dim=32,
            in_channels=1,
            out_channels=1,
            num_layers=depth,
            sample_size=32,
            patch_size=2,
            num_embeds_ada_norm=1,
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x, timestep=t, class_labels=t.long() * 0).sample


class HalfMasked(nn.Module):
    """Our transformer, which leaves out half of its tokens where gradients are needed."""

    def __init__(self, net: DiT) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.net(x, t)
        keep, _ = self.net.tokens_kept(x, 0.5)
        return self.net(x, t, keep=keep)


def competitors(depth: int, times: int = 1) -> dict[str, nn.Module]:
    """Networks by name, `times` as wide; zero-initialised layers get weights, so that no time is spent on zeros."""
    ours = partial(DiT, 2, 1, 1, patch=2, width=128 * times, depth=depth, head_channels=32)
    nets = {
        "verisim": ours(),
        "verisim, half masked": HalfMasked(ours(masked=True, full_blocks=1)),
        "verisim, equal blocks": ours(depth=depth - 1),
        BASE: Diffusers(depth - 1, times),
    }
    for net in nets.values():
        for p in net.parameters():
            if not p.any():
                nn.init.normal_(p, std=0.02)
    return nets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=15, help="time per group of cells (4 groups)")
    parser.add_argument("--depth", type=int, default=8, help="blocks of our network")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/transformer_speed.json"))
    args = parser.parse_args()
    if not version("diffusers"):
        raise SystemExit(
            "diffusers is not installed, so there is nothing to compare with: pip install diffusers"
        )
    torch.set_num_threads(1)
    torch.manual_seed(0)
    nets, x = competitors(args.depth), torch.randn(SHAPE)
    rows: dict[str, dict] = {
        name: {"parameters": sum(p.numel() for p in net.parameters()), "gflop": gflops(net, x), "cells": {}}
        for name, net in nets.items()
    }
    for task, precision in CELLS:
        times = interleaved({name: job(net, x, task, precision) for name, net in nets.items()}, args.seconds)
        for name, cell in ratio(times, times[BASE]).items():
            rows[name]["cells"][f"{task} {precision}"] = cell
    console = Console(width=130)
    table = Table(title=f"{'x'.join(map(str, SHAPE))}: CPU ms (times as fast as {BASE})")
    for head in ("network", "M param", "GFLOP", *(f"{t} {p}" for t, p in CELLS)):
        table.add_column(head, justify="left" if head == "network" else "right")
    for name, row in rows.items():
        cells = [f"{c['min_ms']:.0f} ({c['times_as_fast']:.2f})" for c in row["cells"].values()]
        table.add_row(name, f"{row['parameters'] / 1e6:.2f}", f"{row['gflop']:.2f}", *cells)
    console.print(table)
    for line in DIFFERENCES:
        console.print("-", line)
    result = {
        "versions": {p: version(p) for p in ("torch", "diffusers")},
        "machine": {"processor": platform.processor() or platform.machine(), "threads": 1},
        "method": "process CPU time, networks in turn, minimum; quartiles of the per-round ratio",
        "differences": DIFFERENCES,
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"Written to {args.out}")


if __name__ == "__main__":
    main()

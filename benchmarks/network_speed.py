"""Speed of our U-Net beside MONAI's DiffusionModelUNet and diffusers' UNet2DModel.

    python benchmarks/network_speed.py [--seconds 15] [--out results/benchmarks/network_speed.json]

One process, one thread, all networks in turn (A/B/C/A/B/C...), process CPU time, at equal parameter
counts (within 5 %). Needs `pip install diffusers einops` (einops is what MONAI's attention needs);
without diffusers its rows are left out, and the table says so.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from verisim.nets import UNet

SHAPES = {2: (2, 1, 64, 64), 3: (1, 1, 32, 32, 32)}  # (B, C, *S) by spatial dimensions
LAYOUT = {2: torch.channels_last, 3: torch.channels_last_3d}
CELLS = [(task, precision) for task in ("forward", "train") for precision in ("fp32", "bf16")]
BASE = "MONAI default"
DIFFERENCES = [
    "All: three resolution levels, self-attention with heads of 32 (ours 72) channels at the coarsest, "
    "FiLM or additive noise conditioning in every residual block of two 3x3 convolutions.",
    "Peers: widths 32, 64, 128; 2 residual blocks per level down and 3 up; a strided convolution down and "
    "a 3x3 convolution after nearest-neighbour doubling; attention after each block of the coarsest level "
    "and in the middle (6 times).",
    "Ours: widths 32, 64, 144; 2 residual blocks per level down and 2 up; resampling inside the block, without "
    "a convolution of its own; attention 5 times; normalisation with scale and shift from the noise level.",
    "So ours spends its parameters at the coarsest level and does fewer operations per parameter (GFLOP "
    "column): that, and not a faster kernel, is most of the speed in the fp32 columns.",
]


def ours(dims: int, times: int = 1) -> nn.Module:
    return UNet(dims, 1, 1, channels=(32 * times, 64 * times, 144 * times), blocks=2, head_channels=72)


def monai(dims: int, flash: bool = False, times: int = 1) -> nn.Module:
    from monai.networks.nets import DiffusionModelUNet

    return DiffusionModelUNet(
        spatial_dims=dims,
        in_channels=1,
        out_channels=1,
        channels=(32 * times, 64 * times, 128 * times),
        attention_levels=(False, False, True),
        num_res_blocks=2,
        num_head_channels=32,
        use_flash_attention=flash,
    )


class Diffusers(nn.Module):
    """UNet2DModel with the call of the others."""

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        self.net = UNet2DModel(
            sample_size=64,
            in_channels=1,
            out_channels=1,
            block_out_channels=(32 * times, 64 * times, 128 * times),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            attention_head_dim=32,
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x, t).sample


def competitors(dims: int, times: int = 1) -> dict[str, nn.Module]:
    """Networks by name, `times` as wide; zero-initialised layers get weights, so that no time is spent on zeros."""
    nets = {
        "verisim": ours(dims, times),
        "verisim channels_last": ours(dims, times).to(memory_format=LAYOUT[dims]),
        BASE: monai(dims, times=times),
        "MONAI tuned": monai(dims, flash=True, times=times).to(memory_format=LAYOUT[dims]),
    }
    if dims == 2 and version("diffusers"):
        nets["diffusers"] = Diffusers(times)
    for net in nets.values():
        for p in net.parameters():
            if not p.any():
                nn.init.normal_(p, std=0.02)
    return nets


def version(package: str) -> str:
    """Installed version, or '' where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def gflops(net: nn.Module, x: Tensor) -> float:
    """10^9 floating-point operations of one forward pass."""
    with FlopCounterMode(display=False) as count, torch.no_grad():
        net(x, torch.zeros(len(x), device=x.device))
    return count.get_total_flops() / 1e9


def job(net: nn.Module, x: Tensor, task: str, precision: str) -> Callable[[], None]:
    """One forward pass, or one training step (forward, backward, Adam), as a function."""
    noise, target = torch.full((len(x),), 0.5, device=x.device), torch.randn_like(x)
    adam = torch.optim.Adam(net.parameters(), lr=1e-6)
    bf16 = precision == "bf16"

    def forward() -> None:
        with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            net(x, noise)

    def train() -> None:
        adam.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            y = net(x, noise)
        (y.float() - target).square().mean().backward()
        adam.step()

    return {"forward": forward, "train": train}[task]


def interleaved(jobs: dict[str, Callable[[], None]], seconds: float) -> dict[str, list[float]]:
    """CPU seconds of each job, run in turn until `seconds` have passed (3 to 40 rounds)."""
    for run in jobs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in jobs}
    end = time.perf_counter() + seconds
    for i in range(40):
        if i >= 3 and time.perf_counter() > end:
            break
        for name, run in jobs.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    return times


def ratio(times: dict[str, list[float]], peer: list[float]) -> dict[str, dict[str, float]]:
    """min and median in ms; how many times as fast as `peer`: by minima, and the quartiles over rounds."""
    result = {}
    for name, t in times.items():
        per_round = statistics.quantiles([p / q for p, q in zip(peer, t)], n=4)
        result[name] = {
            "min_ms": 1e3 * min(t),
            "median_ms": 1e3 * statistics.median(t),
            "times_as_fast": min(peer) / min(t),
            "quartile_low": per_round[0],
            "quartile_high": per_round[2],
            "rounds": len(t),
        }
    return result


def measure(dims: int, seconds: float) -> dict[str, dict]:
    """Everything about one dimensionality: {network: {parameters, gflop, cells}}."""
    torch.manual_seed(0)
    nets, x = competitors(dims), torch.randn(SHAPES[dims])
    rows: dict[str, dict] = {
        name: {
            "parameters": sum(p.numel() for p in net.parameters()),
            "gflop": gflops(net, x),
            "cells": {},
        }
        for name, net in nets.items()
    }
    for task, precision in CELLS:
        times = interleaved({name: job(net, x, task, precision) for name, net in nets.items()}, seconds)
        for name, cell in ratio(times, times[BASE]).items():
            rows[name]["cells"][f"{task} {precision}"] = cell
    default = rows[BASE]["cells"]["forward fp32"]["min_ms"]
    for row in rows.values():  # what a user gains who takes bf16 instead of the peer's defaults
        row["bf16_forward_vs_monai_default"] = default / row["cells"]["forward bf16"]["min_ms"]
    return rows


def show(dims: int, rows: dict[str, dict], console: Console) -> None:
    """The rows as a table: CPU ms, and in brackets times as fast as MONAI's default in that column."""
    table = Table(title=f"{dims}D, {'x'.join(map(str, SHAPES[dims]))}: CPU ms (times as fast as {BASE})")
    heads = ["network", "M param", "GFLOP", *(f"{t} {p}" for t, p in CELLS), "bf16 fwd / default fp32"]
    for head in heads:
        table.add_column(head, justify="left" if head == "network" else "right")
    for name, row in rows.items():
        cells = [f"{c['min_ms']:.0f} ({c['times_as_fast']:.2f})" for c in row["cells"].values()]
        size = f"{row['parameters'] / 1e6:.2f}"
        gain = f"{row['bf16_forward_vs_monai_default']:.2f}x"
        table.add_row(name, size, f"{row['gflop']:.1f}", *cells, gain)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=15, help="time per group of cells (8 groups)")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/network_speed.json"))
    args = parser.parse_args()
    console = Console(width=150)
    for package in ("einops", "diffusers"):
        if not version(package):
            console.print(f"[yellow]{package} is not installed: pip install {package}")
    if not version("einops"):
        raise SystemExit("MONAI's attention needs einops, so there is nothing to compare with.")
    torch.set_num_threads(1)
    result: dict = {
        "versions": {p: version(p) or None for p in ("torch", "monai", "diffusers", "einops")},
        "machine": {"processor": platform.processor() or platform.machine(), "threads": 1},
        "method": "process CPU time, networks in turn, minimum; quartiles of the per-round ratio",
        "differences": DIFFERENCES,
    }
    for dims in SHAPES:
        result[f"{dims}d"] = measure(dims, args.seconds)
        show(dims, result[f"{dims}d"], console)
    for line in DIFFERENCES:
        console.print("-", line)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"Written to {args.out}")


if __name__ == "__main__":
    main()

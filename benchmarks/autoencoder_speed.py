"""Speed and memory of our autoencoders beside MONAI's AutoencoderKL and VQVAE.

    python benchmarks/autoencoder_speed.py [--seconds 10] [--out results/benchmarks/autoencoder_speed.json]

One process, one thread, networks in turn, process CPU time, at equal parameter counts (within 5 %) and equally
many latents. Memory: bytes saved for the backward pass of one image, by image size up to 512 pixels.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from network_speed import interleaved, ratio, version
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from verisim.data.spec import ImageSpec
from verisim.models import build_model
from verisim.training.memory import with_saved_bytes

BATCH, SIDE = 8, 64
SIZES = (64, 128, 256, 512)
PAIRS = {"KL": ("verisim conv_vae", "MONAI AutoencoderKL"), "VQ": ("verisim vqvae", "MONAI VQVAE")}
DIFFERENCES = [
    "KL: ours halves three times (1024 latents = 16 maps of 8x8), MONAI's twice with three widths (4 maps of 16x16); "
    "ours has one residual block per halving, MONAI's one per width and two in the middle; no attention in either.",
    "VQ: both halve twice, 512 codes of length 32 on a 16x16 grid, one residual block per halving.",
    "A training step is forward, squared error plus KL or commitment, backward and Adam, for both alike.",
]


class Ours(nn.Module):
    """encode and decode of a verisim model's network."""

    def __init__(self, name: str, side: int) -> None:
        super().__init__()
        vae = {"channels": (40, 80, 160), "head": "conv", "latent": 16 * (side // 8) ** 2, "kernel": 3}
        vq = {"channels": (64, 128), "codes": 512, "dim": 32, "kernel": 3}
        self.kind = name
        self.model = build_model(
            *{"KL": ("conv_vae", vae), "VQ": ("vqvae", vq)}[name], ImageSpec((side, side))
        )
        self.net = self.model.net

    def encode(self, x: Tensor) -> Tensor:
        return self.net.encode(x).mean if self.kind == "KL" else self.net.autoencoder.codes(x)

    def decode(self, z: Tensor) -> Tensor:
        if self.kind == "KL":
            return self.net.decode(z, self.model.groups(len(z), None))
        a = self.net.autoencoder
        return a.decoder(a.quantiser.embed(z))

    def loss(self, x: Tensor) -> Tensor:
        return self.model.training_loss(x, None)[0].mean()


class Monai(nn.Module):
    """The same of MONAI's networks."""

    def __init__(self, name: str) -> None:
        super().__init__()
        from monai.networks.nets import VQVAE, AutoencoderKL

        self.kind = name
        if name == "KL":
            self.net: nn.Module = AutoencoderKL(
                spatial_dims=2,
                in_channels=1,
                out_channels=1,
                channels=(32, 64, 128),
                latent_channels=4,
                num_res_blocks=1,
                attention_levels=(False, False, False),
                norm_num_groups=8,
                with_encoder_nonlocal_attn=False,
                with_decoder_nonlocal_attn=False,
            )
        else:
            self.net = VQVAE(
                spatial_dims=2,
                in_channels=1,
                out_channels=1,
                channels=(46, 92),
                num_res_channels=(46, 92),
                num_res_layers=1,
                downsample_parameters=((2, 4, 1, 1), (2, 4, 1, 1)),
                upsample_parameters=((2, 4, 1, 1, 0), (2, 4, 1, 1, 0)),
                num_embeddings=512,
                embedding_dim=32,
            )

    def encode(self, x: Tensor) -> Tensor:
        return self.net.encode(x)[0] if self.kind == "KL" else self.net.index_quantize(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.net.decode(z) if self.kind == "KL" else self.net.decode_samples(z)

    def loss(self, x: Tensor) -> Tensor:
        if self.kind == "KL":
            again, mean, sigma = self.net(x)
            kl = 0.5 * (mean.square() + sigma.square() - sigma.square().clamp(min=1e-12).log() - 1).sum()
            return (again - x).square().mean() + 1e-6 * kl
        again, quantisation = self.net(x)
        return (again - x).square().mean() + quantisation


def jobs(nets: dict[str, nn.Module], task: str, x: Tensor) -> dict[str, Callable[[], None]]:
    """Encoding, decoding or one training step of every network, as functions."""
    return {name: _job(net, task, x) for name, net in nets.items()}


def _job(net: nn.Module, task: str, x: Tensor) -> Callable[[], None]:
    net.train(task == "train")
    with torch.no_grad():
        z = net.encode(x)
    adam = torch.optim.Adam(net.parameters(), lr=1e-6)

    def train() -> None:
        adam.zero_grad()
        net.loss(x).backward()
        adam.step()

    def encode() -> None:
        with torch.no_grad():
            net.encode(x)

    def decode() -> None:
        with torch.no_grad():
            net.decode(z)

    return {"train": train, "encode": encode, "decode": decode}[task]


def saved_bytes(net: nn.Module, side: int) -> int:
    """Bytes that one image's forward pass keeps for the backward pass, without the weights."""
    net.train()
    return with_saved_bytes(lambda: net.loss(torch.rand(1, 1, side, side) * 2 - 1), net.parameters())[1]


def measure(kind: str, seconds: float) -> dict[str, dict]:
    """Speed at 64 pixels and memory by size of one pair."""
    torch.manual_seed(0)
    ours, theirs = PAIRS[kind]
    nets: dict[str, nn.Module] = {ours: Ours(kind, SIDE), theirs: Monai(kind)}
    x = torch.rand(BATCH, 1, SIDE, SIDE) * 2 - 1
    rows: dict[str, dict] = {
        n: {"parameters": sum(p.numel() for p in net.parameters()), "cells": {}} for n, net in nets.items()
    }
    for task in ("encode", "decode", "train"):
        times = interleaved(jobs(nets, task, x), seconds)
        for name, cell in ratio(times, times[theirs]).items():
            rows[name]["cells"][task] = {**cell, "ms_per_image": cell["min_ms"] / BATCH}
    for name in rows:
        made = {s: (Ours(kind, s) if name == ours else Monai(kind)) for s in SIZES}
        rows[name]["saved_mib_per_image"] = {s: saved_bytes(net, s) / 2**20 for s, net in made.items()}
    return rows


def show(kind: str, rows: dict[str, dict], console: Console) -> None:
    table = Table(title=f"{kind}, {BATCH}x1x{SIDE}x{SIDE}, fp32: CPU ms per image (times as fast as MONAI)")
    for head in ("network", "M param", "encode", "decode", "train", *(f"MiB at {s}" for s in SIZES)):
        table.add_column(head, justify="left" if head == "network" else "right")
    for name, row in rows.items():
        cells = [f"{c['ms_per_image']:.2f} ({c['times_as_fast']:.2f})" for c in row["cells"].values()]
        memory = [f"{m:.1f}" for m in row["saved_mib_per_image"].values()]
        table.add_row(name, f"{row['parameters'] / 1e6:.3f}", *cells, *memory)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=10, help="time per cell (6 cells)")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/autoencoder_speed.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=150)
    result: dict = {
        "versions": {p: version(p) or None for p in ("torch", "monai")},
        "machine": {"processor": platform.processor() or platform.machine(), "threads": 1},
        "method": "process CPU time, networks in turn, minimum; quartiles of the per-round ratio",
        "differences": DIFFERENCES,
    }
    for kind in PAIRS:
        result[kind] = measure(kind, args.seconds)
        show(kind, result[kind], console)
    for line in DIFFERENCES:
        console.print("-", line)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"Written to {args.out}")


if __name__ == "__main__":
    main()

"""Memory of a training step in 3D: pixels, patch 2, wavelet bands, and MONAI's network on pixels.

    python benchmarks/diffusion_memory.py [--size 64] [--backward] [--batch 1] [--out FILE]

What is counted: bytes kept for the backward pass by the forward pass of the training loss, each storage once,
weights left out. That is measured, on any device the same, and what grows with the image; weights, gradients
and optimiser come on top, equal for all at equal parameters (within 5 %, the first and last convolution).
One forward pass each is enough; --backward runs the backward pass too, as a check that it exists.
All networks: three levels, two residual blocks each, no self-attention beside the one that MONAI's network always
has in its middle. It needs einops for that; without it its row is left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from verisim.data.spec import ImageSpec
from verisim.models import build_model
from verisim.training.memory import with_saved_bytes

BASE = "MONAI, pixels"
OURS: dict[str, dict] = {
    "ours, pixels": {},
    "ours, patch 2": {"patch": 2},
    "ours, haar": {"representation": "haar", "low_scale": 1 / 3},
    "ours, haar, average skips": {
        "representation": "haar",
        "low_scale": 1 / 3,
        "skip": "average",
        "channels": (32, 64, 164),
    },
}
SETTINGS = {
    "channels": (32, 64, 148),
    "blocks": 2,
    "attention": (False, False, False),
    "parametrisation": "x0",
    "allow_small_features": True,
}


def monai() -> nn.Module:
    from monai.networks.nets import DiffusionModelUNet

    return DiffusionModelUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        channels=(32, 64, 128),
        attention_levels=(False, False, False),
        num_res_blocks=2,
        num_head_channels=32,
    )


def measure(net: nn.Module, forward: Callable[[], Tensor], backward: bool) -> tuple[int, int]:
    """Parameters, and bytes kept beside them."""
    loss, saved = with_saved_bytes(forward, without=net.parameters())
    if backward:
        loss.backward()
    return sum(p.numel() for p in net.parameters()), saved


def ours(x: Tensor, backward: bool, **settings: object) -> tuple[int, int]:
    torch.manual_seed(0)
    model = build_model("diffusion", {**SETTINGS, **settings}, ImageSpec(tuple(x.shape[2:])))
    model.prepare(x)
    return measure(model.net, lambda: model.trial_loss(x, None), backward)


def theirs(x: Tensor, backward: bool) -> tuple[int, int]:
    torch.manual_seed(0)
    net, eps, t = monai(), torch.randn_like(x), torch.full((len(x),), 500)
    return measure(net, lambda: (net(0.7 * x + 0.7 * eps, t) - x).square().mean(), backward)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=64, help="side of the volume, a multiple of 8")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--backward", action="store_true", help="run the backward pass too")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/diffusion_memory.json"))
    args = parser.parse_args()
    x = torch.rand(args.batch, 1, *[args.size] * 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rows: dict[str, tuple[int, int]] = {}
    try:
        rows[BASE] = theirs(x, args.backward)
    except ImportError as e:
        Console().print(f"MONAI's network is left out: {str(e).splitlines()[0]}", markup=False)
    for name, settings in OURS.items():
        rows[name] = ours(x, args.backward, **settings)
    base = rows.get(BASE, rows["ours, pixels"])[1]
    table = Table(title=f"kept for the backward pass, {args.batch} volume(s) of {args.size}^3, float32")
    for column in ("network", "parameters", "MiB", "times less"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for name, (parameters, kept) in rows.items():
        table.add_row(name, f"{parameters:,}", f"{kept / 2**20:.1f}", f"{base / kept:.2f}")
    Console().print(table)
    found = {
        name: {"parameters": parameters, "saved_mib": kept / 2**20, "times_less": base / kept}
        for name, (parameters, kept) in rows.items()
    }
    settings = {"size": args.size, "batch": args.batch, "precision": "float32", "base": next(iter(rows))}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({**settings, "torch": torch.__version__, "rows": found}, indent=1) + "\n")
    Console().print(f"Written to {args.out}")


if __name__ == "__main__":
    main()

"""Memory of a training step of diffusion segmentation: crops (PatchDDM), whole volumes (FullRes), half resolution.

    python benchmarks/segmentation_memory.py [--size 64] [--width 4] [--levels 4] [--out FILE]

What is counted: bytes kept for the backward pass by the forward pass of the training loss, each storage once, weights
left out; one volume per step, four contrasts, float32. Crops have half the side of the volume, as in the source (128 of
256). Source 002, Table 1, GPU memory of a whole step: FullRes 78.5 GB, HalfRes 10.5, PatchDDM 10.6, a ratio of 7.4.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from verisim.data.spec import ImageSpec
from verisim.models import build_model
from verisim.training.memory import with_saved_bytes

SYSTEMS: dict[str, dict] = {
    "FullRes": {"train_on": "full", "coordinates": False},
    "HalfRes": {"train_on": "half", "coordinates": False},
    "PatchDDM": {"train_on": "patch"},
    "PatchDDM, concatenated skips": {"train_on": "patch", "skip": "concat"},
    "PatchDDM, blocks recomputed": {"train_on": "patch", "checkpointing": True},
}
SOURCE_GB = {"FullRes": 78.5, "HalfRes": 10.5, "PatchDDM": 10.6}


def measure(size: int, channels: tuple[int, ...], settings: dict) -> tuple[int, int]:
    """Parameters, and bytes kept beside them in a step on one volume of size^3 with four contrasts."""
    torch.manual_seed(0)
    spec = ImageSpec((size,) * 3, 4)
    model = build_model(
        "diffusion_segmentation", {"channels": channels, "patch": size // 2, **settings}, spec
    )
    x = torch.rand(1, *spec.shape) * 2 - 1
    weights = list(model.net.parameters())
    _, kept = with_saved_bytes(lambda: model.trial_loss(x, None), without=weights)
    return sum(p.numel() for p in weights), kept


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=64, help="side of the volume")
    parser.add_argument(
        "--width", type=int, default=4, help="channels of the finest level; the source has 29"
    )
    parser.add_argument("--levels", type=int, default=4, help="levels of 1, 3, 4, 4, ... times the width")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/segmentation_memory.json"))
    args = parser.parse_args()
    channels = tuple(args.width * k for k in (1, 3, *[4] * args.levels)[: args.levels])
    rows = {name: measure(args.size, channels, settings) for name, settings in SYSTEMS.items()}
    whole = rows["FullRes"][1]
    table = Table(title=f"kept for the backward pass, one volume of {args.size}^3, float32")
    for column in ("system", "parameters", "MiB", "FullRes / system", "source"):
        table.add_column(column, justify="left" if column == "system" else "right")
    for name, (parameters, kept) in rows.items():
        source = f"{SOURCE_GB['FullRes'] / SOURCE_GB[name]:.1f}" if name in SOURCE_GB else ""
        table.add_row(name, f"{parameters:,}", f"{kept / 2**20:.1f}", f"{whole / kept:.2f}", source)
    Console().print(table)
    found = {
        name: {"parameters": p, "saved_mib": kept / 2**20, "fullres_over_this": whole / kept}
        for name, (p, kept) in rows.items()
    }
    facts = {
        "size": args.size,
        "channels": channels,
        "batch": 1,
        "precision": "float32",
        "torch": torch.__version__,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({**facts, "rows": found}, indent=1) + "\n")
    Console().print(f"Written to {args.out}")


if __name__ == "__main__":
    main()

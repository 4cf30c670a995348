"""`verisim profile`: parameters, memory and time of a training step of any recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from verisim.cli.parser import Parser

EXAMPLES = """\
  verisim profile X-D-fix --variant small
  verisim profile X-D-fix --variant source --data.size 128x128x128 --training.batch_size 1
  verisim profile K-S2 --variant small --out memory.json
"""


def main(argv: list[str]) -> int:
    from verisim.cli.train import add_recipe, peek, plain
    from verisim.data.atomic import atomic_write
    from verisim.recipes import load_recipe
    from verisim.training.run_folder import environment
    from verisim.training.settings import TrainSettings
    from verisim.training.source import DataSettings

    name, variant = peek(argv)
    parser = Parser(
        "profile",
        "Count what a training step of a recipe takes. Activations are counted without allocating them, so that "
        "a step larger than this machine can be judged.",
        EXAMPLES,
    )
    parser.add_argument("recipe", type=str, help="id of the catalogue ('verisim list') or a YAML file")
    parser.add_argument("--variant", type=str, default="small", help="small | full | source | ...")
    parser.add_argument("--classes", type=int, default=0, help="number of classes to condition on")
    parser.add_argument("--steps", type=int, default=1, help="steps to time where memory allows; 0 = none")
    parser.add_argument("--out", type=str, default="", help="JSON file to write to")
    add_recipe(parser, name, variant)
    args = parser.parse_args(argv)
    training, data = TrainSettings(**plain(args.training)), DataSettings(**plain(args.data))
    kind = load_recipe(name).settings(variant)["model"]["name"]
    found = _measure(kind, plain(args.model), training, data, args.classes, args.steps)
    _print(f"{name}, {variant}", found)
    if args.out:
        body = {"recipe": name, "variant": variant, "model": {"name": kind, **plain(args.model)}}
        body |= {"resources": found.as_dict(), "environment": environment()}
        atomic_write(Path(args.out), (json.dumps(body, indent=1) + "\n").encode())
        print(f"written to {args.out}")
    return 0


def _measure(kind: str, settings: dict[str, Any], training: Any, data: Any, classes: int, steps: int) -> Any:
    import torch

    from verisim.data.spec import ImageSpec
    from verisim.models import build_model
    from verisim.seeding import generator
    from verisim.training.resources import measure

    torch.manual_seed(training.seed)
    spec = ImageSpec(data.shape, data.channel_count)
    model = build_model(kind, settings, spec, classes)
    x = torch.rand(1, *spec.shape, generator=generator("profile", training.seed)) * 2 - 1
    return measure(
        model,
        x,
        training.batch_size,
        classes=classes,
        texts=("Heart and lungs.",) * training.batch_size if settings.get("text") else None,
        precision=training.precision,
        ema=training.ema > 0,
        device=training.device,
        timed=steps,
    )


def _print(title: str, r: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    shape = " x ".join(map(str, r.shape))
    table = Table(title=f"one training step of {title}: {shape}, {r.precision}", show_header=False)
    table.add_row("parameters", f"{r.parameters:,}")
    if r.learning != r.parameters:
        table.add_row("of them trained", f"{r.learning:,}")
    for text, value in (
        ("kept for the backward pass", r.saved_bytes),
        ("most at once in a step, gradients included", r.step_bytes),
        ("most at once without gradients", r.forward_bytes),
        ("training in all (with weights, Adam, average)", r.training_bytes),
        ("CUDA, allocated", r.gpu_bytes),
        ("CUDA, reserved", r.gpu_reserved_bytes),
    ):
        if value is not None:
            table.add_row(text, size(value))
    table.add_row("counted", "by running it" if r.allocated else "without allocating it")
    seconds = "not measured" if r.seconds is None else f"{r.seconds:.3f} s"
    table.add_row(f"forward and backward pass on {r.device}", seconds)
    Console().print(table)


def size(n: int) -> str:
    """'10.50 GiB', or MiB below one."""
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.2f} MiB"

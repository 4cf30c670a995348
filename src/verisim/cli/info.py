"""`verisim info`: what a recipe, a run folder or a weights file is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from verisim.cli.parser import Parser

EXAMPLES = """\
  verisim info X-D-fix
  verisim info runs/first
  verisim info weights.safetensors
"""


def main(argv: list[str]) -> int:
    parser = Parser("info", "Tell about a recipe, a run folder or a weights file.", EXAMPLES)
    parser.add_argument("what", type=str, help="id of the catalogue, run folder or weights file")
    what = parser.parse_args(argv).what
    print(
        yaml.safe_dump(_run(Path(what)) if Path(what).exists() else _recipe(what), sort_keys=False).rstrip()
    )
    return 0


def _recipe(name: str) -> dict[str, Any]:
    from verisim.hub.published import published_weights
    from verisim.recipes import load_recipe

    recipe = load_recipe(name)
    mine = [w for w in published_weights() if w.rpartition(".")[0] == recipe.id]
    return {k: v for k, v in {**asdict(recipe), "weights": ", ".join(mine)}.items() if v}


def _run(path: Path) -> dict[str, Any]:
    from verisim.hub.weights import read_card, resolve
    from verisim.training.run_folder import RunFolder

    if path.is_dir() and not (path / "weights.safetensors").exists():
        run = RunFolder(path)
        return {"state": "unfinished", "checkpoints": [p.name for p in run.checkpoints()], **run.config()}
    card = asdict(read_card(resolve(path)))
    card["spec"] = {k: list(v) if isinstance(v, tuple) else v for k, v in card["spec"].items()}
    card["class_names"] = list(card["class_names"])
    return card

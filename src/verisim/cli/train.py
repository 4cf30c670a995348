"""`verisim train`: a recipe and some images in, a run folder out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from verisim.cli.parser import Parser
from verisim.errors import VerisimError

EXAMPLES = """\
  verisim train X-D-fix --variant small                        built-in chest phantoms
  verisim train X-D-fix --data.folder my_images --data.size 64 --training.max_minutes 30
  verisim train X-G-fix --data.folder cxr --data.label finding --out runs/gan
  verisim train X-D-fix --dry-run                              memory and time, measured
  verisim train --resume runs/gan                              go on after a stop or a crash
  verisim train X-D-fix --training.devices 4 --training.accelerator gpu --training.strategy ddp
"""


def main(argv: list[str]) -> int:
    if any(a == "--resume" or a.startswith("--resume=") for a in argv):
        return _resume(argv)
    recipe_name, variant = peek(argv)
    parser = build_parser(recipe_name, variant)
    args = parser.parse_args(argv)
    return _start(args, recipe_name)


def peek(argv: list[str]) -> tuple[str, str]:
    """Recipe and variant, which decide what the other options are."""
    variant = "small"
    for i, word in enumerate(argv):
        if word == "--variant" and i + 1 < len(argv):
            variant = argv[i + 1]
        elif word.startswith("--variant="):
            variant = word.split("=", 1)[1]
    recipe = argv[0] if argv and not argv[0].startswith("-") else ""
    return recipe, variant


def build_parser(recipe_name: str, variant: str) -> Parser:
    """Parser with the model options of the recipe; without a recipe only the common ones."""
    parser = Parser("train", "Train a model into a run folder.", EXAMPLES)
    parser.add_argument("recipe", type=str, help="id of the catalogue ('verisim list') or a YAML file")
    parser.add_argument("--variant", type=str, default="small", help="small | full | source | ...")
    parser.add_argument("--out", type=str, default="", help="run folder (default: runs/RECIPE-VARIANT-SEED)")
    parser.add_argument("--resume", type=str, default="", help="run folder to go on with (no recipe then)")
    parser.add_argument("--dry-run", action="store_true", help="measure memory and time of a step, then stop")
    add_recipe(parser, recipe_name, variant)
    return parser


def add_recipe(parser: Parser, recipe_name: str, variant: str) -> None:
    """Options data, training and, with a recipe, model; their defaults are the recipe's."""
    from verisim.models import model_class
    from verisim.recipes import load_recipe
    from verisim.training.settings import TrainSettings
    from verisim.training.source import DataSettings

    parser.add_class_arguments(DataSettings, "data")
    if not recipe_name:
        parser.add_class_arguments(TrainSettings, "training")
        return
    recipe = load_recipe(recipe_name)
    settings = recipe.settings(variant)
    model = dict(settings["model"])
    name = model.pop("name", "")
    parser.add_class_arguments(TrainSettings, "training")
    parser.add_class_arguments(model_class(name), "model", skip={"spec", "num_classes"})
    parser.explain("model", model_class(name))
    for section, values in (("model", model), ("data", settings["data"]), ("training", settings["training"])):
        parser.defaults_from(section, values, f"recipe {recipe.id} ({variant})")


def _start(args: Any, recipe_name: str) -> int:
    from verisim.recipes import load_recipe
    from verisim.training.run_folder import RunFolder
    from verisim.training.settings import TrainSettings
    from verisim.training.source import DataSettings, open_dataset
    from verisim.training.train import ModelPlan, is_first_process

    recipe = load_recipe(recipe_name)
    training, data = TrainSettings(**plain(args.training)), DataSettings(**plain(args.data))
    plan = ModelPlan(recipe.settings(args.variant)["model"]["name"], plain(args.model), recipe.id)
    dataset = open_dataset(data)
    if args.dry_run:
        from verisim.training.estimate import estimate

        estimate(plan, dataset, training).print()
        return 0
    run = RunFolder(args.out or f"runs/{recipe.id}-{args.variant}-{training.seed}")
    config = {
        "recipe": recipe.id,
        "variant": args.variant,
        "model": {"name": plan.name, **plan.settings},
        "data": plain(args.data),
        "training": plain(args.training),
        "data_fingerprint": dataset.fingerprint,
        "window": plain(dataset.window),
        "orientations": _orientations(dataset),
        "notes": list(dataset.notes),
    }
    if is_first_process():
        run.create(config)
    return _train(run, plan, dataset, training, resume=False)


def _resume(argv: list[str]) -> int:
    """Continue a run with its own configuration; only the budget and devices may be changed."""
    from verisim.training.run_folder import RunFolder
    from verisim.training.settings import TrainSettings
    from verisim.training.source import DataSettings, open_dataset
    from verisim.training.train import ModelPlan

    parser = Parser("train --resume", "Go on with a run.", "  verisim train --resume runs/gan")
    parser.add_argument("--resume", type=str, required=True, help="run folder")
    parser.add_class_arguments(TrainSettings, "training")
    folder = Path(_value_of(argv, "--resume"))
    run = RunFolder(folder)
    config = run.config()
    if "training" not in config:
        raise VerisimError(
            f"{folder} was imported; how it was trained is unknown, so it cannot go on training."
        )
    parser.defaults_from("training", config["training"], str(run.config_path))
    training = TrainSettings(**plain(parser.parse_args(argv).training))
    dataset = open_dataset(DataSettings(**config["data"]))
    if dataset.fingerprint != config["data_fingerprint"]:
        raise VerisimError(
            f"The images of {config['data']['folder'] or 'the phantom'} have changed since {folder} began: a "
            f"resumed run would mix two data sets. Restore them, or start a new run."
        )
    model = dict(config["model"])
    plan = ModelPlan(model.pop("name"), model, config["recipe"])
    return _train(run, plan, dataset, training, resume=True)


def _train(run: Any, plan: Any, dataset: Any, training: Any, resume: bool) -> int:
    from verisim.training.train import train

    console = Console(stderr=True)
    for note in dataset.notes:
        console.print(note, style="dim", markup=False)
    images = dataset.splits["train"]
    outcome = train(
        run,
        plan,
        images,
        training,
        class_names=dataset.class_names if images.labels is not None else (),
        fingerprint=dataset.fingerprint,
        resume=resume,
    )
    if outcome.card is None:
        number = outcome.signal or 0
        print(f"Stopped and saved. Go on with: verisim train --resume {run.path}", file=sys.stderr)
        return 128 + int(number)
    facts = outcome.card.training
    print(
        f"{run.path}: {facts['steps']} steps in {facts['seconds']:.0f} s, {facts['parameters']:,} parameters.\n"
        f"Next: {_next(outcome.model, run)}"
    )
    return 0


def _orientations(dataset: Any) -> list[str]:
    """How the training images lie in space, e.g. ['SAR'], as far as their files say."""
    import numpy as np

    from verisim.data.raw import orientation

    return sorted({orientation(a) for a in dataset.affines.get("train", []) if np.isfinite(a).all()})


def _next(model: Any, run: Any) -> str:
    """What can be done with the run."""
    from verisim.roles import AnomalyDetector, Segmenter

    if isinstance(model, Segmenter):
        return f"verisim segment {run.path}    or    verisim segment {run.path} CASES"
    if not model.can_sample and isinstance(model, AnomalyDetector):
        return f"verisim detect {run.path}    or    verisim detect {run.path} SCAN"
    return f"verisim sample {run.path} -n 16    or    verisim evaluate {run.path}"


def plain(node: Any) -> Any:
    """Namespaces and tuples of the parser as plain dictionaries and lists."""
    if hasattr(node, "as_dict"):
        node = node.as_dict()
    if isinstance(node, dict):
        return {k: plain(v) for k, v in node.items()}
    return [plain(v) for v in node] if isinstance(node, tuple | list) else node


def _value_of(argv: list[str], option: str) -> str:
    """The value of `--option value` or `--option=value`."""
    for i, word in enumerate(argv):
        if word.startswith(f"{option}="):
            return word.split("=", 1)[1]
        if word == option and i + 1 < len(argv):
            return argv[i + 1]
    raise VerisimError(f"{option} needs a run folder, e.g. {option} runs/gan.")

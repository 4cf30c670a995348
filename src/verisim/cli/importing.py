"""`verisim import`: a network that was trained elsewhere becomes a run that every command knows."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from verisim.cli.parser import Parser
from verisim.errors import VerisimError, pick

EXAMPLES = """\
  verisim import unet.safetensors --kind monai-unet --settings unet.json --size 64x64 --out runs/theirs
  verisim sample runs/theirs -n 16 --sampler dpmpp_2m --steps 20
  verisim import kl.pt --kind monai-autoencoder --settings kl.json --size 64 --unit_range --out runs/kl
  verisim explore traverse runs/kl --data.folder knees
  verisim import unet.pt --kind monai-unet --settings unet.json --size 64 --first_stage runs/kl
  verisim train 16-J --model.first_stage runs/kl --data.folder knees
"""

KINDS = {"monai-unet": "monai_unet", "monai-autoencoder": "monai_autoencoder"}  # -> key of IMPORTED
OWN: dict[str, dict[str, Any]] = {  # options of each kind, with their defaults
    "monai-unet": {
        "first_stage": "",
        "prediction": "epsilon",
        "schedule": "linear_beta",
        "train_steps": 1000,
        "beta_start": 1e-4,
        "beta_end": 2e-2,
        "null_class": -1,
    },
    "monai-autoencoder": {"scale_factor": 1.0, "unit_range": False},
}
HELP = {
    "first_stage": "imported autoencoder whose latent the U-Net denoises; without it, pixels in [-1, 1]",
    "prediction": "prediction_type of its scheduler: epsilon, sample or v_prediction",
    "schedule": "schedule of its scheduler: linear_beta, scaled_linear_beta or sigmoid_beta",
    "train_steps": "num_train_timesteps of its scheduler",
    "beta_start": "of its scheduler",
    "beta_end": "of its scheduler",
    "null_class": "the class that stands for none; -1 = trained without one",
    "scale_factor": "of the latent, as LatentDiffusionInferer has it: 1 / standard deviation",
    "unit_range": "the autoencoder was trained on images in [0, 1]",
}


def main(argv: list[str]) -> int:
    parser = Parser("import", "Take over a network of MONAI as a run to sample or explore.", EXAMPLES)
    parser.add_argument("weights", type=str, help="state dict: .safetensors, or .pt without any code")
    parser.add_argument("--kind", type=str, required=True, choices=[*KINDS], help="what network it is")
    parser.add_argument(
        "--settings", type=str, required=True, help="JSON file: the network's arguments (network_def)"
    )
    parser.add_argument("--size", type=str, required=True, help="pixels of its images: 64, 48x64, 32x48x32")
    parser.add_argument("--out", type=str, default="runs/imported", help="run folder to write")
    for kind, options in OWN.items():
        for name, default in options.items():
            if isinstance(default, bool):
                parser.add_argument(f"--{name}", action="store_true", help=f"{kind}: {HELP[name]}")
            else:
                parser.add_argument(
                    f"--{name}", type=type(default), default=default, help=f"{kind}: {HELP[name]}"
                )
    args = parser.parse_args(argv)
    own = _own_options(args)
    card, digest = import_network(
        Path(args.weights), args.kind, _settings(Path(args.settings)), args.size, own, Path(args.out)
    )
    size = "x".join(map(str, card.spec.size))
    print(
        f"{args.out}: {card.training['trained_as']}, {card.training['parameters']:,} parameters, SHA-256 {digest}"
    )
    if args.kind == "monai-unet":
        print(f"Next: verisim sample {args.out} -n 4")
    else:
        print(f"Next: verisim explore traverse {args.out} --data.folder FOLDER   (images of {size})")
    return 0


def _own_options(args: Any) -> dict[str, Any]:
    """Options of the kind asked for; VerisimError for one of another kind that was set."""
    for kind, options in OWN.items():
        for name, default in options.items():
            if kind != args.kind and getattr(args, name) != default:
                raise VerisimError(f"--{name} has no meaning for {args.kind}; it is an option of {kind}.")
    return {name: getattr(args, name) for name in OWN[args.kind]}


def _settings(path: Path) -> dict[str, Any]:
    """The network's arguments. VerisimError for a file that holds no JSON object."""
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise VerisimError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise VerisimError(f"{path} is not JSON ({error}).") from error
    found = found.get("network_def", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not found:
        raise VerisimError(
            f'{path} must hold the arguments of the network, e.g. {{"spatial_dims": 2, "channels": [32, 64], ...}}.'
        )
    for key, value in found.items():
        if isinstance(value, str) and value[:1] in "$@":
            raise VerisimError(
                f"{path}: '{key}' is the expression '{value}', which is not evaluated. Write its value."
            )
    return {k: v for k, v in found.items() if not k.startswith("_")}  # a bundle's _target_


def import_network(
    weights: Path,  # the state dict
    kind: str,  # key of KINDS
    network: dict[str, Any],  # the arguments it was made with
    size: str,  # as --data.size
    own: dict[str, Any],  # OWN[kind]
    out: Path,  # run folder to write
) -> tuple[Any, str]:
    """Write the run; its card and the digest of its weights. VerisimError for what does not fit together."""
    from verisim.data.spec import ImageSpec
    from verisim.hub.monai_weights import fill
    from verisim.hub.tensor_files import read_tensors
    from verisim.hub.weights import ModelCard, load_model, save_model
    from verisim.models import build_model
    from verisim.training.run_folder import RunFolder
    from verisim.training.source import DataSettings

    name = pick(KINDS, kind, "kind of network")
    channels = network.get("in_channels", 1)
    if own.get("first_stage"):
        channels = load_model(own["first_stage"], "cpu")[1].spec.channels
    spec = ImageSpec(DataSettings(size=size).shape, channels)
    classes = network.get("num_class_embeds") or 0
    classes -= classes > 0 and own.get("null_class") == classes - 1  # none is no class to ask for
    settings = {"network": network, **own}
    model: Any = build_model(name, settings, spec, classes).eval()
    fill(model.net, read_tensors(weights), str(weights))
    training = {
        "trained_as": f"{kind} trained elsewhere; its training data and settings are unknown",
        "imported_from": weights.name,
        "imported_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "parameters": sum(p.numel() for p in model.net.parameters()),
    }
    card = ModelCard(name, settings, spec, classes, tuple(map(str, range(classes))), "", training)
    run = RunFolder(out)
    run.create(
        {
            "recipe": "",
            "model": {"name": name, **settings},
            "data": {"size": size, "channels": channels},
            "window": {},
        }
    )
    return card, save_model(run.weights, model, card)

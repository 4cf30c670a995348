"""A model of development in one file, with its subjects' latents and names. safetensors + JSON.

The names are those of Images.patients: use codes that may leave the house, or keep the file in it.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from verisim.data.spec import ImageSpec
from verisim.errors import CheckpointError
from verisim.models.implicit.development import Architecture, Development
from verisim.training.checkpoint import load_state, read_metadata, save_state

KEY = "development"


def save_development(path: Path, model: Development) -> str:
    """Write the model; returns the file's SHA-256."""
    card = {"spec": asdict(model.spec), "architecture": asdict(model.architecture), "names": model.names}
    return save_state(path, {"model": dict(model.state_dict())}, header={KEY: json.dumps(card)})


def load_development(path: Path) -> Development:
    """The model of a file; CheckpointError if it is damaged or holds something else."""
    meta = read_metadata(path)
    if KEY not in meta:
        raise CheckpointError(f"{path} is not a model of development written by verisim.")
    card = json.loads(meta[KEY])
    s = card["spec"]
    spacing = None if s["spacing"] is None else tuple(s["spacing"])
    spec = ImageSpec(**{**s, "size": tuple(s["size"]), "spacing": spacing})
    model = Development(spec, card["names"], Architecture(**card["architecture"]))
    model.load_state_dict(load_state(path)["model"])
    return model

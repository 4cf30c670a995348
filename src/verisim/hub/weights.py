"""A trained model in one file: weights and everything needed to rebuild it. safetensors + JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from verisim.data.spec import ImageSpec
from verisim.devices import choose_device
from verisim.errors import CheckpointError
from verisim.hub.published import find_published, published_weights
from verisim.models import build_model
from verisim.models.base import GenerativeModel
from verisim.training.checkpoint import load_state, read_metadata, save_state


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What a weights file says about itself."""

    model: str  # name in verisim.models.MODELS
    settings: dict[str, Any]  # its constructor arguments
    spec: ImageSpec  # of the images it makes
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    recipe: str = ""  # id in the catalogue
    training: dict[str, Any] = dataclasses.field(default_factory=dict)  # steps, seconds, data fingerprint ...

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        d = json.loads(text)
        s = d["spec"]
        spacing = None if s["spacing"] is None else tuple(s["spacing"])
        d["spec"] = ImageSpec(**{**s, "size": tuple(s["size"]), "spacing": spacing})
        d["class_names"] = tuple(d["class_names"])
        return cls(**d)


def save_model(path: Path, model: GenerativeModel, card: ModelCard, half: bool = False) -> str:
    """Write the sampling network (its moving average where there is one); returns the file's SHA-256.

    half=True stores large float tensors in bfloat16: half the size, for publishing.
    """
    card = dataclasses.replace(card, settings={**card.settings, **model.settings_to_rebuild()})
    net = {k: _store(v, half) for k, v in model.sampling_net.state_dict().items()}
    return save_state(path, {"net": net, "extra": model.extra_state()}, header={"card": card.to_json()})


def _store(t: Tensor, half: bool) -> Tensor:
    return t.to(torch.bfloat16) if half and t.dtype == torch.float32 and t.numel() > 64 else t


def read_card(path: Path) -> ModelCard:
    """The card of a weights file, without loading the weights."""
    meta = read_metadata(path)
    if "card" not in meta:
        raise CheckpointError(f"{path} is not a model exported by verisim.")
    return ModelCard.from_json(meta["card"])


def load_model(path: Path | str, device: str = "auto") -> tuple[GenerativeModel, ModelCard]:
    """Rebuild a model from a weights file or a run folder; it is in eval mode, ready to sample.

    device: cpu, cuda, cuda:K; auto = that of VERISIM_DEVICE, else a GPU if there is one. Models take images from
    any device; what they make is on theirs.
    """
    path = resolve(path)
    card = read_card(path)
    state = load_state(path)
    model = build_model(card.model, card.settings, card.spec, card.num_classes)
    net = {k: v.float() if v.dtype == torch.bfloat16 else v for k, v in state["net"].items()}
    wanted = model.net.state_dict()
    odd = sorted(set(net) ^ set(wanted)) or [k for k in net if net[k].shape != wanted[k].shape]
    if odd:
        raise CheckpointError(
            f"{path} does not fit model '{card.model}': {len(odd)} tensors differ ({odd[0]})."
        )
    model.net.load_state_dict(net)
    model.load_extra_state(state["extra"])
    model.source = path
    where = choose_device(device)
    if where.type == "cpu":  # slower on a GPU: benchmarks/gpu_speed.py
        model.use_channels_last()
    return model.to(where).eval(), card


def resolve(path: Path | str) -> Path:
    """The weights file of a run folder, the file itself, or what comes with verisim under that name."""
    path = Path(path)
    if path.is_dir():
        if not (path / "weights.safetensors").exists():
            raise CheckpointError(
                f"{path} holds no weights.safetensors. If it is an unfinished run: verisim train --resume {path}"
            )
        return path / "weights.safetensors"
    if path.exists():
        return path
    published = find_published(str(path))
    if published is None:
        raise CheckpointError(
            f"{path} does not exist. 'verisim list' prints the recipes to train; weights come with verisim "
            f"for: {', '.join(published_weights()) or 'none'}."
        )
    return published

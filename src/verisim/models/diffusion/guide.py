"""Other weights for sampling: a weaker network that guides, an average of another length."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from verisim.errors import CheckpointError, VerisimError
from verisim.roles import Denoiser

if TYPE_CHECKING:
    from verisim.models.diffusion.denoising import DenoisingDiffusion

Guide = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # denoise(x, sigma, label)


def load_guide(model: DenoisingDiffusion, name: str) -> Guide:
    """The denoiser of a weights file or run folder, or of a checkpoint or snapshot of the model's own run.

    A name that is no path is looked for in the model's run folder. CheckpointError if it does not fit.
    """
    from verisim.hub.weights import load_model, resolve
    from verisim.training.checkpoint import load_state, read_metadata

    path = Path(name)
    if not path.exists() and model.source is not None and (model.source.parent / name).exists():
        path = model.source.parent / name
    path = resolve(path)
    if "card" not in read_metadata(path):
        return model.denoiser_of(with_weights(model.net, network_state(load_state(path), path), path))
    other, _ = load_model(path, str(model.device))
    if other.spec.shape != model.spec.shape or other.num_classes != model.num_classes:
        raise CheckpointError(
            f"The guide {path} makes images of {other.spec.shape} with {other.num_classes} classes; this model "
            f"{model.spec.shape} with {model.num_classes}. Choose a guide trained on the same data."
        )
    if _reads(other) != _reads(model):
        raise CheckpointError(
            f"The guide {path} reads texts otherwise than this model. Choose one of the same data."
        )
    if not isinstance(other, Denoiser):
        raise CheckpointError(f"The guide {path} is a {other.family} model; a diffusion model is needed.")
    theirs = getattr(other, "representation", None)
    agree = model.representation.name == "pixels" if theirs is None else model.representation.agrees(theirs)
    if not agree:
        raise CheckpointError(
            f"The guide {path} denoises another representation than this model's {model.representation.name}. "
            f"Choose one with the same settings and, for latents, the same first stage and statistics."
        )
    return other.denoise


def _reads(model: object) -> str:
    """What a model knows of texts; "" for one that reads none."""
    reader = getattr(model, "reader", None)
    return "" if reader is None else reader.state()


def load_averaged(model: DenoisingDiffusion, length: float) -> nn.Module:
    """The model's network with weights averaged over a relative length, from its run's snapshots."""
    from verisim.hub.averages import load_average

    if model.source is None:
        raise VerisimError("ema_length needs the run folder; load the model from there.")
    folder = model.source.parent / "averages"
    return with_weights(model.net, load_average(folder, length), folder)


def network_state(state: dict, path: Path) -> dict[str, Tensor]:
    """The network's tensors in a training checkpoint (its moving average if there is one) or a snapshot."""
    if "tracks" in state:
        return state["tracks"][0]
    tensors = state.get("state_dict", {})
    for prefix in ("ema.module.", "net."):
        found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if found:
            return found
    raise CheckpointError(f"{path} holds no network.")


def with_weights(net: nn.Module, state: dict[str, Tensor], where: Path) -> nn.Module:
    """A copy of net with other weights, in evaluation mode; CheckpointError if they do not fit."""
    wanted = net.state_dict()
    odd = sorted(set(state) ^ set(wanted)) or [k for k in state if state[k].shape != wanted[k].shape]
    if odd:
        raise CheckpointError(f"{where} does not fit this model: {len(odd)} tensors differ ({odd[0]}).")
    net = copy.deepcopy(net)
    net.load_state_dict(state)
    return net.requires_grad_(False).eval()

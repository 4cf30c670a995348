"""What goes around a VQ-VAE: its sampling options, how its two stages may be set, and a first stage from a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from verisim.data.spec import ImageSpec
from verisim.errors import CheckpointError, VerisimError
from verisim.models.autoencoders.vq_nets import VQNet
from verisim.models.base import SamplingOptions


@dataclass(frozen=True)
class VQVAEOptions(SamplingOptions):
    """Sampling options of a VQ-VAE."""

    # where codes come from; auto = the learned prior if the model has one, else uniform codes
    prior: Literal["auto", "uniform", "learned"] = "auto"
    temperature: float = 1.0  # > 0; divides the prior's logits, below 1 is cleaner and less varied
    top_k: int = 0  # draw among the k likeliest codes of each position; 0 = all
    cached: bool = True  # False runs the whole prior for every code: the same images, slower


def check_stages(prior: str, num_classes: int, first_stage: str, steps: int) -> None:
    """VerisimError where the settings of both stages do not go together."""
    if prior == "none" and num_classes:
        raise VerisimError(
            "A VQ-VAE without a prior draws its codes uniformly and cannot be asked for a class. Leave out "
            "--data.label, or add --model.prior gated_pixelcnn."
        )
    if prior == "none" and (first_stage or steps):
        raise VerisimError(
            "first_stage and first_stage_steps say when a prior is trained, but there is none. Set "
            "--model.prior gated_pixelcnn or transformer, or leave them out."
        )
    if prior != "none" and not first_stage and steps < 1:
        raise VerisimError(
            f"A VQ-VAE with prior '{prior}' needs an autoencoder first: give --model.first_stage_steps N (train "
            "it for N steps of this run) or --model.first_stage RUN (take a trained one)."
        )


def read_first_stage(source: str, net: VQNet, spec: ImageSpec) -> dict[str, Tensor]:
    """The autoencoder's weights out of a trained VQ-VAE; CheckpointError if it does not fit this one."""
    from verisim.hub.weights import load_model

    model, card = load_model(source, "cpu")
    if not isinstance(model.net, VQNet) or (spec.shape, spec.low, spec.high) != (
        card.spec.shape,
        card.spec.low,
        card.spec.high,
    ):
        raise CheckpointError(
            f"{source} holds model '{card.model}' for images of {card.spec.shape}; the first stage must be a "
            f"vqvae for images of {spec.shape}."
        )
    state, want = model.net.autoencoder.state_dict(), net.autoencoder.state_dict()
    odd = sorted(set(state) ^ set(want)) or [k for k in want if state[k].shape != want[k].shape]
    if odd:
        names = ("codes", "dim", "channels", "kernel", "norm", "codebook")
        have = ", ".join(f"{k}={card.settings[k]}" for k in names if k in card.settings)
        raise CheckpointError(
            f"The first stage {source} has other settings than this model: {len(odd)} of {len(want)} tensors "
            f"differ (first '{odd[0]}'). Give the same as there: {have or 'the defaults'}."
        )
    return state

"""Latent diffusion's first stage: a trained, frozen autoencoder as a representation. Spec 003, section 16-J.

    z = (E(x) - m) / s,   x = D(m + s z)          m, s per channel, over the training images

It is read from a run folder or weights file once, when training begins, and from then on is a part of the
model: checkpoints and weights files hold its weights, its description and the statistics m and s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from verisim.data.spec import ImageSpec
from verisim.errors import CheckpointError, VerisimError, pick
from verisim.models.autoencoders.latent import LatentModel, LatentNet
from verisim.models.autoencoders.trunk import coarsest_grid
from verisim.models.autoencoders.vq_nets import VQNet
from verisim.models.base import GenerativeModel
from verisim.models.diffusion.representation import Haar, Representation, channel_statistics

if TYPE_CHECKING:
    from verisim.hub.weights import ModelCard


class VQStage(nn.Module):
    """A VQ-VAE on its grid (B, D, *G): before quantisation (the decoder then quantises), or code vectors."""

    def __init__(self, model: GenerativeModel, codes: bool) -> None:
        super().__init__()
        net = model.sampling_net
        assert isinstance(net, VQNet)
        self.net = net.autoencoder
        self.codes = codes  # encode to code vectors instead of the encoder's own output
        self.channels = int(self.net.quantiser.codebook.shape[1])
        self.grid = self.net.grid

    def encode(self, x: Tensor) -> Tensor:
        z = self.net.encoder(x)
        return self.quantised(z) if self.codes else z

    def decode(self, z: Tensor) -> Tensor:
        return self.net.observation.mean(self.net.decoder(self.quantised(z)))

    def quantised(self, z: Tensor) -> Tensor:
        return self.net.quantiser.embed(self.net.quantiser.assign(z))


class MapStage(nn.Module):
    """A convolutional VAE with head "conv": the posterior mean as maps (B, m, *G); decoded without a class."""

    def __init__(self, model: GenerativeModel, codes: bool) -> None:
        super().__init__()
        net = model.sampling_net
        assert isinstance(model, LatentModel) and isinstance(net, LatentNet)
        if net.encoder.dense:
            raise CheckpointError(
                "The first stage is a conv_vae whose latent is a flat vector; latent diffusion needs maps. Train "
                "it with --model.head conv."
            )
        self.net = net
        self.no_class = model.num_classes
        self.grid = coarsest_grid(model.spec.size, len(net.encoder.layers))
        self.channels = model.latent // math.prod(self.grid)

    def encode(self, x: Tensor) -> Tensor:
        return self.net.encode(x).mean.unflatten(1, (self.channels, *self.grid))

    def decode(self, z: Tensor) -> Tensor:
        group = torch.full((len(z),), self.no_class, device=z.device)
        return self.net.observation.mean(self.net.decode(z.flatten(1), group))


class ForeignStage(nn.Module):
    """An autoencoder that was trained elsewhere: whatever maps z (B, m, *G) its `stage` has."""

    def __init__(self, model: GenerativeModel, codes: bool) -> None:
        super().__init__()
        stage: Any = model.stage
        self.net = stage
        self.channels: int = stage.spec.channels
        self.grid: tuple[int, ...] = stage.spec.size

    def encode(self, x: Tensor) -> Tensor:
        return self.net.encode(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.net.decode(z)


STAGES: dict[str, Callable[[GenerativeModel, bool], VQStage | MapStage | ForeignStage]] = {
    "vqvae": VQStage,
    "conv_vae": MapStage,
    "monai_autoencoder": ForeignStage,
}


class Latent(Representation):
    """The standardised latent of a trained autoencoder. No likelihood, no clipping: it is no rotation."""

    name = "latent"
    orthonormal = False
    clips = False

    def __init__(
        self,
        image: ImageSpec,
        first_stage: str,  # run folder or weights file; in a saved model its description, which is JSON
        codes: bool = False,  # VQ-VAE: diffuse code vectors, not what the encoder gives before quantisation
    ) -> None:
        super().__init__(image)
        if not first_stage:
            raise VerisimError(
                "Latent diffusion needs a trained autoencoder: --model.first_stage RUN, a run folder or weights "
                f"file of one of {', '.join(STAGES)}."
            )
        self.described = first_stage.startswith("{")  # the weights are still to come
        model, self.card = (described_model if self.described else trained_model)(first_stage)
        _check_stage(self.card, image, "described in the model's file" if self.described else first_stage)
        self.stage = STAGES[self.card.model](model, codes)
        self.stage.requires_grad_(False)
        self.spec = replace(image, channels=self.stage.channels, size=tuple(self.stage.grid), spacing=None)
        self.mean: Tensor  # (C',) float32; NaN = not measured yet
        self.std: Tensor  # (C',)
        self.register_buffer("mean", torch.full((self.stage.channels,), math.nan))
        self.register_buffer("std", torch.full((self.stage.channels,), math.nan))
        self.register_load_state_dict_post_hook(_weights_have_come)
        self.eval()

    def encode(self, x: Tensor) -> Tensor:
        self._require_statistics()
        return (self._raw(x) - _per_channel(self.mean, x)) / _per_channel(self.std, x)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        self._require_statistics()
        with torch.autocast(z.device.type, enabled=False):
            return self.stage.decode(_per_channel(self.mean, z) + _per_channel(self.std, z) * z.float())

    @torch.no_grad()
    def _raw(self, x: Tensor) -> Tensor:
        """The first stage's own latent (B, C', *S'), float32 whatever the autocast type."""
        with torch.autocast(x.device.type, enabled=False):
            return self.stage.encode(x.float())

    @property
    def spread(self) -> Tensor:
        self._require_statistics()
        return torch.ones(1)  # on the CPU: read at every step

    def _require_statistics(self) -> None:
        if not (torch.isfinite(self.mean).all() and torch.isfinite(self.std).all()):
            raise VerisimError(
                "This latent model has no statistics of its latent: the mean and standard deviation of each "
                "channel are measured on the training images and kept in the weights file. Call "
                "model.prepare(images) before the first step ('verisim train' does)."
            )

    def measure(self, x: Tensor) -> None:
        if self.described:
            raise VerisimError(
                "The first stage is described but its weights are missing, so nothing can be measured with it. "
                "Load the model with load_model, or give --model.first_stage a run folder."
            )
        if not torch.isfinite(self.std).all():
            mean, std = channel_statistics(self._raw, self, x)
            self.mean.copy_(mean)
            self.std.copy_(std)

    def train(self, mode: bool = True) -> Latent:
        """The first stage is frozen: it stays in evaluation mode."""
        return super().train(False)

    def settings_to_rebuild(self) -> dict[str, str]:
        """The first stage's description in place of its path."""
        return {"first_stage": self.card.to_json()}

    def agrees(self, other: Representation) -> bool:
        if not (super().agrees(other) and isinstance(other, Latent)):
            return False
        mine, theirs = self.state_dict(), other.state_dict()
        return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def _weights_have_come(module: nn.Module, incompatible: object) -> None:
    """Called after the weights of a described first stage were loaded."""
    assert isinstance(module, Latent)
    module.described = False


def _per_channel(v: Tensor, x: Tensor) -> Tensor:
    """(C',) -> (C', 1, ..., 1), for x (B, ., *S)."""
    return v.view(-1, *[1] * (x.ndim - 2))


def trained_model(source: str) -> tuple[GenerativeModel, ModelCard]:
    """The model of a run folder or weights file; CheckpointError if it cannot be read."""
    from verisim.hub.weights import load_model

    return load_model(source, "cpu")


def described_model(text: str, what: str = "first stage") -> tuple[GenerativeModel, ModelCard]:
    """A model with fresh weights from its card as JSON; `what` it is, for the error."""
    from verisim.hub.weights import ModelCard
    from verisim.models import build_model

    try:
        card = ModelCard.from_json(text)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(f"The description of the {what} is damaged ({type(e).__name__}).") from e
    model = build_model(card.model, card.settings, card.spec, card.num_classes)
    model.use_channels_last()  # as load_model leaves it: then resuming is exact to the last bit
    return model, card


def _check_stage(card: ModelCard, image: ImageSpec, where: str) -> None:
    """CheckpointError for a model that is no first stage, or one of other images."""
    if card.model not in STAGES:
        raise CheckpointError(
            f"The first stage ({where}) is a {card.model} model; latent diffusion takes one of "
            f"{', '.join(STAGES)}."
        )
    s = card.spec
    if (s.shape, s.low, s.high) != (image.shape, image.low, image.high):
        raise CheckpointError(
            f"The first stage ({where}) makes images of {s.shape} in [{s.low:g}, {s.high:g}]; these are "
            f"{image.shape} in [{image.low:g}, {image.high:g}]. Train it on the same data and size."
        )


def build_representation(
    name: str,  # pixels | haar | latent
    image: ImageSpec,
    *,
    levels: int,
    low_scale: float,
    band_std: tuple[float, ...],
    first_stage: str,
    latent_codes: bool,
) -> Representation:
    """The representation by name. VerisimError for settings that it does not have, if they are not the default."""
    owners = (
        ("levels", "haar", levels != 1),
        ("low_scale", "haar", low_scale != 1),
        ("band_std", "haar", bool(band_std)),
        ("first_stage", "latent", bool(first_stage)),
        ("latent_codes", "latent", latent_codes),
    )
    for setting, owner, is_set in owners:
        if is_set and name != owner:
            raise VerisimError(
                f"{setting} has no meaning for representation '{name}'. Choose representation '{owner}', or leave "
                f"it out."
            )
    makers: dict[str, Callable[[], Representation]] = {
        "pixels": lambda: Representation(image),
        "haar": lambda: Haar(image, levels, low_scale, tuple(band_std)),
        "latent": lambda: Latent(image, first_stage, latent_codes),
    }
    return pick(makers, name, "representation")()

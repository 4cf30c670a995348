"""How near an autoencoder's reconstructions come, at what rate, and whether they still show the same thing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.metrics.bootstrap import Estimate, mean_estimate
from verisim.metrics.judges import JudgeSettings, fit, logits
from verisim.metrics.reconstruction import score_reconstructions
from verisim.models.autoencoders.latent import LatentModel
from verisim.roles import Autoencoder, Coder
from verisim.seeding import generator

DRAWS = 1000  # bootstrap resamples
CONTROL = "reconstruction of another class"  # row of label_consistency that must disagree


def require_autoencoder(model: Any) -> Autoencoder:
    """The model as an Autoencoder, or a VerisimError if it reconstructs nothing."""
    if isinstance(model, Autoencoder):
        return model
    raise VerisimError(
        f"A {getattr(model, 'family', 'model')} model does not reconstruct images: it has no encoder and decoder. "
        f"Train an autoencoder, e.g. with 'verisim train K-S1' or 'verisim train K-S7'."
    )


def reconstruct(model: Autoencoder, images: Images) -> Images:
    """decode(encode(x)) from the posterior mean or the nearest codes, in 8-bit levels."""
    pixels = model.decode(model.encode(images.pixels)).cpu().float()
    return replace(images, pixels=pixels.clamp(images.spec.low, images.spec.high)).quantise()


def reconstruction_scores(model: Autoencoder, images: Images) -> dict[str, Any]:
    """MSE, PSNR, SSIM and MS-SSIM with intervals over patients, and the rate in bits per image."""
    found = score_reconstructions(images, reconstruct(model, images))
    rng = generator("reconstruction", 0)
    scores = {k: e.as_dict() for k, e in found.estimates(rng, images.patients, DRAWS).items()}
    rate = None
    if isinstance(model, Coder):
        rate = mean_estimate(model.rate_bits(images.pixels).cpu(), DRAWS, rng, images.patients).as_dict()
    return {**scores, "rate_bits": rate, "n": len(images), "settings": found.settings}


def latent_return(model: LatentModel, n: int) -> Estimate:
    """Mean of |encode(decode(z)) - z|^2 per latent over n draws z from N(0, I): 0 where the encoder undoes the decoder.

    1 is what an encoder gets that always answers 0 (source 001, L_lr,N).
    """
    rng = generator("latent return", 0)
    z = torch.randn(n, model.latent, generator=rng)
    again = model.encode(model.decode(z).clamp(model.spec.low, model.spec.high)).cpu()
    return mean_estimate((again - z).double().square().mean(1), DRAWS, rng)


def trivial_scores(train: Images, images: Images) -> dict[str, dict[str, Any]]:
    """What two models that know nothing reach: the mean training image, and the pixels in random order."""
    rng = generator("trivial reconstructions", 0)
    order = torch.randperm(images.spec.dims, generator=rng)
    shuffled = images.pixels.flatten(1)[:, order].view_as(images.pixels)
    mean = train.pixels.mean(0, keepdim=True).expand_as(images.pixels)
    sets = {"mean image": mean, "shuffled pixels": shuffled}
    return {
        name: {
            k: e.as_dict()
            for k, e in score_reconstructions(images, replace(images, pixels=x))
            .estimates(rng, images.patients, DRAWS)
            .items()
        }
        for name, x in sets.items()
    }


def label_consistency(
    train: Images, images: Images, again: Images, class_names: tuple[str, ...], seed: int = 0
) -> dict[str, Any]:
    """Does a classifier see the same class in a reconstruction as in its original (K-E7)? Per true class.

    The classifier learns from `train`. "agreement": share of images whose class it leaves unchanged;
    "toward": the class that reconstructions of this one are most often taken for. A class without images has
    n = 0 and None; one without training images can be no answer of the classifier. Row CONTROL: the same agreement where every image is held against the reconstruction of
    one of another class. A classifier that leaves it high cannot tell classes apart, and then agreement means
    nothing. VerisimError without labels, or if only one class has images to learn from.
    """
    if train.labels is None or images.labels is None:
        raise VerisimError("Grade consistency needs labels: name a column with --data.label.")
    known = train.labels.unique()  # sorted
    if len(known) < 2:
        raise VerisimError(
            f"All training images are of class '{class_names[int(train.labels[0])]}', so no classifier can learn "
            f"to tell classes apart. Give images of two classes or more."
        )
    learnt = torch.searchsorted(known, train.labels)
    judge = fit(train.pixels, learnt, len(known), JudgeSettings(), seed, train.patients)
    before, after = (known[logits(judge, x.pixels).argmax(1)] for x in (images, again))
    rows: dict[str, Any] = {"all": _agreement(before, after, images.labels, class_names)}
    for c, name in enumerate(class_names):
        mine = images.labels == c
        rows[name] = _agreement(before[mine], after[mine], images.labels[mine], class_names)
    some, other = _of_another_class(images.labels, seed)
    rows[CONTROL] = _agreement(before[some], after[other], images.labels[some], class_names)
    return rows


def _of_another_class(label: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Indices (M,) of images, and for each that of a random one of another class; M = 0 with a single class."""
    rng = generator("another class", seed)
    order = torch.randperm(len(label), generator=rng)
    pairs = []
    for i in range(len(label)):
        strangers = order[label[order] != label[i]]
        if len(strangers):
            pairs.append((i, int(strangers[i % len(strangers)])))
    found = torch.tensor(pairs, dtype=torch.long).view(-1, 2)
    return found[:, 0], found[:, 1]


def _agreement(before: Tensor, after: Tensor, label: Tensor, names: tuple[str, ...]) -> dict[str, Any]:
    if not len(label):
        return {"n": 0, "accuracy_on_originals": None, "agreement": None, "toward": None}
    return {
        "n": len(label),
        "accuracy_on_originals": float((before == label).double().mean()),
        "agreement": float((before == after).double().mean()),
        "toward": names[int(torch.bincount(after, minlength=len(names)).argmax())],
    }

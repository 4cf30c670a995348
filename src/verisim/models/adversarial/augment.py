"""Differentiable augmentation of what the discriminator sees, real and fake alike (Zhao et al. 2020).

With few images a discriminator learns them by heart; shown shifted, dimmed and cut images on both
sides it cannot, and since gradients flow through, the generator still learns the clean distribution.
No flips: anatomy has a left and a right. Shifts and holes are filled with mid-grey 0, which an image
with a black border cannot be mistaken for, so that the augmentation does not leak into the samples.
Randomness comes from the global torch generator, which training reseeds at every step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from verisim.errors import pick

SHIFT = 1 / 8  # largest translation, as a fraction of each side
CUT = 1 / 2  # side of the hole, as a fraction of each side


def _per_image(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.ndim - 1))  # (B, 1, *1)


def translation(x: Tensor) -> Tensor:
    """x (B, C, *S) shifted by up to SHIFT of each side, independently per image and axis."""
    for axis in range(2, x.ndim):
        side = x.shape[axis]
        reach = int(side * SHIFT + 0.5)
        shift = torch.randint(-reach, reach + 1, (len(x), 1), device=x.device)
        source = torch.arange(side, device=x.device) + shift  # (B, side): where each pixel comes from
        inside = (source >= 0) & (source < side)
        shape = [len(x)] + [side if a == axis else 1 for a in range(1, x.ndim)]
        index = source.clamp(0, side - 1).view(shape).expand_as(x)
        x = x.gather(axis, index) * inside.view(shape)
    return x


def brightness(x: Tensor) -> Tensor:
    """x + u with u uniform in [-1/2, 1/2] per image."""
    return x + _per_image(torch.rand(len(x), device=x.device) - 0.5, x)


def contrast(x: Tensor) -> Tensor:
    """Deviations from the image mean times u, uniform in [1/2, 3/2] per image."""
    mean = _per_image(x.flatten(1).mean(1), x)
    return (x - mean) * _per_image(torch.rand(len(x), device=x.device) + 0.5, x) + mean


def cutout(x: Tensor) -> Tensor:
    """One box of CUT of each side set to 0; its centre is uniform over the image, so it may stick out."""
    hole = torch.ones(len(x), 1, *[1] * (x.ndim - 2), dtype=torch.bool, device=x.device)
    for axis in range(2, x.ndim):
        side = x.shape[axis]
        width = int(side * CUT + 0.5)
        start = torch.randint(-(width // 2), side - width // 2, (len(x), 1), device=x.device)
        offset = torch.arange(side, device=x.device) - start  # (B, side)
        shape = [len(x)] + [side if a == axis else 1 for a in range(1, x.ndim)]
        hole = hole & ((offset >= 0) & (offset < width)).view(shape)
    return x * ~hole


AUGMENTATIONS = {
    "translation": translation,
    "brightness": brightness,
    "contrast": contrast,
    "cutout": cutout,
}


def parse_policy(policy: str) -> tuple[str, ...]:
    """'translation, cutout' -> ('translation', 'cutout'); '' -> (); VerisimError for an unknown word."""
    names = tuple(word.strip() for word in policy.split(",") if word.strip())
    for name in names:
        pick(AUGMENTATIONS, name, "augmentation")
    return names


def augment(x: Tensor, names: tuple[str, ...]) -> Tensor:
    """x (B, C, *S) through the named augmentations in order, differentiable in x."""
    for name in names:
        x = AUGMENTATIONS[name](x)
    return x

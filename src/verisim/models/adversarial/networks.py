"""DCGAN generator and discriminator for square (cubic) images of a power-of-two side.

Source 004 section 3 G: 4x4 strided convolutions without bias, LeakyReLU in both, and as many stages
as bring 4 px to S px. Widths from the image side inwards: nf, 2 nf, 4 nf, ... (capped by max_width).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from verisim.errors import VerisimError

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SIDES = (16, 32, 64, 128, 256)


def check_size(size: tuple[int, ...]) -> int:
    """The side S if `size` is square or cubic with S in SIDES, else VerisimError with the nearest one."""
    if len(size) in CONV and len(set(size)) == 1 and size[0] in SIDES:
        return size[0]
    side = min(SIDES, key=lambda s: (sum(abs(s - n) for n in size), s))
    rank = len(size) if len(size) in CONV else 2
    got = "x".join(map(str, size))
    raise VerisimError(
        f"DCGAN cannot make images of {got} pixels: it doubles 4 pixels a whole number of times, equally "
        f"along 2 or 3 axes, so each side must be the same one of {', '.join(map(str, SIDES))}. "
        f"Nearest: {'x'.join([str(side)] * rank)}. Resize the images (--data.size {side})."
    )


def stage_widths(side: int, nf: int, max_width: int) -> list[int]:
    """Channels at S/2, S/4, ..., 4 px."""
    stages = side.bit_length() - 3  # log2(S / 4)
    return [min(nf * 2**k, max_width) for k in range(stages)]


class MinibatchStd(nn.Module):
    """Appends one channel: how much the images of a group differ, averaged over features and pixels.

    Karras et al. 2018, section 3. Exactly 0 for identical images. The group is the largest divisor of
    the batch size up to `group`; a group of one tells nothing and gives 0.
    """

    def __init__(self, group: int = 4) -> None:
        super().__init__()
        self.group = group

    def forward(self, h: Tensor) -> Tensor:  # (B, F, *s) -> (B, F + 1, *s)
        g = max(k for k in range(1, self.group + 1) if len(h) % k == 0)
        groups = h.float().unflatten(0, (g, len(h) // g))  # (g, B/g, F, *s): every (B/g)-th image
        eps = torch.tensor(1e-8, device=h.device)  # keeps the gradient of the root finite
        spread = (groups.var(0, unbiased=False) + eps).sqrt() - eps.sqrt()  # (B/g, F, *s)
        one = spread.flatten(1).mean(1).to(h.dtype)  # (B/g,)
        one = one.repeat(g).view(-1, *[1] * (h.ndim - 1)).expand(-1, 1, *h.shape[2:])
        return torch.cat([h, one], dim=1)


class Generator(nn.Module):
    """z (B, latent) [, class (B,)] -> image (B, C, *S) in (-1, 1)."""

    def __init__(
        self,
        side: int,  # S in pixels
        spatial_dims: int,  # 2 or 3
        channels: int,  # C
        latent: int,  # length of z
        nf: int,  # channels of the last hidden stage
        max_width: int,  # upper bound of all channel counts
        slope: float,  # of LeakyReLU
        num_classes: int = 0,  # 0 = unconditional
        embed: int = 32,  # length of a class embedding
    ) -> None:
        super().__init__()
        conv, norm = TRANSPOSED[spatial_dims], BATCH_NORM[spatial_dims]
        widths = stage_widths(side, nf, max_width)[::-1]
        self.spatial_dims = spatial_dims
        self.embedding = nn.Embedding(num_classes, embed) if num_classes else None
        layers: list[nn.Module] = []
        last = latent + (embed if num_classes else 0)
        for k, width in enumerate(widths):  # 4 px, 8 px, ..., S/2 px
            stride, padding = (1, 0) if k == 0 else (2, 1)
            layers += [conv(last, width, 4, stride, padding, bias=False), norm(width), nn.LeakyReLU(slope)]
            last = width
        self.layers = nn.Sequential(*layers, conv(last, channels, 4, 2, 1, bias=False), nn.Tanh())

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(label)], dim=1)
        return self.layers(z.view(*z.shape, *[1] * self.spatial_dims)).float()


class Discriminator(nn.Module):
    """Image (B, C, *S) [, class (B,)] -> logit (B,); a class enters by projection (Miyato & Koyama 2018)."""

    def __init__(
        self,
        side: int,  # S in pixels
        spatial_dims: int,  # 2 or 3
        channels: int,  # C
        nf: int,  # channels of the first stage
        max_width: int,  # upper bound of all channel counts
        slope: float,  # of LeakyReLU
        batch_norm: bool,  # after every stage but the first, as in the source
        minibatch_std: bool,  # append MinibatchStd before the last layer
        num_classes: int = 0,  # 0 = unconditional
    ) -> None:
        super().__init__()
        conv = CONV[spatial_dims]
        layers: list[nn.Module] = []
        last = channels
        for k, width in enumerate(stage_widths(side, nf, max_width)):  # S/2 px, ..., 4 px
            layers.append(conv(last, width, 4, 2, 1, bias=False))
            if batch_norm and k > 0:
                layers.append(BATCH_NORM[spatial_dims](width))
            layers.append(nn.LeakyReLU(slope))
            last = width
        self.layers = nn.Sequential(*layers)
        self.minibatch_std = MinibatchStd() if minibatch_std else nn.Identity()
        self.head = conv(last + int(minibatch_std), 1, 4, 1, 0, bias=False)
        self.embedding = nn.Embedding(num_classes, last) if num_classes else None

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        h = self.layers(x)  # (B, F, 4, 4)
        score = self.head(self.minibatch_std(h)).flatten()  # (B,)
        if self.embedding is not None:
            score = score + (self.embedding(label) * h.flatten(2).mean(2)).sum(1)
        return score.float()


def normalise_spectrally(net: nn.Module) -> None:
    """Spectral normalisation of every weight (Miyato 2018); call it once, after initialising them."""
    for module in list(net.modules()):
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.Linear, nn.Embedding)):
            spectral_norm(module)


@torch.no_grad()
def init_weights(net: nn.Module, std: float) -> None:
    """Convolutions ~ N(0, std), batch-norm gains ~ N(1, std), biases 0; class embeddings ~ N(0, 1)."""
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            nn.init.normal_(module.weight, 0.0, std)
        elif isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.normal_(module.weight, 1.0, std)
            nn.init.zeros_(module.bias)


@contextmanager
def hold_buffers(net: nn.Module) -> Iterator[None]:
    """Run `net` as in training, yet leave its buffers alone.

    Batch norm still normalises by the batch but does not update its running statistics, and spectral
    norm makes no power iteration.
    """
    norms = [m for m in net.modules() if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d))]
    was = net.training
    net.eval()
    for m in norms:
        m.train()
        m.track_running_stats = False
    try:
        yield
    finally:
        for m in norms:
            m.track_running_stats = True
        net.train(was)

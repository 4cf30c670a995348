"""Domain features: a small network trained on the user's own real images, to tell them apart.

Instance discrimination (SimCLR, Chen 2020, eq. 1): two views of one image must be closer than views of
other images. Views differ by crop, contrast and brightness; never by a flip, blur or noise, to which the
features must stay sensitive. If there are labels, telling the classes apart is learned as well.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verisim.data.spec import Images
from verisim.devices import lent
from verisim.errors import RangeError, VerisimError
from verisim.metrics.features import FeatureNetwork, network
from verisim.metrics.judges import SmallCNN, initialise
from verisim.seeding import generator as seeded

LEAST = 32  # images below which instance discrimination learns nothing


class DomainNet(nn.Module):
    """Shrink to at most `side` pixels, convolve, then standardise each feature on the training images."""

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        spatial_dims: int,  # 2 or 3
        channels: int,  # C
        side: int,  # largest side that enters the network
        width: int,  # channels of the first convolution
    ) -> None:
        super().__init__()
        self.cnn = SmallCNN(spatial_dims, channels, 1, width, side)
        self.spatial_dims, self.channels, self.side, self.width = spatial_dims, channels, side, width
        self.dim = self.cnn.dim
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("scale", torch.ones(self.dim))

    def config(self) -> dict[str, int]:
        return {
            "spatial_dims": self.spatial_dims,
            "channels": self.channels,
            "side": self.side,
            "width": self.width,
        }

    def shrink(self, x: Tensor) -> Tensor:
        """Area-average so that no side is longer than `side`."""
        size = tuple(min(s, self.side) for s in x.shape[2:])
        if size == tuple(x.shape[2:]):
            return x
        pool: nn.Module = nn.AdaptiveAvgPool2d(size) if self.spatial_dims == 2 else nn.AdaptiveAvgPool3d(size)
        return pool(x)

    def maps(self, x: Tensor) -> list[Tensor]:
        """(B, c, *s) after each activation, of images at their own size."""
        found = []
        for layer in self.cnn.body:
            x = layer(x)
            if isinstance(layer, nn.LeakyReLU):
                found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        return (self.cnn.features(self.shrink(x)) - self.mean) * self.scale


def train_domain(train: Images, seed: int = 0, steps: int = 300, width: int = 12) -> FeatureNetwork:
    """Train on real images in [-1, 1]; deterministic in (images, seed, steps)."""
    spec = train.spec
    if (spec.low, spec.high) != (-1.0, 1.0):
        raise RangeError(
            f"Domain features train on images in [-1, 1]; these are in [{spec.low:g}, {spec.high:g}]. "
            f"Convert explicitly with Images.to_range(-1, 1)."
        )
    if len(train) < LEAST:
        raise VerisimError(
            f"Domain features need at least {LEAST} real training images, got {len(train)}. "
            f"Use the feature networks 'random' and 'pixels' instead."
        )
    side = min(max(spec.size), 64 if spec.spatial_dims == 2 else 32)
    rng = seeded("domain features", seed)
    with torch.random.fork_rng(devices=[]):  # building a layer draws from the global generator
        net = DomainNet(spec.spatial_dims, spec.channels, side, width)
        initialise(net, rng)
        with lent(net) as device:
            for _ in _optimise(net, train, steps, rng, device):
                pass
    _standardise(net, train.pixels)
    labelled = "with" if train.labels is not None else "without"
    text = (
        f"images in [-1, 1] averaged to at most {side} pixels per side; network trained {steps} steps on "
        f"{len(train)} real training images {labelled} labels (seed {seed}); features z-scored on them"
    )
    return network("domain", net, net.dim, spec, text)


def _optimise(
    net: DomainNet, train: Images, steps: int, rng: torch.Generator, device: torch.device
) -> Iterator[float]:
    """Yield the loss of each step of SimCLR, plus cross-entropy on the labels where there are any."""
    with torch.no_grad():
        pixels = net.shrink(train.pixels.float())
    classes = 0 if train.labels is None else int(train.labels.max()) + 1
    project = initialise(nn.Sequential(nn.Linear(net.dim, 64), nn.ReLU(), nn.Linear(64, 32)), rng).to(device)
    head = initialise(nn.Linear(net.dim, max(classes, 1)), rng).to(device)
    params = [*net.cnn.body.parameters(), *project.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(params, lr=2e-3, weight_decay=0.05)
    batch = min(48, len(pixels))
    net.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 20) * (1 - step / steps)
        pick = torch.randperm(len(pixels), generator=rng)[:batch]
        views = torch.cat([view(pixels[pick], rng) for _ in range(2)])  # (2B, C, *S)
        h = net.cnn.features(views.to(device))  # (2B, D)
        loss = contrastive(project(h))
        if train.labels is not None and classes > 1:
            loss = loss + F.cross_entropy(head(h), train.labels[pick].repeat(2).to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        yield float(loss.detach())
    net.eval()


def contrastive(z: Tensor, temperature: float = 0.2) -> Tensor:
    """NT-Xent loss of z (2B, E), whose rows i and i + B are views of one image."""
    z = F.normalize(z, dim=1)
    b = len(z) // 2
    similarity = (z @ z.T / temperature).fill_diagonal_(-1e9)
    return F.cross_entropy(similarity, torch.arange(2 * b, device=z.device).roll(b))


def view(x: Tensor, rng: torch.Generator) -> Tensor:
    """A random crop of 80...100 % per side, contrast x 0.8...1.25, brightness +-0.1; x (B, C, *S)."""
    b, d = len(x), x.ndim - 2
    theta = torch.zeros(b, d, d + 1)
    zoom = 0.8 + 0.2 * torch.rand(b, generator=rng)
    for i in range(d):
        theta[:, i, i] = zoom
        theta[:, i, d] = (2 * torch.rand(b, generator=rng) - 1) * (1 - zoom)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    shape = (b, *[1] * (d + 1))
    contrast = torch.exp(0.22 * (2 * torch.rand(b, generator=rng) - 1)).view(shape)
    brightness = (0.1 * (2 * torch.rand(b, generator=rng) - 1)).view(shape)
    return x * contrast + brightness


@torch.no_grad()
def _standardise(net: DomainNet, pixels: Tensor) -> None:
    """Mean 0 and spread 1 per feature on the training images; nearly constant features are not blown up."""
    with lent(net) as device:
        h = torch.cat([net(p.to(device)).cpu() for p in pixels.float().split(128)]).double()
    std = h.std(0)
    net.mean.copy_(h.mean(0))
    net.scale.copy_(1 / (std + 0.1 * std.median() + 1e-8))

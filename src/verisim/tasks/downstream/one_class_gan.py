"""One-class detector of three networks on normal images: U-Net-like autoencoder, encoder, discriminator.

    x^ = G(x),  z = G's code of x,  z^ = E(x^),  f = features of the discriminator D
    loss of G, E:  W_r mean |x - x^|^2 + W_z mean |z - z^|^2 + W_f mean |f(x) - f(x^)|^2
    loss of D:     -log D(x) - log(1 - D(x^))
    score:         r / r_0 + l / l_0 + d / d_0,  the three means above over their average on normal training images

Spec 004, section 1, names the three networks only; the losses are those of GANomaly (Akcay 2018) with squared errors.
Ours: the score's scale, and skip connections that carry SKIP channels and start at a quarter of the size: a wide one at
full size would copy any image, abnormal ones too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verisim.data.spec import Images, ImageSpec
from verisim.devices import lent
from verisim.metrics.judges import one_cycle
from verisim.models.autoencoders.trunk import CONV, Decoder, Encoder, trunk_channels
from verisim.tasks.downstream.base import DownstreamSettings, batches, built, normal_images, squared_error

SKIP = 2  # channels of a skip connection
WEIGHTS = (50.0, 1.0, 1.0)  # W_r, W_z, W_f
PACE = 0.1  # learning rate of the discriminator over that of the others
FEATURES = 64  # of the discriminator
CHUNK = 256  # images per forward pass


class UNetAutoencoder(nn.Module):
    """Image (B, C, *S) -> image (B, C, *S) and code (B, latent); narrow skips join equal grids on both sides."""

    def __init__(
        self,
        spec: ImageSpec,
        channels: tuple[int, ...],  # one per halving
        latent: int,  # length of the code
    ) -> None:
        super().__init__()
        self.encoder = Encoder(spec.size, spec.channels, channels, latent, 3, True)
        self.decoder = Decoder(spec.size, spec.channels, channels, latent, 3, True)
        conv = CONV[spec.spatial_dims]
        self.skips = nn.ModuleList(nn.Sequential(conv(c, SKIP, 1), conv(SKIP, c, 1)) for c in channels[1:-1])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = [F.pad(x, self.encoder.pad, mode="replicate") if any(self.encoder.pad) else x]
        for layer in self.encoder.layers:
            maps.append(layer(maps[-1]))  # maps[k]: 1 / 2^k of the size
        code = self.encoder.head(maps[-1].flatten(1))
        h = F.leaky_relu(self.decoder.head(code), 0.2).view(-1, *self.decoder.after)
        coarsest = len(maps) - 1
        for k, layer in zip(range(coarsest - 1, -2, -1), self.decoder.layers):
            h = layer(h)
            if 2 <= k < coarsest:
                h = h + self.skips[k - 2](maps[k])
        crop = tuple(slice(o, o + n) for o, n in zip(self.decoder.offset, self.decoder.size))
        return h[(slice(None), slice(None), *crop)], code


class Discriminator(nn.Module):
    """Image (B, C, *S) -> features (B, FEATURES); `critic` turns these into the log odds of a real image (B, 1)."""

    def __init__(self, spec: ImageSpec, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.features = Encoder(spec.size, spec.channels, channels, FEATURES, 3, False)
        self.critic = nn.Sequential(nn.LeakyReLU(0.2), nn.Linear(FEATURES, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


class OneClassGAN(nn.Module):
    """(B, C, *S) -> score (B,)."""

    usual: Tensor

    def __init__(self, autoencoder: nn.Module, encoder: nn.Module, discriminator: nn.Module) -> None:
        super().__init__()
        self.autoencoder, self.encoder, self.discriminator = autoencoder, encoder, discriminator
        self.register_buffer("usual", torch.ones(3))  # r_0, l_0, d_0

    def compare(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x^ (B, C, *S), and squared errors (B, 3) of image, code and features."""
        back, code = self.autoencoder(x)
        with torch.no_grad():
            seen = self.discriminator(x)
        pairs = (x, back), (code, self.encoder(back)), (seen, self.discriminator(back))
        return back, torch.stack([squared_error(a, b) for a, b in pairs], 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.compare(x)[1] / self.usual).sum(1)

    @torch.no_grad()
    def calibrate(self, normal: Tensor) -> None:
        """Take the three means over normal training images (M, C, *S) as the unit of each part."""
        on = self.usual.device
        found = torch.cat([self.compare(part.to(on))[1] for part in normal.split(CHUNK)])
        self.usual.copy_(found.mean(0).clamp(min=1e-12))


def fit_one_class_gan(
    images: Images, normal: int | None, settings: DownstreamSettings, seed: int
) -> OneClassGAN:
    """Three networks trained together on normal images; scores (B,)."""
    x, spec = normal_images(images, normal), images.spec
    channels, thin = (trunk_channels(spec.size, w, 4 * w) for w in (settings.width, -(-settings.width // 2)))

    def make() -> OneClassGAN:
        autoencoder = UNetAutoencoder(spec, channels, settings.latent)
        encoder = Encoder(spec.size, spec.channels, channels, settings.latent, 3, True)
        return OneClassGAN(autoencoder, encoder, Discriminator(spec, thin))

    net = built(make, seed)
    with lent(net) as device:
        players = [*net.autoencoder.parameters(), *net.encoder.parameters()]
        judges = list(net.discriminator.parameters())
        learn, judge = (
            one_cycle(p, settings.lr * k, settings.steps) for p, k in ((players, 1.0), (judges, PACE))
        )
        weights = torch.tensor(WEIGHTS, device=device)
        for batch in batches(x, settings, seed):
            batch = batch.to(device)
            made, parts = net.compare(batch)
            _step(*learn, (parts * weights).sum(1).mean(), players)
            _step(*judge, discriminator_loss(net.discriminator, batch, made.detach()), judges)
        net.eval().calibrate(x)
    return net


def discriminator_loss(d: nn.Module, real: Tensor, made: Tensor) -> Tensor:
    """-log D(x) - log(1 - D(x^)), mean over images."""
    odds_real, odds_made = d.critic(d(real)), d.critic(d(made))  # type: ignore[operator]
    return (F.softplus(-odds_real) + F.softplus(odds_made)).mean()


def _step(
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    loss: Tensor,
    parameters: list[nn.Parameter],
) -> None:
    """One step of one player; the loss moves no other networks than its own."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=parameters)
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    schedule.step()

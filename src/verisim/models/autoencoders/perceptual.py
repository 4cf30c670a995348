"""How different two images look: distance of the feature maps of a fixed network. Zhang 2018, eq. 1, with w_l = 1.

    d(x, y) = 1/L sum_l mean_p | u_l(x, p) - u_l(y, p) |^2,    u = f / sqrt(|f|^2 + floor^2)

f_l(x, p) are the channels of scale l at position p. The source's networks (VGG, AlexNet) saw a million photographs;
none is needed here:

random       filters from a fixed seed, mean-free for the most part, at three scales. They answer to edges and
             texture, and hardly to a change of brightness: a reconstruction that lost its fine structure is far
             away. They know no anatomy, and their numbers are not LPIPS.
FILE         a network trained on real images of the kind at hand: a safetensors file that
             verisim.metrics.features.save_features wrote. It runs at the images' own size.

The floor keeps noise of empty background from counting like structure. Nothing is learned here. 3D directly.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.metrics.domain import DomainNet
from verisim.metrics.features import RandomConvNet, load_features

FLOOR = 1.0  # length of a feature vector below which a position counts for less


class PerceptualDistance(nn.Module):
    """d(x, y) (B,), 0 for equal images and at most 4, of x and y (B, C, *S) in [-1, 1]; differentiable in both."""

    def __init__(self, network: RandomConvNet | DomainNet) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> PerceptualDistance:
        """Stays in evaluation mode whatever the model around it does."""
        return super().train(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # small differences of large numbers
            both = torch.cat([x.float(), y.float()])
            scales = [squared_distance(*unit(f).chunk(2)) for f in self.network.maps(both)]
        return torch.stack(scales).mean(0)


def unit(f: Tensor) -> Tensor:
    """f (B, c, *s) at length 1 over its channels; what is shorter than FLOOR stays short."""
    return f * (f.square().sum(1, keepdim=True) + FLOOR**2).rsqrt()


def squared_distance(u: Tensor, v: Tensor) -> Tensor:
    """|u - v|^2 over channels, mean over positions (B,)."""
    return (u - v).square().sum(1).flatten(1).mean(1)


def perceptual_distance(network: str, spec: ImageSpec) -> PerceptualDistance:
    """The distance by "random", or by the network in a file, for images of `spec`; VerisimError if it does not fit.

    Global randomness is not touched.
    """
    if network == "random":
        with torch.random.fork_rng(devices=[]):  # building a layer draws from the global generator
            net = RandomConvNet(spec.spatial_dims, spec.channels)
        return PerceptualDistance(net)
    if not Path(network).is_file():
        raise VerisimError(
            f"--model.perceptual is '{network}': neither 'random' nor a file. Give the path of a feature network "
            f"that verisim.metrics.features.save_features wrote."
        )
    found = load_features(Path(network))
    if (found.spec.channels, found.spec.spatial_dims) != (spec.channels, spec.spatial_dims):
        raise VerisimError(
            f"The feature network {network} was made for {found.spec.channels} channel(s) in "
            f"{found.spec.spatial_dims}D; these images have {spec.channels} in {spec.spatial_dims}D. Train one on "
            f"such images, or set --model.perceptual random."
        )
    assert isinstance(found.module, DomainNet)
    return PerceptualDistance(found.module)

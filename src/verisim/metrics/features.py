"""Feature networks: what "similar" means for FD, KID and PRDC. Each has a name, a size and a hash.

`random`  fixed filters from a seed: the same for everybody, no training, sees texture and layout.
`pixels`  the image itself, averaged to at most 256 (2D) or 512 (3D) values per channel.
`domain`  trained on the user's own real training images (see domain.py).

All take images in [-1, 1]; another range is an error. Only Inception-v3 may be printed as "FID".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from verisim.data.spec import Images, ImageSpec
from verisim.devices import lent
from verisim.errors import CheckpointError, RangeError, VerisimError, pick
from verisim.seeding import generator as seeded


@dataclass(frozen=True)
class FeatureNetwork:
    """Maps images to feature vectors; identified by a hash over its name, preprocessing and weights."""

    name: str  # "random", "pixels", "domain", "inception"
    module: nn.Module  # (B, C, *S) in [-1, 1] -> (B, dim)
    dim: int  # D
    spec: ImageSpec  # images it was made for: channels and spatial dimensions count, size may differ
    preprocessing: str  # what happens to an image before and after the network, in words
    sha256: str

    @property
    def label(self) -> str:
        """How a Frechet distance in these features is printed."""
        return "FID" if self.name == "inception" else f"FD({self.name})"

    def describe(self) -> dict:
        return {
            "name": self.name,
            "label": self.label,
            "dim": self.dim,
            "sha256": self.sha256,
            "preprocessing": self.preprocessing,
        }

    @torch.no_grad()
    def embed(self, images: Images, batch: int = 128) -> Tensor:
        """(N, D) float64 features; RangeError unless the images are in [-1, 1] with the right channels."""
        spec = images.spec
        if (spec.low, spec.high) != (-1.0, 1.0):
            raise RangeError(
                f"Features '{self.name}' take images in [-1, 1]; these are in [{spec.low:g}, "
                f"{spec.high:g}]. Convert explicitly with Images.to_range(-1, 1)."
            )
        if (spec.channels, spec.spatial_dims) != (self.spec.channels, self.spec.spatial_dims):
            raise RangeError(
                f"Features '{self.name}' were made for {self.spec.channels} channel(s) in "
                f"{self.spec.spatial_dims}D; these images have {spec.channels} in {spec.spatial_dims}D."
            )
        self.module.eval()
        with lent(self.module) as device:
            parts = [self.module(p.to(device)).cpu() for p in images.pixels.float().split(batch)]
        return torch.cat(parts).double() if parts else torch.zeros(0, self.dim, dtype=torch.float64)


def network(name: str, module: nn.Module, dim: int, spec: ImageSpec, preprocessing: str) -> FeatureNetwork:
    """A FeatureNetwork with its hash; the module is frozen and put in eval mode."""
    module.eval().requires_grad_(False)
    digest = hashlib.sha256(f"{name}|{preprocessing}|{spec.channels}|{spec.spatial_dims}".encode())
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode() + str(tuple(value.shape)).encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return FeatureNetwork(name, module, dim, spec, preprocessing, digest.hexdigest())


class RandomConvNet(nn.Module):
    """Three scales of two random 3 x 3 (x 3) convolutions; means on a grid and spread over space."""

    def __init__(
        self,
        spatial_dims: int,  # 2 or 3
        channels: int,  # C
        width: int = 16,  # filters per convolution
        seed: int = 0,  # of the filters
    ) -> None:
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]
        rng = seeded("random features", spatial_dims, channels, width, seed)
        self.first, self.second = nn.ModuleList(), nn.ModuleList()
        for _ in range(3):
            for c, where, gain in ((channels, self.first, 4.0), (width, self.second, 1.0)):
                layer = conv(c, width, 3, padding=1, padding_mode="replicate", bias=False)
                with torch.no_grad():
                    layer.weight.copy_(self._filters(layer.weight.shape, gain, rng))
                where.append(layer)
        self.spatial_dims = spatial_dims
        self.grid = 2 if spatial_dims == 2 else 1
        self.dim = 3 * width * (1 + self.grid**spatial_dims) + channels * 4**spatial_dims

    @staticmethod
    def _filters(shape: torch.Size, gain: float, rng: torch.Generator) -> Tensor:
        """Uniform weights of variance 2 / fan-in. Three filters in four have mean 0 and a larger
        gain: they see edges and texture, which are weak in smooth images, instead of grey.
        """
        fan_in = shape[1:].numel()
        w = (2 * torch.rand(shape, generator=rng) - 1) * (6 / fan_in) ** 0.5
        sharp = w[shape[0] // 4 :]
        sharp -= sharp.flatten(1).mean(1).view(-1, *[1] * (len(shape) - 1))
        sharp *= gain
        return w

    def maps(self, x: Tensor) -> list[Tensor]:
        """(B, width, *s) responses at each scale, before anything is pooled."""
        halve = {2: F.avg_pool2d, 3: F.avg_pool3d}[self.spatial_dims]
        found = []
        for first, second in zip(self.first, self.second):
            found.append(second(first(x).relu()).relu())  # (B, width, *s)
            if min(x.shape[2:]) >= 4:
                x = halve(x, 2)
        return found

    def forward(self, x: Tensor) -> Tensor:
        pool = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[self.spatial_dims]
        out = [pool(x, 4).flatten(1)]  # coarse layout of grey values
        for h in self.maps(x):
            spread = (h.flatten(2).var(2, unbiased=False) + 1e-8).sqrt()
            out += [pool(h, self.grid).flatten(1), spread]
        return torch.cat(out, 1)  # (B, dim)


class PixelNet(nn.Module):
    """Area-averaged pixels: (B, C, *S) -> (B, C * side^d)."""

    def __init__(
        self,
        side: int,  # pixels per axis that are kept
        spatial_dims: int,  # 2 or 3
    ) -> None:
        super().__init__()
        self.side, self.spatial_dims = side, spatial_dims

    def forward(self, x: Tensor) -> Tensor:
        pool = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[self.spatial_dims]
        return pool(x, self.side).flatten(1)


def random_features(train: Images, seed: int = 0, steps: int = 0) -> FeatureNetwork:
    """Seeded random convolutions; does not look at the images of `train`, only at their channels."""
    spec = train.spec
    with torch.random.fork_rng(devices=[]):  # building a layer draws from the global generator
        module = RandomConvNet(spec.spatial_dims, spec.channels)
    text = "images in [-1, 1] at their own size; random filters of seed 0, pooled at three scales"
    return network("random", module, module.dim, spec, text)


def pixel_features(train: Images, seed: int = 0, steps: int = 0) -> FeatureNetwork:
    """Pixels averaged to 16 x 16 or 8 x 8 x 8 per channel (8 x 8 from the third channel on)."""
    spec = train.spec
    side = 8 if spec.spatial_dims == 3 or spec.channels > 2 else 16
    text = f"images in [-1, 1] averaged to {side} pixels per axis"
    return network(
        "pixels", PixelNet(side, spec.spatial_dims), spec.channels * side**spec.spatial_dims, spec, text
    )


def domain_features(train: Images, seed: int = 0, steps: int = 300) -> FeatureNetwork:
    """Trained on `train`; see verisim.metrics.domain."""
    from verisim.metrics.domain import train_domain

    return train_domain(train, seed, steps)


FEATURES: dict[str, Callable[[Images, int, int], FeatureNetwork]] = {
    "random": random_features,
    "pixels": pixel_features,
    "domain": domain_features,
}


def stored_inception(path: Path, train: Images) -> FeatureNetwork:
    """Inception-v3 from a safetensors file; see verisim.metrics.inception."""
    from verisim.metrics.inception import load_inception

    return load_inception(path, train.spec)


def stored_domain(path: Path, train: Images) -> FeatureNetwork:
    """A domain network that save_features wrote, made for such images."""
    net = load_features(path)
    have, want = net.spec, train.spec
    if (have.channels, have.spatial_dims) != (want.channels, want.spatial_dims):
        raise VerisimError(
            f"{path} was made for {have.channels} channel(s) in {have.spatial_dims}D; these images have "
            f"{want.channels} in {want.spatial_dims}D."
        )
    return net


STORED: dict[str, Callable[[Path, Images], FeatureNetwork]] = {  # feature networks from a file
    "inception": stored_inception,
    "domain": stored_domain,
}


def build(name: str, train: Images, seed: int = 0, steps: int = 300) -> FeatureNetwork:
    """The feature network `name`, or `name=FILE`, for images like `train`; VerisimError for unknown names."""
    kind, _, file = name.partition("=")
    if file:
        return pick(STORED, kind, "feature network with a file")(Path(file), train)
    if kind in STORED and kind not in FEATURES:
        raise VerisimError(f"Feature network '{kind}' needs its weights file: {kind}=FILE.")
    return pick(FEATURES, kind, "feature network")(train, seed, steps)


def with_stored(default: Sequence[str], given: Sequence[str]) -> tuple[str, ...]:
    """The default networks and the given ones ('name' or 'name=FILE'); a given one replaces its namesake."""
    kinds = [g.partition("=")[0] for g in given]
    if len(set(kinds)) < len(kinds):
        raise VerisimError(f"A feature network is given twice: {', '.join(given)}. Give each once.")
    return (*(d for d in default if d.partition("=")[0] not in kinds), *given)


def save_features(net: FeatureNetwork, path: Path) -> None:
    """Write a domain network as safetensors, so that later comparisons share it."""
    from verisim.metrics.domain import DomainNet

    if not isinstance(net.module, DomainNet):
        raise CheckpointError(
            f"Only a domain network needs a weights file; '{net.name}' is made from its name."
        )
    meta = {
        "verisim": "domain features 1",
        "config": json.dumps(net.module.config()),
        "size": json.dumps(net.spec.size),
        "preprocessing": net.preprocessing,
        "sha256": net.sha256,
    }
    save_file({k: v.contiguous() for k, v in net.module.state_dict().items()}, str(path), metadata=meta)


def load_features(path: Path) -> FeatureNetwork:
    """Read a domain network written by save_features; CheckpointError if damaged or something else."""
    from verisim.metrics.domain import DomainNet

    try:
        with safe_open(str(path), "pt") as f:
            meta = f.metadata() or {}
            state = {k: f.get_tensor(k) for k in f.keys()}
    except (SafetensorError, OSError) as e:
        raise CheckpointError(
            f"{path} is no readable safetensors file ({e}). TorchScript and pickle are not accepted, because "
            f"they can run code; export the weights with save_features."
        ) from e
    if meta.get("verisim") != "domain features 1":
        raise CheckpointError(f"{path} holds no feature network of verisim. Write one with save_features.")
    with torch.random.fork_rng(devices=[]):
        module = DomainNet(**json.loads(meta["config"]))
    try:
        module.load_state_dict(state)
    except RuntimeError as e:
        raise CheckpointError(f"{path}: weights do not fit their own description ({e}).") from e
    spec = ImageSpec(tuple(json.loads(meta["size"])), module.channels)
    net = network("domain", module, module.dim, spec, meta["preprocessing"])
    if net.sha256 != meta["sha256"]:
        raise CheckpointError(f"{path}: the hash of the weights is not the one written down. Copy it again.")
    return net

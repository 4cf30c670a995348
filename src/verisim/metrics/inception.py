"""Inception-v3 as FID was defined with it, from a weights file on this machine.

The network of the TensorFlow graph of 2015-12-05 (Szegedy 2015, 1008 logits) differs from today's
Inception-v3: averages leave the padding out, the last block pools the maximum, and images are resized to
299 x 299 by TensorFlow 1's bilinear rule (no half-pixel offset, no antialiasing). Its 2048 pooled features
are what a number printed as "FID" must come from (Heusel 2017).

Parameters are named as in the common PyTorch ports (pt_inception-2015-12-05): Conv2d_1a_3x3.conv.weight,
Conv2d_1a_3x3.bn.weight, Mixed_5b.branch1x1.conv.weight, ..., fc.weight (1008, 2048), fc.bias.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from verisim.data.spec import ImageSpec
from verisim.errors import CheckpointError, VerisimError
from verisim.metrics.features import FeatureNetwork, network

SIDE = 299  # pixels per side that the network takes
DIM = 2048  # features
LOGITS = 1008  # classes of the 2015 graph; torchvision's own weights have 1000
PREFIXES = ("module.", "model.", "inception.", "base.")  # wrappers' names that are taken off
REMEDY = (
    "Convert the port's .pth once, without running code: "
    "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'inception.safetensors')."
)

Kernel = int | tuple[int, int]


class Conv(nn.Module):
    """Convolution without bias, batch norm (epsilon 0.001), ReLU."""

    def __init__(
        self,
        channels: int,  # in
        out: int,  # out
        kernel: Kernel,  # side, or (height, width)
        stride: int = 1,
        pad: bool = True,  # keep the size (at stride 1); False: no padding
    ) -> None:
        super().__init__()
        size = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (size[0] // 2, size[1] // 2) if pad else (0, 0)
        self.conv = nn.Conv2d(channels, out, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu()


def mean_pool(x: Tensor) -> Tensor:
    """Mean over 3 x 3 pixels, of those inside of the image only."""
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def max_pool(x: Tensor) -> Tensor:
    """Maximum over 3 x 3 pixels, same size."""
    return F.max_pool2d(x, 3, 1, 1)


def halve(x: Tensor) -> Tensor:
    """Maximum over 3 x 3 pixels at every second place."""
    return F.max_pool2d(x, 3, 2)


class BlockA(nn.Module):
    """35 x 35: 1x1, 5x5, double 3x3, mean pool."""

    def __init__(self, c: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(c, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Conv(c, 48, 1), Conv(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(c, 64, 1), Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3)
        self.branch_pool = Conv(c, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        five = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat((self.branch1x1(x), five, double, self.branch_pool(mean_pool(x))), 1)


class BlockB(nn.Module):
    """35 x 35 -> 17 x 17."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(c, 384, 3, 2, pad=False)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(c, 64, 1), Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3, 2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat((self.branch3x3(x), double, halve(x)), 1)


class BlockC(nn.Module):
    """17 x 17: 1x1, 7x7 in two steps, double 7x7 in four, mean pool."""

    def __init__(self, c: int, mid: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(c, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = Conv(c, mid, 1), Conv(mid, mid, (1, 7))
        self.branch7x7_3 = Conv(mid, 192, (7, 1))
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Conv(c, mid, 1), Conv(mid, mid, (7, 1))
        self.branch7x7dbl_3, self.branch7x7dbl_4 = Conv(mid, mid, (1, 7)), Conv(mid, mid, (7, 1))
        self.branch7x7dbl_5 = Conv(mid, 192, (1, 7))
        self.branch_pool = Conv(c, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat((self.branch1x1(x), seven, double, self.branch_pool(mean_pool(x))), 1)


class BlockD(nn.Module):
    """17 x 17 -> 8 x 8."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(c, 192, 1), Conv(192, 320, 3, 2, pad=False)
        self.branch7x7x3_1, self.branch7x7x3_2 = Conv(c, 192, 1), Conv(192, 192, (1, 7))
        self.branch7x7x3_3, self.branch7x7x3_4 = Conv(192, 192, (7, 1)), Conv(192, 192, 3, 2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat((self.branch3x3_2(self.branch3x3_1(x)), seven, halve(x)), 1)


class BlockE(nn.Module):
    """8 x 8: 1x1, split 3x3, double split 3x3, pool (mean in the first, maximum in the last block)."""

    def __init__(self, c: int, pool: str) -> None:
        super().__init__()
        self.branch1x1 = Conv(c, 320, 1)
        self.branch3x3_1 = Conv(c, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(c, 448, 1), Conv(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch_pool = Conv(c, 192, 1)
        self.pool = {"mean": mean_pool, "max": max_pool}[pool]

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        split = (self.branch3x3_2a(three), self.branch3x3_2b(three))
        split2 = (self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double))
        return torch.cat((self.branch1x1(x), *split, *split2, self.branch_pool(self.pool(x))), 1)


def tensorflow_resize(x: Tensor, side: int) -> Tensor:
    """Bilinear (B, C, H, W) -> (B, C, side, side) as in TensorFlow 1: output i reads input i * size / side."""
    for dim in (2, 3):
        size = x.shape[dim]
        at = torch.arange(side, dtype=torch.float64, device=x.device) * (size / side)
        low = at.floor().long().clamp(max=size - 1)
        high = (low + 1).clamp(max=size - 1)
        shape = [1, 1, 1, 1]
        shape[dim] = side
        weight = (at - low).to(x.dtype).view(shape)
        below = x.index_select(dim, low)
        x = below + (x.index_select(dim, high) - below) * weight
    return x


class Inception(nn.Module):
    """(B, 1 or 3, H, W) in [-1, 1] -> (B, 2048) pooled features."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, 2, pad=False)  # 299 -> 149
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, pad=False)  # 147
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)  # 147, then 73
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, pad=False)  # 71, then 35
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c = BlockC(768, 128), BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = BlockC(768, 160), BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, "mean"), BlockE(2048, "max")
        self.fc = nn.Linear(DIM, LOGITS)  # not used for features; part of the file that is accepted

    def prepare(self, x: Tensor) -> Tensor:
        """Grey repeated to three channels, resized, scaled as in the graph: (v - 128) / 128 of v in 0...255."""
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        return (tensorflow_resize((x + 1) * 127.5, SIDE) - 128) / 128

    def maps(self, x: Tensor) -> Tensor:
        """(B, 3, 299, 299) prepared -> (B, 2048, 8, 8)."""
        x = halve(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = halve(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = getattr(self, f"Mixed_{name}")(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(16)  # at 299 pixels larger batches only cost memory
        return torch.cat([self.maps(self.prepare(p)).mean((2, 3)) for p in parts])


def empty_inception() -> Inception:
    """The network with memory for its weights, but no values: millions of random numbers would be for nothing."""
    with torch.device("meta"):
        net = Inception()
    return net.to_empty(device="cpu")


def read_inception(path: Path | str) -> Inception:
    """The network with the weights of a safetensors file; CheckpointError for anything but the 2015 port's."""
    try:
        state = load_file(str(path))
    except (SafetensorError, OSError) as e:
        raise CheckpointError(
            f"{path} is no readable safetensors file ({e}). Pickles (.pth, .pt, .pkl) and TorchScript are not "
            f"opened, because they can run code. {REMEDY}"
        ) from e
    state = {_bare(k): v for k, v in state.items()}
    net = empty_inception()
    want = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    logits = state.get("fc.weight")
    if logits is not None and tuple(logits.shape) != (LOGITS, DIM):
        raise CheckpointError(
            f"{path}: the last layer is {tuple(logits.shape)}, not ({LOGITS}, {DIM}). These are other weights of "
            f"Inception-v3, e.g. torchvision's; a distance in their features is no FID. Use the port of "
            f"2015-12-05 (pt_inception-2015-12-05)."
        )
    lacking = [k for k in want if k not in state]
    odd = [k for k in want if k in state and state[k].shape != want[k].shape]
    if lacking or odd:
        first = f"'{lacking[0]}' is missing" if lacking else f"'{odd[0]}' is {tuple(state[odd[0]].shape)}"
        raise CheckpointError(
            f"{path} does not hold the Inception of 2015-12-05: {len(lacking)} tensors missing and {len(odd)} "
            f"of another shape, first: {first}. Names must be those of the PyTorch ports, e.g. "
            f"'Mixed_5b.branch1x1.conv.weight'."
        )
    net.load_state_dict({k: state[k].float() for k in want}, strict=False)
    for name, buffer in net.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.zero_()
    return net


def _bare(key: str) -> str:
    """The key without a wrapper's name."""
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    return key


def load_inception(path: Path | str, spec: ImageSpec) -> FeatureNetwork:
    """Features for images like `spec` (2D, grey or colour); Frechet distances in them are printed as FID."""
    if spec.spatial_dims != 2 or spec.channels not in (1, 3):
        raise VerisimError(
            f"Inception takes 2D images with 1 or 3 channels; these have {spec.channels} in {spec.spatial_dims}D."
        )
    net = read_inception(path)
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    grey = "grey repeated to 3 channels, " if spec.channels == 1 else ""
    text = (
        f"images in [-1, 1], {grey}resized to {SIDE} x {SIDE} as in TensorFlow 1 (bilinear, no antialiasing), "
        f"(v - 128) / 128; Inception-v3 of 2015-12-05, weights file SHA-256 {digest}"
    )
    return network("inception", net, DIM, spec, text)

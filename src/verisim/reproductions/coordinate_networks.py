"""Source 002, section 5.2.4 (spec 1.4): which non-linearity lets a coordinate network draw detail?

Each network learns one image from every second pixel (a chessboard) and is asked for the others. All have about as many
numbers and as many steps; the learning rate is the one that fits the learned pixels best. Baseline: the mean of a
pixel's four neighbours, which are all known. Control: the same pixels at shuffled places.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from verisim.data.mosaic import save_mosaic
from verisim.errors import VerisimError
from verisim.metrics.bootstrap import Estimate, mean_estimate
from verisim.metrics.reconstruction import psnr
from verisim.models.implicit.points import grid
from verisim.nets.implicit import CoordinateNet, fourier_features
from verisim.phantoms import PHANTOMS
from verisim.reproductions.result import Claim, Options, Result
from verisim.seeding import generator

SYSTEMS = {  # name -> activation, bands of Fourier features
    "relu": ("relu", 0),
    "relu, Fourier": ("relu", 6),
    "sine": ("sine", 0),
    "complex_gabor": ("complex_gabor", 0),
    "real_gabor": ("real_gabor", 0),
}
PLAIN, SHUFFLED, NEIGHBOURS = "relu", "real_gabor, shuffled", "neighbours"
COUNTS = {
    ("real_gabor", 132): 232_450,
    ("real_gabor", 131): 232_194,
    ("sine", 132): 116_225,
}  # inputs: K.3, 3D and 2D


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    size: int  # pixels
    images: int
    steps: int
    numbers: int  # real numbers per network, about
    rates: tuple[float, ...]  # learning rates that are tried


SCALES = {
    "smoke": Scale(16, 2, 20, 2000, (3e-3,)),
    "small": Scale(64, 6, 500, 20_000, (3e-4, 1e-3, 3e-3, 1e-2)),
    "full": Scale(256, 24, 5000, 200_000, (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)),
}


def run(options: Options) -> Iterator[Result]:
    """Fit every image with every network; one result."""
    if options.data:
        raise VerisimError("002-coordinates fits phantoms. Leave out --data.")
    scale = SCALES[options.scale]
    scale = replace(scale, images=options.count or scale.images)
    names = options.chosen(tuple(SYSTEMS))
    images = PHANTOMS["chest"].make(scale.images, seed=0, size=scale.size).images
    known = torch.arange(scale.size)[:, None].add(torch.arange(scale.size)).remainder(2).eq(0)  # (H, W)
    points = grid(images.spec).view(scale.size, scale.size, 2)
    rows: dict[str, dict[str, Any]] = {}
    pictures = [images.pixels[0]]
    wanted = [*names, *([SHUFFLED] if "real_gabor" in names else [])]
    for name in wanted:
        Console(stderr=True).print(f"002-coordinates: {name}", highlight=False)
        found = [_fitted(name, x[0], points, known, scale, k) for k, x in enumerate(images.pixels)]
        pictures.append(found[0].pop("picture"))
        rows[name] = {key: [f[key] for f in found] for key in ("learned", "others", "rate", "numbers")}
    between = torch.stack([_neighbours(x[0]) for x in images.pixels])
    rows[NEIGHBOURS] = {"others": [_psnr(b, x[0], ~known) for b, x in zip(between, images.pixels)]}
    counts = {f"{a}, {n} inputs": _count(CoordinateNet(n, activation=a)) for a, n in COUNTS}
    numbers = {"rows": rows, "counts": counts, "scale": asdict(scale)}
    notes = [
        f"{scale.images} chest phantoms of {scale.size} pixels, half of the pixels learned, {scale.steps} steps of Adam "
        f"on all of them at once; PSNR in dB",
        "four layers, as wide as about "
        f"{scale.numbers} numbers allow; the learning rate of each image and network is the best of "
        f"{', '.join(f'{r:g}' for r in scale.rates)} on the learned pixels",
    ]
    result = Result("002-coordinates", options.scale, claims(numbers), numbers, notes)
    save_mosaic(
        options.results / "figures" / result.name / "fits.png", torch.stack(pictures), len(pictures), scale=2
    )
    yield result


def _fitted(name: str, x: Tensor, points: Tensor, known: Tensor, scale: Scale, k: int) -> dict[str, Any]:
    """The best fit of an image x (H, W) over the learning rates: PSNR of learned and other pixels, and its picture."""
    shuffled = name == SHUFFLED
    activation, bands = SYSTEMS["real_gabor" if shuffled else name]
    features = fourier_features(points, bands)  # (H, W, d)
    target = x[known]  # (n,)
    if shuffled:
        target = target[torch.randperm(len(target), generator=generator("shuffled pixels", k))]
    tries = []
    for rate in scale.rates:
        torch.manual_seed(k)
        net = _network(features.shape[-1], activation, scale.numbers)
        loss = _train(net, features[known], target, rate, scale.steps)
        tries.append((loss, rate, net))
    loss, rate, net = min(tries, key=lambda t: t[0])
    with torch.no_grad():
        drawn = net(features)[..., 0].clamp(-1, 1)  # (H, W)
    return {
        "learned": float(psnr(torch.tensor(loss / 4))),
        "others": _psnr(drawn, x, ~known),
        "rate": rate,
        "numbers": _count(net),
        "picture": drawn[None],
    }


def _train(net: CoordinateNet, points: Tensor, target: Tensor, rate: float, steps: int) -> float:
    """Mean squared error of the last step's network; infinite if it broke."""
    optimizer = torch.optim.Adam(net.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(net(points)[:, 0], target).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        error = float(F.mse_loss(net(points)[:, 0], target))
    return error if math.isfinite(error) else math.inf


def _network(inputs: int, activation: str, numbers: int) -> CoordinateNet:
    """Four layers, the widest with at most so many numbers."""
    width = 4
    while _count(CoordinateNet(inputs, hidden=width + 1, layers=4, activation=activation)) <= numbers:
        width += 1
    return CoordinateNet(inputs, hidden=width, layers=4, activation=activation)


def _count(net: CoordinateNet) -> int:
    return sum(p.numel() for p in net.parameters())


def _psnr(made: Tensor, x: Tensor, where: Tensor) -> float:
    """dB, of the pixels `where` of images on [-1, 1]."""
    return float(psnr((made - x)[where].double().square().mean() / 4))


def _neighbours(x: Tensor) -> Tensor:
    """The mean of each pixel's four neighbours; at the edge of those that there are."""
    cross = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]])[None, None]
    total, count = (F.conv2d(v[None, None], cross, padding=1)[0, 0] for v in (x, torch.ones_like(x)))
    return total / count


def claims(numbers: dict[str, Any]) -> list[Claim]:
    """Spectral bias, what else could have done it, and the published sizes. Differences are paired over images."""
    rows, found = numbers["rows"], []
    for name in (n for n in SYSTEMS if n in rows and n != PLAIN and PLAIN in rows):
        holds, text = _above(rows[name]["learned"], rows[PLAIN]["learned"])
        statement = f"{name} fits the pixels that it learns better than {PLAIN} of plain coordinates"
        found.append(Claim(f"bias-{name}", statement, "spec 002, 1.4", holds, text))
    for name in (n for n in SYSTEMS if n in rows):
        holds, text = _above(rows[name]["others"], rows[NEIGHBOURS]["others"])
        statement = f"{name} is nearer to the other pixels than the mean of their neighbours"
        found.append(Claim(f"baseline-{name}", statement, "ours", holds, text))
    if SHUFFLED in rows:
        holds, text = _above(rows["real_gabor"]["others"], rows[SHUFFLED]["others"], 6.0)
        statement = "Pixels at shuffled places say nothing of the others: 6 dB worse or more"
        found.append(Claim("shuffled", statement, "control", holds, text))
    published = {f"{a}, {n} inputs": count for (a, n), count in COUNTS.items()}
    text = "; ".join(f"{k}: {numbers['counts'][k]:,} of {v:,}" for k, v in published.items())
    found.append(Claim("counts", "Networks of eight layers of 128 have the published numbers of parameters",
                       "source 002, chapter 8", numbers["counts"] == published, text))  # fmt: skip
    return found


def _above(a: list[float], b: list[float], margin: float = 0.0) -> tuple[bool | None, str]:
    """Is the mean of a - b above the margin? None: its interval does not decide."""
    delta = torch.tensor(a, dtype=torch.float64) - torch.tensor(b, dtype=torch.float64)
    e: Estimate = mean_estimate(delta, 1000, generator("coordinates"), None)
    holds = True if e.low > margin else False if e.high < margin else None
    return holds, f"difference {e.value:+.2f} [{e.low:+.2f}, {e.high:+.2f}] dB"

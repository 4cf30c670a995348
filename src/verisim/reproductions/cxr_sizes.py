"""Source 004's sizes (X-G-128, X-V-size, X-A-size): its literal systems at other sizes, and ours at 128 pixels.

The source looked at single runs: the GAN collapses at 128 pixels, of the VAE's sizes only 32 differs and 256 is
unstable, the PixelCNN's discriminator loss is 3.67 at 32 and 69.3 at 128. Here every size has its own real images and
controls, and what is compared between sizes has no unit: diversity over that of real images, distance over that of noise,
bits over those of a code that knows the left neighbour only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from verisim.data.folder import Dataset
from verisim.data.mosaic import save_mosaic
from verisim.hub.weights import load_model, read_card
from verisim.metrics.bootstrap import Estimate, tie
from verisim.metrics.protocols.fair import PRESETS
from verisim.models.autoregressive.baselines import left_neighbour_laplace_bits
from verisim.reports.figures import read_curves
from verisim.reproductions.cxr_comparison import SCALES, Scale, committable
from verisim.reproductions.result import Claim, Options, Result
from verisim.reproductions.runs import Job, train_all
from verisim.tasks.comparison import compare, held_out, show_progress
from verisim.tasks.contestants import Contestant, bits_per_dim, from_model
from verisim.training.source import DataSettings, open_dataset

SOURCE = "source 004, sizes"
RISE = 1.5  # times its lowest value so far that a smoothed loss must reach to be called unstable; ours
COLLAPSED = 0.5  # of the real images' diversity; ours


@dataclass(frozen=True)
class Point:
    """One system at one size."""

    system: str  # what options.systems chooses
    recipe: str
    variant: str  # of its small scale
    size: int

    @property
    def name(self) -> str:
        return f"{self.system}-{self.size}px"


POINTS = (
    Point("X-V0", "X-V-size", "small", 32),
    Point("X-V0", "X-V-size", "small-64", 64),
    Point("X-V0", "X-V0", "small", 128),
    Point("X-V0", "X-V-size", "small-256", 256),
    Point("X-G0", "X-G0", "small", 64),
    Point("X-G0", "X-G-128", "small", 128),
    Point("X-A0", "X-A-size", "small", 32),
    Point("X-A0", "X-A0", "small", 64),
    Point("X-A0", "X-A-size", "small-128", 128),
    Point("X-G-fix", "X-G-fix", "small-128", 128),
    Point("X-V-fix", "X-V-fix", "small", 128),
    Point("X-D-fix", "X-D-fix", "small-128", 128),
)
SYSTEMS = tuple(dict.fromkeys(p.system for p in POINTS))
PRESET = {"smoke": "smoke", "small": "quick", "full": "full"}


def run(options: Options) -> Iterator[Result]:
    """Train every system at every size once, and judge each size in a table of its own; one result."""
    scale, shrink = SCALES[options.scale].changed_by(options), 2 if options.scale == "smoke" else 1
    systems = options.chosen(SYSTEMS, "sweep of sizes")
    points = [p for p in POINTS if p.system in systems and (not options.sizes or p.size in options.sizes)]
    wanted = [(p, _job(options, scale, p, shrink)) for p in points]
    train_all([job for _, job in wanted])
    numbers: dict[str, Any] = {"sizes": {}, "likelihood": {}, "stability": {}}
    figures = options.results / "figures" / f"004-sizes.{options.scale}"
    for size in sorted({p.size for p in points}):
        dataset = open_dataset(_data(options, scale, size // shrink))
        here = [(p, job) for p, job in wanted if p.size == size]
        drawn = [
            _drawn(options, scale, k, p, job, dataset)
            for k, (p, job) in enumerate(here)
            if p.system != "X-A0"
        ]
        if drawn:
            numbers["sizes"][str(size)] = _judged(options, size, drawn, dataset)
        for c in drawn:
            save_mosaic(figures / f"{c.name}.png", c.images.pixels[:16], 8)
        for p, job in here:
            if p.system == "X-A0":
                numbers["likelihood"][p.name] = _likelihood(job.folder, dataset)
            numbers["stability"][p.name] = _stability(job.folder)
    notes = [
        f"images: {Path(options.data).name if options.data else 'phantoms'}",
        f"{scale.minutes:g} processor minutes and one thread per run, one seed; {scale.count} samples per run",
        "PixelCNN is judged by its likelihood, and nothing is drawn from it",
    ]
    yield Result("004-sizes", options.scale, claims(numbers), numbers, notes)


def _data(options: Options, scale: Scale, size: int) -> DataSettings:
    return DataSettings(folder=options.data, count=scale.phantoms, size=size)


def _job(options: Options, scale: Scale, p: Point, shrink: int) -> Job:
    overrides: dict[str, str | int | float] = {
        "data.folder": options.data,
        "data.count": scale.phantoms,
        "data.size": p.size // shrink,
        "training.sample_minutes": 0,
    }
    if scale.minutes:
        overrides |= {"training.max_minutes": scale.minutes, "training.clock": "cpu"}
    variant = p.variant.replace("small", "full", 1) if scale.variant == "full" else p.variant
    if scale.variant == "full" and p.system.endswith("-fix"):
        variant = "full"
    return Job(p.recipe, variant, options.out / "runs" / "sizes" / p.name, overrides)


def _drawn(options: Options, scale: Scale, seed: int, p: Point, job: Job, dataset: Dataset) -> Contestant:
    cache = options.out / "samples" / "sizes" / f"{p.name}.safetensors"
    return from_model(
        job.folder, p.name, scale.count, held_out(dataset), seed=seed, cache=cache, likelihood=False
    )


def _judged(options: Options, size: int, drawn: list[Contestant], dataset: Dataset) -> dict[str, Any]:
    return committable(
        compare(
            drawn,
            dataset,
            PRESETS[PRESET[options.scale]],
            progress=show_progress(f"004-sizes, {size} px"),
            memory=options.out / "measured",
        )
    )


def _likelihood(folder: Path, dataset: Dataset) -> dict[str, Any]:
    """Bits per dimension of held-out images, and those of a code that knows the left neighbour."""
    train, test = dataset["train"].quantise().pixels, held_out(dataset)
    found = bits_per_dim(load_model(folder)[0], test)
    return {
        "model": found,
        "left_neighbour": float(left_neighbour_laplace_bits(train, test.pixels).double().mean()),
    }


def _stability(folder: Path) -> dict[str, Any]:
    """How far the smoothed loss of a run rises above its lowest value so far, and what was skipped."""
    spent = read_card(folder / "weights.safetensors").training
    values = next(iter(read_curves(folder / "metrics.jsonl")[0].values()), ([], []))[1]
    return {"steps": spent["steps"], "skipped": spent["skipped_steps"], "rise": largest_rise(values)}


def largest_rise(losses: list[float], parts: int = 20) -> float | None:
    """Largest ratio of a twentieth's median to the lowest one before it; None for fewer than two, or losses below 0."""
    x = torch.tensor(losses, dtype=torch.float64)
    pieces = [piece.median() for piece in x.chunk(parts) if len(piece)]
    if len(pieces) < 2 or not bool((x > 0).all()):
        return None
    medians = torch.stack(pieces)
    return float((medians[1:] / medians.cummin(0).values[:-1]).max())


def claims(numbers: dict[str, Any]) -> list[Claim]:
    """What the source says of sizes, held against the numbers; what was not run is left out."""
    found = [
        _controls(numbers),
        _gan(numbers),
        _stabilised(numbers),
        *_vae(numbers),
        _pixelcnn(numbers),
        _order(numbers),
    ]
    return [c for c in found if c is not None]


def _summary(numbers: dict[str, Any], size: int, name: str, key: str) -> Estimate | None:
    node = numbers["sizes"].get(str(size), {}).get("summary", {}).get(name, {}).get(key)
    return Estimate.from_dict(node) if node else None


def _said(name: str, e: Estimate) -> str:
    return f"{name} {e.value:.3f} [{e.low:.3f}, {e.high:.3f}]"


def _controls(numbers: dict[str, Any]) -> Claim | None:
    pairs = [
        (size, _summary(numbers, int(size), "real", "c2st"), _summary(numbers, int(size), "noise", "c2st"))
        for size in numbers["sizes"]
    ]
    known = [(s, real, noise) for s, real, noise in pairs if real and noise]
    if not known:
        return None
    holds = all(real.low <= 0.5 <= real.high and noise.value >= 0.99 for _, real, noise in known)
    text = "; ".join(f"{s} px: {_said('real', real)}, noise {noise.value:.3f}" for s, real, noise in known)
    return Claim(
        "controls", "At every size the judge takes real for real and knows noise", "E6", holds, f"AUC: {text}"
    )


def _against(e: Estimate, level: float) -> bool | None:
    """e < level, or None where its interval holds the level."""
    return True if e.high < level else False if e.low > level else None


def _gan(numbers: dict[str, Any]) -> Claim | None:
    low = _summary(numbers, 64, "X-G0-64px", "diversity/image")
    high = _summary(numbers, 128, "X-G0-128px", "diversity/image")
    if low is None or high is None:
        return None
    parts = (_against(high, COLLAPSED), None if (small := _against(low, COLLAPSED)) is None else not small)
    holds = False if False in parts else None if None in parts else True
    text = f"diversity over that of real images: {_said('64 px', low)}, {_said('128 px', high)}; collapsed below {COLLAPSED}"
    return Claim("gan-collapse", "The literal GAN collapses at 128 pixels and not at 64", SOURCE, holds, text)


def _stabilised(numbers: dict[str, Any]) -> Claim | None:
    e = _summary(numbers, 128, "X-G-fix-128px", "diversity/image")
    if e is None:
        return None
    below = _against(e, COLLAPSED)
    statement = "The stabilised GAN does not collapse at 128 pixels"
    return Claim(
        "gan-stabilised",
        statement,
        "spec 004, section 3 G",
        None if below is None else not below,
        _said("diversity", e),
    )


def _vae(numbers: dict[str, Any]) -> list[Claim]:
    shares = {}
    for size in (32, 64, 128, 256):
        e = _summary(numbers, size, f"X-V0-{size}px", "fd/random")
        noise = _summary(numbers, size, "noise", "fd/random")
        if e and noise:
            shares[size] = Estimate(*(v / noise.value for v in (e.value, e.low, e.high, e.se)))
    found = []
    if len(shares) == 4:
        same = {size: tie(shares[size], shares[128]) for size in (32, 64, 256)}
        text = "FD(random) over that of noise: " + ", ".join(_said(f"{s} px", e) for s, e in shares.items())
        holds = same[64] and same[256] and not same[32]
        statement = "Of the sizes of the literal VAE only 32 pixels differs from 128"
        found.append(Claim("vae-sizes", statement, SOURCE, holds, text))
    told = numbers["stability"].get("X-V0-256px")
    if told and told["rise"] is not None:
        text = f"its smoothed loss rises to {told['rise']:.2f} times its lowest; {told['skipped']} steps without a finite loss"
        holds = told["rise"] > RISE or told["skipped"] > 0
        found.append(Claim("vae-unstable", "The literal VAE is unstable at 256 pixels", SOURCE, holds, text))
    return found


def _pixelcnn(numbers: dict[str, Any]) -> Claim | None:
    rows = {n: r for n, r in numbers["likelihood"].items() if r["model"]}
    if len(rows) < 3:
        return None
    over = [(n, r["model"]["bits_per_dim"] - r["left_neighbour"], r["model"]["se"]) for n, r in rows.items()]
    values = [v for _, v, _ in over]
    text = ", ".join(f"{n} {v:+.2f} (se {se:.2f})" for n, v, se in over)
    statement = "The larger the image, the worse the literal PixelCNN"
    return Claim(
        "pixelcnn-sizes",
        statement,
        SOURCE,
        values == sorted(values),
        f"bits per dimension above the left neighbour's: {text}",
    )


def _order(numbers: dict[str, Any]) -> Claim | None:
    names = ("X-D-fix-128px", "X-G-fix-128px", "X-V-fix-128px")
    e = {n: found for n in names if (found := _summary(numbers, 128, n, "c2st"))}
    if len(e) < len(names):
        return None
    best, *rest = e.values()
    ties = [tie(best, other) for other in rest]
    holds = (
        False
        if any(o.value < best.value and not t for o, t in zip(rest, ties))
        else None
        if any(ties)
        else True
    )
    statement = "At 128 pixels corrected diffusion is hardest to tell from real"
    return Claim(
        "diffusion-128",
        statement,
        "source 004, overall ranking",
        holds,
        "AUC: " + ", ".join(_said(n, v) for n, v in e.items()),
    )

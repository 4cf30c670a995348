"""Source 002, chapter 8: does one latent per subject (SSL), or now and then nobody's (SGLA), tell age from identity?

The four combinations on growing-brain phantoms, most subjects seen once, for the same number of steps; new subjects
are predicted six weeks forwards or backwards from one scan (spec 002, K.7, K.8 and K.10); first slices, then volumes.
Beside the slices the source's baseline, diffusion guided by age (section M), for the same processor time. Controls: no
change of age, a copy of the scan, and training with shuffled ages, which must fail. The average brain's growth
(section O) is read off the zero and the mean latent.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from verisim.data.atomic import atomic_write
from verisim.data.mosaic import save_mosaic
from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.metrics.head import measure_heads
from verisim.metrics.reconstruction import mse, psnr, score_reconstructions
from verisim.models.implicit.development import Architecture, Development
from verisim.models.implicit.fitting import LatentFit, Training, fit
from verisim.models.implicit.progress import Progress
from verisim.phantoms import growing_brain
from verisim.reports.growth import curve_png
from verisim.reproductions.growth_claims import SOURCE, claims
from verisim.reproductions.growth_guided import GUIDED, Choice, choose, guided_images, trained_guided
from verisim.reproductions.result import Options, Result
from verisim.seeding import generator
from verisim.tasks.growth import age_change, frames

SYSTEMS = {"none": (False, 0.0), "SGLA": (False, 0.1), "SSL": (True, 0.0), "both": (True, 0.1)}
SHUFFLED = "both, shuffled ages"
MIDDLE = 35.5  # weeks; younger subjects are predicted forwards, older ones backwards
GAP = 6.0  # weeks
FINER = {2: 4, 3: 2}  # heads are measured on a grid so many times finer, by dimensions


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    size: int  # pixels
    subjects: int  # to learn from
    twice: int  # of them seen twice
    tested: int  # new subjects
    steps: int
    seeds: int
    scans: int = 8  # per step
    pixels: float = 0.3  # share of a scan's pixels per step
    latent: int = 32
    hidden: int = 48
    layers: int = 4
    lr: float = 2e-3
    latent_lr: float = 1e-2
    fit_steps: int = 100
    fit_lr: float = 1e-2
    fit_pixels: float = 0.5
    guided: Choice = field(default_factory=Choice)
    dims: int = 2

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,) * self.dims

    @property
    def label(self) -> str:
        """What results and runs of this size are called."""
        return f"{self.size}{'px' if self.dims == 2 else 'vox'}"

    @property
    def fine(self) -> tuple[int, ...]:
        """The grid on which heads are measured."""
        return tuple(FINER[self.dims] * s for s in self.shape)


SCALES = {
    "smoke": Scale(16, 12, 4, 6, 60, 1, fit_steps=20, guided=Choice((200,), (0.0, 1.0), 3)),
    "small": Scale(32, 60, 6, 24, 2000, 2),
    "full": Scale(64, 60, 6, 48, 6000, 3, 1, 0.1, 32, 64, 6, 1e-3, 1e-2, 300),  # spec 002, K.10
}
VOLUMES = {  # the implicit systems once more, in 3D
    "smoke": replace(SCALES["smoke"], dims=3, pixels=0.02, fit_pixels=0.05),
    "small": replace(SCALES["small"], dims=3, size=16, steps=3000, pixels=0.05, fit_pixels=0.1),
    "full": replace(SCALES["full"], dims=3, pixels=0.05, fit_pixels=0.05),
}


@dataclass(frozen=True)
class Scans:
    """What is learned from, and what is asked: `first` at `before` -> `second` at `after`."""

    train: Images
    ages: Tensor
    first: Images
    before: Tensor
    second: Images
    after: Tensor
    heads: Tensor  # head circumference of the second scans, mm, exact


def run(options: Options) -> Iterator[Result]:
    """Train what is not trained yet, predict, measure; one result per size."""
    if options.data:
        raise VerisimError("002-growth runs on phantoms: it needs to know the truth at the second age.")
    slices, volumes = (
        replace(scale, seeds=options.seeds or scale.seeds)
        for scale in (SCALES[options.scale], VOLUMES[options.scale])
    )
    options.chosen((*SYSTEMS, GUIDED))
    if options.systems == (GUIDED,) and not options.minutes:
        raise VerisimError(
            f"{GUIDED} is trained for as long as the implicit systems take: ask for one of them too ({', '.join(SYSTEMS)}), "
            f"or say how long with --minutes."
        )
    for size in options.sizes or (slices.size,):
        yield _table(options, replace(slices, size=size))
    if not options.sizes and options.systems != (GUIDED,):
        yield _table(options, volumes)


def _table(options: Options, scale: Scale) -> Result:
    names = [n for n in options.systems or (*SYSTEMS, GUIDED) if n != GUIDED or scale.dims == 2]
    if "both" in names:
        names.append(SHUFFLED)
    rows: dict[str, list[dict[str, Any]]] = {n: [] for n in names}
    atlas: dict[str, list[dict[str, Any]]] = {"zero": [], "mean": []}
    found = Result("002-growth", options.scale, [], {}, part=scale.label)
    for seed in range(scale.seeds):
        scans = make_scans(scale, seed)
        for name in names:
            if name == GUIDED:
                continue
            model = trained(options, scale, scans, name, seed)
            rows[name].append(predict(model, scale, scans, seed))
            if name == "both":
                for kind, curves in atlas.items():
                    curves.append(average(model, kind, scale))
                if seed == 0:
                    _draw(options, found.name, model, scale, scans, atlas)
        if GUIDED in names:
            spent = [took(run_file(options, scale, n, seed)) for n in names if n in SYSTEMS]
            minutes = options.minutes or sum(spent) / len(spent) / 60
            rows[GUIDED].append(predict_guided(options, scale, scans, minutes, seed))
    numbers = {
        "rows": rows,
        "atlas": atlas if "both" in names else {},
        "source": SOURCE,
        "scale": asdict(scale),
    }
    found.numbers = {str(scale.size) if scale.dims == 2 else "x".join(map(str, scale.shape)): numbers}
    found.claims = claims(numbers)
    found.notes = [
        f"growing-brain phantoms of {' x '.join(map(str, scale.shape))}: {scale.subjects} subjects, {scale.twice} of them seen twice; "
        f"{scale.tested} new subjects predicted {GAP:g} weeks forwards or backwards from one scan",
        f"{scale.steps} steps of {scale.scans} scans for every implicit system, {scale.seeds} seed(s); nothing was chosen by "
        f"the tested subjects",
        f"heads measured on a grid {FINER[scale.dims]} times finer, against the phantoms' exact circumference",
    ]
    if GUIDED in names:
        found.notes.append(
            f"{GUIDED}: as much processor time as an implicit system takes on average, recipe B-M's small networks; "
            f"steps and guidance chosen by the training subjects seen twice; heads measured on its images after "
            f"interpolation"
        )
    return found


def make_scans(scale: Scale, seed: int) -> Scans:
    """Ages are uniform; of the subjects seen twice and the tested ones the second scan is GAP weeks away."""
    low, high = growing_brain.AGES
    ages = low + (high - low) * torch.rand(scale.subjects, generator=generator("growth-ages", seed))
    ages = torch.cat([ages, away(ages[: scale.twice])])
    who = torch.cat([torch.arange(scale.subjects), torch.arange(scale.twice)])
    before = torch.linspace(low + 2, high - 2, scale.tested)
    after = away(before)
    new = torch.arange(1000, 1000 + scale.tested)
    train, first, second = (
        growing_brain.scan(w, a, seed, scale.shape) for w, a in ((who, ages), (new, before), (new, after))
    )
    return Scans(train.images, ages, first.images, before, second.images, after,
                 second.factors["head_circumference"].double())  # fmt: skip


def away(ages: Tensor) -> Tensor:
    """GAP weeks later for the young, earlier for the old."""
    return torch.where(ages > MIDDLE, ages - GAP, ages + GAP)


def trained(options: Options, scale: Scale, scans: Scans, name: str, seed: int) -> Development:
    """A model of this system; what was trained before is read, what was killed goes on."""
    ssl, sgla = SYSTEMS["both" if name == SHUFFLED else name]
    ages = scans.ages
    if name == SHUFFLED:
        ages = ages[torch.randperm(len(ages), generator=generator("growth-shuffle", seed))]
    torch.manual_seed(seed)
    architecture = Architecture(ssl, scale.latent, scale.hidden, scale.layers)
    model = Development.for_scans(scans.train, architecture)
    settings = Training(
        scale.steps, sgla, scale.scans, scale.pixels, mirror=0.0, lr=scale.lr, latent_lr=scale.latent_lr
    )
    file = run_file(options, scale, name, seed)
    start = time.process_time()
    losses = fit(model, scans.train, ages, settings, seed=seed, progress=Progress(file, every=500))
    if losses:
        seconds = (time.process_time() - start) * scale.steps / len(losses)
        atomic_write(file.with_suffix(".json"), json.dumps({"processor_seconds": seconds}).encode())
    return model


def run_file(options: Options, scale: Scale, name: str, seed: int) -> Path:
    """Where a trained implicit model is."""
    word = name.replace(", ", "-").replace(" ", "-")
    return options.out / "runs" / f"{scale.label}-{scale.steps}" / f"{word}@{seed}.safetensors"


def took(file: Path) -> float:
    """Processor seconds of its training; VerisimError if they were not written down."""
    record = file.with_suffix(".json")
    if not record.exists():
        raise VerisimError(
            f"{file}: how long its training took is not written down. Remove it to train it again, or give --minutes."
        )
    return float(json.loads(record.read_text())["processor_seconds"])


def predict(model: Development, scale: Scale, scans: Scans, seed: int) -> dict[str, Any]:
    """Scores of the tested subjects, one number each, and of their heads, over all."""
    fitting = LatentFit(scale.fit_steps, scale.fit_lr, scale.fit_pixels)
    c = age_change(model, scans.first, scans.before, scans.second, scans.after, fitting, seed=seed)
    row = _row(
        scans, c.made, {k: getattr(c, k) for k in ("predicted", "unchanged", "copied", "reconstructed")}
    )
    made = model.render(c.latents, scans.after, scale.fine).images
    return {**row, "head": head_errors(made, scans)}


def predict_guided(options: Options, scale: Scale, scans: Scans, minutes: float, seed: int) -> dict[str, Any]:
    """The same of diffusion guided by age."""
    folder = options.out / "runs" / f"{scale.label}-{scale.steps}" / f"guided@{seed}"
    model, card = trained_guided(folder, scans.train, scans.ages, minutes, seed)
    n = scale.subjects
    again = torch.arange(n, n + scale.twice)
    how = choose(model, scans.train, scans.ages, torch.cat([torch.arange(scale.twice), again]),
                 torch.cat([again, torch.arange(scale.twice)]), scale.guided)  # fmt: skip
    x = scans.first.pixels
    made = Images(guided_images(model, x, scans.after, how), scans.first.spec)
    still = guided_images(model, x, scans.before, how)
    plain = guided_images(model, x, None, how)
    pairs = {"predicted": (scans.second, made.pixels), "unchanged": (scans.second, still),
             "copied": (scans.second, x), "reconstructed": (scans.first, plain)}  # fmt: skip
    row = _row(scans, made, {k: psnr(mse(a.pixels, b, a.spec)) for k, (a, b) in pairs.items()})
    fine = torch.nn.functional.interpolate(made.pixels, scale.fine, mode="bilinear", antialias=False)
    spacing = tuple(s / FINER[scale.dims] for s in made.spec.spacing or ())
    spec = replace(made.spec, size=scale.fine, spacing=spacing)
    facts = {k: card.training[k] for k in ("steps", "seconds", "parameters")}
    return {**row, "head": head_errors(Images(fine, spec), scans), "chosen": asdict(how), "training": facts}


def _row(scans: Scans, made: Images, ratios: dict[str, Tensor]) -> dict[str, Any]:
    """Numbers per tested subject: PSNRs, SSIM and MAE on [0, 1] of the predictions."""
    each = {
        **ratios,
        "ssim": score_reconstructions(scans.second, made).ssim,
        "mae": (scans.second.pixels - made.pixels).abs().flatten(1).mean(1) / 2,
    }
    return {k: [round(float(x), 4) for x in v] for k, v in each.items()}


def head_errors(images: Images, scans: Scans) -> dict[str, float | None]:
    """sigma of the error in mm, Pearson's r, slope over age in mm per week beside the truth's; None: no head was seen.

    images: predictions of the second scans, on any grid.
    """
    try:
        found = measure_heads(images).circumference
    except VerisimError:
        return {"sigma_mm": None, "r": None, "slope": None, "true_slope": slope(scans.after, scans.heads)}
    return {
        "sigma_mm": float((found - scans.heads).std()),
        "r": float(torch.corrcoef(torch.stack([found, scans.heads]))[0, 1]),
        "slope": slope(scans.after, found),
        "true_slope": slope(scans.after, scans.heads),
    }


def slope(x: Tensor, y: Tensor) -> float:
    """Of the regression line of y on x."""
    away = x.double() - x.double().mean()
    return float((away * y.double()).sum() / away.square().sum())


def average(model: Development, kind: str, scale: Scale) -> dict[str, Any]:
    """Growth curve of nobody's brain beside that of the phantom's middle subject; and how sharp its images are."""
    low, high = (float(a) for a in model.ages)
    shown = frames(model, model.average_latent(kind), low + 0.5, high - 0.5, 15, scale.fine)
    middle = {name: torch.full((15,), sum(span) / 2) for name, span in growing_brain.IDENTITY.items()}
    truth = growing_brain.at_age(middle, shown.ages)["head_circumference"].double()
    x = shown.images.pixels
    sharp = float(sum(x.diff(dim=d).abs().mean() for d in range(2, x.ndim)) / (x.ndim - 2))
    curve: dict[str, Any] = {"ages": shown.ages.tolist(), "truth": truth.tolist(), "sharpness": sharp}
    try:
        head = measure_heads(shown.images).circumference
    except VerisimError:
        return {**curve, "head": None, "slope": None, "true_slope": slope(shown.ages, truth), "r": None}
    r = float(torch.corrcoef(torch.stack([head, truth]))[0, 1])
    return {
        **curve,
        "head": head.tolist(),
        "slope": slope(shown.ages, head),
        "true_slope": slope(shown.ages, truth),
        "r": r,
    }


def _draw(
    options: Options, name: str, model: Development, scale: Scale, scans: Scans, atlas: dict[str, Any]
) -> None:
    """Figures: scan, prediction and truth of eight subjects above each other; the average brain's curves."""
    folder = options.results / "figures" / name
    fitting = LatentFit(scale.fit_steps, scale.fit_lr, scale.fit_pixels)
    few = torch.linspace(0, scale.tested - 1, min(8, scale.tested)).long()
    first, second = scans.first.subset(few), scans.second.subset(few)
    made = age_change(model, first, scans.before[few], second, scans.after[few], fitting).made
    save_mosaic(
        folder / "predictions.png", torch.cat([first.pixels, made.pixels, second.pixels]), len(few), scale=3
    )
    curves = [(f"{kind} latent: HC (mm)", a[0]["head"]) for kind, a in atlas.items() if a[0]["head"]]
    if curves:
        ages = atlas["zero"][0]["ages"]
        curves.append(("phantom, exact: HC (mm)", atlas["zero"][0]["truth"]))
        atomic_write(folder / "average.png", curve_png(ages, [False] * len(ages), curves))

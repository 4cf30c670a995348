"""Source 000, C5 (Cheff) on chest phantoms: report to image, super-resolution, inpainting, judged against controls.

Trained: report-conditioned diffusion of pixels and of latents (with their autoencoder), a control that never sees a
text (label_dropout 1), and super-resolution 4 times. Asked: balanced reports. Measured: the ruler of
phantoms.chest_findings, between the floor of shuffled texts and the ceiling of drawn phantoms. The source gives
no numbers; its acceptance (spec 000, C5) is what the claims test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from verisim.data.mosaic import save_mosaic
from verisim.data.spec import Images
from verisim.hub.weights import ModelCard, load_model
from verisim.metrics.bootstrap import mean_estimate
from verisim.metrics.reconstruction import psnr
from verisim.metrics.text_consistency import text_consistency
from verisim.metrics.text_judge import TextJudgeSettings, fit_text_judge, r_precision
from verisim.models.base import GenerativeModel
from verisim.models.diffusion.denoising import DenoisingDiffusion
from verisim.models.diffusion.fill import fill_in
from verisim.models.diffusion.super_resolution import SuperResolution, averaged, enlarged
from verisim.phantoms.chest_report import balanced_reports
from verisim.reproductions.report_claims import claims
from verisim.reproductions.result import Options, Result
from verisim.reproductions.runs import Job, train_all
from verisim.seeding import generator
from verisim.tasks.generation import generate
from verisim.training.source import DataSettings, open_dataset

PHANTOM = "chest_findings"
GUIDANCE = (1.0, 3.0)


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    pixels: int  # size of the pixel model
    large: int  # size of the latent model and of super-resolution
    minutes: float  # processor minutes per run; 0 = the recipe's own budget
    count: int  # images asked for
    phantoms: int  # drawn, a fifth of them held out
    judge_steps: int
    steps: int = 0  # of sampling; 0 = the model's own


SCALES = {
    "smoke": Scale(16, 32, 0.02, 30, 100, 4, steps=2),
    "small": Scale(32, 64, 10.0, 300, 2500, 400),
    "full": Scale(32, 64, 60.0, 1500, 20000, 2000),
}


def run(options: Options) -> Iterator[Result]:
    """Train what is not trained yet, ask, measure; one result."""
    scale = SCALES[options.scale]
    scale = replace(scale, count=options.count or scale.count, minutes=options.minutes or scale.minutes)
    out = options.out
    train_all(
        [_job(out, "ae", "W-C5b", "small", scale.large, scale, {"model.latent": 3 * (scale.large // 4) ** 2})]
    )
    text = {"data.text": "report"}
    latent = {**text, "model.first_stage": str(out / "ae")}
    train_all(
        [
            _job(out, "pixels", "W-C5d", "pixels", scale.pixels, scale, text),
            _job(
                out, "textless", "W-C5d", "pixels", scale.pixels, scale, {**text, "model.label_dropout": 1.0}
            ),
            _job(out, "latent", "W-C5d", "small", scale.large, scale, latent),
            _job(out, "sr", "W-C5e", "small", scale.large, scale, {}),
        ]
    )
    numbers: dict[str, Any] = {"consistency": {}, "ceiling": {}, "r_precision": {}}
    figures = options.results / "figures" / f"000-C5.{options.scale}"
    for size, systems in ((scale.pixels, ("pixels", "textless")), (scale.large, ("latent",))):
        _texts(numbers, out, size, systems, scale, figures)
    real = _data(scale, scale.large)["test"]
    numbers["autoencoder"] = _autoencoder(out / "ae", real)
    numbers["super_resolution"] = _super_resolution(
        _loaded(out / "sr", scale)[0], real.subset(torch.arange(min(100, len(real))))
    )
    small = _data(scale, scale.pixels)["test"]
    numbers["inpainting"] = _inpainting(
        _loaded(out / "pixels", scale)[0], small.subset(torch.arange(min(16, len(small))))
    )
    notes = [
        f"images: {PHANTOM} phantoms, {scale.phantoms} drawn, a fifth held out",
        f"{scale.minutes:g} processor minutes and one thread per run, one seed; {scale.count} balanced reports asked",
        "textless: the same model trained without any text (label_dropout 1), a control that has to stay at chance",
    ]
    yield Result("000-C5", options.scale, claims(numbers), numbers, notes)


def _job(
    out: Path, name: str, recipe: str, variant: str, size: int, scale: Scale, more: dict[str, Any]
) -> Job:
    settings: dict[str, str | int | float] = {
        "data.phantom": PHANTOM,
        "data.size": size,
        "data.count": scale.phantoms,
        "training.max_steps": 0,
    }
    budget: dict[str, str | int | float] = {
        "training.max_minutes": scale.minutes,
        "training.clock": "cpu",
        "training.sample_minutes": 0,
    }
    return Job(recipe, variant, out / name, {**settings, **budget, **more})


def _data(scale: Scale, size: int) -> dict[str, Images]:
    settings = DataSettings(phantom=PHANTOM, count=scale.phantoms, size=size, text="report")
    return open_dataset(settings).splits


def _loaded(run: Path, scale: Scale) -> tuple[GenerativeModel, ModelCard]:
    model, card = load_model(run)
    if scale.steps:
        model.configure_sampling(steps=scale.steps)
    return model, card


def _texts(
    numbers: dict[str, Any], out: Path, size: int, systems: tuple[str, ...], scale: Scale, figures: Path
) -> None:
    """Consistency and R-precision of the systems of one size, with their ceilings."""
    data = _data(scale, size)
    judge = fit_text_judge(data["train"], TextJudgeSettings(steps=scale.judge_steps))
    numbers["ceiling"][str(size)] = _scores(data["test"])
    numbers["r_precision"][f"real@{size}"] = asdict(r_precision(judge, data["test"]))
    asked = balanced_reports(scale.count)
    for name in systems:
        model, card = _loaded(out / name, scale)
        for guidance in GUIDANCE:
            model.configure_sampling(guidance=guidance)
            made = generate(model, card, scale.count, texts=asked).images.quantise()
            key = f"{name}@{size},guidance={guidance:g}"
            numbers["consistency"][key] = _scores(made)
            numbers["r_precision"][key] = asdict(r_precision(judge, made))
            save_mosaic(figures / f"{key}.png", made.pixels[:45], columns=15)


def _scores(images: Images) -> dict[str, Any]:
    return {factor: asdict(a) for factor, a in text_consistency(images).items()}


def _autoencoder(run: Path, real: Images) -> dict[str, Any]:
    """PSNR of held-out images through the latent."""
    model, _ = load_model(run)
    with torch.no_grad():
        again = torch.cat([model.decode(model.encode(x)).cpu() for x in real.pixels.split(64)])  # type: ignore[operator]
    return asdict(mean_estimate(_psnr(real.pixels, again), 1000, generator("000-C5", 0)))


def _psnr(x: Tensor, y: Tensor) -> Tensor:
    """(N,) dB between images in [-1, 1]."""
    return psnr(((x - y.clamp(-1, 1)) / 2).double().square().flatten(1).mean(1))


def _super_resolution(model: GenerativeModel, real: Images) -> dict[str, Any]:
    """The model beside bicubic enlargement, its exactly consistent form, and itself without the low image."""
    assert isinstance(model, SuperResolution)
    low = averaged(real.pixels, model.factor)
    results = {"bicubic": enlarged(low, model.factor), "real": real.pixels}
    results["model"] = model.sample(len(low), low, generator("000-C5", 1)).cpu()
    model.configure_sampling(consistent=True)
    results["model, consistent"] = model.sample(len(low), low, generator("000-C5", 1)).cpu()
    results["without the low image"] = model.sample(len(low), None, generator("000-C5", 1)).cpu()
    energy = float(_gradient(real.pixels).mean())
    return {
        name: {
            "psnr": asdict(mean_estimate(_psnr(real.pixels, x).clamp(max=100), 1000, generator("000-C5", 2))),
            "gradient_energy_error": abs(float(_gradient(x).mean()) - energy) / energy,
            "low_image_error": float((averaged(x, model.factor) - low).abs().mean()),
        }
        for name, x in results.items()
    }


def _gradient(x: Tensor) -> Tensor:
    """(N,) mean squared difference of neighbours."""
    return sum((x.diff(dim=d).double().square().flatten(1).mean(1) for d in (2, 3)), torch.zeros(len(x)))


def _inpainting(model: GenerativeModel, real: Images) -> dict[str, Any]:
    """A square in the middle filled in: its error beside a fill with the mean of what is known; what is known stays."""
    assert isinstance(model, DenoisingDiffusion)
    n = real.spec.size[0]
    mask = torch.ones(1, 1, n, n, dtype=torch.bool)
    mask[..., n // 4 : n // 2, n // 4 : n // 2] = False
    texts = model.read_texts(real.texts or ())
    x = fill_in(model, real.pixels, mask, texts, generator=generator("000-C5", 3), resamples=3).cpu()
    known = (real.pixels * mask).flatten(1).sum(1) / mask.sum()
    flat = torch.where(mask, real.pixels, known.view(-1, 1, 1, 1))
    hole = ~mask.expand_as(x)

    def error(y: Tensor) -> float:
        return float((y - real.pixels)[hole].abs().mean())

    changed = float((x - real.pixels)[~hole].abs().max())
    return {"error": error(x), "error_of_mean_fill": error(flat), "largest_change_of_known": changed}

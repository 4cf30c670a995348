"""Source 004's two scores, with and without their flaws, on the same samples (X-E2, X-E3, X-E7).

E2: a frozen GAN discriminator scores samples. In the source VAE, autoregressive and diffusion samples
enter in [0, 1] although it learned on [-1, 1], and batch norm stays in train mode. E3: a classifier that
was saved before it was trained answers 0.5 to everything; 0.5 was read as "easily detected".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.metrics.controls import noise_like
from verisim.metrics.protocols.thesis import classifier_score, discriminator_loss
from verisim.models import build_model
from verisim.models.adversarial.dcgan import DCGAN
from verisim.reproductions.cxr_comparison import LITERAL, SCALES, contestants_of, data_settings, jobs
from verisim.reproductions.result import Claim, Options, Result
from verisim.seeding import generator
from verisim.tasks.comparison import held_out
from verisim.training.checkpoint import load_state
from verisim.training.run_folder import RunFolder
from verisim.training.source import open_dataset


class Judge(nn.Module):
    """The discriminator of a trained GAN run: images in [-1, 1] -> probability of being real."""

    def __init__(self, run: RunFolder, images: Images) -> None:
        super().__init__()
        checkpoint = run.newest_checkpoint()
        if checkpoint is None:
            raise VerisimError(f"{run.path} has no checkpoint, so its discriminator is lost. Train it again.")
        settings = dict(run.config()["model"])
        model = build_model(settings.pop("name"), settings, images.spec)
        state = load_state(checkpoint)["state_dict"]
        mine = {
            k.removeprefix("discriminator."): v for k, v in state.items() if k.startswith("discriminator.")
        }
        assert isinstance(model, DCGAN)
        self.discriminator = model.discriminator
        self.discriminator.load_state_dict(mine)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B,)
        return torch.sigmoid(self.discriminator(x).flatten())


def run(options: Options) -> Iterator[Result]:
    """Score the literal systems' samples both ways; uses the runs of reproduction 004 where they exist."""
    scale = SCALES[options.scale].changed_by(options)
    size = scale.sizes[0]
    data = data_settings(options, scale, size)
    dataset = open_dataset(data)
    real = held_out(dataset)
    wanted = jobs(options.out, data, tuple(LITERAL.values()), replace(scale, seeds=1))
    contestants = contestants_of(wanted, dataset, scale.count, options.out / "samples" / str(size))
    judge = Judge(RunFolder(options.out / "runs" / str(size) / "X-G0@0"), real)
    rows = {c.name: _row(judge, real, c.images, str(c.facts["family"])) for c in contestants}
    control = noise_like(real, len(real), generator("artefact noise", 0))
    rows["noise"] = _row(judge, real, control, "gan")
    notes = [f"size {size}; discriminator of X-G0@0; literal systems, training seed 0"]
    yield Result("004-artefact", options.scale, _claims(rows), {str(size): rows}, notes, part=f"{size}px")


def _row(judge: nn.Module, real: Images, fake: Images, family: str) -> dict[str, Any]:
    """E2 and E3 of one set, literal and mended."""
    row: dict[str, Any] = {
        "family": family,
        "e2_literal": discriminator_loss(judge, real, fake, family=family).as_dict(),
        "e2_range_bug_alone": discriminator_loss(
            judge, real, fake, family=family, range_bug=True, train_mode=False
        ).as_dict(),
        "e2_mended": discriminator_loss(judge, real, fake, family=family, fixed=True).as_dict(),
        "e3_untrained": classifier_score(real, fake, family=family, untrained=True).as_dict(),
        "e3_literal": classifier_score(real, fake, family=family).as_dict(),
    }
    try:
        row["e3_mended"] = classifier_score(real, fake, family=family, fixed=True).as_dict()
    except VerisimError as e:
        row["e3_mended"] = {"value": None, "reason": str(e)}
    return row


def _claims(rows: dict[str, Any]) -> list[Claim]:
    others = {n: r for n, r in rows.items() if r["family"] != "gan"}
    shift = {n: r["e2_range_bug_alone"]["score"] - r["e2_mended"]["score"] for n, r in others.items()}
    vae = {n: v for n, v in shift.items() if rows[n]["family"] == "vae"}
    untrained = {n: r["e3_untrained"]["mean_p_real"] for n, r in rows.items()}
    return [
        Claim(
            "range-bug-vae",
            "The range bug alone changes the discriminator loss of the very same VAE samples by more than 0.5",
            "spec 004, section 8",
            all(abs(v) > 0.5 for v in vae.values()) if vae else None,
            "change: " + ", ".join(f"{n} {v:+.2f}" for n, v in vae.items()),
        ),
        Claim(
            "range-bug-all",
            "It does so for every family that the source scored in [0, 1]",
            "source 004, code",
            all(abs(v) > 0.5 for v in shift.values()),
            "change: " + ", ".join(f"{n} {v:+.2f}" for n, v in shift.items()),
        ),
        Claim(
            "untrained-judge",
            "An untrained classifier answers 0.5 (within 0.05) to everything, noise included",
            "spec 004, section 8",
            all(abs(v - 0.5) <= 0.05 for v in untrained.values()),
            "mean p(real): " + ", ".join(f"{n} {v:.3f}" for n, v in untrained.items()),
        ),
    ]

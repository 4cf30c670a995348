"""Anomaly maps, and thresholds that mean something: calibrated on held-out normal images (K-X5).

A map alone says nothing: every model errs on every image. Here a score is compared with the scores of
normal images that the model has not seen, as a conformal p-value (Vovk 2005; Bates 2023, eq. 1): among
normal images, at most a share a gets a p-value of a or less, whatever the model and the score.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.metrics.bootstrap import Estimate, from_draws, resample_weights
from verisim.metrics.c2st import pairwise_wins
from verisim.metrics.controls import gaussian_blur
from verisim.roles import AnomalyDetector, Autoencoder

TOP = 0.01  # share of an image's pixels whose mean error is its score
LEAST = 20  # normal images for a calibration: fewer cannot give a p-value below 0.05


class ReconstructionDetector:
    """|x - decode(encode(x))| of an autoencoder, averaged over channels and smoothed. Role: AnomalyDetector."""

    def __init__(
        self,
        model: Autoencoder,
        blur: float = 1.0,  # standard deviation of the smoothing in pixels; 0 = none
    ) -> None:
        self.model, self.blur = model, blur

    @torch.no_grad()
    def anomaly_map(self, x: Tensor) -> Tensor:
        """x (B, C, *S) in [-1, 1] -> (B, 1, *S), 0 to 2; larger is more abnormal."""
        seen = self.model.decode(self.model.encode(x)).to(x)
        error = (x - seen).abs().mean(1, keepdim=True)
        return gaussian_blur(error, self.blur) if self.blur else error


def detector_of(model: object) -> AnomalyDetector:
    """The model itself if it plays the role, else by reconstruction; VerisimError if it can do neither."""
    if isinstance(model, AnomalyDetector):
        return model
    if isinstance(model, Autoencoder):
        return ReconstructionDetector(model)
    raise VerisimError(
        f"A {getattr(model, 'family', 'model')} model finds no anomalies: it neither reconstructs images nor "
        f"has maps of its own. Train an autoencoder on normal images, e.g. 'verisim train X-V-fix'."
    )


def scores(maps: Tensor) -> Tensor:
    """(B,) float64: mean over the TOP share of pixels of maps (B, 1, *S)."""
    flat = maps.double().flatten(1)
    return flat.topk(max(1, round(TOP * flat.shape[1])), dim=1).values.mean(1)


@dataclass(frozen=True)
class Calibration:
    """What normal images look like to a detector."""

    normal: Tensor  # (n,) float64 scores of held-out normal images
    pixel: float  # map value that a share `rate` of normal pixels exceeds
    rate: float

    def p_values(self, score: Tensor) -> Tensor:
        """(B,) float64 conformal p-values (1 + #{normal >= score}) / (n + 1) of scores (B,)."""
        above = (self.normal[None] >= score.double()[:, None]).sum(1)
        return (1 + above).double() / (len(self.normal) + 1)


def calibrate(detector: AnomalyDetector, normal: Images, rate: float = 0.05) -> Calibration:
    """Scores and pixel threshold of held-out normal images. VerisimError for fewer than 20, or a bad rate."""
    if not 0 < rate < 1:
        raise VerisimError(
            f"rate={rate:g}: the share of normal pixels above the threshold is between 0 and 1."
        )
    if len(normal) < LEAST:
        raise VerisimError(
            f"{len(normal)} held-out normal images; at least {LEAST} are needed for a threshold of 5 %."
        )
    maps = torch.cat([detector.anomaly_map(part).cpu() for part in normal.pixels.split(64)])
    flat = maps.flatten()
    flat = flat[:: max(1, len(flat) // 4_000_000)]  # torch.quantile takes at most 16 million values
    return Calibration(scores(maps), float(torch.quantile(flat.double(), 1 - rate)), rate)


def auroc(abnormal: Tensor, normal: Tensor, seed: int = 0, draws: int = 1000) -> Estimate:
    """How often an abnormal image scores higher than a normal one, with its bootstrap interval."""
    if not len(abnormal) or not len(normal):
        raise VerisimError("AUROC needs images of both kinds: normal and abnormal ones.")
    rng = torch.Generator().manual_seed(seed)
    wins = pairwise_wins(abnormal, normal)
    wa, wn = (resample_weights(len(s), draws, rng) for s in (abnormal, normal))
    spread = ((wa @ wins) * wn).sum(1) / (wa.sum(1) * wn.sum(1))
    return from_draws(float(wins.mean()), spread)

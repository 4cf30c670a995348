"""What a latent space holds: linear probes with their control, mutual information gap, active units.

Numbers about codes and what is known of the images behind them; no model is needed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from verisim.errors import VerisimError
from verisim.metrics.bootstrap import Estimate, from_draws, group_index, resample_weights

ACTIVE = 0.01  # variance of the posterior means above which a latent is in use (Burda 2016, section 5.2)
FOLDS = 5
LEAST = 4 * FOLDS  # images that a probe needs


def active_units(means: Tensor) -> Tensor:
    """(d,) bool: latents whose posterior mean varies over images by more than ACTIVE; means (N, d)."""
    return means.double().var(0, correction=0) > ACTIVE


def probe(
    codes: Tensor,  # (N, d)
    target: Tensor,  # (N,) int64 classes, or floating point values
    groups: Sequence[str] | None = None,  # patient of each image: nobody is on both sides of a fold
    seed: int = 0,  # of the folds and of the control's shuffle
) -> dict[str, float | str]:
    """Cross-validated linear readout of `target`, beside the same readout of shuffled targets.

    Classes: balanced accuracy of a logistic regression; chance is 1 / classes. Values: R^2 of a ridge
    regression; chance is 0 or below. {"measure", "value", "control", "chance"}. Raises VerisimError for fewer
    than 20 images, a constant target, or a class in fewer than 2 groups.
    """
    found = readout(codes, target, groups, seed)
    return {
        "measure": found.measure,
        "value": float(found.scores(found.truth, found.told)),
        "control": float(found.scores(found.shuffled, found.told_shuffled)),
        "chance": found.chance,
    }


@dataclass(frozen=True)
class Readout:
    """What linear readouts said of codes that they were not fitted to; all (N,) float64 or int64."""

    truth: Tensor
    told: Tensor
    shuffled: Tensor  # the same targets in random order
    told_shuffled: Tensor  # and what readouts fitted to those said
    group: Tensor  # patient of each image

    @property
    def classes(self) -> bool:
        return not self.truth.is_floating_point()

    @property
    def measure(self) -> str:
        return "balanced accuracy" if self.classes else "R2"

    @property
    def chance(self) -> float:
        return 1 / len(self.truth.unique()) if self.classes else 0.0

    def scores(self, truth: Tensor, told: Tensor, weights: Tensor | None = None) -> Tensor:
        """(B,) balanced accuracy or R^2 under weights (B, N) of the images; None = once, all alike, ()."""
        w = torch.ones(1, len(truth), dtype=torch.float64) if weights is None else weights
        if self.classes:
            mine = (truth[:, None] == truth.unique()).double()  # (N, K)
            drawn = w @ mine  # (B, K); a class that is not drawn has no share
            right = (w @ (mine * (truth == told).double()[:, None])) / drawn
            found = right.nanmean(1)
        else:
            mean = (w @ truth) / w.sum(1)
            spread = (w @ truth.square()) / w.sum(1) - mean.square()
            found = 1 - (w @ (truth - told).square()) / w.sum(1) / spread
        return found[0] if weights is None else found

    def estimates(self, draws: int = 1000, seed: int = 0) -> dict[str, Estimate]:
        """ "value" and "control" with bootstrap intervals over patients, of the readouts as they were fitted."""
        rng = torch.Generator().manual_seed(seed)
        w = resample_weights(len(self.truth), draws, rng, [str(int(g)) for g in self.group])
        pairs = {"value": (self.truth, self.told), "control": (self.shuffled, self.told_shuffled)}
        return {k: from_draws(float(self.scores(*p)), self.scores(*p, w)) for k, p in pairs.items()}


def readout(
    codes: Tensor,  # (N, d)
    target: Tensor,  # (N,) int64 classes, or floating point values
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Readout:
    """What `probe` measures, image by image. Raises as `probe` does."""
    n = len(codes)
    if n < LEAST or len(target) != n:
        raise VerisimError(
            f"Probe: {n} codes and {len(target)} targets; at least {LEAST} of each are needed."
        )
    if not torch.isfinite(codes).all():
        raise VerisimError("Probe: the codes hold NaN or Inf. The model was probably trained too short.")
    if len(target.unique()) < 2:
        raise VerisimError(
            f"Probe: the target is {float(target[0]):g} for all images, so nothing can be read."
        )
    index = group_index(n, groups)
    values = target.double() if target.is_floating_point() else target
    x, y = codes.double().cpu().numpy(), values.cpu().numpy()
    rng = np.random.default_rng(seed)
    fold_of = _folds(index.numpy(), rng)
    told_by = _values if target.is_floating_point() else _classes
    told = told_by(x, y, fold_of)
    shuffled = rng.permutation(y)
    parts = [torch.from_numpy(p) for p in (y, told, shuffled, told_by(x, shuffled, fold_of))]
    return Readout(parts[0], parts[1], parts[2], parts[3], index)


def _folds(index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N,) fold of each image; whole groups go to one fold."""
    groups = int(index.max()) + 1
    if groups < FOLDS:
        raise VerisimError(f"Probe: {groups} patient(s); at least {FOLDS} are needed to hold some out.")
    fold = np.arange(groups) % FOLDS
    rng.shuffle(fold)
    return fold[index]


def _classes(x: np.ndarray, y: np.ndarray, fold_of: np.ndarray) -> np.ndarray:
    """(N,) class of each image as a logistic regression on the other folds has it."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    told = np.empty_like(y)
    for fold in range(FOLDS):
        held = fold_of == fold
        if len(np.unique(y[~held])) < 2:
            raise VerisimError(
                "Probe: with one fold of patients held out, a single class is left. Add patients."
            )
        model = make_pipeline(
            StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=500)
        )
        told[held] = model.fit(x[~held], y[~held]).predict(x[held])
    return told


def _values(x: np.ndarray, y: np.ndarray, fold_of: np.ndarray) -> np.ndarray:
    """(N,) value of each image as a ridge regression on the other folds has it."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    told = np.empty(len(y))
    for fold in range(FOLDS):
        held = fold_of == fold
        model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 7)))
        told[held] = model.fit(x[~held], y[~held]).predict(x[held])
    return told


def mutual_information_gap(
    codes: Tensor,  # (N, d) posterior means
    factors: Mapping[str, Tensor],  # name -> (N,) exactly known
    bins: int = 20,  # of equal counts, for codes and for factors with more values
) -> dict[str, float]:
    """MIG per factor and its "mean" (Chen 2018, eq. 6): 1 = one latent alone knows the factor, 0 = none does.

    (I(z_1; v) - I(z_2; v)) / H(v), z_1 and z_2 the two latents that know most about v. Factors that never
    vary are left out. Raises VerisimError for fewer than two latents or no factor that varies.
    """
    if codes.ndim != 2 or codes.shape[1] < 2:
        raise VerisimError(f"MIG needs codes (N, d) with d >= 2; got {tuple(codes.shape)}.")
    binned = [_binned(codes[:, j], bins) for j in range(codes.shape[1])]
    found: dict[str, float] = {}
    for name, values in factors.items():
        v = _binned(values, bins)
        entropy = _entropy(np.bincount(v))
        if entropy > 0:
            known = sorted((_information(z, v) for z in binned), reverse=True)
            found[name] = (known[0] - known[1]) / entropy
    if not found:
        raise VerisimError("MIG: none of the factors varies over these images. Give factors that do.")
    return {**found, "mean": sum(found.values()) / len(found)}


def _binned(values: Tensor, bins: int) -> np.ndarray:
    """(N,) bin of each value: the value itself where there are few, else bins of equal counts."""
    v = values.double().cpu().numpy()
    few, index = np.unique(v, return_inverse=True)
    if len(few) <= bins:
        return index
    edges = np.quantile(v, np.linspace(0, 1, bins + 1)[1:-1])
    return np.searchsorted(edges, v, side="right")


def _entropy(counts: np.ndarray) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def _information(a: np.ndarray, b: np.ndarray) -> float:
    """Mutual information in nats of two discrete variables (N,)."""
    joint = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(joint, (a, b), 1)
    return _entropy(joint.sum(1)) + _entropy(joint.sum(0)) - _entropy(joint.ravel())

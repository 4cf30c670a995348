"""Do synthetic images train a useful classifier? Labels in, AUC and balanced accuracy on real images out.

TRTR  train on real, test on real         the reference
TSTR  train on synthetic, test on real    does the synthetic set carry the label's signs?
TRTS  train on real, test on synthetic    do synthetic images show their label to a real-trained reader?
gain  train on real + synthetic, minus TRTR

`scores_of` takes any networks: with logits they are classifiers, with one score per image detectors of what is not
normal, whose AUC is that of the abnormal against the normal images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.metrics.bootstrap import Estimate, difference, from_draws, pool, resample_weights
from verisim.metrics.c2st import pairwise_wins
from verisim.metrics.judges import JudgeSettings, fit, logits
from verisim.seeding import derive_seed

LEAST = 8  # images of each class


@dataclass(frozen=True)
class Scores:
    """AUC and balanced accuracy with their bootstrap draws.

    A classifier's AUC is that of one class against the rest, mean over classes; a detector's that of abnormal
    against normal, and it has no accuracy, since nobody has set its threshold.
    """

    auc: Estimate
    accuracy: Estimate | None
    auc_draws: Tensor  # (B,)

    def as_dict(self) -> dict:
        both = {"auc": self.auc, "balanced_accuracy": self.accuracy}
        return {k: v.as_dict() for k, v in both.items() if v is not None}


def check_labels(images: Images, where: str) -> Tensor:
    """The labels (N,), or a VerisimError: none, only one class, or too few of one."""
    if images.labels is None:
        raise VerisimError(
            f"utility, {where}: the images have no labels. Name a label column of the manifest."
        )
    counts = torch.bincount(images.labels)
    present = (counts > 0).nonzero().flatten().tolist()
    if len(present) < 2:
        raise VerisimError(
            f"utility, {where}: only one class ({present}) among {len(images)} images, so there is nothing to "
            f"tell apart. Give a label column with at least two classes."
        )
    few = {c: int(counts[c]) for c in present if counts[c] < LEAST}
    if few:
        raise VerisimError(f"utility, {where}: at least {LEAST} images per class are needed, got {few}.")
    return images.labels


def check_kinds(images: Images, normal: int, where: str) -> Tensor:
    """The labels (N,), or a VerisimError: none, or fewer than LEAST normal or abnormal images."""
    if images.labels is None:
        raise VerisimError(
            f"utility, {where}: the images have no labels. Name a label column of the manifest."
        )
    n = int((images.labels == normal).sum())
    if min(n, len(images) - n) < LEAST:
        raise VerisimError(
            f"utility, {where}: {n} normal and {len(images) - n} abnormal images; a detector is measured with at "
            f"least {LEAST} of each. Add images."
        )
    return images.labels


def macro_scores(score: Tensor, labels: Tensor, weights: Tensor) -> tuple[float, float, Tensor, Tensor]:
    """AUC and balanced accuracy (plug-in), and their draws for weights (B, N); score (N, K) logits."""
    aucs, recalls, auc_d, rec_d = [], [], [], []
    hit = (score.argmax(1) == labels).double()
    for c in labels.unique().tolist():
        rest = torch.cat((score[:, :c], score[:, c + 1 :]), 1).logsumexp(1)
        mine = labels == c
        value, drawn = weighted_auc(score[:, c] - rest, mine, weights)
        wp = weights[:, mine]
        aucs.append(value)
        auc_d.append(drawn)
        recalls.append(float(hit[mine].mean()))
        rec_d.append((wp @ hit[mine]) / wp.sum(1))
    k = len(aucs)
    return sum(aucs) / k, sum(recalls) / k, torch.stack(auc_d).mean(0), torch.stack(rec_d).mean(0)


def weighted_auc(score: Tensor, positive: Tensor, weights: Tensor) -> tuple[float, Tensor]:
    """AUC of score (N,) for positive (N,) bool, and its draws (B,) for weights (B, N); NaN where a kind is lacking."""
    wins = pairwise_wins(score[positive], score[~positive])
    wp, wn = weights[:, positive], weights[:, ~positive]
    return float(wins.mean()), ((wp @ wins) * wn).sum(1) / (wp.sum(1) * wn.sum(1))


def train_and_test(
    train: Images,
    test: Images,
    settings: JudgeSettings,
    seed: int = 0,
    n_seeds: int = 3,
    draws: int = 1000,
    num_classes: int | None = None,
) -> Scores:
    """Mean over seeds of a classifier trained on one labelled set and tested on another."""
    y_train, y_test = check_labels(train, "training set"), check_labels(test, "test set")
    train.require_same_spec(test, "utility")
    check_taught(y_train, y_test)
    k = num_classes or int(y_train.max()) + 1
    nets = [fit_present(train, y_train, k, settings, net_seed(seed, s)) for s in range(n_seeds)]
    return scores_of(nets, test, seed, draws)


def net_seed(seed: int, s: int) -> int:
    """Seed of the s-th network of an experiment."""
    return derive_seed("utility", seed, s)


def check_taught(y_train: Tensor, y_test: Tensor) -> None:
    """VerisimError if a class of the test images occurs in no training image."""
    if unseen := set(y_test.tolist()) - set(y_train.tolist()):
        raise VerisimError(f"utility: classes {sorted(unseen)} are tested but never trained on.")


def scores_of(
    nets: Sequence[nn.Module],  # (B, C, *S) -> (B, K) logits or (B,) scores, larger = more abnormal
    test: Images,
    seed: int = 0,
    draws: int = 1000,
    normal: int | None = None,  # class that a score is measured against; None for logits
) -> Scores:
    """Mean over networks of the scores on one set; the same seed gives the same resamples, so gains are paired."""
    y = check_labels(test, "test set") if normal is None else check_kinds(test, normal, "test set")
    rng = torch.Generator().manual_seed(derive_seed("utility bootstrap", seed, len(test)))
    weights = resample_weights(len(test), draws, rng, test.patients)
    outputs = [logits(net, test.pixels.float()) for net in nets]
    if not all(bool(torch.isfinite(o).all()) for o in outputs):
        raise VerisimError(
            "utility: a network gave NaN or Inf, its training did not converge. Train it longer."
        )
    if normal is not None:
        found = [weighted_auc(o, y != normal, weights) for o in outputs]
        value, drawn = sum(r[0] for r in found) / len(nets), torch.stack([r[1] for r in found]).mean(0)
        return Scores(from_draws(value, drawn[torch.isfinite(drawn)]), None, drawn)
    results = [macro_scores(o, y, weights) for o in outputs]
    a, b = sum(r[0] for r in results) / len(nets), sum(r[1] for r in results) / len(nets)
    da, db = torch.stack([r[2] for r in results]).mean(0), torch.stack([r[3] for r in results]).mean(0)
    ok = torch.isfinite(da) & torch.isfinite(db)  # a resample may lack a class
    return Scores(from_draws(a, da[ok]), from_draws(b, db[ok]), da)


def fit_present(train: Images, labels: Tensor, k: int, settings: JudgeSettings, seed: int) -> torch.nn.Module:
    """Fit with the k classes 0...k-1; an error names those without an image."""
    counts = torch.bincount(labels, minlength=k)
    if bool((counts == 0).any()):
        raise VerisimError(
            f"utility: no training image of class {(counts == 0).nonzero().flatten().tolist()}."
        )
    return fit(train.pixels.float(), labels, k, settings, seed, train.patients)


def join(a: Images, b: Images) -> Images:
    """Both labelled sets as one; images without a patient become their own."""
    a.require_same_spec(b, "utility, real + synthetic")
    if a.labels is None or b.labels is None:
        raise VerisimError("utility, real + synthetic: both sets need labels.")
    patients = tuple(a.patients or [f"a{i}" for i in range(len(a))])
    patients += tuple(b.patients or [f"b{i}" for i in range(len(b))])
    return Images(torch.cat((a.pixels, b.pixels)), a.spec, torch.cat((a.labels, b.labels)), patients)


def gain(both: Scores, trtr: Scores) -> Estimate:
    """Paired difference in AUC of two classifiers tested on the same images."""
    paired = torch.isfinite(trtr.auc_draws) & torch.isfinite(both.auc_draws)
    spread = difference(both.auc_draws[paired], trtr.auc_draws[paired])
    return Estimate(both.auc.value - trtr.auc.value, spread.low, spread.high, spread.se)


def shuffled_labels(
    train: Images, test: Images, settings: JudgeSettings, seed: int, permutations: int, draws: int
) -> Estimate:
    """Control: AUC after training on shuffled labels; must be 0.5.

    Mean over permutations with an interval that covers their spread: a single one may by chance learn a
    real direction, forwards or backwards.
    """
    check_labels(train, "training set")
    return without_labels(
        train, lambda lost, s: train_and_test(lost, test, settings, s, 1, draws), seed, permutations
    )


def without_labels(
    train: Images, run: Callable[[Images, int], Scores], seed: int, permutations: int
) -> Estimate:
    """AUC of run(images with shuffled labels, its seed), pooled over permutations."""
    labels, found = train.labels, []
    assert labels is not None
    for s in range(permutations):
        order = torch.randperm(
            len(labels), generator=torch.Generator().manual_seed(derive_seed("utility shuffle", seed, s))
        )
        found.append(run(replace(train, labels=labels[order]), derive_seed(seed, s)).auc)
    return pool(found)


def utility(
    real_train: Images,
    real_test: Images,
    synthetic: Images,
    settings: JudgeSettings | None = None,
    seed: int = 0,
    n_seeds: int = 3,
    draws: int = 1000,
    class_names: Sequence[str] | None = None,
    trtr: Scores | None = None,
) -> dict:
    """The four experiments of this file; JSON-able.

    `synthetic` carries the label each image was made for. `gain` is the paired difference in AUC. trtr: what
    train_and_test gave for the real images with the same settings, where it is known already.
    """
    settings = settings or JudgeSettings()

    def run(train: Images, test: Images) -> Scores:
        return train_and_test(train, test, settings, seed, n_seeds, draws)

    check_labels(synthetic, "synthetic set")
    trtr = trtr or run(real_train, real_test)
    both = run(join(real_train, synthetic), real_test)
    return {
        "trtr": trtr.as_dict(),
        "tstr": run(synthetic, real_test).as_dict(),
        "trts": run(real_train, synthetic).as_dict(),
        "real_plus_synthetic": both.as_dict(),
        "gain_auc": gain(both, trtr).as_dict(),
        "n_real_train": len(real_train),
        "n_real_test": len(real_test),
        "n_synthetic": len(synthetic),
        "classes": list(class_names) if class_names else sorted(set(check_labels(real_train, "").tolist())),
        "n_seeds": n_seeds,
    }

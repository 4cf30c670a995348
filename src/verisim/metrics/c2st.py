"""Classifier two-sample test: can a fresh judge tell fakes from real images it has not seen?

AUC 0.5 = it cannot, 1 = always (Lopez-Paz 2017). Trained on real training images and as many fakes,
judged on held-out patients and fresh fakes, several seeds, interval over images, patients and seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.metrics.bootstrap import Estimate, from_draws, resample_weights
from verisim.metrics.judges import JudgeSettings, SmallCNN, binary_score, fit
from verisim.seeding import derive_seed

LEAST_TRAIN, LEAST_TEST = 32, 16  # images per class below which a judge says nothing


@dataclass(frozen=True)
class Split:
    """The four image sets of one test; no patient may be in both a training and a test set."""

    real_train: Images
    fake_train: Images
    real_test: Images
    fake_test: Images

    def check(self) -> None:
        """VerisimError if a set is too small, RangeError if the sets do not mean the same."""
        for name, least in (("real_train", LEAST_TRAIN), ("fake_train", LEAST_TRAIN)):
            self._least(name, least)
        for name in ("real_test", "fake_test"):
            self._least(name, LEAST_TEST)
        for other in (self.fake_train, self.real_test, self.fake_test):
            self.real_train.require_same_spec(other, "two-sample test")

    def _least(self, name: str, least: int) -> None:
        n = len(getattr(self, name))
        if n < least:
            raise VerisimError(
                f"two-sample test: {n} images in {name}, at least {least} are needed. Add images."
            )


@dataclass(frozen=True)
class C2ST:
    """Result; AUC of real over fake. Scores and judges are kept for the cross matrix."""

    auc: Estimate
    accuracy: Estimate  # balanced, threshold at equal odds
    seeds: list[float]  # AUC per judge
    n_train: int  # images of each class that the judge saw
    n_real_test: int
    n_fake_test: int
    judges: list[SmallCNN]

    def as_dict(self) -> dict:
        return {
            "auc": self.auc.as_dict(),
            "accuracy": self.accuracy.as_dict(),
            "seeds": self.seeds,
            "n_train": self.n_train,
            "n_real_test": self.n_real_test,
            "n_fake_test": self.n_fake_test,
        }


def split_fakes(fake: Images, n_train: int, n_test: int) -> tuple[Images, Images]:
    """First part for training, rest for testing: n_train and n_test if there are enough, else in proportion."""
    n = len(fake)
    if n >= n_train + n_test:
        cut, end = n_train, n_train + n_test
    else:
        cut, end = round(n * n_train / (n_train + n_test)), n
    return fake.subset(torch.arange(cut)), fake.subset(torch.arange(cut, end))


def pairwise_wins(positive: Tensor, negative: Tensor) -> Tensor:
    """(P, M) float64: 1 where the positive score is higher, 1/2 at a tie; its mean is the AUC."""
    d = positive.double()[:, None] - negative.double()[None, :]
    return (d > 0).double() + 0.5 * (d == 0).double()


def auc(positive: Tensor, negative: Tensor) -> float:
    """Area under the ROC curve, exact (Mann-Whitney)."""
    return float(pairwise_wins(positive, negative).mean())


def train_judge(split: Split, settings: JudgeSettings, seed: int) -> SmallCNN:
    """A fresh judge: class 1 = real, class 0 = fake, equally many of each."""
    rng = torch.Generator().manual_seed(derive_seed("c2st", seed))
    n = min(len(split.real_train), len(split.fake_train))
    real = split.real_train.subset(torch.randperm(len(split.real_train), generator=rng)[:n])
    fake = split.fake_train.subset(torch.randperm(len(split.fake_train), generator=rng)[:n])
    groups = [*_names(fake, "fake"), *_names(real, "real")]
    x = torch.cat((fake.pixels, real.pixels)).float()
    y = torch.arange(2).repeat_interleave(n)
    return fit(x, y, 2, settings, seed, groups)


def _names(images: Images, prefix: str) -> list[str]:
    """Patients where known (so that blurred or real 'fakes' keep theirs), else one name per image."""
    return list(images.patients or [f"{prefix}{i}" for i in range(len(images))])


def c2st(
    splits: Sequence[Split] | Split,
    settings: JudgeSettings,
    seed: int = 0,
    n_seeds: int = 3,
    draws: int = 1000,
) -> C2ST:
    """Train `n_seeds` judges and score held-out images. One split for all seeds, or one split per seed.

    The interval resamples seeds, fakes and real patients together.
    """
    each = [splits] * n_seeds if isinstance(splits, Split) else list(splits)
    if len(each) != n_seeds:
        raise VerisimError(f"two-sample test: {len(each)} splits for {n_seeds} seeds. Give one per seed.")
    judges, auc_draws, acc_draws, aucs, accs = [], [], [], [], []
    for s, split in enumerate(each):
        split.check()
        judge = train_judge(split, settings, derive_seed(seed, s))
        real, fake = binary_score(judge, split.real_test.pixels), binary_score(judge, split.fake_test.pixels)
        shared = s if len({id(e) for e in each}) > 1 else 0  # the same images get the same resamples
        rng = torch.Generator().manual_seed(derive_seed("c2st bootstrap", seed, shared))
        wr = resample_weights(len(real), draws, rng, split.real_test.patients)
        wf = resample_weights(len(fake), draws, rng, split.fake_test.patients)
        wins = pairwise_wins(real, fake)
        auc_draws.append(((wr @ wins) * wf).sum(1) / (wr.sum(1) * wf.sum(1)))
        hit_r, hit_f = (real > 0).double(), (fake <= 0).double()
        acc_draws.append(((wr @ hit_r) / wr.sum(1) + (wf @ hit_f) / wf.sum(1)) / 2)
        aucs.append(float(wins.mean()))
        accs.append(float((hit_r.mean() + hit_f.mean()) / 2))
        judges.append(judge)
    rng = torch.Generator().manual_seed(derive_seed("c2st seeds", seed))
    weight = resample_weights(n_seeds, draws, rng) / n_seeds  # (B, S)
    first = each[0]
    return C2ST(
        auc=_over_seeds(aucs, auc_draws, weight),
        accuracy=_over_seeds(accs, acc_draws, weight),
        seeds=aucs,
        n_train=min(len(first.real_train), len(first.fake_train)),
        n_real_test=len(first.real_test),
        n_fake_test=len(first.fake_test),
        judges=judges,
    )


def _over_seeds(values: list[float], draws: list[Tensor], weight: Tensor) -> Estimate:
    """Mean over seeds; draws (S lists of (B,)) are mixed with resampled seeds (B, S)."""
    return from_draws(sum(values) / len(values), (torch.stack(draws, 1) * weight).sum(1))

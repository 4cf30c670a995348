"""What the rows of a fair comparison share: settings, reference features, and the control entries."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from verisim.data.spec import Images
from verisim.metrics import controls
from verisim.metrics.c2st import LEAST_TEST, LEAST_TRAIN, Split, split_fakes
from verisim.metrics.features import FeatureNetwork
from verisim.metrics.judges import JudgeSettings, SmallCNN, split_groups
from verisim.seeding import derive_seed
from verisim.seeding import generator as seeded

CONTROLS = ("real", "copies", "blurred", "marginal", "noise")


@dataclass(frozen=True)
class FairSettings:
    """Settings of a fair comparison; the same for all its entries."""

    n_seeds: int = 3  # judges per entry
    c2st_steps: int = 200  # training steps of a judge
    k: int = 5  # neighbours in precision, recall, density, coverage
    bootstrap: int = 1000  # resamples of an interval
    networks: tuple[str, ...] = ("random", "domain", "pixels")  # feature networks; also "name=FILE"
    domain_steps: int = 300  # training steps of the domain network
    max_fakes: int = 1000  # fakes used per entry
    n_nearest: int = 8  # closest (sample, training image) pairs listed for pictures
    judge_width: int = 16  # channels of a judge's first convolution
    seed: int = 0  # of everything random in the evaluation


PRESETS: dict[str, FairSettings] = {
    "full": FairSettings(),
    "smoke": FairSettings(
        n_seeds=2, c2st_steps=15, bootstrap=50, domain_steps=10, max_fakes=150, judge_width=4
    ),
    "quick": FairSettings(n_seeds=2, c2st_steps=80, bootstrap=300, domain_steps=80, max_fakes=500),
}


@dataclass(frozen=True)
class Bench:
    """What every row is measured against; made once per comparison."""

    train: Images
    test: Images
    settings: FairSettings
    networks: list[FeatureNetwork]
    n_fake: int  # fakes per entry in FD, KID, PRDC, diversity
    cache: dict[tuple[str, str], Tensor] = field(default_factory=dict)  # embeddings of train and test

    @property
    def judge(self) -> JudgeSettings:
        return JudgeSettings(steps=self.settings.c2st_steps, width=self.settings.judge_width)

    def judge_from(self, weights: dict[str, Tensor]) -> SmallCNN:
        """The judge that was trained with these settings, rebuilt from its weights."""
        spec = self.train.spec
        net = SmallCNN(spec.spatial_dims, spec.channels, 2, self.settings.judge_width, max(spec.size))
        net.load_state_dict(weights)
        return net.eval()

    def embed(self, images: Images, net: FeatureNetwork | None) -> Tensor:
        """(N, D) float64: features, or the pixels themselves without a network."""
        known = {id(self.train): "train", id(self.test): "test"}.get(id(images))
        key = (known or "", "" if net is None else net.name)
        if key in self.cache:
            return self.cache[key]
        out = images.pixels.flatten(1).double() if net is None else net.embed(images)
        if known:
            self.cache[key] = out
        return out


@dataclass(frozen=True)
class Entry:
    """One row: fakes for distribution measures, splits for the judges, fakes for memorisation."""

    kind: str  # "generator" or "control"
    fakes: Images
    splits: list[Split] | Split | str  # a string says why there is no two-sample test
    memory: tuple[Images, Images]  # (images asked whether they are copies, held-out reals)


def control_entries(bench: Bench) -> dict[str, Entry]:
    """Perfect (real), cheating (copies), blurred, pixel-marginal and noise 'generators'."""
    s, train, test = bench.settings, bench.train, bench.test
    rng = seeded("fair controls", s.seed)
    halves = [_halves(train, test, derive_seed("halves", s.seed, i)) for i in range(s.n_seeds)]
    blur_halves = [
        replace(h, fake_train=_blurred(h.fake_train), fake_test=_blurred(h.fake_test)) for h in halves
    ]
    shuffled = train.subset(torch.randperm(len(train), generator=rng))
    held, asked = halves[0].real_test, halves[0].fake_test
    no_judge = "copies of the judge's own training images cannot be told apart from them"
    n = len(train) + len(test)
    marginal = controls.pixel_marginal(train, n, rng).quantise()
    noise = controls.noise_like(train, n, rng).quantise()
    return {
        "real": Entry("control", shuffled, halves, (asked, held)),
        "copies": Entry("control", shuffled, no_judge, (train, test)),
        "blurred": Entry("control", _blurred(shuffled), blur_halves, (_blurred(asked), held)),
        "marginal": replace(generator_entry(marginal, bench), kind="control"),
        "noise": replace(generator_entry(noise, bench), kind="control"),
    }


def _blurred(images: Images) -> Images:
    return controls.blurred(images).quantise()


def _halves(train: Images, test: Images, seed: int) -> Split:
    """Real against real: training and held-out patients, each cut into two halves without a common patient."""
    rng = torch.Generator().manual_seed(seed)
    a, b = split_groups(len(train), 0.5, rng, train.patients)
    c, d = split_groups(len(test), 0.5, rng, test.patients)
    return Split(train.subset(a), train.subset(b), test.subset(c), test.subset(d))


def generator_entry(fake: Images, bench: Bench) -> Entry:
    """The first fakes train the judges, the next ones are held out."""
    least = LEAST_TRAIN + LEAST_TEST
    splits: Split | str = f"{len(fake)} samples, at least {least} are needed"
    if len(fake) >= least:
        first, second = split_fakes(fake, len(bench.train), len(bench.test))
        splits = Split(bench.train, first, bench.test, second)
    return Entry("generator", fake, splits, (fake, bench.test))

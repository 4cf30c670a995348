"""One downstream user under test: the same settings, seeds and resamples whatever images it learns from."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from verisim.data.spec import Images
from verisim.errors import VerisimError, pick
from verisim.metrics.bootstrap import from_se
from verisim.metrics.controls import noise_like
from verisim.metrics.utility import (
    Scores,
    check_kinds,
    check_labels,
    check_taught,
    gain,
    net_seed,
    scores_of,
    without_labels,
)
from verisim.seeding import generator as seeded
from verisim.tasks.downstream import DOWNSTREAM
from verisim.tasks.downstream.base import Downstream, DownstreamSettings, normal_images


@dataclass(frozen=True)
class Trained:
    """Networks of several seeds, and the images that taught them."""

    nets: list[nn.Module]
    images: Images


@dataclass(frozen=True)
class Experiment:
    """How one downstream user is trained and tested."""

    name: str  # key of DOWNSTREAM
    normal: int | None  # class that counts as normal; None for users that need none
    settings: DownstreamSettings
    seed: int = 0
    n_seeds: int = 3  # networks per training set
    draws: int = 1000  # bootstrap resamples

    @property
    def user(self) -> Downstream:
        return pick(DOWNSTREAM, self.name, "task")

    @property
    def word(self) -> str:
        """What to call it in a sentence."""
        return "classifier" if self.user.output == "logits" else "detector"

    @property
    def control_kind(self) -> str:
        return "shuffled labels" if self.user.learns_from == "labels" else "noise images"

    @property
    def scored_against(self) -> int | None:
        """The normal class for detectors, None for classifiers."""
        return self.normal if self.user.output == "scores" else None

    def check(self, images: Images, where: str) -> None:
        """VerisimError unless these images can teach this user."""
        side = min(images.spec.size)
        if side < self.user.least_side:
            raise VerisimError(
                f"{self.name} needs images of at least {self.user.least_side} pixels per side; these have {side}. "
                f"Take larger ones (--data.size) or leave this task out."
            )
        if self.user.output == "logits":
            check_labels(images, where)
        elif self.user.learns_from == "labels" and self.normal is not None:
            check_kinds(images, self.normal, where)
        elif images.labels is None:
            raise VerisimError(
                f"utility, {where}: the images have no labels. Name a label column of the manifest."
            )
        if self.user.needs_normal:
            normal_images(images, self.normal)

    def train(self, images: Images) -> Trained:
        """n_seeds networks. VerisimError for images that cannot teach."""
        self.check(images, "training set")
        seeds = [net_seed(self.seed, s) for s in range(self.n_seeds)]
        return Trained([self.user.fit(images, self.normal, self.settings, s) for s in seeds], images)

    def test(self, trained: Trained, images: Images) -> Scores:
        """Scores on other images. VerisimError for sets that cannot be compared."""
        self.check_test(trained.images, images)
        return scores_of(trained.nets, images, self.seed, self.draws, self.scored_against)

    def check_test(self, train: Images, test: Images) -> None:
        """VerisimError unless what is learned from one set can be tested on the other."""
        train.require_same_spec(test, "utility")
        if self.scored_against is not None:
            check_kinds(test, self.scored_against, "test set")
        else:
            check_taught(check_labels(train, "training set"), check_labels(test, "test set"))

    def run(self, train: Images, test: Images) -> Scores:
        """Train on one set, test on the other."""
        self.check_test(train, test)
        return self.test(self.train(train), test)

    def control(self, train: Images, test: Images, real: Scores, permutations: int) -> dict[str, Any]:
        """What must not work as well: shuffled labels, or noise for who learns from normal images alone.

        A classifier with shuffled labels must be at 0.5, or something leaks: labels the other way round would turn
        its answers round. A detector's control need not be at 0.5. After training on noise its score still depends
        on brightness and contrast, and unsure answers (of the confidence head) need no true labels to be given for
        odd images. It is a floor that real images must exceed, or nothing was learned from them.
        """
        if self.user.learns_from == "normal images":
            noise = self.run(self.noise(train), test)
            more = gain(real, noise).as_dict()
            return {"kind": self.control_kind, "must_be": None, **noise.as_dict(), "real_minus_this": more}

        def lost(images: Images, seed: int) -> Scores:
            return replace(self, seed=seed, n_seeds=1).run(images, test)

        found = without_labels(train, lost, self.seed, permutations)
        if self.user.output == "logits":
            return {"kind": self.control_kind, "must_be": 0.5, "auc": found.as_dict()}
        more = from_se(real.auc.value - found.value, math.hypot(real.auc.se, found.se)).as_dict()
        return {"kind": self.control_kind, "must_be": None, "auc": found.as_dict(), "real_minus_this": more}

    def noise(self, train: Images) -> Images:
        """As many noise images as there are normal ones, called normal."""
        assert train.labels is not None and self.normal is not None
        normal = train.subset(train.labels == self.normal)
        made = noise_like(normal, len(normal), seeded("utility noise", self.seed))
        return replace(made, labels=torch.full((len(made),), self.normal)).quantise()

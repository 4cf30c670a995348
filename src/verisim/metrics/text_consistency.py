"""Does an image show what its text asks for? Measured on chest phantoms with a ruler that knows the anatomy.

Each number stands between two controls: the floor, what the same images reach with each other's texts, and the
ceiling, what drawn phantoms reach with their own reports (the ruler errs too). Spec 000, C5, acceptance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.metrics.bootstrap import Estimate, mean_estimate
from verisim.phantoms.chest_findings import measure_states
from verisim.phantoms.chest_report import STATES, read_report
from verisim.seeding import generator

DRAWS = 1000  # bootstrap resamples


@dataclass(frozen=True)
class Agreement:
    """How often one factor is as asked."""

    asked: int  # images whose text states the factor
    accuracy: Estimate  # share of those that show it
    chance: float  # the same, expected over all ways to deal the texts out anew
    balanced: float  # mean over the states asked for, so that rare ones count as much
    balanced_chance: float  # likewise, expected over all ways to deal the texts out anew


def text_consistency(
    images: Images, texts: Sequence[str] | None = None, seed: int = 0
) -> dict[str, Agreement]:
    """Factor -> agreement of what texts ask for with what images (N, 1, H, W) show; images.texts by default.

    Factors that no text states are left out. VerisimError without texts, or where none states anything.
    """
    texts = images.texts if texts is None else texts
    if texts is None or len(texts) != len(images):
        n = 0 if texts is None else len(texts)
        raise VerisimError(f"text_consistency: {n} texts for {len(images)} images. Give one for each.")
    wanted = [read_report(t) for t in texts]
    seen = measure_states(images)
    found = {}
    for factor, measured in seen.items():
        rows = [i for i, w in enumerate(wanted) if factor in w]
        if rows:
            asked = torch.tensor([STATES[factor].index(wanted[i][factor]) for i in rows])
            found[factor] = agreement(asked, measured[rows], len(STATES[factor]), seed)
    if not found:
        raise VerisimError(
            f"text_consistency: no text states a factor that can be measured ({', '.join(seen)}), for example "
            f"'Cardiomegaly. No pleural effusion.'"
        )
    return found


def agreement(asked: Tensor, measured: Tensor, num_states: int, seed: int = 0) -> Agreement:
    """Agreement of two sets of class indices (N,) int64 in 0...num_states - 1.

    Dealt out at random, an image that shows k meets a text that asks for k with probability n_asked(k) / N: the
    chance is a closed form, sum_k n_asked(k) n_measured(k) / N^2.
    """
    hit = (asked == measured).double()
    n_asked = torch.bincount(asked, minlength=num_states).double()
    n_shown = torch.bincount(measured, minlength=num_states).double()
    there = n_asked > 0
    share = torch.zeros(num_states, dtype=torch.float64).scatter_add_(0, asked, hit)[there] / n_asked[there]
    n = len(asked)
    return Agreement(
        asked=n,
        accuracy=mean_estimate(hit, DRAWS, generator("text-consistency", seed)),
        chance=float((n_asked * n_shown).sum() / n**2),
        balanced=float(share.mean()),
        balanced_chance=float((n_shown[there] / n).mean()),
    )

"""Readers whose error rates are known: Fleiss' kappa and AUROC against closed forms, and against what source 002 prints.

A reader says yes with probability `sensitivity` where there is a finding and 1 - `specificity` where there is none,
independently of the others. The majority of an odd number of readers stands for the truth, as in the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from verisim.metrics.c2st import auc
from verisim.seeding import generator
from verisim.tasks.detection import reader_table

READERS = {  # name -> sensitivity and specificity of each
    "three good readers": ((0.80, 0.96), (0.95, 0.97), (0.96, 0.96)),
    "one of three guesses": ((0.50, 0.50), (0.95, 0.97), (0.96, 0.96)),
    "all guess": ((0.50, 0.50), (0.50, 0.50), (0.50, 0.50)),
}
PREVALENCE = 0.45  # 39 and 40 of 86
PUBLISHED = {  # source 002, chapter 6: kappa, AUROC of three readers, their mean, scans with the finding among the 86 tested
    "bleeding left": (0.745, (0.877, 0.982, 0.985), 0.948, 39),
    "bleeding right": (0.705, (0.893, 0.945, 0.964), 0.934, 40),
    "fracture": (0.632, (0.901, 0.955, 0.921), 0.926, 20),
}
TABLE = {  # source 002, chapter 6, table 2: fracture -> scans bleeding on both sides, left only, right only, neither
    True: (4, 3, 7, 6),
    False: (16, 16, 13, 21),
}
MARGINS = {"left": 39, "right": 40, "fracture": 20, "healthy": 21, "all": 86}  # spec 002, T2
TEXT = {"right": 47, "train": 111, "test": 21, "healthy": 131}  # what the source's appendix B says in words


def expected(readers: Sequence[tuple[float, float]], prevalence: float) -> dict[str, Any]:
    """Kappa and AUROC that infinitely many scans give: sums over truth and all patterns of answers."""
    n = len(readers)
    agree = yes = majority = 0.0
    hits, alarms = [0.0] * n, [0.0] * n  # P(reader yes, majority yes), P(reader yes, majority no)
    for truth, pattern in product((True, False), product((True, False), repeat=n)):
        p = prevalence if truth else 1 - prevalence
        for (sensitivity, specificity), said in zip(readers, pattern):
            says = sensitivity if truth else 1 - specificity
            p *= says if said else 1 - says
        count = sum(pattern)
        agree += p * (count * (count - 1) + (n - count) * (n - count - 1)) / (n * (n - 1))
        yes += p * count / n
        majority += p * (count > n / 2)
        for k, said in enumerate(pattern):
            hits[k] += p * (said and count > n / 2)
            alarms[k] += p * (said and count < n / 2)
    chance = yes**2 + (1 - yes) ** 2
    against = [(h / majority + 1 - a / (1 - majority)) / 2 for h, a in zip(hits, alarms)]
    return {
        "kappa": (agree - chance) / (1 - chance),
        "auroc": against,
        "auroc_truth": [sum(r) / 2 for r in readers],
    }


def reads(
    readers: Sequence[tuple[float, float]], n: int, prevalence: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Truth (n,) and answers (n, R), bool."""
    g = generator("readers", seed, n)
    truth = torch.rand(n, generator=g) < prevalence
    sensitivity, specificity = torch.tensor(readers).T
    says = torch.where(truth[:, None], sensitivity, 1 - specificity)
    return truth, torch.rand(n, len(readers), generator=g) < says


def simulated(studies: int, scans: int, few: int) -> dict[str, Any]:
    """Readers -> closed form, mean over `studies` of `scans` scans, and where nineteen of twenty studies of 86 scans lie."""
    rows = {}
    for name, readers in READERS.items():
        large = [_study(readers, scans, k) for k in range(studies)]
        small = torch.tensor([_study(readers, MARGINS["all"], 1000 + k)["kappa"] for k in range(few)])
        rows[name] = {
            "expected": expected(readers, PREVALENCE),
            "kappa": _mean([s["kappa"] for s in large]),
            "auroc": [_mean([s["auroc"][k] for s in large]) for k in range(len(readers))],
            "auroc_truth": [_mean([s["auroc_truth"][k] for s in large]) for k in range(len(readers))],
            "kappa_of_86": [float(v) for v in small.double().quantile(torch.tensor([0.025, 0.975]).double())],
        }
    return rows


def _study(readers: Sequence[tuple[float, float]], n: int, seed: int) -> dict[str, Any]:
    truth, said = reads(readers, n, PREVALENCE, seed)
    own = [auc(r[truth], r[~truth]) for r in said.double().unbind(1)]
    return {**reader_table(said), "auroc_truth": own}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def margins() -> dict[str, int]:
    """What the source's table of the test scans adds up to."""
    both, left, right, neither = (sum(TABLE[f][k] for f in TABLE) for k in range(4))
    return {
        "left": both + left,
        "right": both + right,
        "fracture": sum(TABLE[True]),
        "healthy": TABLE[False][3],
        "all": both + left + right + neither,
        "without left": right + neither,
    }


def possible_kappas(aurocs: Sequence[float], abnormal: int, scans: int) -> tuple[float, float]:
    """Least and greatest Fleiss' kappa of three yes-or-no readers with these AUROCs against their own majority.

    Reader i differs from the majority in a_i of the y abnormal and b_i of the n normal scans, a_i / y + b_i / n =
    2 (1 - AUROC_i); never two readers in one scan, so a fraction (sum a + sum b) / N of scans is split, and
    agreement is 1 - 2/3 of it. Between all errors among abnormal and all among normal scans lies the rest.
    """
    errors, n = sum(2 * (1 - a) for a in aurocs), scans - abnormal
    kappas = []
    for k in range(101):
        a, b = errors * abnormal * k / 100, errors * n * (1 - k / 100)
        yes = (3 * abnormal - a + b) / (3 * scans)
        chance = yes**2 + (1 - yes) ** 2
        kappas.append((1 - 2 / 3 * (a + b) / scans - chance) / (1 - chance))
    return min(kappas), max(kappas)


def published() -> dict[str, Any]:
    """Finding -> what the source prints, and what can be computed from it."""
    return {
        name: {
            "kappa": kappa,
            "auroc": list(each),
            "mean": mean,
            "mean_of_printed": sum(each) / 3,
            "possible_kappa": list(possible_kappas(each, abnormal, MARGINS["all"])),
        }
        for name, (kappa, each, mean, abnormal) in PUBLISHED.items()
    }

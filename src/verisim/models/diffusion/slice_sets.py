"""Which slices are learned from which, and in what order a volume is drawn. Harvey 2022; spec 003, section 16-G.

Training mixes arithmetic progressions of all spacings, each given or asked for, so that near and far pairs of
slices are learned from few volumes. Drawing a volume is a plan: pairs of (slices given, slices asked for).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from verisim.errors import VerisimError

Plan = list[tuple[list[int], list[int]]]  # (observed, targets) of each stage
PLANS = ("autoregressive", "hierarchical")


class SliceSet(NamedTuple):
    """Slots of one training sample, (N,) each; a slot that is neither observed nor target is padding."""

    numbers: Tensor  # int64, of slices
    target: Tensor  # bool
    observed: Tensor  # bool


def progression(depth: int, most: int, generator: torch.Generator | None = None) -> list[int]:
    """1 to `most` slice numbers with equal spacing, which is drawn log-uniformly up to what fits."""
    rand = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    s = 1 + min(int(rand[0] * most), most - 1)
    scale = math.exp(rand[1] * math.log(max(depth / (s - 0.999), 1.0)))
    scale = min(scale, (depth - 1) / (s - 1)) if s > 1 else 1.0
    first = rand[2] * (depth - scale * (s - 1))
    return sorted({min(int(first + k * scale), depth - 1) for k in range(s)})


def draw_slice_sets(depth: int, budget: int, generator: torch.Generator | None = None) -> SliceSet:
    """Slices to learn and slices to learn them from, at most `budget` in all; at least one to learn."""
    slots = min(budget, depth)
    target: dict[int, bool] = {}
    while len(target) < slots:
        new = [i for i in progression(depth, slots, generator) if i not in target]
        ask = not target or float(torch.rand((), generator=generator)) < 0.5
        if len(new) > slots - len(target):
            break
        target.update(dict.fromkeys(new, ask))
    pad = slots - len(target)
    index = torch.tensor([*target, *[0] * pad])
    asked = torch.tensor([*target.values(), *[False] * pad])
    return SliceSet(index, asked, ~asked & (torch.arange(slots) < len(target)))


def plan_slices(
    depth: int,  # slices of the volume
    budget: int,  # most slices seen at once
    kind: str = "autoregressive",  # start with the first slices, or (hierarchical) with slices all over
    overlap: int = 0,  # slices given in each later stage; 0 = half of the budget
    known: Sequence[int] = (),  # slices that are there already
) -> Plan:
    """Stages that draw every missing slice once: the next ones missing, given those nearest to them.

    VerisimError for a plan that does not exist or does not advance.
    """
    overlap = overlap or budget // 2
    if kind not in PLANS:
        raise VerisimError(f"Unknown plan '{kind}'. Known: {', '.join(PLANS)}.")
    if depth > 1 and not 1 <= overlap < budget:
        raise VerisimError(
            f"overlap = {overlap}: 1 to {budget - 1} of {budget} slices can be given, so that one at least is drawn."
        )
    odd = [i for i in known if not 0 <= i < depth]
    if odd:
        raise VerisimError(f"Slice {odd[0]} is said to be known; this volume has slices 0 to {depth - 1}.")
    plan: Plan = []
    done = sorted(set(known))
    if not done:
        first = min(budget, depth)
        start = list(range(first))
        if kind == "hierarchical" and first > 1:
            start = [round(k * (depth - 1) / (first - 1)) for k in range(first)]
        plan.append(([], start))
        done = start
    while len(done) < depth:
        missing = [i for i in range(depth) if i not in done]
        targets = missing[: budget - min(overlap, len(done))]
        near = sorted(done, key=lambda i: (min(abs(i - t) for t in targets), -i))
        plan.append((sorted(near[: budget - len(targets)]), targets))
        done = sorted({*done, *targets})
    return plan

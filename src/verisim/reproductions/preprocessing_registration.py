"""Planted motions of head CTs, found again by registration; masks of halves and skull before and after."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verisim.data.align import align_rigid, carried, correlation, motion_of
from verisim.data.register import Registered, register_rigid
from verisim.metrics.bootstrap import mean_estimate
from verisim.metrics.segmentation import dice
from verisim.phantoms import moved_heads
from verisim.phantoms.head_ct import WINDOW
from verisim.phantoms.moved_heads import Heads, shown
from verisim.seeding import generator
from verisim.tasks.head_parts import bone_level, head_parts

AIR = -500.0  # HU: what is brighter belongs to the head
WINDOWS = (WINDOW, (-1024.0, 3071.0))  # HU: the phantom's own, in which bone is white, and CT's whole range
SEED = 40  # of the heads; 0 and 21 were looked at while the search was mended
Method = Callable[..., Registered]


@dataclass(frozen=True)
class Plan:
    """What is planted in heads of one size."""

    size: tuple[int, ...]
    heads: int
    turns: tuple[float, ...]  # degrees, each with a shift of BESIDE[1]
    shifts: tuple[float, ...]  # mm, each with a turn of BESIDE[0]
    tilts: tuple[float, ...]  # degrees, of the masks


BESIDE = (5.0, 5.0)  # degrees and mm that go with the other


def methods() -> dict[str, Method]:
    """Name -> registration; mutual information where SimpleITK is installed."""
    found: dict[str, Method] = {"correlation": align_rigid}
    if importlib.util.find_spec("SimpleITK") is not None:
        found["mutual information"] = register_rigid
    return found


def planted(plan: Plan, kind: str, amount: float, k: int) -> np.ndarray:
    """The motion of head k: a turn of `amount` degrees, or a shift of `amount` mm, about and along random axes."""
    turn, shift = (amount, BESIDE[1]) if kind == "turn" else (BESIDE[0], amount)
    g = generator("planted-motion", kind, str(amount), k, len(plan.size))
    dims = len(plan.size)
    axis, way = torch.randn(dims * (dims - 1) // 2, generator=g), torch.randn(dims, generator=g)
    mm = moved_heads.spacing(plan.size)
    return moved_heads.rigid(plan.size, (turn * axis / axis.norm()).tolist(), (shift / mm * way / way.norm()).tolist())  # fmt: skip


def sweep(plan: Plan) -> dict[str, Any]:
    """Method -> 'turn 10' -> residuals of every head; and of the controls."""
    heads = moved_heads.make(plan.heads, SEED, plan.size)
    levels = [("turn", a) for a in plan.turns] + [("shift", a) for a in plan.shifts]
    return {
        name: {
            "levels": {f"{kind} {a:g}": _level(method, plan, heads, kind, a) for kind, a in levels},
            "controls": _controls(method, plan, heads),
        }
        for name, method in methods().items()
    }


def _level(method: Method, plan: Plan, heads: Heads, kind: str, amount: float) -> dict[str, Any]:
    rows = []
    for k in range(len(heads)):
        motion = planted(plan, kind, amount, k)
        fixed, moving = _pair(heads, k, k, motion)
        rows.append(_residuals(method(moving, fixed, (heads.mm,) * len(plan.size)), heads, k, motion, fixed))
    return summary(rows)


def _pair(heads: Heads, still: int, moved: int, motion: np.ndarray | None) -> tuple[Tensor, Tensor]:
    return shown(heads.scan(still, None, 1), WINDOW), shown(heads.scan(moved, motion, 2), WINDOW)


def _residuals(
    found: Registered, heads: Heads, k: int, motion: np.ndarray, fixed: Tensor
) -> dict[str, float]:
    """What is left of the motion: degrees, mm of the middle, mean and largest mm over the head's pixels; before and after."""
    dims = len(heads.size)
    mm, size = (heads.mm,) * 3, (1,) * (3 - dims) + heads.size
    inside = (heads.scan(k)[0] > AIR).nonzero().double().numpy()  # (n, d)
    points = np.concatenate([np.zeros((len(inside), 3 - dims)), inside, np.ones((len(inside), 1))], 1)
    row: dict[str, float] = {}
    for when, rest in (("before", motion), ("after", motion @ found.matrix)):
        off = heads.mm * np.linalg.norm((points @ (rest.T - np.eye(4)))[:, :3], axis=1)
        degrees, shift = motion_of(rest, mm, size)
        row |= {f"degrees_{when}": degrees, f"mm_{when}": shift}
        row |= {f"head_mm_{when}": float(off.mean()), f"most_mm_{when}": float(off.max())}
    everywhere = torch.ones_like(fixed, dtype=torch.bool)
    row["correlation"] = correlation(found.pixels, fixed, everywhere)
    row["recovered"] = float(row["most_mm_after"] < heads.mm)  # every pixel of the head within a pixel
    return row


def summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Every number with its interval over heads, and of each head."""
    found: dict[str, Any] = {"heads": rows}
    for key in rows[0]:
        values = torch.tensor([r[key] for r in rows], dtype=torch.float64)
        found[key] = mean_estimate(values, 1000, generator("preprocessing", key)).as_dict()
    return found


def _controls(method: Method, plan: Plan, heads: Heads) -> dict[str, Any]:
    """Ten degrees to find again where the reference is another person's head, and where it is noise alone."""
    found: dict[str, Any] = {}
    for name in ("own", "another head", "noise"):
        rows = []
        for k in range(len(heads)):
            motion = planted(plan, "turn", 10.0, k)
            still = (k + 1) % len(heads) if name == "another head" else k
            fixed, moving = _pair(heads, still, k, motion)
            if name == "noise":
                fixed = torch.randn(fixed.shape, generator=generator("noise-reference", k)).mul(0.3).clamp(-1, 1)  # fmt: skip
            rows.append(
                _residuals(method(moving, fixed, (heads.mm,) * len(plan.size)), heads, k, motion, fixed)
            )
        found[name] = summary(rows)
    return found


# --- masks ----------------------------------------------------------------------------------------


def masks(plan: Plan) -> dict[str, Any]:
    """Window -> Dice of halves and skull with the phantom's own: as heads lie, tilted, and tilted and registered.

    Registered to another, straight head as `verisim detect --register` does, by mutual information; by correlation where
    SimpleITK is missing.
    """
    heads = moved_heads.make(plan.heads + 1, SEED, plan.size)  # the last one is the reference
    return {f"{w[0]:g} to {w[1]:g} HU": _masks_shown(plan, heads, w) for w in WINDOWS}


def _masks_shown(plan: Plan, heads: Heads, window: tuple[float, float]) -> dict[str, Any]:
    method, mm = list(methods().values())[-1], (heads.mm,) * len(plan.size)
    reference = shown(heads.scan(plan.heads, None, 3), window)
    still: list[np.ndarray | None] = [None] * plan.heads
    rows: dict[str, Any] = {"as they lie": _dice_rows(heads, window, still, still)}
    for tilt in plan.tilts:
        motions = [planted_tilt(plan.size, tilt * (-1) ** k) for k in range(plan.heads)]  # to both sides
        found = [
            method(shown(heads.scan(k, m, 2), window), reference, mm).matrix for k, m in enumerate(motions)
        ]
        rows[f"tilted {tilt:g}"] = _dice_rows(heads, window, motions, still)
        rows[f"tilted {tilt:g}, registered"] = _dice_rows(heads, window, motions, found)
        rows[f"tilted {tilt:g}, interpolated"] = _dice_rows(heads, window, motions, found, smooth=True)
    return rows


def planted_tilt(size: tuple[int, ...], degrees: float) -> np.ndarray:
    """A turn in the axial plane, the last of `rigid`'s planes."""
    planes = len(size) * (len(size) - 1) // 2
    return moved_heads.rigid(size, (*[0.0] * (planes - 1), degrees), (0.0,) * len(size))


def _dice_rows(
    heads: Heads,
    window: tuple[float, float],
    motions: Sequence[np.ndarray | None],  # of each head
    back: Sequence[np.ndarray | None],  # then the map that a registration found; None = not registered
    smooth: bool = False,  # control: structures found in the interpolated scan
) -> dict[str, Any]:
    """Mean Dice per part."""
    values: dict[str, list[float]] = {name: [] for name in moved_heads.PARTS}
    for k, (motion, matrix) in enumerate(zip(motions, back)):
        x = shown(heads.scan(k, motion, 2), window)
        truth = {name: heads.part(k, name, motion) for name in values}
        if matrix is not None:
            x = carried(x, matrix, heads.size, nearest=not smooth)[0]
            truth = {
                n: carried(t.float(), matrix, heads.size, background=0.0)[0] > 0.5 for n, t in truth.items()
            }
        found = head_parts(x[None], bone_level(window))
        for name, t in truth.items():
            values[name].append(float(dice(found[name], t[None])))
    return {name: _estimate(v) for name, v in values.items()}


def _estimate(values: Sequence[float]) -> dict[str, Any]:
    x = torch.tensor(values, dtype=torch.float64)
    return {**mean_estimate(x, 1000, generator("preprocessing")).as_dict(), "each": list(values)}

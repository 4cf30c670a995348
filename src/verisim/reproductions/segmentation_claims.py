"""What source 002 (chapter 7) and its specification claim of diffusion segmentation, held against our numbers."""

from __future__ import annotations

from typing import Any

import torch

from verisim.metrics.bootstrap import Estimate, from_draws, resample_weights
from verisim.reproductions.result import Claim

PAIRS = (  # name, system that is said to be better, the other one, measure, statement, where
    ("patch-full", "B-D", "B-E", "dice", "PatchDDM segments better than FullRes at equal time", "Table 2"),
    ("patch-half", "B-D", "B-F", "dice", "PatchDDM has a higher Dice than HalfRes", "Table 2"),
    ("half-hd95", "B-F", "B-D", "hd95", "HalfRes has a lower HD95 than PatchDDM", "Table 2"),
    ("coordinates", "B-D", "B-G", "dice", "Crops need their coordinates", "section 7.3; spec G"),
    (
        "skips",
        "B-D",
        "B-H",
        "dice",
        "Averaged skips beat concatenated ones at equal memory",
        "section 7.2; spec H",
    ),
    ("sum", "B-D", "B-H:sum", "dice", "Averaged skips beat plain sums", "section 7.2; spec H"),
    (
        "root",
        "B-D",
        "B-H:root",
        "dice",
        "Averaged skips beat sums over the root of two",
        "section 7.2; spec H",
    ),
    (
        "attention",
        "B-H:attention",
        "B-D",
        "dice",
        "Attention on the coarsest level helps",
        "ours: the source left it out",
    ),
    (
        "control",
        "B-D",
        "B-D:shuffled",
        "dice",
        "Trained with masks of other cases it fails",
        "negative control",
    ),
    ("threshold", "B-D", "threshold", "dice", "PatchDDM beats the best single threshold", "spec 1.5"),
)
SOURCE = "source 002, "


def claims(numbers: dict[str, Any]) -> list[Claim]:
    """All claims whose systems are among the numbers."""
    cases = {name: rows for name, rows in numbers["cases"].items() if rows}
    found = []
    for name, better, other, measure, statement, where in PAIRS:
        if better in cases and other in cases:
            gain = _gain(cases[better], cases[other], measure)
            found.append(
                Claim(
                    name, statement, SOURCE + where, _sign(gain), _words(cases, better, other, measure, gain)
                )
            )
    upper = _upper(cases)
    return [
        *found,
        *([upper] if upper else []),
        *(_of_memory(numbers["facts"]) if numbers.get("phantoms", True) else []),  # crops of half the side
        *_of_sampling(numbers["sweep"], numbers.get("phantoms", True)),
        *_of_reference(numbers["reference"], cases.get("B-D", []), numbers["scale"]),
        *_of_variance(numbers["systems"]),
    ]


def _gain(better: list[dict[str, Any]], other: list[dict[str, Any]], measure: str) -> Estimate:
    """Mean advantage over the same cases with its bootstrap interval; positive = better."""
    sign = 1 if measure == "dice" else -1
    rows = [sign * (b[measure] - o[measure]) for b, o in zip(better, other)]
    d = torch.tensor(rows, dtype=torch.float64)
    w = resample_weights(len(d), 1000, torch.Generator().manual_seed(0))
    return from_draws(float(d.mean()), (w @ d) / w.sum(1))


def _sign(e: Estimate) -> bool | None:
    """True if the whole interval is above 0, False if below, None if it covers 0."""
    return True if e.low > 0 else False if e.high < 0 else None


def _mean(rows: list[dict[str, Any]], measure: str) -> float:
    return sum(r[measure] for r in rows) / len(rows)


def _words(cases: dict[str, Any], a: str, b: str, measure: str, gain: Estimate) -> str:
    values = ", ".join(f"{n} {_mean(cases[n], measure):.3f}" for n in (a, b))
    return f"{measure}: {values}; advantage {gain.value:.3f} [{gain.low:.3f}, {gain.high:.3f}], {len(cases[a])} cases"


def _upper(cases: dict[str, Any]) -> Claim | None:
    """The supervised reference beats every diffusion system."""
    rivals = [n for n in cases if n.startswith("B-") and n not in ("B-J", "B-D:shuffled")]
    if "B-J" not in cases or not rivals:
        return None
    best = max(rivals, key=lambda n: _mean(cases[n], "dice"))
    gain = _gain(cases["B-J"], cases[best], "dice")
    text = _words(cases, "B-J", best, "dice", gain)
    return Claim(
        "upper",
        "The supervised U-Net beats every diffusion system",
        SOURCE + "Table 2; spec J",
        _sign(gain),
        text,
    )


def _of_memory(facts: dict[str, dict[str, Any]]) -> list[Claim]:
    """Crops against whole volumes, and the widths of averaged and concatenated skips."""
    memory = {name: f["memory"] for name, f in facts.items()}
    found = []
    if {"B-D", "B-E"} <= memory.keys():
        ratio = memory["B-E"] / memory["B-D"]
        text = f"B-D {memory['B-D']:.2f} MiB, B-E {memory['B-E']:.2f} MiB: 1/{ratio:.2f}"
        statement = "A training step on crops keeps at most 1/7 of one on whole volumes"
        found.append(Claim("memory", statement, SOURCE + "Table 1 (1/7.4)", ratio >= 7, text))
    if {"B-D", "B-H"} <= memory.keys():
        text = f"B-D {memory['B-D']:.2f} MiB, B-H {memory['B-H']:.2f} MiB"
        statement = "The two kinds of skips were compared at equal memory, to a tenth"
        holds = abs(memory["B-H"] / memory["B-D"] - 1) <= 0.1
        found.append(Claim("skips-memory", statement, SOURCE + "section 7.2; spec H", holds, text))
    return found


def _of_sampling(cells: list[dict[str, Any]], phantoms: bool) -> list[Claim]:
    """The study of steps and members, of B-D."""
    if not cells:
        return []
    at = {(c["steps"], c["members"]): c["dice"] for c in cells}
    steps, members = sorted({s for s, _ in at}), sorted({m for _, m in at})
    few, most, many = steps[0], steps[-1], members[-1]
    rescue = at[few, many] - at[few, members[0]]
    found = [
        Claim(
            "rescue",
            "Ensembles rescue samples of few steps",
            SOURCE + "figure 5; spec T9, D.9 (by 0.2)",
            rescue >= 0.2,
            f"{few} steps: Dice {at[few, members[0]]:.3f} alone, {at[few, many]:.3f} with {many} members",
        )
    ]
    if 20 in steps and most > 20:
        change = at[20, members[0]] - at[most, members[0]]
        text = f"one member: Dice {at[20, members[0]]:.3f} at 20 steps, {at[most, members[0]]:.3f} at {most}"
        where = SOURCE + "figure 5 (within 0.02)"
        found.append(Claim("twenty", "20 steps are as good as many", where, change >= -0.02, text))
    middle = 20 if 20 in steps else most
    alone, together = at[middle, members[0]], at[middle, many]
    text = f"{middle} steps: Dice {alone:.3f} alone, {together:.3f} with {many} members"
    found.append(
        Claim("ensemble", "An ensemble is better than one sample", SOURCE + "Table 2", together > alone, text)
    )
    top = at[most, members[-1]]
    if phantoms:
        text = f"Dice {top:.3f} at {most} steps and {many} members"
        statement = "PatchDDM segments phantoms with a Dice of 0.80 or more"
        found.append(Claim("works", statement, "spec 002, D.9", top >= 0.8, text))
    return found


def _of_reference(
    long: list[dict[str, Any]], judged: list[dict[str, Any]], scale: dict[str, Any]
) -> list[Claim]:
    """A few steps and an ensemble against one sample of many steps, on the same cases."""
    if not long or not judged:
        return []
    (steps, members), many = scale["judged"], scale["reference"][0]
    gain = _gain(judged[: len(long)], long, "dice")
    text = (
        f"Dice {_mean(judged[: len(long)], 'dice'):.3f} with {steps} steps and {members} members, "
        f"{_mean(long, 'dice'):.3f} with {many} steps and one; advantage {gain.value:.3f} "
        f"[{gain.low:.3f}, {gain.high:.3f}], {len(long)} cases"
    )
    statement = f"{steps} steps with {members} members come within 0.01 Dice of one sample of {many} steps"
    return [Claim("reference", statement, "threshold ours", gain.value >= -0.01, text)]


def _of_variance(systems: dict[str, Any]) -> list[Claim]:
    """Where the ensemble's variance is high, the mask is more often wrong."""
    known = systems.get("B-D", {}).get("calibration")
    if known is None or known["auroc"] is None:
        return []
    rates = ["-" if r is None else f"{r:.3f}" for r in known["error_rate"]]
    text = f"AUROC {known['auroc']:.3f}; share of wrong pixels by rising variance: {', '.join(rates)}"
    statement = "The variance map of PatchDDM knows where the mask is wrong (AUROC above 0.8)"
    return [Claim("variance", statement, SOURCE + "section 7.4; threshold ours", known["auroc"] > 0.8, text)]

"""What the sources claim of the trained core, held against our numbers."""

from __future__ import annotations

from typing import Any

from verisim.metrics.bootstrap import Estimate, pool, tie
from verisim.reproductions.bench import of_system, shown
from verisim.reproductions.few_steps_claims import controls, nearer, within
from verisim.reproductions.result import Claim

MANY = "2-DDPM"
FEWER = (  # row, statement, source
    ("dpmpp_2m:20", "20 evaluations are as good as 1000 ancestral steps", "ours, within its interval"),
    (
        "dpmpp_2m_sde:20",
        "20 evaluations with noise added are as good as 1000 ancestral steps",
        "ours, within its interval",
    ),
    (
        "13-DDIM",
        "DDIM with 50 steps is as good as 1000 ancestral steps",
        "003, section 13.3.2; within its interval",
    ),
    ("2-DDPM:50", "50 ancestral steps are as good as 1000", "within its interval; expected not to hold"),
)


def claims(numbers: dict[str, Any]) -> list[Claim]:
    """All claims whose systems are among the numbers ("rows", "controls", "classes", "bounds")."""
    rows = numbers["rows"]
    found = [controls(numbers)]
    found += [
        _fewer(numbers, row, statement, source) for row, statement, source in FEWER if f"{row}@0" in rows
    ]
    for row in ("13-DDIM", "W-BG8"):
        if f"{row}@0" in rows:
            found.append(_within_a_fifth(numbers, row))
    if "4-ReNoise@0" in rows and f"{MANY}@0" in rows:
        found.append(_renoise(numbers))
    if {"2-DDPM@0", "2-LearnedVar@0"} <= set(numbers["bounds"]):
        found.append(_learned_variance(numbers["bounds"]))
    if "2-CFG:1@0" in rows:
        found += _guidance(numbers)
    return found


def _networks(numbers: dict[str, Any]) -> list[str]:
    return list(numbers["controls"]["real"]["fd"])


def _fd(numbers: dict[str, Any], system: str, network: str) -> Estimate:
    found = of_system(numbers["rows"], system, "fd", network)
    assert found is not None
    return found


def _fewer(numbers: dict[str, Any], row: str, statement: str, source: str) -> Claim:
    """As good in every feature network, or undecided."""
    verdicts, words = set(), []
    for network in _networks(numbers):
        ours, many = _fd(numbers, row, network), _fd(numbers, MANY, network)
        verdicts.add(within(ours, many))
        words.append(f"{network}: {shown(row, ours)}, {shown(MANY, many)}")
    return Claim(row, statement, source, verdicts.pop() if len(verdicts) == 1 else None, "; ".join(words))


def _within_a_fifth(numbers: dict[str, Any], row: str) -> Claim:
    """The distance to real images grows by at most 20 %."""
    ratios = {n: _fd(numbers, row, n).value / _fd(numbers, MANY, n).value for n in _networks(numbers)}
    text = ", ".join(f"{n}: {r:.2f} times that of {MANY}" for n, r in ratios.items())
    statement = f"{row} is within 20 % of 1000 ancestral steps"
    return Claim(f"fifth-{row}", statement, "000, BG8", all(r <= 1.2 for r in ratios.values()), text)


def _renoise(numbers: dict[str, Any]) -> Claim:
    verdicts, words = set(), []
    for network in _networks(numbers):
        ours, theirs = _fd(numbers, "4-ReNoise", network), _fd(numbers, "2-DDPM:50", network)
        verdicts.add(nearer(ours, theirs))
        words.append(f"{network}: {shown('4-ReNoise', ours)}, {shown('2-DDPM:50', theirs)}")
    statement = (
        "Re-noising with 50 levels is nearer to real images than 50 ancestral steps of a linear schedule"
    )
    holds = verdicts.pop() if len(verdicts) == 1 else None
    return Claim("renoise", statement, "ours, on 003, section 4.5", holds, "; ".join(words))


def _learned_variance(bounds: dict[str, Any]) -> Claim:
    fixed, learned = (
        pool([Estimate.from_dict(b) for name, b in bounds.items() if name.startswith(f"{s}@")])
        for s in ("2-DDPM", "2-LearnedVar")
    )
    holds = None if tie(fixed, learned) else learned.value < fixed.value
    text = f"bits per dimension: {shown('learned', learned)}, {shown('fixed', fixed)}"
    statement = "A learned variance has a lower bound in bits per dimension at 50 steps than a fixed one"
    return Claim("learned-variance", statement, "Nichol 2021; 003, eq. 2.28", holds, text)


def _guidance(numbers: dict[str, Any]) -> list[Claim]:
    """The class is the better seen the stronger the guidance; without it, not at all."""
    classes = numbers["classes"]

    def at(weight: float) -> Estimate:
        rows = [Estimate.from_dict(e) for k, e in classes.items() if k.startswith(f"2-CFG:{weight:g}@")]
        return pool(rows)

    none, plain, strong = at(0.0), at(1.0), at(3.0)
    real, shuffled = (Estimate.from_dict(classes[k]) for k in ("real", "shuffled"))
    text = ", ".join(
        shown(n, e)
        for n, e in (
            ("guidance 0", none),
            ("1", plain),
            ("1.5", at(1.5)),
            ("3", strong),
            ("real images", real),
            ("shuffled labels", shuffled),
        )
    )
    chance = shuffled.low <= 0.5 <= shuffled.high and none.low <= 0.5 <= none.high
    return [
        Claim(
            "guidance",
            "Guidance 3 shows the class more clearly than 1 (AUC of a classifier of real images)",
            "003, section 2.4",
            None if tie(strong, plain) else strong.value > plain.value,
            text,
        ),
        Claim(
            "guidance-control",
            "Without guidance, or with shuffled labels, it is chance",
            "control",
            chance,
            text,
        ),
    ]

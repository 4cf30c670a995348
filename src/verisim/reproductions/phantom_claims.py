"""From numbers about phantoms to claims: exceptions that must not be, intervals that must hold a value or keep a margin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from verisim.metrics.bootstrap import Estimate
from verisim.reproductions.phantom_readings import (
    LEVELS,
    Case,
    above,
    below,
    shown,
    verdict,
    wanted,
)
from verisim.reproductions.result import Claim

WORDS = {"shuffled": "Against the factors of other images", "noise": "In images of noise"}


@dataclass(frozen=True)
class Finding:
    """A claim, and the numbers that decide it."""

    claim: Claim
    numbers: dict[str, Any]


def exact(name: str, statement: str, source: str, wrong: int, of: int, more: str = "") -> Finding:
    """It holds without exception, and there was something to look at."""
    text = f"{wrong} exceptions of {of}" + (f"; {more}" if more else "")
    return Finding(Claim(name, statement, source, wrong == 0 and of > 0, text), {"wrong": wrong, "of": of})


def equals(name: str, statement: str, source: str, found: Estimate, stated: float) -> Finding:
    """The interval holds the stated value."""
    text = f"{_number(found)}, stated {stated:g}"
    claim = Claim(name, statement, source, found.low <= stated <= found.high, text)
    return Finding(claim, {**found.as_dict(), "stated": stated})


def at_least(name: str, statement: str, source: str, found: Estimate, least: float) -> Finding:
    """The whole interval is at or above a margin; None if the margin is within."""
    text = f"{_number(found)}, at least {least:g} wanted"
    return Finding(
        Claim(name, statement, source, above(found, least), text), {**found.as_dict(), "least": least}
    )


def at_most(name: str, statement: str, source: str, found: Estimate, most: float) -> Finding:
    """The whole interval is at or below a margin; None if the margin is within."""
    text = f"{_number(found)}, at most {most:g} wanted"
    return Finding(
        Claim(name, statement, source, below(found, most), text), {**found.as_dict(), "most": most}
    )


def rises(name: str, statement: str, source: str, found: Estimate, sign: int = 1) -> Finding:
    """The whole interval is above 0, or below it if sign = -1; None if it holds 0."""
    low, high = sorted((sign * found.low, sign * found.high))
    holds = True if low > 0 else False if high < 0 else None
    return Finding(Claim(name, statement, source, holds, _number(found)), found.as_dict())


def plausible(name: str, statement: str, source: str, p: dict[str, float]) -> Finding:
    """None of several tests of a stated distribution rejects it at 1 % together (Bonferroni)."""
    limit = 0.01 / max(len(p), 1)
    wrong = {k: v for k, v in p.items() if not v >= limit}
    text = "; ".join(
        f"{k}: p = {v:.2g}" for k, v in (wrong or {min(p, key=lambda k: p[k]): min(p.values())}).items()
    )
    text = f"{len(wrong)} of {len(p)} rejected; " + ("" if wrong else "smallest ") + text
    return Finding(Claim(name, statement, source, not wrong, text), {"p": p})  # fmt: skip


def _number(e: Estimate) -> str:
    return f"{e.value:.4g} [{e.low:.4g}, {e.high:.4g}]"


def reading_claims(recipe: str, case: Case, found: dict[str, Any]) -> list[Claim]:
    """Each reading of a case, both controls, and how little it takes to lose the margins."""
    where = f"{case.phantom}, {case.name} pixels"
    claims = [
        Claim(
            f"{recipe}-{r.name}@{case.name}",
            f"The ruler reads {r.name} ({where}): {wanted(r)}",
            r.source,
            verdict(r, found["clean"][r.name]),
            shown(found["clean"][r.name]),
        )
        for r in case.readings
    ]
    return [*claims, *(_control(recipe, case, c, found) for c in WORDS), _mild(recipe, case, found)]


def _control(recipe: str, case: Case, control: str, found: dict[str, Any]) -> Claim:
    """No margin may be kept where there is nothing to read."""
    at = found["controls"][control]
    kept = [verdict(r, at[r.name]) for r in case.readings]
    holds = False if True in kept else None if None in kept else True
    text = "; ".join(f"{r.name} {shown(at[r.name])}" for r in case.readings)
    statement = f"{WORDS[control]} no margin is kept ({case.phantom}, {case.name} pixels)"
    return Claim(f"{recipe}-{control}@{case.name}", statement, "control", holds, text)


def _mild(recipe: str, case: Case, found: dict[str, Any]) -> Claim:
    """The mildest degradation of each kind leaves all margins kept."""
    mildest = [f"{kind} {levels[0]:g}" for kind, levels in LEVELS.items()]
    lost: list[str] = []
    open_: list[str] = []
    for at in mildest:
        for r in case.readings:
            kept = verdict(r, found["degraded"][at][r.name])
            if kept is not True:
                (lost if kept is False else open_).append(f"{r.name} at {at}")
    holds = False if lost else None if open_ else True
    text = f"lost: {', '.join(lost) or 'none'}; undecided: {', '.join(open_) or 'none'}"
    statement = (
        f"A blur of half a pixel or noise of 0.05 loses no margin ({case.phantom}, {case.name} pixels)"
    )
    return Claim(f"{recipe}-mild@{case.name}", statement, "ours", holds, text)

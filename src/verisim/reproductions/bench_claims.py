"""Claims about distances to real images, as every feature network of a bench sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from verisim.metrics.bootstrap import Estimate, tie
from verisim.reproductions.bench import of_system, shown, systems_of
from verisim.reproductions.result import Claim

Verdict = Callable[[Estimate, Estimate], bool | None]


def nearer(ours: Estimate, theirs: Estimate) -> bool | None:
    """Is our distance the smaller one? None for a tie."""
    return None if tie(ours, theirs) else ours.value < theirs.value


def within(ours: Estimate, theirs: Estimate) -> bool | None:
    """Is our distance no larger than the upper end of theirs? None if our interval reaches there."""
    return True if ours.value <= theirs.high else False if ours.low > theirs.high else None


def against(
    numbers: dict[str, Any],
    name: str,
    statement: str,
    source: str,
    ours: str,
    theirs: list[str],
    verdict: Verdict,
) -> Claim | None:
    """Ours against the best of theirs, in every feature network; None where the networks disagree or are not sure."""
    if not theirs:
        return None
    verdicts, words = set(), []
    for label in numbers["controls"]["real"]["fd"]:
        e = of_system(numbers["rows"], ours, "fd", label)
        others = [(of_system(numbers["rows"], s, "fd", label), s) for s in theirs]
        known = [(o, s) for o, s in others if o is not None]
        assert e is not None and known
        best, which = min(known, key=lambda o: o[0].value)
        verdicts.add(verdict(e, best))
        words.append(f"{label}: {shown(ours, e)}, {shown(which, best)}")
    holds = verdicts.pop() if len(verdicts) == 1 else None
    return Claim(name, statement, source, holds, "; ".join(words))


def controls(numbers: dict[str, Any]) -> Claim:
    """Real images come out before every system, and noise ten times as far as they, in every network."""
    rows, known = numbers["rows"], numbers["controls"]
    holds, words = True, []
    for label in known["real"]["fd"]:
        real, noise = (Estimate.from_dict(known[k]["fd"][label]) for k in ("real", "noise"))
        ours = [of_system(rows, s, "fd", label) for s in systems_of(rows)]
        holds &= all(real.value < e.value for e in ours if e is not None) and noise.value > 10 * real.value
        words.append(f"{label}: {shown('real', real)}, {shown('noise', noise)}")
    statement = (
        "Other real images are nearer to the held-out ones than any system's, and noise ten times as far"
    )
    return Claim("controls", statement, "controls", holds, "; ".join(words))

"""What is claimed of few-step generation, held against our numbers: by every feature network, or undecided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from verisim.metrics.bootstrap import Estimate, tie
from verisim.reproductions.bench import of_system, shown, systems_of
from verisim.reproductions.result import Claim

TEACHER, STUDENT, ADVERSARIAL = "X-D-fix", "17-G.1", "17-G.4"
COMPARED = 4  # steps at which students and adversarial diffusion are held against the whole of the teacher

Verdict = Callable[[Estimate, Estimate], bool | None]


def in_steps(system: str, n: int) -> str:
    """Name of a system that is drawn in n steps."""
    return f"{system}-{n}"


def claims(numbers: dict[str, Any]) -> list[Claim]:
    """All claims whose systems are among the numbers ("rows", "controls")."""
    rows = numbers["rows"]
    steps = sorted(int(s.rsplit("-", 1)[1]) for s in systems_of(rows) if s.startswith(f"{STUDENT}-"))
    found: list[Claim | None] = [controls(numbers)]
    for n in steps:
        found.append(
            _claim(
                numbers,
                f"student-{n}",
                f"In {n} step(s) a student is nearer to real images than its teacher by any sampler",
                "spec 003, 17-G.1",
                in_steps(STUDENT, n),
                _at(rows, n),
                nearer,
            )
        )
    if COMPARED in steps:
        found.append(
            _claim(
                numbers,
                "student-as-good",
                f"In {COMPARED} steps a student is within the interval of its teacher with all its steps",
                "spec 003, 17-G.1",
                in_steps(STUDENT, COMPARED),
                [TEACHER],
                within,
            )
        )
    if ADVERSARIAL in systems_of(rows):
        found.append(
            _claim(
                numbers,
                "adversarial",
                f"In {COMPARED} steps adversarial diffusion is nearer to real images than a diffusion model by any "
                f"sampler",
                "spec 003, 17-G.4",
                ADVERSARIAL,
                _at(rows, COMPARED),
                nearer,
            )
        )
    return [c for c in found if c is not None]


def nearer(ours: Estimate, theirs: Estimate) -> bool | None:
    """Is our distance the smaller one? None for a tie."""
    return None if tie(ours, theirs) else ours.value < theirs.value


def within(ours: Estimate, theirs: Estimate) -> bool | None:
    """Is our distance no larger than the upper end of theirs? None if our interval reaches there."""
    return True if ours.value <= theirs.high else False if ours.low > theirs.high else None


def _at(rows: dict[str, Any], n: int) -> list[str]:
    """Names of the teacher in n steps, one for each sampler."""
    return [s for s in systems_of(rows) if s.startswith(f"{TEACHER}:") and s.endswith(f"-{n}")]


def _claim(
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

"""What is claimed of few-step generation, held against our numbers: by every feature network, or undecided."""

from __future__ import annotations

from typing import Any

from verisim.reproductions.bench import systems_of
from verisim.reproductions.bench_claims import against, controls, nearer, within
from verisim.reproductions.result import Claim

TEACHER, STUDENT, ADVERSARIAL = "X-D-fix", "17-G.1", "17-G.4"
COMPARED = 4  # steps at which students and adversarial diffusion are held against the whole of the teacher


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
            against(
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
            against(
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
            against(
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


def _at(rows: dict[str, Any], n: int) -> list[str]:
    """Names of the teacher in n steps, one for each sampler."""
    return [s for s in systems_of(rows) if s.startswith(f"{TEACHER}:") and s.endswith(f"-{n}")]

"""What chapter 16 and its specification claim of ways to make volumes, held against our numbers."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from verisim.metrics.bootstrap import Estimate, tie
from verisim.reproductions.bench import anatomy_distance, of_system, shown, systems_of
from verisim.reproductions.result import Claim

FD = "FD(random)"


def claims(numbers: dict[str, Any]) -> list[Claim]:
    """All claims whose systems are among the numbers ("rows", "controls", "memory")."""
    rows, memory = numbers["rows"], numbers["memory"]
    found = [
        _controls(numbers),
        _memory(memory, "16-H", 4, "spec 003, 16-H"),
        _memory(memory, "16-F", 5, "spec 003, 16-F"),
        _wavelet(rows),
        _stripes(rows),
        _variation(rows),
        _diversity(numbers),
        _disagreement(rows),
    ]
    return [c for c in found if c is not None]


def _controls(numbers: dict[str, Any]) -> Claim:
    """Real volumes come out before every system, noise ten times as far as they; slices of real volumes fit together."""
    real, noise = (Estimate.from_dict(numbers["controls"][k]["fd"][FD]) for k in ("real", "noise"))
    ours = {s: of_system(numbers["rows"], s, "fd", FD) for s in systems_of(numbers["rows"])}
    values = [e.value for e in ours.values() if e is not None]
    slices = Estimate.from_dict(numbers["controls"]["real"]["slices"]["through_plane"])
    fits = abs(slices.value - 1) < 0.15
    holds = fits and all(real.value < v for v in values) and noise.value > 10 * real.value
    evidence = f"{FD}: {shown('real', real)}, {shown('noise', noise)}; {shown('real slices', slices)}"
    return Claim(
        "controls",
        "Other real volumes are nearer to the held-out ones than any system's, and noise ten times as far as they",
        "controls",
        holds,
        evidence,
    )


def _memory(memory: dict[str, float], system: str, times: int, source: str) -> Claim | None:
    """A system's training step keeps at most 1 / times of what pixels keep."""
    ours, pixels = memory.get(f"{system}@0"), memory.get("16-A@0")
    if ours is None or pixels is None:
        return None
    return Claim(
        f"memory-{system}",
        f"A training step of {system} keeps at most 1/{times} of what one of 16-A (pixels) keeps",
        source,
        ours * times <= pixels,
        f"{ours:.2f} MiB against {pixels:.2f} MiB for one volume",
    )


def _wavelet(rows: dict[str, Any]) -> Claim | None:
    """At equal time wavelets come out at less than half of the distance of pixels."""
    ours, pixels = (of_system(rows, s, "fd", FD) for s in ("16-H", "16-A"))
    if ours is None or pixels is None:
        return None
    return Claim(
        "wavelet-fd",
        "With equal processor time, wavelet diffusion comes to less than half of the distance of pixel diffusion",
        "spec 003, 16-H",
        ours.value < 0.5 * pixels.value,
        f"{FD}: {shown('16-H', ours)}, {shown('16-A', pixels)}",
    )


def _stripes(rows: dict[str, Any]) -> Claim | None:
    e = of_system(rows, "16-G", "slices", "stripes")
    if e is None:
        return None
    holds = e.value < 4
    statement = "Volumes drawn slice by slice have less than 4 times the stripes of real ones"
    return Claim("slice-stripes", statement, "spec 003, 16-G", holds, shown("stripes, fake / real", e))


def _variation(rows: dict[str, Any]) -> Claim | None:
    """Total variation along the slices lessens stripes by 40 %."""
    plain, smooth = (of_system(rows, s, "slices", "stripes") for s in ("16-G", "16-G:tv"))
    if plain is None or smooth is None:
        return None
    return Claim(
        "slice-tv",
        "Total variation along the slices takes at least 40 % of the stripes",
        "spec 003, 16-G",
        smooth.value <= 0.6 * plain.value,
        f"stripes, fake / real: {shown('before', plain)}, {shown('after', smooth)}",
    )


def _diversity(numbers: dict[str, Any]) -> Claim | None:
    """Pairs of a system's volumes are as alike as pairs of real ones."""
    real = Estimate.from_dict(numbers["controls"]["real"]["ms_ssim"])
    ours = {s: of_system(numbers["rows"], s, "ms_ssim") for s in systems_of(numbers["rows"])}
    off = {s: e.value - real.value for s, e in ours.items() if e is not None}
    if not off:
        return None
    return Claim(
        "ms-ssim",
        "MS-SSIM of pairs is within 0.08 of that of real pairs for every system",
        "spec 003, 16-L (tolerance of 16-C and 16-E)",
        all(abs(v) <= 0.08 for v in off.values()),
        f"{shown('real', real)}; difference: " + ", ".join(f"{s} {v:+.3f}" for s, v in off.items()),
    )


def _disagreement(rows: dict[str, Any]) -> Claim | None:
    """The chapter's thesis: feature distance and anatomy order at least one pair of systems differently."""
    systems = [s for s in systems_of(rows) if anatomy_distance(rows, s) is not None]
    if len(systems) < 2:
        return None
    against, clear = [], 0
    for a, b in combinations(systems, 2):
        x, y = of_system(rows, a, "fd", FD), of_system(rows, b, "fd", FD)
        p, q = anatomy_distance(rows, a), anatomy_distance(rows, b)
        assert x is not None and y is not None and p is not None and q is not None
        if tie(x, y):
            continue
        clear += 1
        if (x.value < y.value) != (p < q):
            against.append(f"{a}/{b}")
    text = ", ".join(f"{s} {anatomy_distance(rows, s):.2f}" for s in systems)
    return Claim(
        "fd-against-anatomy",
        "Feature distance and the rulers of anatomy order at least one pair of systems differently",
        "source 003, chapter 16 (figure 16.3)",
        bool(against) if clear else None,
        f"{len(against)} of {clear} pairs that {FD} tells apart: {', '.join(against) or 'none'}; anatomy: {text}",
    )

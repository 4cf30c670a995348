"""What source 004 and its specification claim, held against our numbers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from verisim.metrics.bootstrap import Estimate
from verisim.metrics.bootstrap import tie as tied
from verisim.reproductions.result import Claim

FAMILIES = {
    "GAN": ("X-G0", "X-G-fix"),
    "VAE": ("X-V0", "X-V-fix"),
    "autoregressive": ("X-A0", "X-A-fix"),
    "diffusion": ("X-D0", "X-D-fix"),
}


def claims(results: dict[str, Any], size: int) -> list[Claim]:
    """All claims whose systems are among the results."""
    summary = results["summary"]
    found = [_controls(summary, size), *_corrections(summary, size), *_author_ranking(summary, size)]
    found += [_diversity(summary, size), _bits(results, size), _laterality(summary, size)]
    return [c for c in found if c is not None]


def _estimate(summary: dict[str, Any], name: str, key: str) -> Estimate | None:
    node = summary.get(name, {}).get(key)
    return Estimate.from_dict(node) if node else None


def _text(name: str, e: Estimate) -> str:
    return f"{name} {e.value:.3f} [{e.low:.3f}, {e.high:.3f}]"


def _less(a: Estimate, b: Estimate) -> bool | None:
    """a < b, or None where the two tie."""
    return None if tied(a, b) else a.value < b.value


def _controls(summary: dict[str, Any], size: int) -> Claim | None:
    """The judges must not tell real from real, and must tell noise from real."""
    real, noise = (_estimate(summary, k, "c2st") for k in ("real", "noise"))
    if real is None or noise is None:
        return None
    holds = real.low <= 0.5 <= real.high and noise.value >= 0.99
    evidence = f"AUC: {_text('real against real', real)}, {_text('noise', noise)}"
    return Claim(f"controls@{size}", f"The judge passes its controls at {size} px", "E6", holds, evidence)


def _corrections(summary: dict[str, Any], size: int) -> list[Claim]:
    """Each corrected system against its literal form, by what the judge sees."""
    found = []
    for family, (literal, corrected) in FAMILIES.items():
        a, b = _estimate(summary, corrected, "c2st"), _estimate(summary, literal, "c2st")
        if a and b:
            text = f"AUC: {_text(corrected, a)}, {_text(literal, b)}"
            statement = (
                f"The corrected {family} model is harder to tell from real than the literal one, {size} px"
            )
            found.append(Claim(f"fix-{family}@{size}", statement, "spec 004, section 3", _less(a, b), text))
    return found


def _author_ranking(summary: dict[str, Any], size: int) -> list[Claim]:
    """diffusion > GAN > VAE > AR by the author's eye, for the literal and for the corrected systems."""
    found = []
    for which, label in ((0, "literal"), (1, "corrected")):
        order = [FAMILIES[f][which] for f in ("diffusion", "GAN", "VAE", "autoregressive")]
        values = [_estimate(summary, n, "c2st") for n in order]
        have = [v for v in values if v is not None]
        if len(have) < len(order):
            continue
        steps = [_less(a, b) for a, b in pairwise(have)]
        holds = False if False in steps else None if None in steps else True
        text = "AUC: " + ", ".join(_text(n, v) for n, v in zip(order, have))
        statement = f"diffusion > GAN > VAE > autoregressive ({label}), {size} px"
        found.append(Claim(f"ranking-{label}@{size}", statement, "source 004, overall ranking", holds, text))
    return found


def _diversity(summary: dict[str, Any], size: int) -> Claim | None:
    e = _estimate(summary, "X-D-fix", "diversity/image")
    if e is None:
        return None
    holds = 0.7 <= e.value <= 1.3
    statement = f"Diffusion samples are as diverse as real images (ratio 0.7 to 1.3), {size} px"
    return Claim(f"diversity@{size}", statement, "spec 004, section 8", holds, _text("ratio", e))


def _bits(results: dict[str, Any], size: int) -> Claim | None:
    """The corrected autoregressive model against the literal one and two baselines, in bits per dimension."""

    def bits(system: str) -> list[float]:
        rows = [v["likelihood"] for k, v in results["facts"].items() if k.split("@")[0] == system]
        return [r["bits_per_dim"] for r in rows if r and r["bits_per_dim"] is not None]

    ours, literal = bits("X-A-fix"), bits("X-A0")
    if not ours or not literal:
        return None
    baselines = results["baselines"]
    holds = max(ours) < min([*literal, *baselines.values()])
    text = f"corrected {_mean(ours):.3f}, literal {_mean(literal):.3f}, " + ", ".join(
        f"{k} {v:.3f}" for k, v in baselines.items()
    )
    statement = f"The gated PixelCNN beats the literal one and both baselines in bits/dim, {size} px"
    return Claim(f"bits@{size}", statement, "spec 004, section 3 A", holds, text)


def _laterality(summary: dict[str, Any], size: int) -> Claim | None:
    """No system may mirror the chest: none of ours flips in training."""
    flags = {n: e["flags"]["laterality"] for n, e in summary.items() if e["kind"] == "generator"}
    if not flags:
        return None
    bad = [n for n, k in flags.items() if k]
    text = f"flagged: {', '.join(bad) or 'none'} of {len(flags)} systems"
    statement = f"Samples keep the heart on the right side, {size} px"
    return Claim(f"laterality@{size}", statement, "spec 004, section 9", not bad, text)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)

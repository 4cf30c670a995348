"""What a prediction of a second visit would have to beat, and whether it does."""

from __future__ import annotations

from typing import Any

from verisim.reproductions.result import Claim

QUESTIONS = (  # name, better, worse, statement, who says so
    ("registered", "copied", "unregistered", "Registration brings second visits nearer to first ones than their headers do", "control"),
    ("nothing-changes", "predicted, years", "copied", "The prediction is nearer to the second visit than the first visit is", "spec 002, K.7"),
    ("others", "predicted, years", "others", "The prediction is nearer to the second visit than the mean of other people is", "control"),
    ("age", "predicted, years", "unchanged, years", "The prediction is nearer to the second visit than the model without change of age", "spec 002, K.7"),
    ("change", "changed, years", "copied", "The model's change, added to the first visit, brings it nearer to the second", "control"),
    ("unit", "predicted, years", "predicted, weeks", "With age in years the prediction is nearer than with age in weeks", "control"),
    ("identity", "copied", "others", "The first visit is nearer to the second than the mean of other people is", "control"),
)  # fmt: skip


def claims(numbers: dict[str, Any]) -> list[Claim]:
    """By PSNR, person by person: all or none decide; SSIM stands beside it."""
    return [_fits(numbers), *(_question(numbers["rows"], *q) for q in QUESTIONS)]


def _fits(numbers: dict[str, Any]) -> Claim:
    own = [r["correlation"] for r in numbers["registrations"] if r["same_patient"]]
    other = [r["correlation"] for r in numbers["registrations"] if not r["same_patient"]]
    text = f"{len(own)} second visits, correlation {', '.join(f'{r:.3f}' for r in own)}"
    if other:
        text += f"; registered to another person {', '.join(f'{r:.3f}' for r in other)}"
    if numbers["failed"]:
        text += f"; failed: {', '.join(numbers['failed'])}"
    holds = not numbers["failed"] and (not other or min(own) > max(other))
    return Claim("fits", "Every second visit is registered, and fits its first better than other people fit each other",
                 "control", holds, text)  # fmt: skip


def _question(rows: list[dict[str, Any]], name: str, a: str, b: str, statement: str, source: str) -> Claim:
    better = [r[a]["psnr"] > r[b]["psnr"] for r in rows]
    holds = True if all(better) else False if not any(better) else None
    pairs = [
        f"{r['patient']} {r[a]['psnr']:.2f} against {r[b]['psnr']:.2f} dB (SSIM {r[a]['ssim']:.3f}, {r[b]['ssim']:.3f})"
        for r in rows
    ]
    return Claim(name, statement, source, holds, "; ".join(pairs))

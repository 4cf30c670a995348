"""What source 002 and its specification claim of implicit development, held against our numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from verisim.metrics.bootstrap import Estimate, mean_estimate
from verisim.reproductions.result import Claim
from verisim.seeding import generator

SOURCE = {  # spec 002, K.8: PSNR dB, SSIM, MAE in 2D and 3D; head circumference sigma cm, r, slope cm per week (truth 0.79)
    "none": {"2D": (19.5, 0.642, 0.0701), "3D": (22.9, 0.804, 0.0352), "head": (3.850, 0.173, -0.04)},
    "SGLA": {"2D": (20.6, 0.683, 0.0571), "3D": (23.8, 0.832, 0.0274), "head": (2.137, 0.835, 0.36)},
    "SSL": {"2D": (21.3, 0.715, 0.0489), "3D": (24.5, 0.850, 0.0232), "head": (1.071, 0.962, 0.65)},
    "both": {"2D": (21.4, 0.722, 0.0468), "3D": (24.6, 0.853, 0.0225), "head": (0.964, 0.968, 0.69)},
    "DDM+GG": {"2D": (19.3, 0.632, 0.0682)},
}
SHUFFLED = "both, shuffled ages"
GUIDED = "DDM+GG"  # recipe B-M
TABLE = "source 002, table of K.8"
SPEC = "spec 002, K.10"


def claims(numbers: dict[str, Any]) -> list[Claim]:
    """All claims whose systems are among the numbers. PSNR: paired over tested subjects, mean of seeds first."""
    rows = numbers["rows"]
    found = [
        _above(rows, "SGLA", "none", "sgla", "SGLA alone is better than neither", TABLE),
        _above(rows, "SSL", "none", "ssl", "SSL alone is better than neither", TABLE),
        _above(rows, "SSL", "SGLA", "ssl-sgla", "SSL alone is better than SGLA alone", TABLE),
        _above(rows, "both", "SGLA", "both-sgla", "Both are better than SGLA alone", TABLE),
        _above(rows, "both", "SSL", "both-ssl", "Both are better than SSL alone", TABLE),
        _above(rows, "both", "none", "margin", "Both are at least 2 dB better than neither", SPEC, 2.0),
        _control(rows, "unchanged", "age", "The prediction is better than the subject with no change of age"),
        _control(rows, "copied", "copy", "The prediction is better than a copy of the scan"),
        _above(rows, "both", SHUFFLED, "shuffled", "Trained with shuffled ages, prediction fails by 2 dB or more", "control", 2.0),
        _above(rows, "both", GUIDED, "guided", "Both are better than diffusion guided by age, in the same processor time", TABLE),
        _control(rows, "copied", "guided-copy", "Diffusion guided by age is better than a copy of the scan", GUIDED),
        _control(rows, "unchanged", "guided-age", "Diffusion guided by age is better than guided to the scan's own age", GUIDED),
        *_heads(rows),
        *_atlas(numbers["atlas"]),
    ]  # fmt: skip
    return [c for c in found if c is not None]


def scores(rows: list[dict[str, Any]], key: str) -> Tensor:
    """(n,) per tested subject, mean over seeds."""
    return torch.tensor([r[key] for r in rows], dtype=torch.float64).mean(0)


def _judge(difference: Tensor, margin: float) -> tuple[bool | None, Estimate]:
    """True if the interval of the mean difference lies above the margin, False if below, None across."""
    e = mean_estimate(difference, 1000, generator("growth-claims"), None)
    return (True if e.low > margin else False if e.high < margin else None), e


def _above(
    rows: dict[str, Any], a: str, b: str, name: str, statement: str, source: str, margin: float = 0.0
) -> Claim | None:
    if not rows.get(a) or not rows.get(b):
        return None
    x, y = scores(rows[a], "predicted"), scores(rows[b], "predicted")
    holds, e = _judge(x - y, margin)
    text = f"PSNR {a} {float(x.mean()):.2f}, {b} {float(y.mean()):.2f} dB; difference {_text(e)}"
    return Claim(name, statement, source, holds, text)


def _control(rows: dict[str, Any], key: str, name: str, statement: str, system: str = "both") -> Claim | None:
    if not rows.get(system):
        return None
    x, y = scores(rows[system], "predicted"), scores(rows[system], key)
    holds, e = _judge(x - y, 0.0)
    return Claim(
        name,
        statement,
        "control",
        holds,
        f"PSNR {float(x.mean()):.2f} against {float(y.mean()):.2f} dB; {_text(e)}",
    )


def _text(e: Estimate) -> str:
    return f"{e.value:+.2f} [{e.low:+.2f}, {e.high:+.2f}] dB"


def _mean(rows: list[dict[str, Any]], key: str) -> float | None:
    """Mean over seeds of a head's number; None where one could not be measured."""
    values = [r["head"][key] for r in rows]
    return None if None in values else sum(values) / len(values)


def _heads(rows: dict[str, Any]) -> list[Claim]:
    if not rows.get("both") or not rows.get("none"):
        return []
    sigma = {n: _mean(rows[n], "sigma_mm") for n in ("none", "both")}
    r = _mean(rows["both"], "r")
    text = ", ".join(f"{n} {'not measurable' if v is None else f'{v:.1f} mm'}" for n, v in sigma.items())
    holds = None if sigma["both"] is None or sigma["none"] is None else sigma["both"] <= 0.7 * sigma["none"]
    return [
        Claim("sigma", "Both: head circumference errs at most 0.7 times as much as with neither (sigma)", SPEC, holds, text),
        Claim("r", "Both: head circumference correlates with the truth above 0.9", SPEC, None if r is None else r > 0.9,
              "not measurable" if r is None else f"r {r:.3f}"),
    ]  # fmt: skip


def _atlas(atlas: dict[str, Any]) -> list[Claim]:
    """Every seed must do."""
    found = []
    for kind, curves in atlas.items():
        seen = all(c["slope"] is not None for c in curves)
        good = [seen and abs(c["slope"] / c["true_slope"] - 1) <= 0.2 and c["r"] > 0.98 for c in curves]
        text = "; ".join(
            f"slope {c['slope']:.2f} of {c['true_slope']:.2f} mm per week, r {c['r']:.3f}" if c["slope"] is not None
            else "not measurable" for c in curves
        )  # fmt: skip
        found.append(Claim(f"atlas-{kind}", f"The {kind} latent's head grows within 20 % of the true slope, r > 0.98",
                           "spec 002, O", all(good) if seen else None, text))  # fmt: skip
    if atlas:
        pairs = [(m["sharpness"], z["sharpness"]) for m, z in zip(atlas["mean"], atlas["zero"])]
        text = "; ".join(f"mean absolute difference of neighbours {m:.4f} against {z:.4f}" for m, z in pairs)
        found.append(Claim("sharper", "Images of the mean latent are sharper than of the zero latent", "source 002, chapter 8",
                           all(m > z for m, z in pairs), text))  # fmt: skip
    return found

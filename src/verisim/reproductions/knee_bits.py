"""Table 6.1 at equal bits: what an image costs beside how near it comes back (K-E9).

The source ranked models of 144 bits beside models of thousands. Two systems measured at different rates are made
comparable by time sharing: a share of the images is coded with one, the rest with the other, and rate and mean
squared error are both the weighted means. That needs no assumption and no further training, so the lower convex
hull of the measured points is what a family of systems reaches for certain; the mean image is its point of 0 bits.

What is counted favours the Gaussian latents: their KL is the least that any coder could need for a draw from the
posterior, while their error is that of the posterior mean. Codes are counted at full length: positions x log2 K,
or the code length of a learned prior. A plain autoencoder has no rate and does not appear.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from verisim.metrics.bootstrap import Estimate, tie
from verisim.reproductions.knee_claims import as_text, mean_over_seeds
from verisim.reproductions.result import Claim

CODES = ("K-S6", "K-S7", "K-X1")  # systems whose latent is a map of integers
NAMES = {"K-S6": "VQ-VAE_std", "K-S7": "VQ-VAE_adpt", "K-X1": "VQ-VAE_adpt with the learned prior"}


@dataclass(frozen=True)
class Point:
    """One system (mean over seeds), or the mean image: bits per image and mean squared error x 1e5, held-out."""

    system: str
    bits: Estimate
    error: Estimate

    @property
    def codes(self) -> bool:
        return self.system in CODES


def points(numbers: Mapping[str, Any]) -> list[Point]:
    """Every system that has a rate, by rate, fewest bits first."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, row in numbers["reconstruction"].items():
        rows.setdefault(name.split("@")[0], []).append(row["test"])
    found = []
    for system, tests in rows.items():
        bits = mean_over_seeds([t["rate_bits"] for t in tests if t["rate_bits"] is not None])
        error = mean_over_seeds([t["mse_1e-5"] for t in tests])
        if bits is not None and error is not None and bits.value > 0:
            found.append(Point(system, bits, error))
    return sorted(found, key=lambda p: p.bits.value)


def mean_image(numbers: Mapping[str, Any]) -> Point:
    """The point of 0 bits: always the same picture."""
    nothing = Estimate(0.0, 0.0, 0.0, 0.0)
    return Point("mean image", nothing, Estimate.from_dict(numbers["trivial"]["mean image"]["mse_1e-5"]))


def hull(found: list[Point]) -> list[Point]:
    """Lower convex hull of points, fewest bits first: what time sharing among them cannot improve on."""
    kept: list[Point] = []
    for p in sorted(found, key=lambda p: (p.bits.value, p.error.value)):
        if kept and p.error.value >= kept[-1].error.value:
            continue  # more bits for no smaller error
        while len(kept) > 1 and _slope(kept[-2], kept[-1]) >= _slope(kept[-2], p):
            kept.pop()
        kept.append(p)
    return kept


def _slope(a: Point, b: Point) -> float:
    return (b.error.value - a.error.value) / (b.bits.value - a.bits.value)


def shared(corner: list[Point], bits: float) -> tuple[Estimate, str] | None:
    """Error of the mixture of two neighbouring corners of a hull that costs `bits`, and its name; None beyond the last.

    The interval is the mixture of both intervals (as if their errors were the same: never too narrow).
    """
    for a, b in pairwise(corner):
        if bits <= b.bits.value:
            t = (bits - a.bits.value) / (b.bits.value - a.bits.value)
            mixed = (
                (1 - t) * getattr(a.error, f) + t * getattr(b.error, f)
                for f in ("value", "low", "high", "se")
            )
            parts = [f"{share:.0%} {p.system}" for share, p in ((1 - t, a), (t, b)) if 0 < share < 1]
            return Estimate(*mixed), " + ".join(parts) or (b if t else a).system
    return None


def rate_rows(numbers: Mapping[str, Any], size: int, parameters: Mapping[str, int]) -> list[dict[str, Any]]:
    """The table: system, bits per image and pixel, error, whether it lies on its family's hull, parameters."""
    found, zero = points(numbers), mean_image(numbers)
    corners = {
        p.system for kind in (True, False) for p in hull([zero, *(p for p in found if p.codes == kind)])
    }
    return [
        {
            "system": p.system,
            "latent": "codes" if p.codes else "gaussian",
            "bits": p.bits.as_dict(),
            "bits_per_pixel": p.bits.value / size**2,
            "mse_1e-5": p.error.as_dict(),
            "on_hull": p.system in corners,
            "parameters": parameters.get(p.system),
        }
        for p in found
    ]


def bit_claims(numbers: Mapping[str, Any], size: int) -> list[Claim]:
    """Each system of codes against the best mixture of Gaussian latents at the same bits per image."""
    found, zero = points(numbers), mean_image(numbers)
    gaussian = hull([zero, *(p for p in found if not p.codes)])
    codes = hull([zero, *(p for p in found if p.codes)])
    if all(p.codes for p in found):
        return []
    return [_at_equal_bits(p, gaussian, codes, size) for p in found if p.codes]


def _at_equal_bits(p: Point, gaussian: list[Point], codes: list[Point], size: int) -> Claim:
    """At p's own bits; or, if no Gaussian system spends as many, at the most that one of them does."""
    bits, mine, name = p.bits.value, p.error, p.system
    rival = shared(gaussian, bits)
    if rival is None:
        bits = gaussian[-1].bits.value
        rival = (gaussian[-1].error, gaussian[-1].system)
        mine, name = shared(codes, bits) or (codes[-1].error, codes[-1].system)
    other, of = rival
    return Claim(
        f"bits-{p.system}@{size}",
        f"{NAMES[p.system]} reconstructs better than Gaussian latents at equal bits",
        "spec 001, section 8, point 16",
        None if tie(mine, other) else mine.value < other.value,
        f"{bits:.0f} bits per image; MSE x 1e5: {as_text(name, mine)}, {as_text(of, other)}",
    )

"""Which statements about report-to-image the numbers bear out (spec 000, C5, acceptance)."""

from __future__ import annotations

from typing import Any

from verisim.metrics.bootstrap import Estimate
from verisim.reproductions.result import Claim

SOURCE = "spec 000, C5"
TARGET = 0.85  # accuracy that the acceptance asks for


def claims(numbers: dict[str, Any]) -> list[Claim]:
    """One claim per statement; None where the interval does not decide."""
    found = []
    for key, factors in numbers["consistency"].items():
        control = key.startswith("textless")
        for factor, score in factors.items():
            found.append(_control(key, factor, score) if control else _above_floor(key, factor, score))
            if not control:
                found.append(_target(key, factor, score))
    return [*found, *_super_resolution(numbers["super_resolution"]), *_others(numbers)]


def _words(score: dict[str, Any]) -> str:
    e = Estimate.from_dict(score["accuracy"])
    return f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}], floor {score['chance']:.3f}, n {score['asked']}"


def _above_floor(key: str, factor: str, score: dict[str, Any]) -> Claim:
    e = Estimate.from_dict(score["accuracy"])
    holds = True if e.low > score["chance"] else False if e.high < score["chance"] else None
    return Claim(f"{factor}-asked-{key}", f"{key}: {factor} is as asked more often than by chance", SOURCE, holds,
                 _words(score))  # fmt: skip


def _target(key: str, factor: str, score: dict[str, Any]) -> Claim:
    e = Estimate.from_dict(score["accuracy"])
    holds = True if e.low >= TARGET else False if e.high < TARGET else None
    return Claim(f"{factor}-target-{key}", f"{key}: {factor} is as asked in {TARGET:.0%} of the images", SOURCE, holds,
                 _words(score))  # fmt: skip


def _control(key: str, factor: str, score: dict[str, Any]) -> Claim:
    e = Estimate.from_dict(score["accuracy"])
    return Claim(f"{factor}-control-{key}", f"{key}: without texts in training {factor} stays at chance", SOURCE,
                 e.low <= score["chance"] <= e.high, _words(score))  # fmt: skip


def _super_resolution(table: dict[str, Any]) -> list[Claim]:
    model, bicubic = table["model"], table["bicubic"]
    gain = model["psnr"]["value"] - bicubic["psnr"]["value"]
    energy = model["gradient_energy_error"], bicubic["gradient_energy_error"]
    low = model["low_image_error"], table["without the low image"]["low_image_error"]
    return [
        Claim("sr-psnr", "Super-resolution loses at most 1 dB against bicubic", SOURCE, gain >= -1, f"{gain:+.2f} dB"),
        Claim("sr-energy", "Its gradient energy is nearer to the real one than bicubic's", SOURCE,
              energy[0] < energy[1], f"off by {energy[0]:.1%} against {energy[1]:.1%}"),
        Claim("sr-control", "Without its low image the model is no enlargement of it (control)", "control",
              low[1] > 2 * low[0], f"low-image error {low[0]:.4f} with, {low[1]:.4f} without"),
    ]  # fmt: skip


def _others(numbers: dict[str, Any]) -> list[Claim]:
    ae, fill = Estimate.from_dict(numbers["autoencoder"]), numbers["inpainting"]
    return [
        Claim("ae", "The autoencoder reaches 28 dB on held-out phantoms", SOURCE, ae.low >= 28, f"{ae.value:.1f} dB"),
        Claim("fill", "Inpainting is nearer to the truth than the mean of what is known", SOURCE,
              fill["error"] < fill["error_of_mean_fill"],
              f"{fill['error']:.3f} against {fill['error_of_mean_fill']:.3f}"),
        Claim("fill-known", "Inpainting leaves the known pixels as they are", SOURCE,
              fill["largest_change_of_known"] == 0, f"largest change {fill['largest_change_of_known']:.1e}"),
    ]  # fmt: skip

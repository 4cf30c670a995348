"""Plain words for numbers: the verdict, the glossary, and how a value is printed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

CONTROL_TITLES = {
    "real": ("Real against real", "what a perfect generator would score"),
    "copies": ("Copies of training images", "a cheat: looks perfect, invents nothing"),
    "blurred": ("Real images, blurred", "right anatomy, no fine detail"),
    "marginal": ("Right grey values, no structure", "every pixel drawn on its own"),
    "noise": ("Noise", "the worst case"),
}

GLOSSARY = (
    (
        "Told from real (C2ST AUC)",
        "A small neural network, the judge, is trained afresh to tell generated from real images and then shown "
        "pairs that it has not seen: the share of pairs in which it picks the real one. 0.5 is guessing, so 0.5 "
        "is best for a generator; 1.0 means that it is always caught.",
    ),
    (
        "95 % interval",
        "The range in which the number would fall in 95 of 100 repetitions with other patients and other samples. "
        "Overlapping ranges usually mean that the difference is not established.",
    ),
    (
        "Tie",
        "Two entries whose difference is within what chance alone produces: neither is better as far as these data show.",
    ),
    (
        "FD(network)",
        "Fréchet distance between all generated and all held-out real images, in the features of the named network: "
        "0 is best. It is a FID only if that network is Inception; values of different networks cannot be compared.",
    ),
    (
        "KID(network)",
        "Kernel distance, a second measure of the same difference that does not depend on the number of images; "
        "0 is best, and it may fall slightly below 0 by chance.",
    ),
    ("Precision", "Share of generated images that lie where real images lie: are they plausible? 1 is best."),
    (
        "Recall",
        "Share of real images that lie where generated images lie: is all of reality covered? 1 is best; memorised "
        "or few kinds of samples lower it.",
    ),
    ("Density", "Like precision, but counts how many real neighbours each sample has; 1 is best."),
    ("Coverage", "Share of real images that have a generated image close by; 1 is best."),
    (
        "Variety (diversity ratio)",
        "Mean difference between two generated images over that between two real ones: 1 is right, below 1 the "
        "samples are too alike (mode collapse), above 1 they scatter too much.",
    ),
    (
        "Copies",
        "Are samples suspiciously close to a training image, compared with images of new patients? 5 % of the "
        "samples below the threshold is what chance gives.",
    ),
    (
        "Left and right",
        "Does the average sample have the left-right asymmetry of real images (heart on the patient's left)? 1 is "
        "right, 0 means that half of the samples are mirrored.",
    ),
    (
        "Bits per pixel value",
        "How many bits the model needs to write down one grey value of a new patient's image; fewer is better. "
        "Only some kinds of model can say; 'at most' marks an upper bound.",
    ),
    (
        "Cardiothoracic ratio",
        "Width of the heart over inner width of the chest, measured in the pixels by software.",
    ),
    (
        "Usefulness (TSTR, TRTS, gain)",
        "A classifier is trained on synthetic images and tested on real ones (TSTR), the other way round (TRTS), or "
        "trained on both; the gain is the change against real images alone.",
    ),
    (
        "Control",
        "A set whose right score is known. If a control row looks wrong, do not trust the other rows.",
    ),
)


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, at most four decimals; '–' for a missing value."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0 or abs(value) < 1e-12:
        return "0"
    if abs(value) < 5e-5:
        return "≈ 0"
    if abs(value) >= 10**digits:
        return f"{value:,.0f}"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(max(decimals, 0), 4)}f}"


def span(low: float, high: float) -> str:
    return f"{number(low)} to {number(high)}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def listing(names: Sequence[str]) -> str:
    """'A', 'A and B', 'A, B and C'."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def verdict(ranking: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> list[str]:
    """Sentences that a reader without statistics understands; ranking: generators only, best first."""
    judged = [r for r in ranking if r["rank"] is not None]
    if not judged:
        return [
            "There is no verdict: the test against a judge was not possible. The reasons are in the table."
        ]
    out = [_winner(judged, len(ranking), titles)]
    out += _followers(judged, titles)
    first = judged[0]
    name = titles[first["name"]]
    out.append(
        f"Shown a real and a generated image of {name} side by side, a trained judge picks the real one in "
        f"{percent(first['value'])} of cases (95 % interval {percent(first['low'])} to {percent(first['high'])}); "
        f"50 % is guessing."
    )
    if first["low"] <= 0.5:
        out.append("This judge cannot tell them. That does not prove that a radiologist could not.")
    else:
        out.append("That is more often than chance: they are not yet like real images.")
    none = [titles[r["name"]] for r in ranking if r["rank"] is None]
    if none:
        out.append(f"Not judged: {listing(none)}; the table says why.")
    return out


def _winner(judged: Sequence[Mapping[str, Any]], n: int, titles: Mapping[str, str]) -> str:
    best = [titles[r["name"]] for r in judged if r["rank"] == 1]
    if n == 1:
        return f"One generator was judged: {best[0]}."
    if len(best) == 1:
        return f"Of {n} generators, {best[0]} is hardest to tell from real images."
    if len(best) == n:
        return f"The {n} generators tie: {listing(best)} are equally hard to tell from real images."
    return f"Of {n} generators, {listing(best)} are hardest to tell from real images; they tie."


def _followers(judged: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> list[str]:
    """The places behind the winner, ties named."""
    groups: dict[int, list[str]] = {}
    for r in judged:
        groups.setdefault(r["rank"], []).append(titles[r["name"]])
    rest = [groups[place] for place in sorted(groups)[1:]]
    parts = [f"{listing(names)} (a tie)" if len(names) > 1 else names[0] for names in rest]
    if not parts:
        return []
    return [f"Behind: {parts[0]}."] if len(parts) == 1 else [f"Behind, in this order: {'; '.join(parts)}."]


def faults(
    pooled: Mapping[str, Mapping[str, Any]], names: Sequence[str], titles: Mapping[str, str]
) -> list[str]:
    """Sentences about generators that copy or mirror, whatever their place."""
    out = []
    for flag, text in (
        ("memorisation", "may have copied training images"),
        ("laterality", "mixed up left and right"),
    ):
        bad = [titles[n] for n in names if pooled[n]["flags"][flag]]
        if bad:
            out.append(f"{listing(bad)} {text}.")
    return out


def grouped(warnings: Sequence[str], titles: Mapping[str, str]) -> list[str]:
    """The same warnings about several runs in one sentence, with titles; what concerns results comes first.

    A warning about a run begins with "name@seed: ".
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for w in warnings:
        name, colon, rest = w.partition(":")
        if not colon or name.split("@")[0] not in titles:
            name, rest = "", w
        key = re.sub(r"-?[0-9]+([.][0-9]+)?", "#", rest)  # numbers may differ between runs
        found.setdefault(key, (rest, []))[1].append(name)
    out = []
    for rest, names in reversed(found.values()):
        if not names[0]:
            out.append(rest)
            continue
        bases = dict.fromkeys(n.split("@")[0] for n in names)
        runs = f", {len(names)} runs" if len(names) > len(bases) else ""
        more = f" (Numbers of {names[0]}.)" if len(names) > 1 and re.search("[0-9]", rest) else ""
        out.append(f"{listing([titles[b] for b in bases])}{runs}:{rest}{more}")
    return out


def control_check(controls: Mapping[str, Mapping[str, Any]]) -> tuple[str, bool]:
    """(sentence, all well?) about the real-vs-real and noise rows."""
    real, noise = (controls.get(k, {}).get("c2st", {}).get("auc") for k in ("real", "noise"))
    if not real or not noise:
        return "The controls could not be judged, so nothing shows that the judge works.", False
    fine = real["low"] <= 0.5 <= real["high"] and noise["value"] >= 0.99
    text = f"Real against real scores {number(real['value'])} (0.5 is right), noise {number(noise['value'])} (1 is right)"
    return (f"The judge works: {text}.", True) if fine else (f"Take care, a control failed: {text}.", False)

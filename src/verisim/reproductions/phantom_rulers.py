"""The five phantoms that measure others: is what they say of themselves true, and can their rulers be trusted?

Specs 001 (section 9), 002 (A.10, D.9, K.10) and 003 (0.3.1) say what each phantom has to fulfil. Every statement is a
claim: what is exact (seeds, volumes, masks, sides), what is true of many images (effects of age, sex, grade), what the
rulers read in clean pixels, in blurred and noisy ones, and that they read nothing where there is nothing: factors of
other images, images of noise. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from verisim.data.mosaic import save_mosaic
from verisim.errors import VerisimError
from verisim.metrics.bootstrap import Estimate
from verisim.reproductions.phantom_brain_effects import brain_effects, tumour_effects
from verisim.reproductions.phantom_claims import Finding, reading_claims
from verisim.reproductions.phantom_effects import head_ct_effects, knee_effects
from verisim.reproductions.phantom_facts import facts, made
from verisim.reproductions.phantom_growing_effects import growing_effects
from verisim.reproductions.phantom_readings import BLUR, CASES, LEVELS, NOISE, SEED, degraded, limit, read
from verisim.reproductions.result import Claim, Options, Result

EFFECTS: dict[str, Callable[[int, int], Iterator[Finding]]] = {
    "K-D1": knee_effects,
    "B-D1": head_ct_effects,
    "B-D2": tumour_effects,
    "B-D3": growing_effects,
    "16-Phantom": brain_effects,
}
SYSTEMS = tuple(CASES)
SHOWN = 6  # images in a row of a figure; two, where each has four contrasts
ROWS = ((BLUR, 0.0), (BLUR, 1.0), (BLUR, 4.0), (NOISE, 0.1), (NOISE, 0.4))  # of a figure; the first is clean


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    count: int  # slices per case
    volumes: int  # volumes per case
    fine: int  # heads whose pixels are counted on a fine grid, in 2D and 3D
    levels: int  # how many degradations of each kind


SCALES = {
    "smoke": Scale(32, 4, 2, 1),
    "small": Scale(1000, 64, 8, 4),
    "full": Scale(10_000, 500, 32, 4),
}


def run(options: Options) -> Iterator[Result]:
    """Measure every phantom; one result."""
    if options.data:
        raise VerisimError("phantoms measures phantoms, whose factors are known. Leave out --data.")
    scale = options.changed(SCALES[options.scale])
    numbers: dict[str, Any] = {"scale": asdict(scale)}
    claims: list[Claim] = []
    for recipe in options.chosen(SYSTEMS, "reproduction"):
        Console(stderr=True).print(f"phantoms: {recipe}", highlight=False)
        found, own = measure(recipe, scale)
        numbers[recipe] = found
        claims += own
    notes = [
        f"{scale.count} slices and {scale.volumes} volumes per size of seed {SEED}, on which no constant or margin was found",
        "margins are those of docs/phantoms.md and tests/phantoms from before this was measured, but for those marked 'ours'",
        "readings: 95 % intervals by bootstrap over images or patients; effects: 99 % intervals",
        "limits: strongest blur (standard deviation in pixels) and noise (on [-1, 1]) up to which all margins are kept; 0 = not at "
        "the mildest",
    ]
    result = Result("phantoms", options.scale, claims, _plain(numbers), notes)
    folder = options.results / "figures" / result.name
    for recipe in options.chosen(SYSTEMS, "reproduction"):
        draw(folder / f"{recipe}.png", recipe)
    yield result


def measure(recipe: str, scale: Scale) -> tuple[dict[str, Any], list[Claim]]:
    """Numbers and claims of one phantom."""
    numbers: dict[str, Any] = {"readings": {}}
    claims: list[Claim] = []
    some = min(scale.count, 200)
    findings = [*facts(recipe, some, scale.fine), *EFFECTS[recipe](scale.count, scale.volumes)]
    numbers["findings"] = {f.claim.name: f.numbers for f in findings}
    claims += [f.claim for f in findings]
    for case in CASES[recipe]:
        found = read(case, scale.count if len(case.size) == 2 else scale.volumes, scale.levels)
        claims += reading_claims(recipe, case, found)
        limits = {r.name: {kind: limit(found, r, kind) for kind in LEVELS} for r in case.readings}
        numbers["readings"][f"{case.phantom}@{case.name}"] = {**found, "limits": limits}
    return numbers, claims


def _plain(x: Any) -> Any:
    """Estimates as dictionaries of numbers with six digits, so that the file stays readable."""
    if isinstance(x, Estimate):
        return _plain({"value": x.value, "low": x.low, "high": x.high})
    if isinstance(x, dict):
        return {k: _plain(v) for k, v in x.items()}
    return float(f"{x:.6g}") if isinstance(x, float) else x


def draw(path: Path, recipe: str) -> None:
    """Some images of a phantom, in rows: clean, blurred, noisy; one of each grade or finding that it has, then others."""
    p = made(recipe, 200, (64, 64))
    assert p.images.labels is not None
    first = [int((p.images.labels == k).nonzero()[0]) for k in p.images.labels.unique().tolist()]
    shown = SHOWN if p.images.spec.channels == 1 else 2
    chosen = (first + [k for k in range(SHOWN) if k not in first])[:shown]
    images = replace(p.images, pixels=p.images.pixels[chosen], labels=None, patients=None)
    rows = [images.pixels if not level else degraded(images, kind, level).pixels for kind, level in ROWS]
    save_mosaic(path, torch.cat(rows), shown, scale=2)

"""What is true of many growing brains together: ranges, growth, contrast, and that visits show the same person.

From the factors where the statement is about them, from pixels where a reader would have those alone. 99 % intervals.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from verisim.metrics.association import correlation
from verisim.phantoms import PHANTOMS, growing_brain
from verisim.reproductions.phantom_claims import Finding, at_least, equals, exact, plausible, rises
from verisim.reproductions.phantom_facts import SOURCES, made
from verisim.reproductions.phantom_statistics import DRAWS, LEVEL, inner_mean, line, pure, uniform
from verisim.seeding import generator

FIELD = growing_brain.FIELD  # mm: K.10 counts in lengths of the image


def growing_effects(images: int, volumes: int) -> Iterator[Finding]:
    """B-D3, one scan of each subject unless visits are compared."""
    source, measure = SOURCES["B-D3"], PHANTOMS["growing_brain"].measure
    p = made("B-D3", images, (64, 64), visits=1)
    f, m = p.factors, measure(p.images)
    limits = {
        "aspect": (0.85, 1.15),
        "size": (0.94, 1.06),
        "rotation": (-17.1887, 17.1887),
        "age": (26.0, 45.0),
    }
    yield plausible("B-D3-ranges", "Proportions, size, turn (0.3 rad) and age are uniform in the stated ranges", source,
                    {k: uniform(f[k], *v) for k, v in limits.items()})  # fmt: skip
    reach = float(f["ventricle_offset"].abs().max())
    yield exact("B-D3-offset", "Ventricles lie up to 0.35 radii off (0.34 is reached)", source, int(not 0.34 <= reach <= 0.351), 1,
                f"{reach:.2f} at most")  # fmt: skip
    start, slope = line(f["age"] - 26, (m["area_head"] / torch.pi).sqrt() * 10 / FIELD)
    yield equals("B-D3-radius", "In pixels, the radius at 26 weeks is 0.20 of the image", source, start, 0.20)
    yield equals(
        "B-D3-growth", "In pixels, the radius grows by 0.011 of the image a week", source, slope, 0.011
    )
    other = f["age"][torch.randperm(images, generator=generator("phantoms", "ages"))]
    slope = line(other - 26, (m["area_head"] / torch.pi).sqrt() * 10 / FIELD)[1]
    yield equals(
        "B-D3-growth-shuffled", "With the ages of other scans it does not grow", "control", slope, 0.0
    )
    v = made("B-D3", volumes, (48, 48, 48), visits=1)
    mv = measure(v.images)
    height = sum(growing_brain.IDENTITY["height"]) / 2
    radius = (mv["volume_head"] * 3 / (4 * torch.pi * height)) ** (1 / 3) * 10 / FIELD
    yield equals(
        "B-D3-growth-3d",
        "The same growth in volumes of 48^3",
        source,
        line(v.factors["age"] - 26, radius)[1],
        0.011,
    )
    share = mv["volume_ventricles"] / mv["volume_head"]
    yield rises("B-D3-ventricles", "In pixels, the ventricles' share of the head shrinks with age", "docs/phantoms.md",
                  line(v.factors["age"], share)[1], -1)  # fmt: skip
    yield from _growing_contrast(max(16, images // 8))
    yield from _growing_identity(images)


def _growing_contrast(n: int) -> Iterator[Finding]:
    """White matter minus cortex on [0, 1], in pixels that have no other neighbours, of slices of 256 pixels."""
    p = made("B-D3", n, (256, 256), visits=1)
    assert p.segmentation is not None
    x = (p.images.pixels + 1) / 2
    (cortex, enough), (white, _) = (
        inner_mean(x, pure(p.segmentation, growing_brain.STRUCTURES.index(k)))
        for k in ("cortex", "white_matter")
    )
    slope = line((p.factors["age"] - 26)[enough], (white - cortex)[enough])[1]
    yield rises("B-D3-contrast", f"In pixels, the rim's contrast grows with age ({int(enough.sum())} of {n} scans have a rim of more than two pixels)",
                   SOURCES["B-D3"], slope)  # fmt: skip
    stated = 0.25 / (growing_brain.AGES[1] - growing_brain.AGES[0])
    yield equals(
        "B-D3-contrast-slope",
        "In pixels, that contrast grows by 0.25 of white from week 26 to week 45",
        "phantoms/growing_brain_render.py",
        slope,
        stated,
    )


def _growing_identity(n: int) -> Iterator[Finding]:
    """Proportions read at two visits."""
    p = made("B-D3", n - n % 2, (64, 64), visits=2)
    first, second = PHANTOMS["growing_brain"].measure(p.images)["aspect"].view(-1, 2).T
    rng = generator("phantoms", "visits")
    own, other = (correlation(first, s, DRAWS, rng, level=LEVEL) for s in (second, second.roll(1)))
    yield at_least(
        "B-D3-same",
        "In pixels, proportions at two visits are the same person's: correlation 0.9 or more",
        "ours",
        own,
        0.9,
    )
    yield equals(
        "B-D3-other", "In pixels, proportions say nothing of those of another person", "control", other, 0.0
    )

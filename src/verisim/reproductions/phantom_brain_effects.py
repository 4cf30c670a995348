"""What is true of many adult brains together: effects of age and sex, variation, contrast, noise; and of tumours.

From the factors, and once more from pixels or label maps alone. Volumes are divided by the cube of the head's length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from verisim.phantoms import PHANTOMS, Phantom, brain
from verisim.phantoms.volume import Solids, frame
from verisim.reproductions.phantom_claims import Finding, equals, exact, plausible
from verisim.reproductions.phantom_facts import SOURCES, made
from verisim.reproductions.phantom_readings import SEED, pixel_size
from verisim.reproductions.phantom_statistics import (
    inner_mean,
    line,
    mean,
    pure,
    scaled,
    shares,
    spread,
    uniform,
)
from verisim.seeding import generator

SOURCE = SOURCES["16-Phantom"]
CODE = {name: k for k, name in enumerate(brain.STRUCTURES)}
BALL = 4 / 3 * math.pi / 1000  # mL per mm^3 of semi-axes
VENTRICLE = 2 * BALL * 5 * 20 * 9  # mL of both at radius 1
HIPPOCAMPUS = 2 * BALL * 5 * 15 * 5
HEAD = BALL * math.prod(brain.AXES) * brain.SKULL**3
CEREBRUM = math.pi / 1000 * math.prod(brain.AXES) * (2 / 3 + brain.BASE - brain.BASE**3 / 3)  # up to radius 1
OTHERS = ("thalamus_right", "thalamus_left", "caudate_right", "caudate_left", "putamen_right", "putamen_left",
          "cerebellum", "brainstem")  # fmt: skip
# brightness of fluid, grey matter, white matter, deep grey matter as section 0.3.1 states it
TISSUES = {"csf": "ventricle_left", "GM": "cortex", "WM": "white_matter", "deep": "putamen_left"}
STATED = {"T1": (0.20, 0.55, 0.85, 0.70), "T2": (0.95, 0.60, 0.40, 0.50), "PD": (0.75, 0.80, 0.60, 0.70)}
NEAR = 0.05


def brain_effects(images: int, volumes: int) -> Iterator[Finding]:
    """16-Phantom."""
    yield from _factors(max(1, images // brain.BLOCK))
    yield from _pixels(2 * volumes)
    yield from _tissues(min(images, 32))
    yield _noise("16-Phantom", images, 0.02)
    yield _warp()


def _factors(blocks: int) -> Iterator[Finding]:
    """From factors and exact volumes alone."""
    parts = [brain.draw(SEED, b, brain.LESIONS["mixed"]) for b in range(blocks)]
    f = {k: torch.cat([p[0][k] for p in parts]) for k in parts[0][0]}
    solids = Solids(torch.cat([p[1].centre for p in parts]), torch.cat([p[1].semi for p in parts]))
    v = {k: x.double() / f["scale"].double() ** 3 for k, x in brain.measures(f, solids).items()}
    years = f["age"] - 20
    yield plausible("16-Phantom-people", "Ages are uniform from 20 to 90 years, sexes alike", SOURCE,
                    {"age": uniform(f["age"], 20, 90), "sex": shares(f["sex"], (0.5, 0.5))})  # fmt: skip
    yield equals("16-Phantom-sex", "Men's brains are 6 % longer", SOURCE, line(f["sex"], f["scale"])[1], 0.06)
    yield equals(
        "16-Phantom-scale",
        "Length varies by 3 % beside that",
        SOURCE,
        spread(f["scale"] - 0.06 * f["sex"]),
        0.03,
    )
    start, slope = line(years, (v["volume_ventricles"] / VENTRICLE) ** (1 / 3))
    yield equals("16-Phantom-ventricles-20", "The ventricles' radius at 20 years is 0.8", SOURCE, start, 0.8)
    yield equals(
        "16-Phantom-ventricles", "The ventricles' radius grows by 0.012 a year", SOURCE, slope, 0.012
    )
    hippocampus = (v["volume_hippocampus_right"] + v["volume_hippocampus_left"]) / HIPPOCAMPUS
    yield equals(
        "16-Phantom-hippocampus",
        "Hippocampi lose 0.3 % of their volume a year",
        SOURCE,
        line(years, hippocampus)[1],
        -0.003,
    )
    yield equals("16-Phantom-cortex", "Cortex loses 0.4 % of its thickness a year", SOURCE,
                 line(years, f["cortex_thickness"] / brain.THICKNESS)[1], -0.004)  # fmt: skip
    relative = torch.stack([v[f"volume_{k}"] / v[f"volume_{k}"].mean() for k in OTHERS])  # (K, N)
    yield equals(
        "16-Phantom-others", "The other regions vary by 4 %", SOURCE, spread(relative.flatten()), 0.04
    )
    yield equals(
        "16-Phantom-others-age",
        "The other regions do not change with age",
        "control",
        line(years, relative.mean(0))[1],
        0.0,
    )


def _pixels(n: int) -> Iterator[Finding]:
    """From volumes of healthy heads: by the ruler, or by counting their label maps."""
    p = made("16-Phantom", n, (48, 64, 48), lesions="none")
    m, f = PHANTOMS["brain"].measure(p.images), p.factors
    years, cube = f["age"] - 20, m["volume_head"] / HEAD
    yield equals(
        "16-Phantom-sex-pixels",
        "In pixels, men's heads are 6 % longer",
        SOURCE,
        line(f["sex"], cube ** (1 / 3))[1],
        0.06,
    )
    radius = (m["volume_ventricles"] / cube / VENTRICLE) ** (1 / 3)
    yield equals(
        "16-Phantom-ventricles-pixels",
        "In pixels, the ventricles' radius grows by 0.012 a year",
        SOURCE,
        line(years, radius)[1],
        0.012,
    )
    other = years[torch.randperm(n, generator=generator("phantoms", "years"))]
    yield equals(
        "16-Phantom-shuffled",
        "With the ages of other people it does not grow",
        "control",
        line(other, radius)[1],
        0.0,
    )
    count = _counted(p)
    hippocampus = (count["hippocampus_right"] + count["hippocampus_left"]) / cube / HIPPOCAMPUS
    yield equals(
        "16-Phantom-hippocampus-labels",
        "In label maps, hippocampi lose 0.3 % a year",
        SOURCE,
        line(years, hippocampus)[1],
        -0.003,
    )
    deep = sum((count[k] for k in brain.SOLID_NAMES[: brain.INSIDE]), start=count["white_matter"])
    white, whole = ((x / cube / CEREBRUM) ** (1 / 3) for x in (deep, deep + count["cortex"]))
    yield equals("16-Phantom-cortex-labels", "In label maps, cortex loses 0.4 % of its thickness a year", SOURCE,
                 line(years, (whole - white) / brain.THICKNESS)[1], -0.004)  # fmt: skip


def _counted(p: Phantom) -> dict[str, Tensor]:
    """Structure -> mL of its pixels, (N,)."""
    assert p.segmentation is not None
    return {
        k: (p.segmentation == c).flatten(1).sum(1).double() * pixel_size(p.images) for k, c in CODE.items()
    }


def _tissues(n: int) -> Iterator[Finding]:
    """Brightness in pixels that have neighbours of their own tissue only, averaged over heads; slices of 128 pixels."""
    p = made("16-Phantom", n, (128, 128), lesions="none", contrasts=tuple(STATED))
    assert p.segmentation is not None
    far, swapped, found = [], [], {}
    for c, (contrast, stated) in enumerate(STATED.items()):
        x = (p.images.pixels[:, c : c + 1] + 1) / 2
        values = []
        for structure in TISSUES.values():
            level, enough = inner_mean(x, pure(p.segmentation, CODE[structure]), 4)
            values.append(float(level[enough].mean()))
        found[contrast] = dict(zip(TISSUES, values))
        far += [
            f"{t} on {contrast} {v:.2f} ({s:g})"
            for t, v, s in zip(TISSUES, values, stated)
            if abs(v - s) > NEAR
        ]
        names = list(TISSUES)
        swapped += [
            f"{names[i]} and {names[j]} on {contrast}" for i in range(4) for j in range(i)
            if (values[i] - values[j]) * (stated[i] - stated[j]) <= 0
        ]  # fmt: skip
    a = exact(
        "16-Phantom-order",
        "On T1, T2 and PD the tissues have the stated order of brightness",
        SOURCE,
        len(swapped),
        18,
        ", ".join(swapped),
    )
    b = exact(
        "16-Phantom-brightness",
        f"On T1, T2 and PD the tissues have the stated brightness, to {NEAR:g}",
        SOURCE,
        len(far),
        12,
        ", ".join(far),
    )
    yield replace(a, numbers={**a.numbers, "brightness": found})
    yield b


def _noise(recipe: str, n: int, stated: float) -> Finding:
    """Magnitudes of noise alone, outside of the head, have the mean sigma sqrt(pi / 2)."""
    p = made(recipe, n, (64, 64))
    assert p.segmentation is not None
    level = inner_mean((p.images.pixels[:, :1] + 1) / 2, pure(p.segmentation, 0))[0]
    found = scaled(mean(level), 1 / math.sqrt(math.pi / 2))
    return equals(f"{recipe}-noise", f"Noise of {stated:g} on [0, 1]", SOURCES[recipe], found, stated)


def _warp(blocks: int = 4) -> Finding:
    """How far the warp moves points of volumes of 64^3, in voxels."""
    size, wrong, most = (64, 64, 64), 0, 0.0
    for b in range(blocks):
        f = {k: v[:4] for k, v in brain.draw(SEED, b, brain.LESIONS["none"])[0].items()}
        bent, still = (frame(g, size, 0.0) for g in (f, {**f, "warp": torch.zeros_like(f["warp"])}))
        off = ((bent.x - still.x).square() + (bent.y - still.y).square()).sqrt().flatten(1).amax(
            1
        ) / bent.voxel
        wrong, most = wrong + int((off > 1.5).sum()), max(most, float(off.max()))
    return exact("16-Phantom-warp", "The warp moves no point by more than 1.5 voxels of 64^3", SOURCE, wrong, 4 * blocks,
                 f"{most:.2f} at most")  # fmt: skip


def tumour_effects(images: int, volumes: int) -> Iterator[Finding]:
    """B-D2."""
    source = SOURCES["B-D2"]
    for size, n in (((64, 64), images), ((32, 32, 32), volumes)):
        yield from _contrast(size, n)
    yield _noise("B-D2", images, 0.05)
    alone = made("B-D2", 32, (64, 64), contrasts=("T1",)).segmentation
    four = made("B-D2", 32, (64, 64))
    assert alone is not None and four.segmentation is not None
    wrong = int((alone != four.segmentation).flatten(1).any(1).sum()) + abs(four.images.spec.channels - 4)
    yield exact("B-D2-anatomy", "The four contrasts show one head on one grid", source, wrong, 32)


def _contrast(size: tuple[int, ...], n: int) -> Iterator[Finding]:
    """Mean brightness within the label map, bias field and borders included, head by head."""
    source, at = SOURCES["B-D2"], "x".join(map(str, size))
    p = made("B-D2", n, size)
    assert p.segmentation is not None
    channel = dict(zip(("T1", "T1c", "T2", "FLAIR"), p.images.pixels.unbind(1)))
    masks = {
        k: p.segmentation[:, 0] == CODE[k] for k in ("csf", "cortex", "white_matter", "enhancing_tumour")
    }
    masks["tumour"] = p.segmentation[:, 0] >= CODE["oedema"]
    seen = {k: v.flatten(1).any(1) for k, v in masks.items()}

    def level(name: str, contrast: str) -> Tensor:
        return inner_mean(channel[contrast], masks[name])[0]

    def always(name: str, statement: str, better: Tensor, there: Tensor) -> Finding:
        text = f"seen in {int(there.sum())} of {n}"
        return exact(
            f"B-D2-{name}@{at}",
            f"{statement} in every head ({at})",
            source,
            int((~better & there).sum()),
            int(there.sum()),
            text,
        )

    white, grey = ({c: level(k, c) for c in channel} for k in ("white_matter", "cortex"))
    rim = level("enhancing_tumour", "T1c")
    yield always(
        "rim-T1c",
        "The rim is brighter than white and grey matter on T1c",
        (rim > white["T1c"]) & (rim > grey["T1c"]),
        seen["enhancing_tumour"],
    )
    for c in ("T2", "FLAIR"):
        t = level("tumour", c)
        yield always(
            c,
            f"The tumour is brighter than white and grey matter on {c}",
            (t > white[c]) & (t > grey[c]),
            seen["tumour"],
        )
    t = level("tumour", "T1")
    yield always(
        "T1",
        "The tumour is darker than white and grey matter on T1",
        (t < white["T1"]) & (t < grey["T1"]),
        seen["tumour"],
    )
    radial = (level("csf", "T1") < grey["T1"]) & (grey["T1"] < white["T1"])
    yield always(
        "radial", "Brightness rises inwards on T1, from fluid to cortex to white matter", radial, seen["csf"]
    )

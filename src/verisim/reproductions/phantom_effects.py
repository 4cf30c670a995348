"""What is true of many knees and of many head CTs together: distributions, effects of the grade, noise, places.

From the factors where the statement is about them, from pixels or label maps where a reader would have those alone.
Intervals of effects are 99 % ones, since there are many.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from verisim.metrics.agreement import wilson
from verisim.metrics.bootstrap import Estimate
from verisim.metrics.controls import blurred
from verisim.phantoms import PHANTOMS, head_ct, knee, knee_render
from verisim.reproductions.phantom_claims import Finding, at_most, equals, exact, plausible, rises
from verisim.reproductions.phantom_facts import SOURCES, made
from verisim.reproductions.phantom_readings import SEED
from verisim.reproductions.phantom_statistics import (
    centred,
    inner_mean,
    line,
    mean,
    pure,
    root,
    shares,
    uniform,
    unrelated,
)
from verisim.reproductions.result import Claim
from verisim.seeding import generator

KNEE_RANGES = {
    "femur_width": (0.42, 0.56), "tibia_ratio": (0.95, 1.08), "tilt": (-6.0, 6.0), "shift_x": (-0.04, 0.04),
    "shift_y": (-0.04, 0.04), "gain": (0.8, 1.2), "gamma": (0.8, 1.25),
}  # fmt: skip
KNEE_SPACE = (0.060, 0.055, 0.045, 0.030, 0.012)
KNEE_SHARES = (0.39, 0.18, 0.26, 0.13, 0.04)
PATCH, STRIDE = 15, 4  # pixels, of A.10


def knee_effects(images: int, volumes: int) -> Iterator[Finding]:
    """K-D1, from ten times as many factors as images."""
    source = SOURCES["K-D1"]
    blocks = [knee.draw(SEED, b) for b in range(max(1, 10 * images // knee.BLOCK))]
    f = {k: torch.cat([b[k] for b in blocks]) for k in blocks[0]}
    p = {k: uniform(f[k], *limits) for k, limits in KNEE_RANGES.items()}
    yield plausible(
        "K-D1-ranges", "Sizes, tilt, shifts and exposure are uniform in the stated ranges", source, p
    )
    yield plausible(
        "K-D1-grades", "Grades come as often as stated", source, {"grade": shares(f["grade"], KNEE_SHARES)}
    )
    p = {f"grade {g}": centred(f["joint_space"][f["grade"] == g], v) for g, v in enumerate(KNEE_SPACE)}
    yield plausible("K-D1-space", "Each grade has its mean joint space", source, p)
    p = unrelated(torch.stack([*(f[k] for k in knee.RANGES), f["side"], f["grade"]], 1))
    yield plausible("K-D1-independent", "No factor follows another, nor grade or side", source, p)
    yield exact(
        "K-D1-asymmetry",
        "Asymmetry stays within 0.4",
        source,
        int((f["asymmetry"].abs() > 0.4).sum()),
        len(f["grade"]),
    )
    slope = line(f["grade"], f["asymmetry"].abs())[1]
    yield rises("K-D1-asymmetry-grade", "Asymmetry grows with the grade", source, slope)
    for name in ("osteophyte_radius", "sclerosis"):
        start, slope = line(f["grade"], f[name])
        yield equals(
            f"K-D1-{name}-0", f"{name} is proportional to the grade: 0 at grade 0", source, start, 0.0
        )
        yield rises(f"K-D1-{name}", f"{name} grows with the grade", source, slope)
    yield equals("K-D1-texture", "Trabeculae have an amplitude of 0.05", source, mean(f["texture"]), 0.05)
    yield equals(
        "K-D1-noise", "Noise of 0.01 times the square root of the brightness", source, _knee_noise(), 0.01
    )
    yield from _knee_pixels(images)


def _knee_noise() -> Estimate:
    """Deviation per square root of the brightness, from 64 knees drawn with and without noise."""
    f, none = knee.draw(SEED, 0), torch.zeros(knee.BLOCK, 64, 64)
    noise = torch.randn(none.shape, generator=generator("phantoms", "knee noise"))
    still, noisy = (
        (torch.cat(list(knee_render.render(f, 64, len(none), none, e))) + 1) / 2 for e in (none, noise)
    )
    free = (still > 0.05) & (still < 0.9)  # nothing is clipped
    return root(mean(inner_mean((noisy - still).square() / still.clamp(min=0.05), free)[0]))


def _knee_pixels(n: int) -> Iterator[Finding]:
    source = SOURCES["K-D1"]
    p, measure = made("K-D1", n, (64, 64)), PHANTOMS["knee"].measure
    m, grade = measure(p.images), p.factors["grade"]
    slope = line(torch.tensor(KNEE_SPACE)[grade.long()], m["joint_space"])[1]
    yield equals(
        "K-D1-space-pixels",
        "In pixels, joint space follows the grade's stated mean: slope 1",
        source,
        slope,
        1.0,
    )
    off = int(((m["grade"] - grade).abs() > 1).sum())
    yield exact("K-D1-grade-off", "No measured grade is off by more than one", "docs/phantoms.md", off, n)
    soft = measure(blurred(p.images, 0.5))["sharpness"]
    yield exact("K-D1-blur", "A blur of half a pixel is measurable: every image loses sharpness", source,
                int((soft >= m["sharpness"]).sum()), n)  # fmt: skip
    kept = grade != 4
    whole, dropped = (wilson(float((x == 4).sum()), len(x)) for x in (m["grade"], m["grade"][kept]))
    text = f"measured share of grade 4: {whole.value:.3f} [{whole.low:.3f}, {whole.high:.3f}]; without that grade {dropped.value:.3f} [{dropped.low:.3f}, {dropped.high:.3f}]"
    claim = Claim("K-D1-rare", "Losing the rare grade is measurable: its share is read as stated, and as less when it is missing",
                  source, whole.low <= KNEE_SHARES[4] <= whole.high and dropped.high < whole.low, text)  # fmt: skip
    yield Finding(claim, {"whole": whole.as_dict(), "dropped": dropped.as_dict()})


def head_ct_effects(images: int, volumes: int) -> Iterator[Finding]:
    """B-D1."""
    source = SOURCES["B-D1"]
    p = made("B-D1", images, (64, 64))
    f, m = p.factors, PHANTOMS["head_ct"].measure(p.images)
    spacing = p.images.spec.spacing
    assert spacing is not None
    yield plausible(
        "B-D1-scale",
        "Heads differ by 5 % in scale, uniformly",
        source,
        {"scale": uniform(f["scale"], 0.95, 1.05)},
    )
    shift = {k: f[f"shift_{k}"] / (spacing[0] * 64) for k in "xyz"}  # edges
    reach = {k: float(v.abs().max()) for k, v in shift.items()}
    yield exact("B-D1-shift", "Heads are shifted by up to 0.03 edges along each axis (0.029 is reached)", source,
                sum(not 0.029 <= v <= 0.0301 for v in reach.values()), 3, f"{max(reach.values()):.3f} at most")  # fmt: skip
    yield plausible("B-D1-findings", "Half of the heads are normal, a tenth has each finding", "docs/phantoms.md",
                    {"finding": shares(f["finding"], head_ct.FINDINGS["mixed"])})  # fmt: skip
    side = f["side"][f["finding"] > 0] > 0
    yield plausible(
        "B-D1-sides",
        "Findings come on both sides alike",
        "docs/phantoms.md",
        {"side": shares(side, (0.5, 0.5))},
    )
    dry = (f["finding"] == 0) | (f["finding"] == 5)
    yield at_most(
        "B-D1-dry",
        "Where there is no blood the ruler reads next to none (cm2)",
        "tests/phantoms",
        mean(m["area_blood"][dry]),
        0.05,
    )
    yield _dark_ventricles(images)
    yield equals("B-D1-noise", "Noise of 0.02 on [0, 1]", source, _ventricle_noise(), 0.02)
    right, wrong = positions()
    text = f"nearest patch of another head: {right.value:.3f} [{right.low:.3f}, {right.high:.3f}] edges away; a random one {wrong.value:.3f} [{wrong.low:.3f}, {wrong.high:.3f}]"
    claim = Claim("B-D1-position", "What a patch of 15 pixels looks like tells where it is, to less than half of chance", source,
                  right.high < wrong.low / 2, text)  # fmt: skip
    yield Finding(claim, {"nearest": right.as_dict(), "random": wrong.as_dict()})


def _dark_ventricles(n: int) -> Finding:
    p = made("B-D1", n, (64, 64), findings="normal")
    assert p.segmentation is not None
    at = {k: p.segmentation == head_ct.STRUCTURES.index(k) for k in ("ventricle_right", "ventricle_left")}
    brain = (p.segmentation == 4) | (p.segmentation == 5)
    brain_mean = inner_mean(p.images.pixels, brain)[0]
    means = {k: inner_mean(p.images.pixels, v, 1) for k, v in at.items()}
    wrong = sum(int((~seen | (x >= brain_mean)).sum()) for x, seen in means.values())
    return exact(
        "B-D1-ventricles",
        "Both ventricles are seen, and darker than the brain",
        SOURCES["B-D1"],
        wrong,
        2 * n,
    )


def _ventricle_noise() -> Estimate:
    """Standard deviation on [0, 1] within ventricles, which have one density, of 16 slices of 192 pixels."""
    p = made("B-D1", 16, (192, 192), findings="normal")
    assert p.segmentation is not None
    x = (p.images.pixels + 1) / 2
    variances = []
    for name in ("ventricle_right", "ventricle_left"):
        where = pure(p.segmentation, head_ct.STRUCTURES.index(name))
        level = inner_mean(x, where)[0].view(-1, 1, 1, 1)
        count = where.flatten(1).sum(1).clamp(min=2)
        variances.append(inner_mean((x - level).square(), where)[0] * count / (count - 1))
    return root(mean(torch.cat(variances)))


def positions(heads: int = 16, others: int = 6) -> tuple[Estimate, Estimate]:
    """Mean distance, in edges, of patches of normal slices to the patch of another head that looks most alike, or to any."""
    x = made("B-D1", heads + others, (64, 64), findings="normal").images.pixels
    (known, at), (asked, true) = _patches(x[:others], 1), _patches(x[others:], STRIDE)
    found = at[torch.cat([torch.cdist(q, known).argmin(1) for q in asked.split(256)])]
    any_ = at[torch.randint(len(at), (len(true),), generator=generator("phantoms", "patches"))]
    return mean((found - true).norm(dim=1)), mean((any_ - true).norm(dim=1))


def _patches(x: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """(M, PATCH^2) patches of x (N, 1, H, W) that show more than background, and their centres (M, 2) in edges."""
    tiles = x.unfold(2, PATCH, stride).unfold(3, PATCH, stride)[:, 0]  # (N, h, w, P, P)
    rows, columns = (torch.arange(s) * stride + PATCH / 2 for s in tiles.shape[1:3])
    at = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1) / x.shape[-1]
    flat = tiles.flatten(3)
    shows = flat.amax(3) > -0.5
    return flat[shows], at.expand(len(x), -1, -1, -1)[shows]

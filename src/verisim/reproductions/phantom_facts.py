"""What is exact in a phantom, without any statistics: seeds, volumes, masks, left and right, who stays who.

Volumes are closed forms of continuous shapes; counting the pixels of a fine label map has to give them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from verisim.phantoms import PHANTOMS, Phantom, growing_brain, head_ct
from verisim.reproductions.phantom_claims import Finding, exact
from verisim.reproductions.phantom_readings import SEED, TUMOUR, pixel_size

PHANTOM_OF = {
    "K-D1": "knee", "B-D1": "head_ct", "B-D2": "brain", "B-D3": "growing_brain", "16-Phantom": "brain",
}  # fmt: skip
SOURCES = {
    "K-D1": "spec 001, section 9", "B-D1": "spec 002, A.10", "B-D2": "spec 002, D.9", "B-D3": "spec 002, K.10",
    "16-Phantom": "spec 003, 0.3.1",
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {"B-D2": TUMOUR}
BLOOD = head_ct.LESIONS[:-1]  # the last is the fracture
# fine grids on which volumes are counted, 2D and 3D
FINE = {"head_ct": ((450, 360), (86, 104, 82)), "brain": ((450, 360), (96, 112, 92)), "growing_brain": ((450, 450), (108, 108, 108))}  # fmt: skip
# margins of tests/phantoms: share of the exact size, of structures above 40 mL or cm^2 in all and of others; plus cm^2 or mL, in all heads together
LARGE, MARGINS, EXTRA = 40.0, (0.02, 0.05), {2: 0.06, 3: 0.1}
# which structures count in which heads: healthy ones where no lesion lies on them
COUNTED: dict[str, tuple[tuple[dict[str, Any], tuple[str, ...]], ...]] = {
    "B-D1": (
        ({"findings": "normal"}, head_ct.STRUCTURES[1:8]),
        *(({"findings": k}, (f"{k}_right", f"{k}_left")) for k in head_ct.LESIONS),
    ),
    "B-D2": (({"lesions": "tumour"}, ("oedema", "enhancing_tumour", "tumour_core")),),
    "B-D3": (({}, growing_brain.STRUCTURES[1:]),),
    "16-Phantom": (
        ({"lesions": "none"}, PHANTOMS["brain"].structures[1:16]),
        ({"lesions": "ms"}, ("ms_lesion",)),
    ),
}


def facts(recipe: str, heads: int, fine: int) -> Iterator[Finding]:
    """All exact statements of a recipe, on that many heads, and `fine` heads on fine grids."""
    kind = PHANTOMS[PHANTOM_OF[recipe]]
    yield _seeds(recipe, kind.spatial_dims)
    if kind.structures:
        for dims in (2, 3):
            yield counted(recipe, dims, fine)
        yield _left_is_right_of_the_image(recipe, heads)
        yield _border(recipe, heads)
    if recipe in ("K-D1", "B-D1", "16-Phantom"):
        yield _mirrored(recipe, heads)
    if recipe == "K-D1":
        yield _one_side(heads)
    if recipe == "B-D1":
        yield from _blood_and_cracks(heads)
    if recipe in ("B-D2", "16-Phantom"):
        yield _brain_lesions(recipe, heads)
    if recipe == "16-Phantom":
        yield _regions(max(1, fine // 2))
    if recipe == "B-D3":
        yield from _identity(heads)


def made(recipe: str, n: int, size: tuple[int, ...], seed: int = SEED, **options: Any) -> Phantom:
    """Images of a recipe's phantom, with its own options."""
    return PHANTOMS[PHANTOM_OF[recipe]].make(n, seed, size, **{**OPTIONS.get(recipe, {}), **options})


def _seeds(recipe: str, dims: tuple[int, ...]) -> Finding:
    wrong = of = 0
    for d in dims:
        size = (24,) * d
        many, again, few, other = (
            made(recipe, n, size, seed) for n, seed in ((20, SEED), (20, SEED), (7, SEED), (20, SEED + 1))
        )
        a = many.images.pixels
        wrong += _differing(a, again.images.pixels) + _differing(a[:7], few.images.pixels)
        wrong += 20 - _differing(a, other.images.pixels)
        wrong += 20 - len(torch.unique(a.flatten(1), dim=0))
        for k, v in many.factors.items():
            wrong += _differing(v, again.factors[k]) + _differing(v[:7], few.factors[k])
        of += 67 + 27 * len(many.factors)
    statement = (
        "The same seed gives the same bits, however many are asked for; other seeds, and other images, differ"
    )
    return exact(f"{recipe}-seed", statement, SOURCES[recipe], wrong, of)


def _differing(a: Tensor, b: Tensor) -> int:
    return int((a != b).flatten(1).any(1).sum()) if a.ndim > 1 else int((a != b).sum())


def counted(recipe: str, dims: int, n: int) -> Finding:
    """Pixels of the label map times the size of a pixel, summed over n heads, against the factors."""
    kind, unit = PHANTOM_OF[recipe], "area" if dims == 2 else "volume"
    wrong, numbers = [], {}
    for options, names in COUNTED[recipe]:
        heads = made(recipe, n, FINE[kind][dims - 2], **options)
        size = pixel_size(heads.images)
        assert heads.segmentation is not None
        for name in names:
            code = PHANTOMS[kind].structures.index(name)
            found = float((heads.segmentation == code).sum()) * size
            true = float(heads.factors[f"{unit}_{name}"].double().sum())
            numbers[name] = {"counted": found, "exact": true}
            if abs(found - true) > MARGINS[true < LARGE] * true + EXTRA[dims]:
                wrong.append(name)
    worst = max(numbers, key=lambda k: abs(numbers[k]["counted"] - numbers[k]["exact"]))
    text = f"furthest in all {n} heads: {worst} {numbers[worst]['counted']:.2f} counted, {numbers[worst]['exact']:.2f} exact"
    what, measure = ("Areas", "cm2") if dims == 2 else ("Volumes", "mL")
    statement = f"{what} are those of the pixels on a fine grid (2 %, small structures 5 %, and {EXTRA[dims]} {measure} in all)"
    found_ = exact(f"{recipe}-{unit}s", statement, "docs/phantoms.md: closed forms", len(wrong), len(numbers),
                   f"{text} {measure}" + (f"; off: {', '.join(wrong)}" if wrong else ""))  # fmt: skip
    return replace(found_, numbers={**found_.numbers, "structures": numbers})


def _left_is_right_of_the_image(recipe: str, n: int) -> Finding:
    """Of every pair that a head shows on both sides, the left one lies at larger x; head by head, 2D and 3D."""
    names = PHANTOMS[PHANTOM_OF[recipe]].structures
    pairs = [
        (names.index(s), names.index(s.replace("_right", "_left"))) for s in names if s.endswith("_right")
    ]
    wrong = of = 0
    for size, count in (((64, 64), n), ((32, 32, 32), min(n, 32))):
        codes = made(recipe, count, size).segmentation
        assert codes is not None
        x = torch.arange(size[-1]).double()
        columns = torch.stack([(codes == k).flatten(1, -2).sum(1) for k in range(len(names))])  # (K, N, W)
        there, place = columns.sum(2), (columns * x).sum(2) / columns.sum(2).clamp(min=1)
        for right, left in pairs:
            both = (there[right] > 0) & (there[left] > 0)
            wrong += int((both & (place[left] <= place[right])).sum())
            of += int(both.sum())
    statement = "Never mirrored: of every pair of structures the left one is at the right of the image"
    return exact(f"{recipe}-left", statement, SOURCES[recipe], wrong, of)


def _border(recipe: str, n: int) -> Finding:
    wrong = of = 0
    for size, count in (((64, 64), n), ((32, 32, 32), min(n, 32))):
        codes = made(recipe, count, size).segmentation
        assert codes is not None
        border = torch.ones(size, dtype=torch.bool)
        border[(slice(1, -1),) * len(size)] = False
        wrong += int((codes[:, 0] * border).flatten(1).any(1).sum())
        of += count
    return exact(f"{recipe}-fits", "Every head fits into its image", SOURCES[recipe], wrong, of)


def _mirrored(recipe: str, n: int) -> Finding:
    """Flipping the image changes the sign of the side that the ruler reads, and nothing else about it."""
    key = {"K-D1": "side", "B-D1": "blood_side", "16-Phantom": "ventricle_side"}[recipe]
    images = made(recipe, n, (64, 64)).images
    measure = PHANTOMS[PHANTOM_OF[recipe]].measure
    side, flipped = (measure(replace(images, pixels=x))[key] for x in (images.pixels, images.pixels.flip(-1)))
    wrong = int(((side + flipped).abs() > 1e-6).sum())
    return exact(f"{recipe}-mirror", f"A mirrored image has the opposite {key}", SOURCES[recipe], wrong, n)


def _one_side(n: int) -> Finding:
    wrong = 0
    for side, sign in (("left", 1.0), ("right", -1.0)):
        one, both = made("K-D1", n, (64, 64), side=side), made("K-D1", n, (64, 64))
        wrong += int((one.factors["side"] != sign).sum())
        wrong += int((one.factors["femur_width"] != both.factors["femur_width"]).sum())
    return exact("K-D1-one-side", "Knees of one side only are of that side, with the same anatomy", SOURCES["K-D1"],
                 wrong, 4 * n)  # fmt: skip


def _blood_and_cracks(n: int) -> Iterator[Finding]:
    """Beside the same heads without finding: where findings lie, and that the parts share no pixel."""
    wrong = of = overlap = 0
    normal = made("B-D1", n, (64, 64), findings="normal").segmentation
    for name in head_ct.LESIONS:
        sick = made("B-D1", n, (64, 64), findings=name)
        assert sick.segmentation is not None and normal is not None
        lesion = head_ct.mask(sick.segmentation, "lesion")
        under = ("csf", "brain_right", "brain_left") if name in BLOOD else ("skull",)
        right, left, skull = (head_ct.mask(sick.segmentation, p) for p in ("right", "left", "skull"))
        overlap += int(((right & left) | (right & skull) | (left & skull)).flatten(1).any(1).sum())
        own = torch.where(sick.factors["side"].view(-1, 1, 1, 1) > 0, left, right) | (
            skull if name not in BLOOD else False
        )
        bad = (sick.segmentation != normal) != lesion  # something else changed
        bad |= lesion & ~_among(normal, under) | lesion & ~own
        wrong += int(bad.flatten(1).any(1).sum())
        of += n
    yield exact("B-D1-masks", "Findings lie on their side within brain and fluid, cracks within bone; nothing else changes",
                SOURCES["B-D1"], wrong, of)  # fmt: skip
    yield exact("B-D1-parts", "Left half, right half and skull share no pixel", SOURCES["B-D1"], overlap, of)
    known = {"bright blood": BLOOD, "missing skull": head_ct.LESIONS[-1:], "displaced tissue": ()}
    lacking = [k for k, v in known.items() if not v]
    yield exact("B-D1-kinds", "It has bright blood, displaced normal tissue and missing skull", SOURCES["B-D1"],
                len(lacking), len(known), f"lacks {', '.join(lacking)}")  # fmt: skip


def _among(codes: Tensor, names: tuple[str, ...]) -> Tensor:
    return torch.isin(codes, torch.tensor([head_ct.STRUCTURES.index(k) for k in names], dtype=torch.uint8))


def _brain_lesions(recipe: str, n: int) -> Finding:
    """Beside the same heads without lesions, in 2D and 3D."""
    kind = "tumour" if recipe == "B-D2" else "ms"
    names = PHANTOMS["brain"].structures
    wrong = of = 0
    for size in ((64, 64), (32, 32, 32)):
        count = n if len(size) == 2 else min(n, 32)
        sick, well = (
            made(recipe, count, size, lesions=k, contrasts=("T1",)).segmentation for k in (kind, "none")
        )
        assert sick is not None and well is not None
        lesion = sick >= names.index("ms_lesion")
        bad = (sick != well) != lesion
        bad |= lesion & (well != names.index("white_matter") if kind == "ms" else well == 0)
        if kind == "tumour" and len(size) == 2:  # pixels are smaller here than the tumour's wall is thick
            core = (sick == names.index("tumour_core")).float()
            bad |= (_grown(core) > 0) & ~lesion
        wrong += int(bad.flatten(1).any(1).sum())
        of += count
    where = "within white matter" if kind == "ms" else "within the head, with the core inside"
    return exact(f"{recipe}-masks", f"Lesions lie {where}; nothing else changes", SOURCES[recipe], wrong, of)


def _grown(mask: Tensor) -> Tensor:
    """A mask (N, 1, *S) with its neighbours along the axes and diagonals."""
    return (F.max_pool2d if mask.ndim == 4 else F.max_pool3d)(mask, 3, 1, 1)


def _regions(n: int) -> Finding:
    codes = made("16-Phantom", n, (64, 64, 64), lesions="none").segmentation
    assert codes is not None
    lacking = sum(15 - len(set(c.unique().tolist()) & set(range(1, 16))) for c in codes)
    return exact(
        "16-Phantom-regions",
        "Every volume of 64^3 shows all of 15 regions",
        SOURCES["16-Phantom"],
        lacking,
        15 * n,
    )


def _identity(n: int) -> Iterator[Finding]:
    """Two visits of n subjects."""
    p = made("B-D3", 2 * n, (64, 64), visits=2)
    v = {k: x.view(n, 2) for k, x in p.factors.items()}
    wrong = sum(int((v[k][:, 0] != v[k][:, 1]).sum()) for k in growing_brain.IDENTITY)
    yield exact("B-D3-identity", "Two visits of a subject share every factor of identity, to the last bit", SOURCES["B-D3"],
                wrong, n * len(growing_brain.IDENTITY))  # fmt: skip
    ages = v["age"]
    bad = (ages.diff(dim=1) < 4 - 1e-4).sum() + (ages < 26).sum() + (ages > 45).sum()
    yield exact(
        "B-D3-visits",
        "Visits are 4 weeks or more apart, between weeks 26 and 45",
        SOURCES["B-D3"],
        int(bad),
        5 * n,
    )
    larger = PHANTOMS["growing_brain"].measure(p.images)["head_circumference"].view(n, 2).diff(dim=1) > 0
    yield exact(
        "B-D3-later",
        "The ruler reads a larger head at every second visit",
        SOURCES["B-D3"],
        int((~larger).sum()),
        n,
    )
    order = torch.arange(2 * n).flip(0)[:20]
    again = growing_brain.scan(p.factors["subject"][order].long(), p.factors["age"][order], SEED, (64, 64))
    yield exact("B-D3-scan", "A scan depends on seed, subject and age alone", SOURCES["B-D3"],
                _differing(again.images.pixels, p.images.pixels[order]), len(order))  # fmt: skip

"""What each ruler claims to read in a phantom's pixels, how well it does, and where it stops.

A margin is the one that docs/phantoms.md and tests/phantoms name for that size, set before anything was measured here;
`ours` marks the few that nobody had named. The images are of a seed that no margin or constant was found on.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from verisim.data.spec import Images
from verisim.metrics.agreement import wilson
from verisim.metrics.association import correlation
from verisim.metrics.bootstrap import Estimate, mean_estimate
from verisim.metrics.controls import blurred, noise_like
from verisim.phantoms import PHANTOMS
from verisim.phantoms.mr_contrast import brightness
from verisim.seeding import generator

SEED = 2027
DRAWS = 500  # bootstrap resamples per number
BLUR, NOISE = "blur", "noise"
LEVELS = {  # blur: standard deviation in pixels; noise: standard deviation on [-1, 1]
    BLUR: (0.5, 1.0, 2.0, 4.0),
    NOISE: (0.05, 0.1, 0.2, 0.4),
}
Scores = dict[str, Estimate]


@dataclass(frozen=True)
class Reading:
    """A number that a ruler reads, the factor that it means, and the margins that it has to keep."""

    name: str  # of the measurement
    truth: str = ""  # name of the factor; "" = the same
    correlation: float | None = None  # at least
    error: float | None = None  # mean absolute error, at most
    relative: bool = False  # the error is a share of the truth
    same: float | None = None  # share of images with the same class, or the same sign if `sign`; at least
    sign: bool = False
    labels: tuple[int, ...] = ()  # classes of images that are asked; () = all
    source: str = "docs/phantoms.md, tests/phantoms"


@dataclass(frozen=True)
class Case:
    """Images of one phantom at one size, and what is read in them."""

    phantom: str
    size: tuple[int, ...]
    readings: tuple[Reading, ...]
    options: dict[str, Any] = field(default_factory=dict)  # of the phantom's make

    @property
    def name(self) -> str:
        return "x".join(map(str, self.size))


JOINT = tuple(Reading(f"joint_space{k}", "", 0.98, 0.0025) for k in ("", "_medial", "_lateral"))
TUMOUR = {"lesions": "tumour", "contrasts": ("T1", "T1c", "T2", "FLAIR")}
CASES: dict[str, tuple[Case, ...]] = {
    "K-D1": (
        Case("knee", (64, 64), (
            *JOINT,
            Reading("asymmetry", correlation=0.85),
            Reading("condyles", "femur_width", correlation=0.9),
            Reading("grade", same=0.75),
            Reading("side", same=0.99, sign=True),
        )),
        Case("knee", (32, 32), (Reading("joint_space", "", 0.75), Reading("side", same=0.95, sign=True))),
        Case("knee", (128, 128), (Reading("joint_space", "", 0.98), Reading("side", same=0.95, sign=True))),
    ),
    "B-D1": (
        Case("head_ct", (64, 64), (
            Reading("area_intracranial", error=0.01, relative=True),
            Reading("area_ventricles", "", 0.95, 0.12, True),
            Reading("area_blood", "area_lesion", 0.95, 0.25, True, labels=(3,)),
            Reading("blood_side", "side", same=0.9, sign=True, labels=(1, 2, 3)),
        )),
        Case("head_ct", (64, 64, 64), (
            Reading("volume_intracranial", error=0.02, relative=True),
            Reading("volume_ventricles", "", 0.95),
            Reading("volume_blood", "volume_lesion", 0.95),
            Reading("blood_side", "side", same=0.9, sign=True),
        ), {"findings": "intraparenchymal"}),
    ),
    "B-D2": (
        Case("brain", (64, 64), (
            Reading("area_head", error=0.01, relative=True),
            Reading("area_enhancing_tumour", "", 0.9, source="ours"),
        ), TUMOUR),
        Case("brain", (32, 32, 32), (
            Reading("volume_head", "", 0.99, source="ours"),
            Reading("volume_enhancing_tumour", "", 0.9, source="ours"),
        ), TUMOUR),
    ),
    "B-D3": (
        Case("growing_brain", (64, 64), (
            Reading("head_circumference", error=0.3),
            Reading("area_head", error=0.003, relative=True),
            Reading("area_ventricles", "", 0.98, 0.12, True),
            Reading("age", error=1.2),
            Reading("aspect", error=0.005),
        )),
        *(Case("growing_brain", (side,) * 3, (
            Reading("head_circumference", error=0.01, relative=True),
            Reading("volume_head", error=error, relative=True),
            Reading("volume_ventricles", "", 0.9),
        )) for side, error in ((32, 0.05), (48, 0.01))),
    ),
    "16-Phantom": (
        Case("brain", (64, 64), (
            Reading("area_head", error=0.01, relative=True),
            Reading("area_brain", "", 0.99, 0.04, True, labels=(0, 1)),
            Reading("area_ventricles", "", 0.99, 0.04, True, labels=(0, 1)),
            Reading("ventricle_side", "", 0.5, labels=(0, 1)),
        )),
        *(Case("brain", size, (
            Reading("volume_brain", "", 0.99, 0.03, True),
            Reading("volume_ventricles", "", 0.99, error, True),
        ), {"lesions": "none"}) for size, error in (((32, 32, 32), 0.06), ((48, 64, 48), 0.03))),
    ),
}  # fmt: skip


def read(case: Case, n: int, levels: int) -> dict[str, Any]:
    """Scores of every reading: `clean`; `controls` (factors of other images, noise images); `degraded` by level.

    n: images; levels: how many of LEVELS are tried, from the mildest on.
    """
    made = PHANTOMS[case.phantom].make(n, SEED, case.size, **case.options)
    images, facts = made.images, truths(made.factors)
    rng = generator("phantoms", case.phantom, *case.size)
    clean = measured(case, images)

    def judged(found: dict[str, Tensor], shuffled: bool = False) -> dict[str, Scores]:
        return {r.name: score(r, found, facts, images, shuffled) for r in case.readings}

    return {
        "n": n,
        "clean": judged(clean),
        "controls": {
            "shuffled": judged(clean, shuffled=True),
            "noise": judged(measured(case, noise_like(images, n, rng))),
        },
        "degraded": {
            f"{kind} {level:g}": judged(measured(case, degraded(images, kind, level)))
            for kind, known in LEVELS.items()
            for level in known[:levels]
        },
    }


def measured(case: Case, images: Images) -> dict[str, Tensor]:
    """What the phantom's ruler reads, (N,) each; where T1c is shown, also the tumour's enhancing rim."""
    found = dict(PHANTOMS[case.phantom].measure(images))
    if "T1c" in case.options.get("contrasts", ()):
        levels = brightness("T1c")
        x = images.to_range(0.0, 1.0).pixels[:, case.options["contrasts"].index("T1c")]
        count = (x > (levels["enhancing"] + levels["white"]) / 2).flatten(1).sum(1).double()
        kind = "area" if images.spec.spatial_dims == 2 else "volume"
        found[f"{kind}_enhancing_tumour"] = count * pixel_size(images)
    return found


def pixel_size(images: Images) -> float:
    """Of one pixel, in cm^2 or mL."""
    unit = 1.0
    for mm in images.spec.spacing or ():
        unit *= mm / 10
    return unit


def truths(factors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The factors, and those of their combinations that a ruler reads."""
    f = {k: v.double() for k, v in factors.items()}
    if "aspect" in f:  # rulers see which axis is the shorter, not which way the head lies
        f["aspect"] = torch.minimum(f["aspect"], 1 / f["aspect"])
    for kind in ("area", "volume"):
        if f"{kind}_brain" in f:
            f[f"{kind}_head"] = f[f"{kind}_brain"] + f[f"{kind}_csf"] + f[f"{kind}_ventricles"]
            left, right = (f[f"{kind}_ventricle_{s}"] for s in ("left", "right"))
            f["ventricle_side"] = (left - right) / (left + right)
    return f


def degraded(images: Images, kind: str, level: float) -> Images:
    """Blurred by `level` pixels, or with noise of that standard deviation on [-1, 1], clipped; from a fixed seed."""
    if kind == BLUR:
        return blurred(images, level)
    noise = torch.randn(images.pixels.shape, generator=generator("phantoms", "noise", f"{level:g}"))
    return replace(images, pixels=(images.pixels + level * noise).clamp(images.spec.low, images.spec.high))


def score(
    r: Reading, found: dict[str, Tensor], facts: dict[str, Tensor], images: Images, shuffled: bool = False
) -> Scores:
    """What the reading's margins are about, with 95 % intervals over images or, where they have one, patients.

    shuffled: against the factors of another of the images that are asked.
    """
    asked = torch.ones(len(images), dtype=torch.bool)
    if r.labels:
        assert images.labels is not None
        asked = torch.isin(images.labels, torch.tensor(r.labels))
    x, y = found[r.name][asked].double(), facts[r.truth or r.name][asked]
    if shuffled:
        y = y[torch.randperm(len(y), generator=generator("phantoms", "shuffled", r.name))]
    names = images.patients
    groups = None if names is None else [n for n, yes in zip(names, asked.tolist()) if yes]
    rng = generator("phantoms", "bootstrap", r.name)
    scores: Scores = {}
    if r.correlation is not None:
        scores["correlation"] = correlation(x, y, DRAWS, rng, groups)
    if r.error is not None:
        off = (x / y - 1).abs() if r.relative else (x - y).abs()
        scores["error"] = mean_estimate(off, DRAWS, rng, groups)
    if r.same is not None:
        same = (x.sign() == y.sign()) if r.sign else (x == y)
        scores["same"] = wilson(float(same.sum()), len(same))
    return scores


def verdict(r: Reading, scores: Scores) -> bool | None:
    """Are all margins kept? False if one is missed for sure, None if an interval holds a margin that decides."""
    kept = [
        above(scores["correlation"], r.correlation) if r.correlation is not None else True,
        above(scores["same"], r.same) if r.same is not None else True,
        below(scores["error"], r.error) if r.error is not None else True,
    ]
    return False if False in kept else None if None in kept else True


def above(found: Estimate, margin: float) -> bool | None:
    """True or False if the whole interval is on one side of the margin; the margin itself counts as kept."""
    return True if found.low >= margin else False if found.high < margin else None


def below(found: Estimate, margin: float) -> bool | None:
    """The other way round."""
    return True if found.high <= margin else False if found.low > margin else None


def wanted(r: Reading) -> str:
    """The margins, in words."""
    unit = " of the truth" if r.relative else ""
    parts = [
        f"correlation {r.correlation:g} or more" if r.correlation is not None else "",
        f"mean error {r.error:g}{unit} or less" if r.error is not None else "",
        f"right in {r.same:.0%} or more" if r.same is not None else "",
    ]
    return ", ".join(p for p in parts if p)


def shown(scores: Scores) -> str:
    """The scores, in words."""
    return ", ".join(f"{k} {e.value:.4g} [{e.low:.4g}, {e.high:.4g}]" for k, e in scores.items())


def limit(found: dict[str, Any], r: Reading, kind: str) -> float:
    """The strongest degradation up to which the margins are kept at every level; 0 = at clean images at most."""
    reached = 0.0
    if verdict(r, found["clean"][r.name]) is not True:
        return reached
    for level in LEVELS[kind]:
        at = found["degraded"].get(f"{kind} {level:g}")
        if at is None or verdict(r, at[r.name]) is not True:
            break
        reached = level
    return reached

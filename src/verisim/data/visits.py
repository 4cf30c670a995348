"""Two visits of the same people, as they come: other grids, other fields of view, another place in the scanner.

Read from a folder with a manifest.csv (image, patient, days) or from the longitudinal volumes of the public
multiple-sclerosis data of Lesjak et al. (`long_patient01_study1_flair.nii.gz` and `long_demographics.csv`); drawn from
growing-brain phantoms; brought to one grid by rigid registration: second visits onto first ones, first visits onto the
first person's.
"""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verisim.data.align import align_rigid, carried, correlation, motion_of
from verisim.data.intensity import apply_levels, robust_range
from verisim.data.listing import scan
from verisim.data.raw import RawImage
from verisim.data.readers import read_image
from verisim.data.spec import Images, ImageSpec
from verisim.errors import DataError, nearest

PATTERN = re.compile(r"long_patient(\d+)_study(\d+)_(\w+)\.nii\.gz")
DEMOGRAPHICS = "long_demographics.csv"
LEAST_CORRELATION = 0.9  # of a registered second visit with the first; below, registration has failed
REGISTER = 2  # registration sees a grid so many times finer than the one asked for
AVERAGED = 3  # a pixel of the grid asked for is the mean of so many points per axis


@dataclass(frozen=True)
class Scan:
    """One volume as stored."""

    name: str
    patient: str
    days: float  # since the patient's first visit
    pixels: Tensor  # (1, D, H, W) stored units
    affine: np.ndarray  # (4, 4): (d, h, w, 1) -> mm RAS+

    @property
    def background(self) -> float:
        """The darkest value: where a scan does not reach."""
        return float(self.pixels.min())


@dataclass(frozen=True)
class Visits:
    """All scans on one grid, and how they got there."""

    images: Images  # in [-1, 1], -1 outside of what all scans show; patients and names are set
    days: Tensor  # (N,) since the first visit
    unregistered: Tensor  # (N, 1, *S) scans that only headers and the first visit's registration place
    registrations: list[dict[str, Any]] = field(
        default_factory=list
    )  # one per registered scan, plain numbers
    failed: tuple[str, ...] = ()  # names of second visits whose registration failed; they are left out


# --- reading --------------------------------------------------------------------------------------


def read_visits(folder: Path | str, contrast: str = "flair") -> list[Scan]:
    """Scans of a folder by patient and day; `contrast` chooses among the public data's, and is not used for a manifest.

    Raises DataError if there are none, or if a day is missing or no number.
    """
    folder = Path(folder)
    if (folder / "manifest.csv").exists():
        found = []
        for e in scan(folder, volumes=True).entries:
            days = _days(str(e.fields.get("days", "")), f"{folder}, {e.name}, column 'days'")
            if e.patient is None:
                raise DataError(f"{folder}, {e.name}: no patient. Two visits need the column 'patient'.")
            found.append(_scan(e.name, e.patient, days, e.read()))
    else:
        found = _public(folder, contrast)
    return sorted(found, key=lambda s: (s.patient, s.days))


def _public(folder: Path, contrast: str) -> list[Scan]:
    hits = [m for m in map(PATTERN.fullmatch, sorted(p.name for p in folder.glob("long_*.nii.gz"))) if m]
    kinds = sorted({m[3] for m in hits})
    if contrast not in kinds:
        raise DataError(
            f"{folder}: no volumes 'long_patient01_study1_{contrast}.nii.gz' and no manifest.csv (image, patient, days)."
            + (f"{nearest(contrast, kinds)} Contrasts there: {', '.join(kinds)}." if kinds else "")
        )
    table = folder / DEMOGRAPHICS
    if not table.exists():
        raise DataError(f"{folder}: no {DEMOGRAPHICS}, which says how many days lie between two visits.")
    with table.open(newline="") as file:
        gaps = {int(r["patient_id"]): r["days_between_studies"] for r in csv.DictReader(file)}
    found = []
    for m in hits:
        if m[3] == contrast:
            later = int(m[2]) > 1
            days = _days(gaps.get(int(m[1]), ""), f"{table}, patient {int(m[1])}") if later else 0.0
            found.append(_scan(m[0], f"patient{m[1]}", days, read_image(folder / m[0])))
    return found


def _days(text: str, where: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = math.nan
    if not (math.isfinite(days) and days >= 0):
        raise DataError(f"{where}: '{text}' is no number of days; 0 for the first visit or more is meant.")
    return days


def _scan(name: str, patient: str, days: float, raw: RawImage) -> Scan:
    if raw.array.ndim != 4 or raw.affine is None:
        raise DataError(
            f"{name}: not a volume with an affine. Two visits are compared in millimetres, as NIfTI."
        )
    return Scan(name, patient, days, torch.from_numpy(raw.array[:1]).float(), raw.affine)


# --- one grid for all -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """A grid in space along the axes of the world: d upwards, h forwards, w to the right."""

    size: tuple[int, int, int]
    mm: float  # per voxel

    def affine(self, centre: np.ndarray) -> np.ndarray:
        """(4, 4) of this grid with its middle at `centre`, mm."""
        matrix = np.diag([self.mm] * 3 + [1.0])[[2, 1, 0, 3]]
        matrix[:3, 3] = centre - (matrix[:3, :3] @ ((np.array(self.size) - 1) / 2))
        return matrix

    def finer(self, times: int) -> Frame:
        d, h, w = (times * s for s in self.size)
        return Frame((d, h, w), self.mm / times)


def on_one_grid(scans: list[Scan], frame: Frame) -> Visits:
    """Register and resample: second visits to their first, first visits to the first person's.

    A second visit that does not fit its first (LEAST_CORRELATION) is left out and named; a first visit that does not
    fit the first person's stays, its fit is in the numbers. Raises DataError where a patient's first visit is missing.
    """
    by_patient: dict[str, list[Scan]] = {}
    for s in scans:
        by_patient.setdefault(s.patient, []).append(s)
    facts: list[dict[str, Any]] = []
    placed: list[tuple[Scan, np.ndarray, np.ndarray]] = []  # scan, motion, motion by its header alone
    reference: Scan | None = None
    for patient, mine in by_patient.items():
        first = mine[0]
        if first.days != 0:
            raise DataError(
                f"{patient}: {first.name} is {first.days:g} days after a first visit that is not there."
            )
        motion = np.eye(4)
        if reference is None:
            reference = first
        else:
            motion, fact = register(first, reference, frame)
            facts.append(fact)
        placed.append((first, motion, motion))
        for later in mine[1:]:
            onto, fact = register(later, first, frame)
            facts.append(fact)
            if fact["fits"]:
                placed.append((later, onto @ motion, motion))
    assert reference is not None
    missing = tuple(f["scan"] for f in facts if f["same_patient"] and not f["fits"])
    return _resampled(placed, frame, frame.affine(middle(reference)), facts, missing)


def register(scan: Scan, reference: Scan, frame: Frame) -> tuple[np.ndarray, dict[str, Any]]:
    """World (mm) of the reference -> world of the scan, and what to say of it."""
    fine = frame.finer(REGISTER)
    grids = [fine.affine(middle(s)) for s in (scan, reference)]
    moving, fixed = (_looked_at(s, fine, g, np.eye(4))[0] for s, g in zip((scan, reference), grids))
    straight, seen = _looked_at(scan, fine, grids[1], np.eye(4))  # by the headers alone
    spacing = (fine.mm,) * 3
    found = align_rigid(moving, fixed, spacing, background=scan.background)
    motion = grids[0] @ found.matrix @ np.linalg.inv(grids[1])
    between = np.linalg.inv(grids[1]) @ motion @ grids[1]
    degrees, mm = motion_of(between, spacing, fine.size)
    fact = {
        "scan": scan.name,
        "reference": reference.name,
        "same_patient": scan.patient == reference.patient,
        "degrees": round(degrees, 2),
        "shift_mm": round(mm, 1),
        "correlation": round(found.correlation, 4),
        "correlation_by_header": round(correlation(straight, fixed, seen), 4) if bool(seen.any()) else None,
        "overlap": round(found.overlap, 3),
        "fits": found.correlation >= LEAST_CORRELATION if scan.patient == reference.patient else None,
    }
    return motion, fact


def middle(scan: Scan) -> np.ndarray:
    """(3,) mm: centre of mass of the brightness above the background."""
    weight = (scan.pixels[0] - scan.background).double().numpy()
    at = [
        (weight.sum(tuple(k for k in range(3) if k != a)) * np.arange(n)).sum()
        for a, n in enumerate(weight.shape)
    ]
    return (scan.affine @ np.array([*(np.array(at) / max(weight.sum(), 1e-12)), 1.0]))[:3]


def _looked_at(
    scan: Scan, frame: Frame, grid: np.ndarray, motion: np.ndarray, finer: int = 1
) -> tuple[Tensor, Tensor]:
    """The scan on a grid of the reference's world, given the motion to its own world."""
    matrix = np.linalg.inv(scan.affine) @ motion @ grid
    return carried(scan.pixels, matrix, frame.size, finer=finer, background=scan.background)


def _resampled(
    placed: list[tuple[Scan, np.ndarray, np.ndarray]],
    frame: Frame,
    grid: np.ndarray,
    facts: list[dict[str, Any]],
    missing: tuple[str, ...],
) -> Visits:
    """Pixels within the field of view of all, black and white from each scan's own percentiles there."""
    seen = [_looked_at(s, frame, grid, m, AVERAGED) for s, m, _ in placed]
    straight = [_looked_at(s, frame, grid, m, AVERAGED)[0] for s, _, m in placed]
    common = torch.stack([inside for _, inside in seen]).all(0)[0]  # (*S)
    if not common.any():
        raise DataError("No place is seen by all scans. Leave out the one with the smallest field of view.")
    bounds = np.array([robust_range(x[0][common].numpy()) for x, _ in seen])

    def finished(volumes: list[Tensor]) -> Tensor:
        x = apply_levels(torch.stack(volumes).numpy().copy(), bounds, -1.0, 1.0)
        return torch.where(common, torch.from_numpy(x), torch.tensor(-1.0))

    spec = ImageSpec(frame.size, spacing=(frame.mm,) * 3, modality="MR")
    images = Images(
        finished([x for x, _ in seen]),
        spec,
        patients=tuple(s.patient for s, _, _ in placed),
        names=tuple(s.name for s, _, _ in placed),
    )
    days = torch.tensor([s.days for s, _, _ in placed])
    return Visits(images, days, finished(straight), facts, missing)

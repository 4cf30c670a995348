"""check: everything that is in a folder of images and everything that is wrong with it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from verisim.data.findings import FINDERS, NOT_LABELS, Problem, label_counts
from verisim.data.findings import near_duplicates as find_near
from verisim.data.inspect import Facts, inspect_all
from verisim.data.listing import Entry, Listing, file_columns, patient_column, read_manifest, scan
from verisim.errors import DataError


@dataclass(frozen=True)
class Report:
    """What `verisim data check` found."""

    folder: str
    images: int  # readable images (masks and label maps not counted)
    files: int  # image files looked at
    counts: dict[str, dict[str, int]]  # "size" -> {"256 x 256": 832}, "format", "mode", ...
    labels: dict[str, dict[str, int]]  # column -> value -> images
    problems: tuple[Problem, ...]
    facts: dict[str, str] = field(default_factory=dict)  # further lines for people

    @property
    def usable(self) -> bool:
        return self.images > 0

    @property
    def exit_code(self) -> int:
        """0 clean, 1 something is wrong, 2 nothing usable."""
        if not self.usable:
            return 2
        return int(any(p.severity != "note" for p in self.problems))


def check(folder: Path | str, *, near_duplicates: bool = False, progress: bool = True) -> Report:
    """Read every image of a folder (or .npz set) and report counts and problems.

    Errors: DataError only where there is nothing to report on: no such folder, no images, no table in
    manifest.csv.
    """
    root = Path(folder)
    listing, pairs = _all_entries(root)
    facts = inspect_all(pairs, near_duplicates, progress)
    readable = [f for f in facts if not f.error and f.role == _main_role(pairs)]
    images = [f for f in readable if not f.label_map] or readable  # label maps alone are what they are
    problems = [p for find in FINDERS for p in find(listing, facts, images)]
    if near_duplicates:
        problems += find_near(images)
    problems.sort(key=lambda p: ("error", "warning", "note").index(p.severity))
    return Report(str(root), sum(not f.not_finite for f in images), len(facts) + len(listing.unreadable), _counts(facts, images),
                  label_counts(listing, images), tuple(problems), _facts(images, listing))  # fmt: skip


def _main_role(pairs: Sequence[tuple[Entry, str]]) -> str:
    """The role whose files are the images."""
    roles = [role for _, role in pairs]
    return "image" if "image" in roles else roles[0] if roles else "image"


def _all_entries(root: Path) -> tuple[Listing, list[tuple[Entry, str]]]:
    """The listing, and every file with its role: the manifest column that names it, or 'image'."""
    manifest = root / "manifest.csv"
    if not (root.is_dir() and manifest.exists()):
        listing = scan(root)
        return listing, [(e, "image") for e in listing.entries]
    columns, rows = read_manifest(manifest)
    files = file_columns(columns, rows)
    files = ["image", *(c for c in files if c != "image")] if "image" in columns else files
    if not files:
        raise DataError(f"{manifest}: no column names image files. Add a column 'image'.")
    listings = {c: scan(root, image=c) for c in files}
    first = listings[files[0]]
    missing = tuple(dict.fromkeys(m for part in listings.values() for m in part.missing))
    merged = Listing(first.root, first.entries, columns, missing, first.unlisted, notes=first.notes)
    seen: dict[str, tuple[Entry, str]] = {}
    for column, part in listings.items():
        for e in part.entries:
            seen.setdefault(e.name, (e, column))
    return merged, list(seen.values())


# --- counts ---------------------------------------------------------------------------------------


def _counts(facts: Sequence[Facts], images: Sequence[Facts]) -> dict[str, dict[str, int]]:
    """How many images there are of each kind."""
    table: dict[str, Callable[[Facts], str]] = {
        "format": lambda f: f.format,
        "size": lambda f: f.size,
        "mode": lambda f: f.mode,
        "numbers": lambda f: f.stored,
        "spacing (mm)": lambda f: " x ".join(f"{s:.4g}" for s in f.spacing) if f.spacing else "not stored",
        "orientation": lambda f: f.orientation or "not stored",
        "split": lambda f: f.entry.split or "none given",
    }
    counts = {name: dict(Counter(map(key, images)).most_common()) for name, key in table.items()}
    shown = {f.entry.name for f in images}
    others = Counter("label map or mask" if f.label_map else f"column {f.role}"
                     for f in facts if f.entry.name not in shown and not f.error)  # fmt: skip
    if others:
        counts["other files"] = dict(others.most_common())
    return counts


def _facts(images: Sequence[Facts], listing: Listing) -> dict[str, str]:
    """Values and patients in words."""
    if not images:
        return {}
    low, high = min(f.low for f in images), max(f.high for f in images)
    facts = {"values": f"{low:g} to {high:g} (as stored)"}
    patients = {f.entry.patient for f in images if f.entry.patient}
    per = defaultdict(set)
    for f in images:
        if f.entry.patient and f.entry.split:
            per[f.entry.split].add(f.entry.patient)
    shares = ", ".join(f"{s} {len(p)}" for s, p in sorted(per.items()))
    if patients:
        facts["patients"] = f"{len(patients)}" + (f" ({shares})" if shares else "")
    if any(f.synthetic for f in images):
        facts["synthetic"] = f"{sum(f.synthetic for f in images)} of {len(images)} are marked as synthetic"
    rows = [dict(f.entry.fields) for f in images if f.entry.fields]
    shown = {*label_counts(listing, images), *NOT_LABELS, patient_column(listing.columns)}
    shown.update(file_columns(listing.columns, rows))
    many = [c for c in listing.columns if c not in shown and any(r.get(c) for r in rows)]
    if many:
        facts["also has"] = "columns " + ", ".join(many)
    for note in listing.notes:
        facts.setdefault("noted", note)
    return facts

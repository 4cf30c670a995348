"""A folder of images, ready for a model: one size, one range, class indices, splits by patient."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from verisim.data.dataset import Case, Dataset, assemble
from verisim.data.intensity import Window
from verisim.data.labels import class_names_of, label_values
from verisim.data.listing import Listing, contrasts_of, scan
from verisim.data.loading import SKIP_HINT, Plan, load_all
from verisim.data.resample import Fit
from verisim.data.series import some
from verisim.data.single import Reading, load_single
from verisim.data.splits import make_split, require_no_leak, split_name
from verisim.errors import DataError

__all__ = ["Dataset", "load_file", "load_images"]


def load_images(
    folder: Path | str,
    size: int | Sequence[int],  # (H, W) or (D, H, W) pixels; an int n means (n, n)
    *,
    channels: int = 1,  # 1 (colour becomes grey) or 3 (grey is repeated)
    label: str | None = None,  # manifest column with classes, or "folder": the name of the file's folder
    image: str = "image",  # manifest column with file names; "t1,t2" = one channel from each of these columns
    mask: str | None = None,  # manifest column with label maps: integers 0..255 on the grid of their image
    structures: Sequence[str] = (),  # what code 0, 1, ... of the label maps means; () = unknown
    split: Mapping[str, str] | str | None = "split",  # column, "new", {patient: split}, or None: all in one
    low: float = -1.0,  # value of black
    high: float = 1.0,  # value of white
    window: Window = None,  # black and white in stored units; "each" image's percentiles; "header"
    fit: Fit | None = None,  # "pad" (2D default) and "crop" keep the aspect; "stretch" (3D default) does not
    enlarge: bool = False,  # whether images smaller than `size` may be interpolated up
    on_error: str = "skip",  # unreadable files: "skip" and list them, or "stop"
    test_fraction: float = 0.2,  # share of patients for a split that is made here
    val_fraction: float = 0.0,  # likewise
    seed: int = 0,  # of a split that is made here
    limit: int | None = None,  # at most so many images per split, chosen by a hash of their names
    minimum: int = 2,  # images that the training (or only) split must have
    progress: bool = True,  # show a bar while reading many images
) -> Dataset:
    """Read a folder (or .npz set) into memory as float32 images in [low, high].

    8-bit images map their type's range (0..255) to [low, high]. Others use `window`, or the 0.5th and
    99.5th percentile over the training images of their kind (recorded in Dataset.window), for each contrast
    on its own. A stretched volume keeps its place in space: spacing and affine follow; label maps are fitted
    as their images, nearest neighbour. split "new" makes one by patient whatever the manifest says.
    Errors: DataError for anything that would silently give other data than was meant.
    """
    wanted = (int(size),) * 2 if isinstance(size, int) else tuple(int(s) for s in size)
    fit = fit or ("pad" if len(wanted) == 2 else "stretch")
    listing = scan(folder, image=image, volumes=len(wanted) == 3, mask=mask)
    several = contrasts_of(image, listing.columns) if "," in image else ()
    contrasts = several if len(several) > 1 else ()
    plan = Plan(wanted, channels, low, high, window, fit, enlarge, on_error, contrasts, mask or "")
    notes = list(listing.notes)
    cases = _with_labels(_cases(listing, notes, plan, split is not None), label, listing, notes)
    split_of = _assign(cases, split, {"test": test_fraction, "val": val_fraction}, seed, listing, notes)
    cases = _limited(cases, limit)
    loaded, failed = load_all([c.entry for c in cases], plan, progress)
    by_name = {item.entry.name: item for item in loaded}
    for case in cases:
        case.loaded = by_name.get(case.entry.name)
    skipped = [
        *listing.unreadable,
        *((n, "in the manifest, but not there") for n in listing.missing),
        *failed,
    ]
    cases = [c for c in cases if c.loaded is not None]
    _require_enough(cases, minimum, skipped, listing)
    if skipped:
        notes.append(
            f"{len(skipped)} file(s) left out (on_error='skip'): {some([n for n, _ in skipped])}. First reason: "
            f"{skipped[0][1]}"
        )
    names = class_names_of([c.label for c in cases], label, listing.root) if label else ()
    return assemble(cases, names, plan, notes, skipped, split_of, tuple(structures))


def load_file(
    path: Path | str | Sequence[Path | str],  # one file, or one for each of like.contrasts, in that order
    like: Dataset,  # whose black and white are used for images of the same kind
    *,
    window: Window = None,  # as for load_images, for kinds that `like` does not have
    fit: Fit | None = None,
    enlarge: bool = False,
) -> tuple[torch.Tensor, np.ndarray | None]:
    """One image (C, *S) float32, read as the images of a data set were, and its affine (4, 4) if known.

    The affine maps (d, h, w, 1) of the resized image to mm RAS+. DataError says why a file cannot be read.
    """
    spec = next(iter(like.splits.values())).spec
    paths = [Path(path)] if isinstance(path, Path | str) else [Path(p) for p in path]
    found = load_single(paths, Reading(spec, like.window, like.contrasts, window, fit, enlarge))
    return found.pixels, found.affine


def _cases(listing: Listing, notes: list[str], plan: Plan, splitting: bool) -> list[Case]:
    """Every entry, with its patient (itself where none is known)."""
    gone = [*listing.missing, *(n for n, _ in listing.unreadable)]
    if gone and plan.on_error == "stop":
        raise DataError(
            f"{listing.root}: {len(gone)} file(s) missing or unreadable: {some(gone)}."
            f"{''.join(f' {n}: {why}.' for n, why in listing.unreadable[:1])} {SKIP_HINT}"
        )
    anonymous = [e for e in listing.entries if not e.patient]
    if splitting and anonymous and any(not e.split for e in listing.entries):
        notes.append(
            f"{len(anonymous)} of {len(listing.entries)} images name no patient: each counts as its own. If "
            "people have several images, add a 'patient' column, or test images leak into training"
        )
    return [Case(e, e.patient or f"file:{e.name}", e.split or "") for e in listing.entries]


def _with_labels(cases: list[Case], label: str | None, listing: Listing, notes: list[str]) -> list[Case]:
    """Cases with their label's text; those with an empty one are left out, and noted."""
    if label is None:
        return cases
    for case, value in zip(cases, label_values([c.entry for c in cases], label, listing)):
        case.label = value
    kept = [c for c in cases if c.label]
    if cases and not kept:
        raise DataError(f"{listing.root}: label '{label}' is empty for all {len(cases)} images.")
    if len(kept) < len(cases):
        notes.append(f"{len(cases) - len(kept)} image(s) without a '{label}' left out")
    if kept:
        class_names_of([c.label for c in kept], label, listing.root)  # before hours of reading
    return kept


def _assign(cases, split, fractions: dict[str, float], seed: int, listing: Listing, notes: list[str]) -> dict:
    """Give every case its split, check it by patient, and return patient -> split."""
    where = str(listing.root)
    if split is None:
        for case in cases:
            case.split = "all"
        return {c.patient: "all" for c in cases}
    if split == "new":
        for case in cases:
            case.split = ""
    elif isinstance(split, str) and split != "split":
        if split not in listing.columns:
            raise DataError(f"{where}: no split column '{split}'. Columns: {', '.join(listing.columns)}.")
        for case in cases:
            word = case.entry.fields[split]
            case.split = split_name(word, f"{where}, {case.entry.name}") if word else ""
    if isinstance(split, Mapping):
        lost = [c.patient for c in cases if c.patient not in split]
        if lost:
            raise DataError(f"{where}: the given split lacks {len(lost)} patient(s): {some(lost)}.")
        for case in cases:
            case.split = split_name(split[case.patient], where)
    empty = [c.entry.name for c in cases if not c.split]
    if empty and len(empty) < len(cases):
        raise DataError(f"{where}: {len(empty)} image(s) have no split while others have: {some(empty)}. "
                        "Fill the column, or empty it to have a split made.")  # fmt: skip
    if empty:
        made = make_split([c.patient for c in cases], fractions, seed)
        for case in cases:
            case.split = made[case.patient]
        shares = ", ".join(f"{n} {k}" for n, k in Counter(c.split for c in cases).items())
        notes.append(f"split made by a hash of the patient (seed {seed}): {shares} images")
    require_no_leak([c.patient for c in cases], [c.split for c in cases], where)
    return {c.patient: c.split for c in cases}


def _limited(cases: list[Case], limit: int | None) -> list[Case]:
    """At most `limit` cases per split: those whose names have the smallest hashes."""
    if limit is None:
        return cases
    if limit < 1:
        raise DataError(f"limit={limit}: must be at least 1 image per split.")
    ranked = sorted(cases, key=lambda c: hashlib.sha256(c.entry.name.encode()).digest())
    taken: Counter[str] = Counter()
    chosen = set()
    for case in ranked:
        taken[case.split] += 1
        if taken[case.split] <= limit:
            chosen.add(case.entry.name)
    return [c for c in cases if c.entry.name in chosen]


def _require_enough(cases: list[Case], minimum: int, skipped: list, listing: Listing) -> None:
    """DataError unless the training split (or the only one) has `minimum` images."""
    if not cases:
        reason = f" First: {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise DataError(f"{listing.root}: none of {len(skipped)} image(s) can be used.{reason}")
    counts = Counter(c.split for c in cases)
    first = "train" if "all" not in counts else "all"
    if counts[first] < minimum:
        have = ", ".join(f"{n} {k}" for n, k in counts.items())
        raise DataError(f"{listing.root}: {counts[first]} image(s) to learn from, at least {minimum} are "
                        f"needed (found: {have}; {len(skipped)} unreadable). Add images.")  # fmt: skip

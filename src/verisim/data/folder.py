"""A folder of images, ready for a model: one size, one range, class indices, splits by patient."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from verisim.data.intensity import Window, apply_levels, kind_of, levels
from verisim.data.labels import class_names_of, label_values
from verisim.data.listing import Entry, Listing, scan
from verisim.data.loading import SKIP_HINT, Loaded, Plan, load_all, load_one
from verisim.data.raw import orientation
from verisim.data.resample import Fit
from verisim.data.series import some
from verisim.data.spec import Images, ImageSpec
from verisim.data.splits import make_split, require_no_leak, split_name
from verisim.errors import DataError

ORDER = ("train", "val", "test", "all")


@dataclass(frozen=True)
class Dataset(Mapping[str, Images]):
    """Images by split, and everything that was decided on the way. dataset["train"] is an Images."""

    splits: dict[str, Images]  # "train", "test", perhaps "val"; or "all" where no split was wanted
    class_names: tuple[str, ...]  # name of class index 0, 1, ...; () without labels
    notes: tuple[str, ...]  # what was assumed, converted, left out
    fingerprint: str  # sha256 over file contents, classes, splits and settings
    skipped: tuple[tuple[str, str], ...]  # (name, reason) of unreadable files
    window: dict[str, tuple[float, float] | str]  # kind of image -> black and white in stored units
    split_of: dict[str, str]  # patient -> split: write it down, to get the same split again
    affines: dict[str, np.ndarray]  # split -> (N, 4, 4): (d, h, w, 1) -> mm RAS+; NaN = unknown

    def __getitem__(self, split: str) -> Images:
        if split not in self.splits:
            raise DataError(f"No split '{split}' here. There is: {', '.join(self.splits)}.")
        return self.splits[split]

    def __contains__(self, split: object) -> bool:
        return split in self.splits

    def __iter__(self) -> Iterator[str]:
        return iter(self.splits)

    def __len__(self) -> int:
        return len(self.splits)


@dataclass
class _Case:
    """An image on its way into the data set."""

    entry: Entry
    patient: str
    split: str
    label: str = ""
    loaded: Loaded | None = None


def load_images(
    folder: Path | str,
    size: int | Sequence[int],  # (H, W) or (D, H, W) pixels; an int n means (n, n)
    *,
    channels: int = 1,  # 1 (colour becomes grey) or 3 (grey is repeated)
    label: str | None = None,  # manifest column with classes, or "folder": the name of the file's folder
    image: str = "image",  # manifest column with file names
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
    99.5th percentile over the training images of their kind (recorded in Dataset.window). A stretched
    volume keeps its place in space: spacing and affine follow. split "new" makes one by patient whatever the
    manifest says.
    Errors: DataError for anything that would silently give other data than was meant.
    """
    wanted = (int(size),) * 2 if isinstance(size, int) else tuple(int(s) for s in size)
    fit = fit or ("pad" if len(wanted) == 2 else "stretch")
    plan = Plan(wanted, channels, low, high, window, fit, enlarge, on_error)
    listing = scan(folder, image=image, volumes=len(wanted) == 3)
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
    return _assemble(cases, names, plan, notes, skipped, split_of)


def load_file(
    path: Path | str | Entry,
    like: Dataset,  # whose black and white are used for images of the same kind
    *,
    window: Window = None,  # as for load_images, for kinds that `like` does not have
    fit: Fit | None = None,
    enlarge: bool = False,
) -> tuple[torch.Tensor, np.ndarray | None]:
    """One image file (C, *S) float32, read as the images of a data set were, and its affine (4, 4) if known.

    The affine maps (d, h, w, 1) of the resized image to mm RAS+. DataError says why a file cannot be read.
    """
    spec = next(iter(like.splits.values())).spec
    fit = fit or ("pad" if spec.spatial_dims == 2 else "stretch")
    plan = Plan(spec.size, spec.channels, spec.low, spec.high, window, fit, enlarge, "stop")
    item = load_one(path if isinstance(path, Entry) else Entry(str(path), Path(path)), plan)
    pixels = item.pixels[None]
    known = like.window.get(kind_of(item.raw), like.window.get("all images"))
    rule = known if isinstance(known, tuple) else window
    black_white, _ = levels([item.raw], pixels, np.array([True]), rule)
    return torch.from_numpy(apply_levels(pixels, black_white, spec.low, spec.high)[0]), item.affine


def _cases(listing: Listing, notes: list[str], plan: Plan, splitting: bool) -> list[_Case]:
    """Every entry, with its patient (itself where none is known)."""
    gone = [*listing.missing, *(n for n, _ in listing.unreadable)]
    if gone and plan.on_error == "stop":
        raise DataError(
            f"{listing.root}: {len(gone)} file(s) missing or unreadable: {some(gone)}. {SKIP_HINT}"
        )
    anonymous = [e for e in listing.entries if not e.patient]
    if splitting and anonymous and any(not e.split for e in listing.entries):
        notes.append(
            f"{len(anonymous)} of {len(listing.entries)} images name no patient: each counts as its own. If "
            "people have several images, add a 'patient' column, or test images leak into training"
        )
    return [_Case(e, e.patient or f"file:{e.name}", e.split or "") for e in listing.entries]


def _with_labels(cases: list[_Case], label: str | None, listing: Listing, notes: list[str]) -> list[_Case]:
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


def _limited(cases: list[_Case], limit: int | None) -> list[_Case]:
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


def _require_enough(cases: list[_Case], minimum: int, skipped: list, listing: Listing) -> None:
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


def _assemble(cases, names: tuple[str, ...], plan: Plan, notes, skipped, split_of: dict) -> Dataset:
    """Bring all images to [low, high] and sort them into splits."""
    items: list[Loaded] = [c.loaded for c in cases]
    pixels = np.stack([i.pixels for i in items])  # (N, C, *S)
    training = np.array([c.split in ("train", "all") for c in cases])
    black_white, rules = levels([i.raw for i in items], pixels, training, plan.window)
    apply_levels(pixels, black_white, plan.low, plan.high)
    notes += _reading_notes(items, rules)
    spec = _spec(items, plan)
    if spec.spacing is None and any(i.spacing for i in items):
        notes.append("images differ in mm per pixel (or some do not say): the set has no common spacing")
    turns = Counter(orientation(i.affine) for i in items if i.affine is not None)
    if len(turns) > 1:
        notes.append(
            f"images lie differently in space ({', '.join(f'{n} {t}' for t, n in turns.most_common())}): left and "
            "right, or front and back, are mixed. Bring them to one orientation first"
        )
    splits, affines = {}, {}
    for name in [s for s in ORDER if any(c.split == s for c in cases)]:
        mine = [k for k, c in enumerate(cases) if c.split == name]
        labels = torch.tensor([names.index(cases[k].label) for k in mine]) if names else None
        if labels is not None and len(labels.unique()) < len(names):
            lacking = [n for j, n in enumerate(names) if not (labels == j).any()]
            notes.append(f"split '{name}' has no image of class {some(lacking)}")
        splits[name] = Images(torch.from_numpy(pixels[mine]), spec, labels,
                              tuple(cases[k].patient for k in mine),
                              tuple(cases[k].entry.name for k in mine))  # fmt: skip
        affines[name] = np.stack([_matrix(items[k]) for k in mine])
    return Dataset(splits, names, tuple(notes), _fingerprint(cases, plan), tuple(skipped), rules, split_of,
                   affines)  # fmt: skip


def _matrix(item: Loaded) -> np.ndarray:
    """The affine, or NaN where it is unknown."""
    return np.full((4, 4), np.nan) if item.affine is None else item.affine


def _reading_notes(items: list[Loaded], rules: Mapping) -> list[str]:
    """What readers converted, with counts; the rules for black and white where they were found from data."""
    counts = Counter(note for i in items for note in i.raw.notes)
    notes = [f"{n} image(s): {note}" for note, n in counts.most_common()]
    modes = Counter(i.raw.mode for i in items)
    if len(modes) > 1:
        notes.append("mixed modes: " + ", ".join(f"{n} {m}" for m, n in modes.most_common()))
    for kind, rule in rules.items():
        if not kind.startswith("range") and isinstance(rule, tuple):
            notes.append(f"{kind}: black = {rule[0]:g}, white = {rule[1]:g} in stored units")
    if len(rules) > 1:
        notes.append("images of several kinds were brought to one range by different rules")
    return notes


def _spec(items: list[Loaded], plan: Plan) -> ImageSpec:
    """The common meaning: spacing and modality only where all images agree."""
    spacings = [i.spacing for i in items]
    first = spacings[0]
    same = first is not None and all(s is not None and np.allclose(s, first, rtol=1e-3) for s in spacings)
    modalities = {i.raw.modality for i in items}
    modality = modalities.pop() if len(modalities) == 1 else "mixed"
    return ImageSpec(plan.size, plan.channels, plan.low, plan.high, first if same else None, modality)


def _fingerprint(cases: list[_Case], plan: Plan) -> str:
    """sha256 over contents, labels, splits and settings; file names and their order do not matter."""
    lines = sorted(f"{c.loaded.digest} {c.split} {c.label}" for c in cases if c.loaded)
    settings = (plan.size, plan.channels, plan.low, plan.high, plan.window, plan.fit)
    return hashlib.sha256("\n".join([repr(settings), *lines]).encode()).hexdigest()

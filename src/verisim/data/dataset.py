"""A data set: images by split with everything that was decided on the way, and how it is put together."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from verisim.data.intensity import apply_levels, levels
from verisim.data.listing import Entry
from verisim.data.loading import Loaded, Plan
from verisim.data.raw import RawImage, orientation
from verisim.data.series import some
from verisim.data.spec import Images, ImageSpec
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
    structures: tuple[str, ...] = ()  # name of code 0, 1, ... of the segmentations; () = unknown
    contrasts: tuple[str, ...] = ()  # name of each channel, where each came from a file of its own

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
class Case:
    """An image on its way into the data set."""

    entry: Entry
    patient: str
    split: str
    label: str = ""
    loaded: Loaded | None = None


def assemble(
    cases: Sequence,  # of Case, each loaded
    names: tuple[str, ...],  # of classes
    plan: Plan,
    notes: list[str],
    skipped: Sequence,  # of (name, reason)
    split_of: dict[str, str],
    structures: tuple[str, ...] = (),  # of codes
) -> Dataset:
    """Bring all images to [low, high] and sort them into splits."""
    items: list[Loaded] = [c.loaded for c in cases]
    _require_codes(items, structures)
    pixels = np.stack([i.pixels for i in items])  # (N, C, *S)
    masks = np.stack([i.mask for i in items if i.mask is not None]) if plan.mask else None  # (N, 1, *S)
    rules = _to_range(items, pixels, np.array([c.split in ("train", "all") for c in cases]), plan)
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
                              tuple(cases[k].entry.name for k in mine),
                              None if masks is None else torch.from_numpy(masks[mine]))  # fmt: skip
        affines[name] = np.stack([_matrix(items[k]) for k in mine])
    return Dataset(splits, names, tuple(notes), _fingerprint(cases, plan), tuple(skipped), rules, split_of,
                   affines, structures if plan.mask else (), plan.contrasts)  # fmt: skip


def by_contrast(
    items: Sequence[Loaded],
    pixels: np.ndarray,  # (N, C, *S)
    plan: Plan,
) -> Iterator[tuple[str, list[RawImage], np.ndarray]]:
    """('t1: ', files' facts (N), view (N, 1, *S)) of each contrast; ('', facts, all pixels) where there is one file."""
    if not plan.contrasts:
        yield "", [i.raw for i in items], pixels
    for c, name in enumerate(plan.contrasts):
        yield f"{name}: ", [i.raws[c] for i in items], pixels[:, c : c + 1]


def _to_range(
    items: list[Loaded], pixels: np.ndarray, training: np.ndarray, plan: Plan
) -> dict[str, tuple[float, float] | str]:
    """Change pixels to [low, high] in place, by one black and white per contrast and kind; returns the rules."""
    rules: dict[str, tuple[float, float] | str] = {}
    for title, raws, part in by_contrast(items, pixels, plan):
        black_white, found = levels(raws, part, training, plan.window)
        apply_levels(part, black_white, plan.low, plan.high)
        rules |= {title + kind: rule for kind, rule in found.items()}
    return rules


def _require_codes(items: list[Loaded], structures: tuple[str, ...]) -> None:
    """DataError if a label map holds a code that `structures` does not name."""
    for item in items if structures else []:
        found = [] if item.mask is None else sorted({*np.unique(item.mask).tolist(), *item.lost})
        odd = [c for c in found if c >= len(structures)]
        if odd:
            known = ", ".join(f"{k} {name}" for k, name in enumerate(structures))
            raise DataError(
                f"{item.entry.mask}: the label map holds {some([str(c) for c in odd])}, which structures do not "
                f"name; known are {known}. Name every code, or leave structures out."
            )


def _matrix(item: Loaded) -> np.ndarray:
    """The affine, or NaN where it is unknown."""
    return np.full((4, 4), np.nan) if item.affine is None else item.affine


def _reading_notes(items: list[Loaded], rules: Mapping) -> list[str]:
    """What readers converted, with counts; the rules for black and white where they were found from data."""
    counts = Counter(note for i in items for raw in i.raws for note in raw.notes)
    notes = [f"{n} image(s): {note}" for note, n in counts.most_common()]
    modes = Counter(raw.mode for i in items for raw in i.raws)
    if len(modes) > 1:
        notes.append("mixed modes: " + ", ".join(f"{n} {m}" for m, n in modes.most_common()))
    for kind, rule in rules.items():
        if "range " not in kind and isinstance(rule, tuple):
            notes.append(f"{kind}: black = {rule[0]:g}, white = {rule[1]:g} in stored units")
    lost = [i.entry.name for i in items if i.lost]
    if lost:
        notes.append(f"{len(lost)} label map(s) lost a structure smaller than the new pixels: {some(lost)}")
    if len(rules) > len(items[0].raws):
        notes.append("images of several kinds were brought to one range by different rules")
    return notes


def _spec(items: list[Loaded], plan: Plan) -> ImageSpec:
    """The common meaning: spacing and modality only where all images agree."""
    spacings = [i.spacing for i in items]
    first = spacings[0]
    same = first is not None and all(s is not None and np.allclose(s, first, rtol=1e-3) for s in spacings)
    modalities = {raw.modality for i in items for raw in i.raws}
    modality = modalities.pop() if len(modalities) == 1 else "mixed"
    channels = len(plan.contrasts) or plan.channels
    return ImageSpec(plan.size, channels, plan.low, plan.high, first if same else None, modality)


def _fingerprint(cases: Sequence[Case], plan: Plan) -> str:
    """sha256 over contents, labels, splits and settings; file names and their order do not matter."""
    lines = sorted(f"{c.loaded.digest} {c.split} {c.label}" for c in cases if c.loaded)
    settings: tuple = (plan.size, plan.channels, plan.low, plan.high, plan.window, plan.fit)
    if plan.contrasts or plan.mask:
        settings += (plan.contrasts, plan.mask)
    return hashlib.sha256("\n".join([repr(settings), *lines]).encode()).hexdigest()

"""Splits by patient: made from a hash where none is given, checked where one is."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from verisim.errors import DataError, nearest

ALIASES = {"train": "train", "training": "train", "test": "test", "testing": "test", "holdout": "test",
           "val": "val", "valid": "val", "validation": "val", "dev": "val"}  # fmt: skip


def make_split(
    patients: Iterable[str],
    fractions: Mapping[str, float] | None = None,  # split -> share of patients; the rest is "train"
    seed: int = 0,
) -> dict[str, str]:
    """patient -> split, from a hash of (seed, patient): the same on every machine and in every order.

    A patient keeps the split when others join or leave, except where a split would be empty: it then
    takes the patient with the smallest hash from the largest split, as far as patients go round.
    """
    fractions = {"test": 0.2} if fractions is None else fractions
    if any(not 0 <= f < 1 for f in fractions.values()) or sum(fractions.values()) >= 1:
        raise DataError(f"Split fractions {dict(fractions)}: each must be in [0, 1) and their sum below 1.")
    place = {p: _unit(seed, p) for p in set(patients)}
    if len(place) == 1:
        return dict.fromkeys(place, "train")
    split = {}
    for p in sorted(place):
        edge, split[p] = 0.0, "train"
        for name, share in fractions.items():
            if edge <= place[p] < edge + share:
                split[p] = name
            edge += share
    for name in [n for n, f in fractions.items() if f > 0] + ["train"]:
        counts = defaultdict(list)
        for p in split:
            counts[split[p]].append(p)
        largest = max(counts, key=lambda s: (len(counts[s]), s), default=name)
        if not counts[name] and len(counts[largest]) > 1:
            split[min(counts[largest], key=lambda p: (place[p], p))] = name
    return split


def _unit(seed: int, patient: str) -> float:
    """A number in [0, 1) that depends on nothing but the two arguments."""
    digest = hashlib.sha256(f"{seed}/{patient}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def split_name(word: str, where: str) -> str:
    """'train', 'val' or 'test' for what a manifest calls it."""
    key = word.strip().lower()
    if key not in ALIASES:
        raise DataError(
            f"{where}: split '{word}' is unknown.{nearest(key, ALIASES)} Allowed: train, val, test."
        )
    return ALIASES[key]


def leaking(patients: Sequence[str | None], splits: Sequence[str | None]) -> dict[str, list[str]]:
    """patient -> splits, for every patient found in more than one."""
    seen: dict[str, set[str]] = defaultdict(set)
    for patient, split in zip(patients, splits):
        if patient and split:
            seen[patient].add(split)
    return {p: sorted(s) for p, s in sorted(seen.items()) if len(s) > 1}


def require_no_leak(patients: Sequence[str | None], splits: Sequence[str | None], where: str) -> None:
    """DataError, listing up to five, if a patient is in two splits."""
    bad = leaking(patients, splits)
    if bad:
        listed = "; ".join(f"{p} in {' and '.join(s)}" for p, s in list(bad.items())[:5])
        more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise DataError(
            f"{where}: {len(bad)} patient(s) in more than one split: {listed}{more}. A test on a patient seen "
            "in training measures nothing: give all images of a patient one split."
        )

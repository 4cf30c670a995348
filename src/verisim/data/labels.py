"""From a label column to class indices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from verisim.data.listing import Entry, Listing
from verisim.errors import DataError, nearest

MOST_CLASSES = 1000


def label_values(entries: Sequence[Entry], label: str, listing: Listing, what: str = "label") -> list[str]:
    """Text of each entry's label: its cell in column `label`, or for label='folder' its folder's name."""
    known = list(listing.columns) or sorted({k for e in entries for k in e.fields})
    if label in known:
        return [e.fields.get(label, "") for e in entries]
    if label == "folder":
        return [e.path.parent.name if e.path.parent != listing.root else "" for e in entries]
    has = (
        f"Columns: {', '.join(known)}." if known else "There is no manifest.csv; label='folder' uses folders."
    )
    raise DataError(f"{listing.root}: no {what} column '{label}'.{nearest(label, known)} {has}")


def class_names_of(values: Sequence[str], label: str, folder: Path | str) -> tuple[str, ...]:
    """Class names in order of class index: numbers by value, texts by alphabet."""
    counts = Counter(values)
    if len(counts) == 1:
        only = next(iter(counts))
        raise DataError(f"{folder}: column '{label}' holds one class only ('{only}', {len(values)} images): "
                        "there is nothing to condition on. Leave the label out, or add other "
                        "classes.")  # fmt: skip
    if len(counts) > MOST_CLASSES or (len(values) >= 20 and len(counts) > len(values) / 2):
        raise DataError(f"{folder}: column '{label}' holds {len(counts)} different values for {len(values)} "
                        "images: not classes. Choose another column, or group its values.")  # fmt: skip
    try:
        return tuple(sorted(counts, key=lambda v: (float(v), v)))
    except ValueError:
        return tuple(sorted(counts))

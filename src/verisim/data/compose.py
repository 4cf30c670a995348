"""Several collections as one: one label space, no image twice, no person in two splits. Spec 000, C5a (MaCheX).

A label is 1 (present), 0 (absent) or empty (unknown). What a collection does not say is unknown, never absent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from verisim.data.compose_plan import RESERVED, Collection, Plan
from verisim.data.inspect import Facts, inspect_all, near_pairs
from verisim.data.labels import label_values
from verisim.data.listing import Entry, Listing, scan
from verisim.data.splits import make_split, split_name
from verisim.errors import DataError, nearest

PRESENT, ABSENT = ("1", "1.0", "y", "yes", "true", "present"), ("0", "0.0", "n", "no", "false", "absent")
STRICTEST = ("test", "val", "train")  # of a person whose images are in several splits


@dataclass
class Row:
    """One image of the result."""

    collection: str
    entry: Entry
    patient: str  # unique over collections
    split: str
    text: str
    labels: dict[str, int]  # label -> 1 or 0; a label that is not here is unknown


@dataclass(frozen=True)
class Composition:
    """The rows that are kept, and what happened to the others."""

    rows: tuple[Row, ...]
    labels: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]  # (image, the one that it is a copy of)
    unreadable: tuple[tuple[str, str], ...]  # (image, reason)
    conflicts: int  # labels that copies contradict each other in; unknown now
    moved: int  # images whose split changed so that a person has one

    def table(self) -> list[list[str]]:
        """Lines of manifest.csv, the names of the columns first."""
        lines = [[*RESERVED, *self.labels]]
        for r in self.rows:
            cells = [str(r.labels[k]) if k in r.labels else "" for k in self.labels]
            lines.append([f"{r.collection}/{r.entry.name}", r.collection, r.patient, r.split, r.text, *cells])
        return lines


def compose(plan: Plan, *, seed: int = 0, progress: bool = True) -> Composition:
    """Read all collections and make one of them; nothing is written.

    Of copies the one of the first collection stays, and takes over what others know. People of whom one image is in
    several collections are one person. Whoever is in several splits goes wholly to the strictest: test, then
    val. Images without a split get one by a hash of the person. DataError for what cannot be read as was meant.
    """
    rows: list[Row] = []
    unreadable: list[tuple[str, str]] = []
    for collection in plan.collections:
        rows += _rows(collection)
    facts = inspect_all([(r.entry, "image") for r in rows], plan.near, progress)
    unreadable += [(f"{r.collection}/{r.entry.name}", f.error) for r, f in zip(rows, facts) if f.error]
    kept = [(r, f) for r, f in zip(rows, facts) if not f.error]
    if not kept:
        raise DataError(
            f"None of {len(rows)} images can be read. First: {unreadable[0][0]}: {unreadable[0][1]}"
        )
    groups = _copies([r for r, _ in kept], [f for _, f in kept], plan.near)
    rows = [r for r, _ in kept]
    moved = _one_split_each(rows, groups, seed)
    final, dropped, conflicts = [], [], 0
    for group in groups:
        first = rows[group[0]]
        conflicts += _merge(first, [rows[i] for i in group[1:]])
        dropped += [(_name(rows[i]), _name(first)) for i in group[1:]]
        final.append(first)
    return Composition(tuple(final), plan.labels, tuple(dropped), tuple(unreadable), conflicts, moved)


# --- one collection -------------------------------------------------------------------------------------------


def _rows(c: Collection) -> list[Row]:
    """The images of a collection with their labels, person and split."""
    listing = scan(c.folder, image=c.image)
    if listing.missing:
        raise DataError(f"{c.folder}: {len(listing.missing)} file(s) of the manifest are not there, first "
                        f"{listing.missing[0]}.")  # fmt: skip
    odd = next((e for e in listing.entries if e.item is not None or e.series or e.path.is_dir()), None)
    if odd is not None:
        raise DataError(f"{c.folder}: {odd.name} is not one file per image; write single files first.")
    used = {
        *c.columns,
        *([c.text] if c.text else []),
        *c.where,
        *([c.listed["column"]] if c.listed else []),
    } - {"folder"}
    lost = sorted(used - set(listing.columns))
    if lost:
        raise DataError(f"{c.folder}: no column '{lost[0]}'.{nearest(lost[0], listing.columns)} Columns: "
                        f"{', '.join(listing.columns) or 'none (there is no manifest.csv)'}.")  # fmt: skip
    entries = [e for e in listing.entries if all(_chosen(e.fields[k], v) for k, v in c.where.items())]
    if not entries:
        raise DataError(
            f"{c.folder}: 'where' leaves none of {len(listing.entries)} images. Look at its values."
        )
    listed = _listed(c, entries, listing)
    return [
        Row(
            c.name,
            e,
            f"{c.name}/{e.patient or 'file:' + e.name}",
            split_name(e.split, e.name) if e.split else "",
            " ".join(e.fields.get(c.text, "").split()) if c.text else "",
            {**listed[i], **_from_columns(c, e)},
        )
        for i, e in enumerate(entries)
    ]


def _chosen(cell: str, allowed: Any) -> bool:
    return cell in [str(a) for a in (allowed if isinstance(allowed, list) else [allowed])]


def _from_columns(c: Collection, e: Entry) -> dict[str, int]:
    """Labels from columns of their own; any cell that says neither yes nor no is unknown."""
    found = {}
    for column, label in c.columns.items():
        cell = e.fields[column].strip().lower()
        if cell in PRESENT or cell in ABSENT:
            found[label] = int(cell in PRESENT)
    return found


def _listed(c: Collection, entries: list[Entry], listing: Listing) -> list[dict[str, int]]:
    """Labels from one column that lists what is there; an empty cell says nothing."""
    if not c.listed:
        return [{} for _ in entries]
    names = {str(k).lower(): v for k, v in c.listed["names"].items()}
    others = c.listed.get("others", "unknown")
    if others not in ("unknown", "absent"):
        raise DataError(f"{c.name}: others is '{others}'; it must be unknown or absent.")
    found = []
    for cell in label_values(entries, c.listed["column"], listing):
        words = [w.strip().lower() for w in cell.split(c.listed.get("separator", "|")) if w.strip()]
        present = {names[w] for w in words if w in names}
        known = set(names.values()) if others == "absent" and words else present
        found.append({label: int(label in present) for label in sorted(known)})
    return found


# --- copies, people, splits -----------------------------------------------------------------------------------


def _copies(rows: list[Row], facts: list[Facts], near: bool) -> list[list[int]]:
    """Indices of the rows in groups of the same image, in their order."""
    link = _Links(len(rows))
    first: dict[str, int] = {}
    for i, f in enumerate(facts):
        if not f.constant:
            link.join(first.setdefault(f.pixels_digest, i), i)
    if near:
        place = {_name(r): i for i, r in enumerate(rows)}
        named = [_renamed(f, r) for f, r in zip(facts, rows)]
        for a, b, _ in near_pairs(named):
            link.join(place[a], place[b])
    return link.groups()


def _renamed(f: Facts, r: Row) -> Facts:
    """Facts under a name that is unique over collections."""
    return replace(f, entry=replace(f.entry, name=_name(r)))


def _one_split_each(rows: list[Row], groups: list[list[int]], seed: int) -> int:
    """Give every row the person and the split that it is to have; returns how many had another split."""
    people = list(dict.fromkeys(r.patient for r in rows))
    number = {p: k for k, p in enumerate(people)}
    link = _Links(len(people))
    for group in groups:
        for i in group[1:]:
            link.join(number[rows[group[0]].patient], number[rows[i].patient])
    person = {people[k]: people[g[0]] for g in link.groups() for k in g}
    asked: dict[str, set[str]] = defaultdict(set)
    for r in rows:
        r.patient = person[r.patient]
        if r.split:
            asked[r.patient].add(r.split)
    unsplit = {r.patient for r in rows} - set(asked)
    made = make_split(unsplit, seed=seed) if unsplit else {}
    moved = 0
    for r in rows:
        split = made.get(r.patient) or next(s for s in STRICTEST if s in asked[r.patient])
        moved += bool(r.split) and r.split != split
        r.split = split
    return moved


def _merge(first: Row, others: Iterable[Row]) -> int:
    """Let a row know what its copies know; returns the number of labels in which they contradict each other."""
    votes: dict[str, set[int]] = defaultdict(set)
    for r in (first, *others):
        for label, value in r.labels.items():
            votes[label].add(value)
        first.text = first.text or r.text
    first.labels = {k: v.copy().pop() for k, v in votes.items() if len(v) == 1}
    return sum(len(v) > 1 for v in votes.values())


class _Links:
    """Which of n things belong together; each group is known by its first member."""

    def __init__(self, n: int) -> None:
        self.parent = list(range(n))

    def root(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = self.parent[i]
        return i

    def join(self, a: int, b: int) -> None:
        a, b = sorted((self.root(a), self.root(b)))
        self.parent[b] = a

    def groups(self) -> list[list[int]]:
        found: dict[int, list[int]] = defaultdict(list)
        for i in range(len(self.parent)):
            found[self.root(i)].append(i)
        return list(found.values())


def _name(r: Row) -> str:
    return f"{r.collection}/{r.entry.name}"

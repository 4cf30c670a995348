"""Source 000, C5a (MaCheX): two collections put together, where what they share is known because it was planted.

Phantoms, two images per person. `first` states findings as a list, `second` in columns; a third of the people is in
both, under other names: their first image once more, as the same pixels in another file type or compressed anew. Some of
these copies contradict the first collection. The control is putting the folders side by side, as one does without a tool.
"""

from __future__ import annotations

import csv
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from verisim.data.compose import Composition, compose
from verisim.data.compose_plan import Collection, Plan
from verisim.data.splits import make_split
from verisim.errors import VerisimError
from verisim.phantoms import PHANTOMS
from verisim.phantoms.base import Phantom
from verisim.reproductions.result import Claim, Options, Result

SOURCE = "spec 000, C5a"
PEOPLE = {"smoke": 30, "small": 600, "full": 6000}
LABELS = ("effusion", "cardiomegaly")
NAMES = {"Effusion": "effusion", "Cardiomegaly": "cardiomegaly"}


Row = tuple[int, str, dict[str, int]]  # person, split, stated labels


@dataclass(frozen=True)
class Planted:
    """A collection's rows by file name, and which of them are copies of the other collection's."""

    rows: dict[str, Row]
    exact: frozenset[str] = frozenset()
    near: frozenset[str] = frozenset()
    contradicting: frozenset[str] = frozenset()


def run(options: Options) -> Iterator[Result]:
    """Plant, compose, compare; one result, in seconds."""
    if options.data:
        raise VerisimError(
            "000-C5a runs on phantoms, whose copies are known. Real folders: verisim data compose PLAN.yaml."
        )
    people = options.count or PEOPLE[options.scale]
    with tempfile.TemporaryDirectory() as folder:
        numbers = measure(Path(folder), people)
    notes = [
        f"{people} people with two chest phantoms of 64 pixels each; a third of them in both collections",
        "near: images whose thumbnails correlate above 0.999 count as copies too",
    ]
    yield Result("000-C5a", options.scale, claims(numbers), numbers, notes)


def measure(folder: Path, people: int) -> dict[str, Any]:
    """Planted and found copies, people in two splits, wrong labels; beside the folders side by side."""
    phantom = PHANTOMS["chest_findings"].make(2 * people, seed=0, size=64)
    first, second = plant(folder, phantom, people)
    plan = Plan(
        (
            Collection("first", str(folder / "first"), listed={"column": "findings", "separator": "|", "names": NAMES, "others": "absent"}),
            Collection("second", str(folder / "second"), columns={"Pleural Effusion": "effusion"}),
        ),
        LABELS,
    )  # fmt: skip
    truth = {k: phantom.factors[k].bool().tolist() for k in LABELS}
    rows = {
        f"{c}/{name}": row for c, p in (("first", first), ("second", second)) for name, row in p.rows.items()
    }
    exact, near = ({f"second/{n}" for n in names} for names in (second.exact, second.near))
    absent = dict.fromkeys(LABELS, 0)  # what is not stated, if nobody says that it is unknown
    return {
        "planted": {"exact": len(exact), "near": len(near), "contradicting": len(second.contradicting)},
        "side by side": {
            "images": len(rows),
            "people_in_two_splits": in_two_splits((person, split) for person, split, _ in rows.values()),
            **label_errors(((image, {**absent, **stated}) for image, (_, _, stated) in rows.items()), truth),
        },
        "composed": _composed(compose(plan, progress=False), rows, exact, truth),
        "composed, near": _composed(
            compose(replace(plan, near=True), progress=False), rows, exact | near, truth
        ),
    }


def _composed(
    found: Composition, rows: dict[str, Row], wanted: set[str], truth: dict[str, list[bool]]
) -> dict[str, Any]:
    names = {f"{r.collection}/{r.entry.name}": r for r in found.rows}
    dropped = {name for name, _ in found.dropped}
    return {
        "images": len(names),
        "copies_missed": len(wanted - dropped),
        "others_dropped": len(dropped - wanted),
        "people_in_two_splits": in_two_splits((rows[name][0], r.split) for name, r in names.items()),
        "contradictions": found.conflicts,
        **label_errors(((name, r.labels) for name, r in names.items()), truth),
    }


def plant(folder: Path, phantom: Phantom, people: int) -> tuple[Planted, Planted]:
    """Write both collections; image k shows person k // 2."""
    third = people // 3
    here, there = (make_split([str(p) for p in range(people)], seed=seed) for seed in (0, 1))
    effusion, heart = (phantom.factors[k].bool().tolist() for k in LABELS)
    first = Planted(
        {
            f"{k:05d}.png": (k // 2, here[str(k // 2)], {"effusion": int(effusion[k]), "cardiomegaly": int(heart[k])})
            for k in range(4 * third)
        }
    )  # fmt: skip
    rows: dict[str, Row] = {}
    exact: set[str] = set()
    near: set[str] = set()
    against: set[str] = set()
    for k in [*range(2 * third, 4 * third, 2), *range(4 * third, 2 * people)]:
        shared = k < 4 * third
        name = f"{k:05d}." + ("png" if not shared else "tif" if k % 4 else "jpg")
        stated = {} if k % 10 == 9 else {"effusion": int(effusion[k]) ^ int(shared and k % 10 == 0)}
        rows[name] = (k // 2, there[str(k // 2)], stated)
        if shared:
            (exact if name.endswith("tif") else near).add(name)
            if k % 10 == 0:
                against.add(name)
    second = Planted(rows, frozenset(exact), frozenset(near), frozenset(against))
    _write(folder / "first", phantom, first, listed=True)
    _write(folder / "second", phantom, second, listed=False)
    return first, second


def _write(folder: Path, phantom: Phantom, planted: Planted, listed: bool) -> None:
    folder.mkdir()
    lines = [["image", "patient", "split", "findings" if listed else "Pleural Effusion"]]
    inverse = {v: k for k, v in NAMES.items()}
    for name, (person, split, stated) in planted.rows.items():
        pixels = phantom.images.pixels[int(name[:5]), 0]
        Image.fromarray(((pixels + 1) * 127.5).round().byte().numpy()).save(folder / name, quality=95)
        found = [inverse[k] for k, v in stated.items() if v]
        cell = "|".join(found) or "No Finding" if listed else str(stated.get("effusion", ""))
        lines.append([name, f"{folder.name}-{person}", split, cell])
    with open(folder / "manifest.csv", "w", newline="") as f:
        csv.writer(f).writerows(lines)


def in_two_splits(rows: Iterable[tuple[int, str]]) -> int:
    """People (number, split) who are in more than one."""
    splits = defaultdict(set)
    for person, split in rows:
        splits[person].add(split)
    return sum(len(s) > 1 for s in splits.values())


def label_errors(rows: Iterable[tuple[str, dict[str, int]]], truth: dict[str, list[bool]]) -> dict[str, int]:
    """Of all labels that the images (COLLECTION/NUMBER.SUFFIX) are given: how many, and how many are wrong."""
    right = [truth[k][int(Path(name).stem)] == bool(v) for name, labels in rows for k, v in labels.items()]
    return {"labels": len(right), "wrong_labels": right.count(False)}


def claims(numbers: dict[str, Any]) -> list[Claim]:
    """What putting collections together has to do, and that it does not happen by itself."""
    plain, near, naive, planted = (
        numbers[k] for k in ("composed", "composed, near", "side by side", "planted")
    )
    return [
        Claim(
            "copies",
            "All copies of the same pixels are dropped, and nothing else",
            SOURCE,
            plain["copies_missed"] == plain["others_dropped"] == 0 and planted["exact"] > 0,
            f"{planted['exact']} planted, {plain['copies_missed']} missed, {plain['others_dropped']} others dropped",
        ),
        Claim(
            "near",
            "With near, copies that were compressed anew are dropped too, and nothing else",
            SOURCE,
            near["copies_missed"] == near["others_dropped"] == 0 and planted["near"] > 0,
            f"{planted['exact'] + planted['near']} planted, {near['copies_missed']} missed, {near['others_dropped']} "
            f"others dropped",
        ),
        Claim(
            "splits",
            "With near, nobody is in two splits; folders side by side put people into two",
            SOURCE,
            near["people_in_two_splits"] == 0 < naive["people_in_two_splits"],
            f"people in two splits: {near['people_in_two_splits']}; without near {plain['people_in_two_splits']}; side "
            f"by side {naive['people_in_two_splits']}",
        ),
        Claim(
            "labels",
            "With near, no label is wrong; 'not stated' taken for 'absent' makes wrong ones",
            SOURCE,
            near["wrong_labels"] == 0 < naive["wrong_labels"]
            and near["contradictions"] == planted["contradicting"],
            f"wrong: {near['wrong_labels']} of {near['labels']}; without near {plain['wrong_labels']} of "
            f"{plain['labels']}; side by side {naive['wrong_labels']} of {naive['labels']}; {planted['contradicting']} "
            f"contradictions planted, {near['contradictions']} found",
        ),
    ]

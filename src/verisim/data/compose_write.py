"""A composition on disk: links or copies of its images, manifest.csv, and what was left out."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

from verisim.data.atomic import atomic_write
from verisim.data.compose import Composition
from verisim.errors import DataError

REPORT = "composed.json"


def write_composition(found: Composition, out: Path | str, *, copy: bool = False) -> None:
    """Write FOLDER/COLLECTION/IMAGE for every row, then manifest.csv and composed.json.

    Images are symbolic links unless copy=True. A run that was stopped goes on: what is there already stays.
    DataError for a folder that holds another composition.
    """
    root = Path(out)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(found.table())
    manifest = text.getvalue().encode()
    if (root / "manifest.csv").exists() and (root / "manifest.csv").read_bytes() != manifest:
        raise DataError(f"{root} already holds another manifest.csv. Choose an empty folder with --out.")
    for row in found.rows:
        target, source = root / row.collection / row.entry.name, row.entry.path.resolve()
        if target.is_symlink() or target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if copy:
            part = target.with_name(target.name + ".part")
            shutil.copyfile(source, part)
            part.replace(target)
        else:
            target.symlink_to(source)
    report = {
        "images": len(found.rows),
        "labels": list(found.labels),
        "dropped_copies": [list(pair) for pair in found.dropped],
        "unreadable": [list(pair) for pair in found.unreadable],
        "contradictory_labels": found.conflicts,
        "moved_to_another_split": found.moved,
    }
    atomic_write(root / REPORT, json.dumps(report, indent=1).encode())
    atomic_write(root / "manifest.csv", manifest)

"""Find the files of each case in a folder: one per contrast, told apart by a word in their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from verisim.data.listing import image_files, scan
from verisim.data.readers import suffix_of
from verisim.errors import DataError


@dataclass(frozen=True)
class CaseFiles:
    """One case."""

    name: str  # fit for a file name
    images: tuple[Path, ...]  # one per contrast, in the order asked for
    truth: Path | None = None  # its label map


def find_cases(place: Path | str, contrasts: Sequence[str], truth: str = "") -> list[CaseFiles]:
    """Cases of a file, of a folder with manifest.csv (columns named as the contrasts), or of a folder of files.

    Without a manifest the name of a file is cut into words at _ - . and spaces: one word is the contrast (in any
    case of letters), the others name the case together with the folder: case7_t1.nii.gz and case7_flair.nii.gz,
    or case7/t1.nii.gz. With no contrasts every file is a case. truth: column or word of label maps.
    Errors: DataError for no case, for a contrast that a case lacks or has twice.
    """
    root = Path(place)
    if not root.exists():
        raise DataError(f"{root}: no such file or folder. Check the path.")
    if root.is_file():
        if len(contrasts) > 1:
            raise DataError(
                f"{root}: one file, where a case has one for each of {', '.join(contrasts)}. Give the folder that "
                f"holds them."
            )
        return [CaseFiles(_plain(root.name), (root,))]
    found = (
        _listed(root, contrasts, truth)
        if (root / "manifest.csv").exists()
        else _named(root, contrasts, truth)
    )
    if not found:
        raise DataError(f"{root}: no case found. {_hint(contrasts)}")
    names = [c.name for c in found]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise DataError(f"{root}: two cases are called '{twice}'. Rename their files.")
    return found


def _listed(root: Path, contrasts: Sequence[str], truth: str) -> list[CaseFiles]:
    """Rows of the manifest."""
    listing = scan(root, image=",".join(contrasts) or "image")
    gone = [*listing.missing, *(f"{name} ({why})" for name, why in listing.unreadable)]
    if gone:
        raise DataError(f"{root}: {len(gone)} case(s) are incomplete, first: {gone[0]}.")
    found = []
    for e in listing.entries:
        if truth and truth not in e.fields:
            raise DataError(
                f"{root / 'manifest.csv'}: no column '{truth}'. Columns: {', '.join(listing.columns)}."
            )
        map_of = root / e.fields[truth] if truth and e.fields[truth] else None
        found.append(CaseFiles(_plain(e.patient or e.name), (e.path, *e.others), map_of))
    return found


def _named(root: Path, contrasts: Sequence[str], truth: str) -> list[CaseFiles]:
    """Files told apart by their names."""
    wanted = [c.lower() for c in contrasts]
    cases: dict[str, dict[str, list[Path]]] = {}
    for relative in image_files(root):
        path = root / relative
        words = re.split(r"[_\-.\s]+", _stem(path.name))
        marks = [w.lower() for w in words if w.lower() in (*wanted, truth.lower())]
        if truth and marks[-1:] == [truth.lower()]:
            mark = "truth"
        elif not wanted:
            mark = "image"
        elif len(marks) == 1:
            mark = marks[0]
        else:
            continue  # another file: not a contrast, or more than one
        rest = [w for w in words if w.lower() not in (*wanted, truth.lower())]
        name = _plain("_".join([*Path(relative).parent.parts, *rest])) or _plain(root.resolve().name)
        cases.setdefault(name, {}).setdefault(mark, []).append(path)
    return [
        _complete(name, files, wanted, contrasts)
        for name, files in sorted(cases.items())
        if set(files) != {"truth"}
    ]


def _complete(
    name: str, files: dict[str, list[Path]], wanted: list[str], contrasts: Sequence[str]
) -> CaseFiles:
    """The case in the order of contrasts; DataError for one that it lacks or has twice."""
    for mark, paths in files.items():
        if len(paths) > 1:
            raise DataError(
                f"case '{name}': {len(paths)} files for '{mark}': {', '.join(p.name for p in paths)}. Keep one, or "
                f"put cases into folders of their own."
            )
    lacking = [c for c, w in zip(contrasts, wanted) if w not in files]
    if lacking:
        have = ", ".join(sorted(p[0].name for p in files.values()))
        raise DataError(
            f"case '{name}' has no file for {' and '.join(lacking)}; it has {have}. {_hint(contrasts)}"
        )
    images = tuple(files[w][0] for w in wanted or ["image"])
    return CaseFiles(name, images, files["truth"][0] if "truth" in files else None)


def _hint(contrasts: Sequence[str]) -> str:
    if not contrasts:
        return "Give images (.nii.gz, .png, ...)."
    return f"Name files like case7_{contrasts[0]}.nii.gz, one for each of {', '.join(contrasts)}."


def _stem(name: str) -> str:
    kind = suffix_of(name)
    return name[: len(name) - len(kind)] if kind else name


def _plain(text: str) -> str:
    """A name for files: letters, digits, dots, minus and underscores."""
    kept = re.sub(r"[^\w.\-]+", "_", _stem(text))
    return kept.strip("_.")

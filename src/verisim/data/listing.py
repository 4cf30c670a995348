"""What a folder holds: rows of manifest.csv, or every readable file, or the images inside .npz sets."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from verisim.data.dicom_header import head_meta
from verisim.data.npz import headers, read_npz_item, sets_in
from verisim.data.raw import RawImage
from verisim.data.readers import guarded, is_image, read_image, suffix_of
from verisim.data.series import group_series, read_series
from verisim.data.splits import ALIASES, split_name
from verisim.errors import DataError, nearest

PATIENT_COLUMNS = ("patient", "patient_id", "patientid", "subject", "subject_id")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima", "")


@dataclass(frozen=True)
class Entry:
    """One image of a folder."""

    name: str  # unique within the folder: relative path, with '#i' for image i of an .npz set
    path: Path
    patient: str | None = None
    split: str | None = None  # "train", "val", "test" or None
    fields: Mapping[str, str] = field(default_factory=dict)  # manifest columns, or labels of an .npz set
    item: tuple[str, int] | None = None  # (array, index) inside an .npz set
    series: tuple[Path, ...] | None = None  # files of a DICOM series
    others: tuple[Path, ...] = ()  # further contrasts of the same patient, one channel each
    mask: Path | None = None  # its label map

    def read(self, finite: bool = True) -> RawImage:
        """The image (C, *S) in stored units; DataError names the file."""
        if self.series is not None:
            files = self.series
            return guarded(self.path, lambda: read_series(files), finite)
        if self.item is not None:
            key, index = self.item
            return guarded(self.path, lambda: read_npz_item(self.path, key, index), finite)
        return read_image(self.path, finite=finite)

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that this image is made from, its label map last."""
        first = _members(self.path) if self.series is None else self.series
        more = [*self.others, *([] if self.mask is None else [self.mask])]
        return (*first, *(file for path in more for file in _members(path)))


def _members(path: Path) -> tuple[Path, ...]:
    """The file itself; the sorted files of a folder."""
    return tuple(sorted(p for p in path.iterdir() if p.is_file())) if path.is_dir() else (path,)


@dataclass(frozen=True)
class Listing:
    """What a folder holds, before any image is read."""

    root: Path
    entries: tuple[Entry, ...]
    columns: tuple[str, ...] = ()  # of the manifest, () without one
    missing: tuple[str, ...] = ()  # manifest rows whose file is not there
    unlisted: tuple[str, ...] = ()  # image files that no manifest row names
    unreadable: tuple[
        tuple[str, str], ...
    ] = ()  # (name, reason): sets that cannot be opened, incomplete rows
    notes: tuple[str, ...] = ()

    @property
    def has_manifest(self) -> bool:
        return bool(self.columns)


def scan(folder: Path | str, image: str = "image", volumes: bool = False, mask: str | None = None) -> Listing:
    """List the images of a folder or of one .npz file.

    image: manifest column that names the files; several, 't1,t2', are contrasts of one image, in this order.
    volumes: take the DICOM files of one series as one image. mask: manifest column of label maps.
    Errors: DataError for a folder that is missing or empty, and for an unusable manifest.
    """
    root = Path(folder)
    if not root.exists():
        raise DataError(f"{root}: no such folder. Check the path.")
    manifest = root / "manifest.csv"
    if (mask or "," in image) and not manifest.exists():
        what = f"mask='{mask}'" if mask else f"image='{image}'"
        raise DataError(f"{root}: {what} names columns of a manifest.csv, and there is none. Write one with a row "
                        "per patient.")  # fmt: skip
    if root.is_file():
        if suffix_of(root) != ".npz":
            raise DataError(f"{root}: a file; name the folder that holds the images (or an .npz set).")
        return Listing(root.parent, tuple(_set_entries(root, root.parent)))
    listing = _from_manifest(root, manifest, image, mask) if manifest.exists() else _from_files(root, volumes)
    if not listing.entries and not listing.unreadable and not listing.missing:
        raise DataError(f"{root}: no images found (PNG, JPEG, TIFF, NIfTI, DICOM or .npz), also not in its "
                        "subfolders. Check the path.")  # fmt: skip
    return listing


def image_files(root: Path) -> list[str]:
    """Relative names of all image files below root, sorted; hidden folders and verisim's own are left out."""
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [s for s in subfolders if not s.startswith((".", "__"))]
        for name in files:
            path = Path(folder) / name
            if not name.startswith(".") and is_image(path):
                found.append(path.relative_to(root).as_posix())
    return sorted(found)


# --- without a manifest ---------------------------------------------------------------------------


def _from_files(root: Path, volumes: bool) -> Listing:
    """All image files; splits from folders called train, val or test."""
    names = image_files(root)
    entries: list[Entry] = []
    unreadable: list[tuple[str, str]] = []
    by_folder: dict[Path, list[Path]] = {}
    for name in names:
        path, kind = root / name, suffix_of(name)
        if kind == ".npz":
            try:
                entries += _set_entries(path, root)
            except DataError as error:
                unreadable.append((name, str(error)))
        elif kind in DICOM_SUFFIXES and volumes:
            by_folder.setdefault(path.parent, []).append(path)
        else:
            entries.append(Entry(name, path, _dicom_patient(path), _folder_split(name)))
    for place, files in by_folder.items():
        for _, members in sorted(group_series(files).items()):
            name = members[0].relative_to(root).as_posix()
            series = tuple(members) if len(members) > 1 else None
            entries.append(Entry(name, place if series else members[0], _dicom_patient(members[0]),
                                 _folder_split(name), series=series))  # fmt: skip
    notes = ["splits taken from folder names"] if any(e.split and not e.item for e in entries) else []
    return Listing(root, tuple(sorted(entries, key=lambda e: e.name)), unreadable=tuple(unreadable),
                   notes=tuple(notes))  # fmt: skip


def _folder_split(name: str) -> str | None:
    """'train' for 'train/a/b.png'; None where no folder has the name of a split."""
    words = [ALIASES.get(part.lower()) for part in PurePosixPath(name).parts[:-1]]
    return next((w for w in words if w), None)


def _dicom_patient(path: Path) -> str | None:
    """The hash of a DICOM file's patient; None for other files and for damaged ones."""
    if suffix_of(path) not in DICOM_SUFFIXES:
        return None
    try:
        return head_meta(path).get("patient")
    except DataError:
        return None  # reading the image will report why


def _set_entries(path: Path, root: Path) -> list[Entry]:
    """One entry per image inside an .npz file; DataError for a damaged one."""
    try:
        return _open_set(path, root)
    except DataError:
        raise
    except Exception as error:  # damaged archives raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: damaged .npz file ({reason}). Copy or export it again.") from error


def _open_set(path: Path, root: Path) -> list[Entry]:
    """Entries of a set; one entry for a single image that verisim wrote."""
    name = path.relative_to(root).as_posix()
    if "verisim" in headers(path):
        return [Entry(name, path)]
    entries = []
    for group in sets_in(path):
        digits = len(str(max(group.shape[0] - 1, 0)))
        for i, fields in enumerate(group.fields):
            label = f"{name}#{group.split + '/' if group.split else ''}{i:0{digits}d}"
            known = {k: v for k, v in fields.items() if k != "patient"}
            entries.append(Entry(label, path, fields.get("patient"), group.split, known, (group.key, i)))
    return entries


# --- with a manifest ------------------------------------------------------------------------------


def read_manifest(path: Path) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """(column names, rows) of a manifest; DataError with the line for what is not a table."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path}: not a comma-separated UTF-8 text ({error}). Save it again as CSV UTF-8."
        ) from error
    if not lines or not any(cell.strip() for cell in lines[0]):
        raise DataError(f"{path}: empty. Its first line must name the columns: image,patient,split,...")
    columns = tuple(c.strip() for c in lines[0])
    repeated = [c for c, n in Counter(columns).items() if n > 1]
    if repeated:
        raise DataError(f"{path}: column '{repeated[0]}' appears twice. Give every column its own name.")
    rows = []
    for number, cells in enumerate(lines[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(columns):
            raise DataError(f"{path}, line {number}: {len(cells)} cells where the first line names "
                            f"{len(columns)} columns. Quote texts that hold commas.")  # fmt: skip
        rows.append({c: v.strip() for c, v in zip(columns, cells)})
    if not rows:
        raise DataError(f"{path}: no rows below the column names. Add one row per image.")
    return columns, rows


def file_columns(columns: tuple[str, ...], rows: list[dict[str, str]]) -> list[str]:
    """Columns that name image files (in most of their filled cells)."""
    found = []
    for c in columns:
        filled = [r[c] for r in rows if r[c]][:50]
        if filled and sum(_looks_like_file(v) for v in filled) > len(filled) / 2:
            found.append(c)
    return found


def _looks_like_file(value: str) -> bool:
    kind = suffix_of(value)
    return kind not in ("", ".npz") and is_image(Path(value))


def patient_column(columns: tuple[str, ...]) -> str | None:
    """The column that names the patient, under any of its usual names."""
    lower = {c.lower(): c for c in reversed(columns)}
    return next((lower[a] for a in PATIENT_COLUMNS if a in lower), None)


def contrasts_of(image: str, columns: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The columns that 't1, t2' names; one that really has this name is itself."""
    words = (image,) if image in columns else tuple(w.strip() for w in image.split(","))
    if "" in words or len(set(words)) < len(words):
        raise DataError(f"image='{image}': name each contrast's column once, like t1,t2,flair.")
    return words


def _require_columns(
    manifest: Path, columns: tuple, files: list[str], images: tuple, mask: str | None
) -> None:
    """DataError unless the manifest has the columns of the images and of the label maps."""
    for name in [c for c in images if c not in columns]:
        hint = (f"Columns with files: {', '.join(files)}; choose one with image='{files[0]}'."
                if files else "Name the column of file names 'image'.")  # fmt: skip
        raise DataError(f"{manifest}: no column '{name}'.{nearest(name, columns)} {hint}")
    if mask and mask not in columns:
        raise DataError(f"{manifest}: no column '{mask}' for mask.{nearest(mask, columns)} Columns with files: "
                        f"{', '.join(files) or 'none'}.")  # fmt: skip
    if mask in images:
        raise DataError(f"{manifest}: column '{mask}' cannot be both image and mask. Name another one.")


def _from_manifest(root: Path, manifest: Path, image: str, mask: str | None) -> Listing:
    """One entry per row whose `image` cells are filled and whose files are there."""
    columns, rows = read_manifest(manifest)
    files = file_columns(columns, rows)
    images = contrasts_of(image, columns)
    _require_columns(manifest, columns, files, images, mask)
    needed = (*images, mask) if mask else images
    who = patient_column(columns)
    entries: list[Entry] = []
    missing: list[str] = []
    incomplete: list[tuple[str, str]] = []
    named: set[str] = set()
    for number, row in enumerate(rows, start=2):
        named.update(PurePosixPath(row[c].replace("\\", "/")).as_posix() for c in files if row[c])
        if not any(row[c] for c in images):
            continue
        lacking = [c for c in needed if not row[c]]
        if lacking:
            title = (row[who] if who else "") or next(row[c] for c in images if row[c])
            incomplete.append((title, f"row {number} of the manifest has no {' and no '.join(lacking)}"))
            continue
        paths = [_inside(row[c], f"{manifest}, row {number}") for c in needed]
        gone = [p for p in paths if not (root / p).exists()]
        if gone:
            missing += gone
            continue
        name, *others = paths[: len(images)]
        word = row.get("split", "")
        split = split_name(word, f"{manifest}, row {number}") if word else None
        entries.append(Entry(name, root / name, (row[who] or None) if who else None, split, row,
                             others=tuple(root / p for p in others),
                             mask=root / paths[-1] if mask else None))  # fmt: skip
    twice = [n for n, k in Counter(e.name for e in entries).items() if k > 1]
    if twice:
        raise DataError(f"{manifest}: {len(twice)} image(s) named in more than one row, for example "
                        f"{', '.join(twice[:5])}. Keep one row per image.")  # fmt: skip
    folders = {p.relative_to(root).as_posix() for e in entries
               for p in (e.path, *e.others, *([e.mask] if e.mask else [])) if p.is_dir()}  # fmt: skip
    unlisted = [n for n in image_files(root) if n not in named and not _below(n, folders)]
    notes = [f"column '{who}' taken as the patient"] if who and who != "patient" else []
    return Listing(
        root, tuple(entries), columns, tuple(missing), tuple(unlisted), tuple(incomplete), tuple(notes)
    )


def _below(name: str, folders: set[str]) -> bool:
    """Whether a file lies in one of the folders (DICOM series that a row names)."""
    return any(parent.as_posix() in folders for parent in PurePosixPath(name).parents)


def _inside(name: str, where: str) -> str:
    """A manifest's file name as a relative path that stays in the folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise DataError(f"{where}: '{name}' leads out of the folder. Use paths relative to the manifest.")
    return path.as_posix()

"""What can be wrong with a folder of images: one function per kind of fault."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from verisim.data.inspect import Facts, near_pairs
from verisim.data.listing import Listing, file_columns, patient_column
from verisim.data.series import group_series, order_slices
from verisim.data.splits import leaking
from verisim.errors import DataError

FEW = 100  # images; fewer are called too few to train on
LABEL_WORDS = {"label", "class", "target", "group", "diagnosis", "finding", "findings", "grade", "kl_grade"}
NOT_LABELS = {"image", "split", "synthetic", "seed", "index", "license", "modality", "name"}
MOST_VALUES = 30  # a column with more different values is not shown as a label


@dataclass(frozen=True)
class Problem:
    """One kind of thing that is wrong, with every place where it is."""

    severity: str  # "error": will break or falsify training; "warning": look at it; "note": good to know
    title: str  # what, in a few words
    remedy: str  # what to do
    items: tuple[str, ...] = ()  # where


def label_counts(listing: Listing, images: Sequence[Facts]) -> dict[str, dict[str, int]]:
    """Columns that could be labels: column -> value -> number of images."""
    cells = [dict(f.entry.fields) for f in images if f.entry.fields]
    files = file_columns(tuple(cells[0]), cells) if cells else []
    skip = NOT_LABELS | {patient_column(listing.columns) or "", *files}
    names = dict.fromkeys(k for f in images for k in f.entry.fields if k not in skip)
    found = {}
    for name in names:
        values = Counter(f.entry.fields.get(name, "") or "(empty)" for f in images)
        if len(values) <= MOST_VALUES and set(values) != {"(empty)"}:
            found[name] = dict(values.most_common())
    return found


def _unreadable(listing: Listing, facts: Sequence[Facts], images: Sequence[Facts]) -> list[Problem]:
    bad = [f"{f.entry.name}: {f.error}" for f in facts if f.error]
    bad += [f"{name}: {reason.split(': ', 1)[-1]}" for name, reason in listing.unreadable]
    return [Problem("error", "Files that cannot be read", "Export or copy them again, or remove them. "
                    "'verisim train' stops on them unless --data.on_error skip is given; load_images leaves them "
                    "out and says so in its notes.", tuple(bad))] if bad else []  # fmt: skip


def _values(listing: Listing, facts: Sequence[Facts], images: Sequence[Facts]) -> list[Problem]:
    """NaN and constant images."""
    nan = tuple(f"{f.entry.name}: {f.not_finite:,} values" for f in facts if f.not_finite)
    flat = tuple(f"{f.entry.name}: every value is {f.low:g}" for f in images if f.constant)
    found = []
    if nan:
        found.append(Problem("error", "Images with NaN or infinite values",
                             "Set them to the background value, or remove the files.", nan))  # fmt: skip
    if flat:
        found.append(Problem("error", "Constant images (nothing to see)",
                             "Usually a failed export: remove them or export again.", flat))  # fmt: skip
    return found


def _rows(listing: Listing, facts: Sequence[Facts], images: Sequence[Facts]) -> list[Problem]:
    """Manifest against files."""
    found = []
    if listing.missing:
        found.append(Problem("error", "Manifest rows whose file is missing",
                             "Copy the files, or delete the rows.", listing.missing))  # fmt: skip
    if listing.unlisted:
        found.append(Problem("warning", "Image files that no manifest row names",
                             "They are not used. Add rows for them, or move them away.", listing.unlisted))  # fmt: skip
    return found


def _patients(listing: Listing, facts: Sequence[Facts], images: Sequence[Facts]) -> list[Problem]:
    """Patients across splits; images without patient or split."""
    found = []
    bad = leaking([f.entry.patient for f in facts], [f.entry.split for f in facts])
    if bad:
        found.append(Problem("error", "Patients in more than one split",
                             "Give all images of a patient the same split: tests on known patients measure "
                             "nothing.", tuple(f"{p}: {', '.join(s)}" for p, s in bad.items())))  # fmt: skip
    if images and not any(f.entry.patient for f in images):
        found.append(Problem("note", "No patient is named",
                             "Each image counts as one patient. If people have several images, add a 'patient' "
                             "column."))  # fmt: skip
    lacking = [f.entry.name for f in images if not f.entry.patient]
    if lacking and len(lacking) < len(images):
        found.append(Problem("warning", "Images without a patient, where others have one",
                             "Fill in the column, or they count as patients of their own.", tuple(lacking)))  # fmt: skip
    split = [f.entry.name for f in images if not f.entry.split]
    if split and len(split) == len(images):
        found.append(Problem("note", "No split is given", "One is made by patient: 80 % train, 20 % test."))
    elif split:
        found.append(Problem("error", "Images without a split, where others have one",
                             "Fill in train, val or test for them.", tuple(split)))  # fmt: skip
    return found


def _duplicates(listing: Listing, facts: Sequence[Facts], images: Sequence[Facts]) -> list[Problem]:
    """The same file or the same pixels under several names; worse when in several splits."""
    usable = [f for f in images if not f.constant and not f.not_finite]
    by_file = _groups(usable, lambda f: f.bytes_digest)
    by_pixels = [
        g for g in _groups(usable, lambda f: f.pixels_digest) if len({f.bytes_digest for f in g}) > 1
    ]
    across = [g for g in _groups(usable, lambda f: f.pixels_digest) if len({f.entry.split for f in g}) > 1]
    remedy = "Keep one of each: copies count twice in training and make tests look too good."
    found = []
    if across:
        names = tuple(" = ".join(f"{f.entry.name} [{f.entry.split}]" for f in g) for g in across)
        found.append(Problem("error", "The same image in more than one split", remedy, names))
    for groups, title in ((by_file, "Identical files under different names"),
                          (by_pixels, "Identical pixels in different files")):  # fmt: skip
        if groups:
            names = tuple(" = ".join(f.entry.name for f in g) for g in groups)
            found.append(Problem("warning", title, remedy, names))
    return found


def _groups(facts: Sequence[Facts], key: Callable[[Facts], str]) -> list[list[Facts]]:
    """Facts that share a key, where there are at least two."""
    groups: dict[str, list[Facts]] = defaultdict(list)
    for f in facts:
        groups[key(f)].append(f)
    return [g for g in groups.values() if len(g) > 1]


def near_duplicates(images: Sequence[Facts]) -> list[Problem]:
    pairs = [f"{a} ~ {b} (correlation {r:.4f})" for a, b, r in near_pairs(images)]
    return [Problem("warning", "Nearly identical images", "Look at them: the same image saved twice, or two "
                    "slices of one scan?", tuple(pairs))] if pairs else []  # fmt: skip


def _mixed(listing: Listing, facts: Sequence[Facts], images: Sequence[Facts]) -> list[Problem]:
    """Sizes, modes and number types that differ within the folder."""
    found = []
    keys: tuple[tuple[str, Callable[[Facts], str], str], ...] = (
        ("Mixed sizes", lambda f: f.size, "All are brought to the size that is trained at; the aspect is kept "
         "by black borders (fit='pad')."),
        ("Mixed grey and colour", lambda f: f.mode, "Colour becomes grey with channels=1; grey is repeated with "
         "channels=3."),
        ("Mixed number types and ranges", lambda f: f.stored, "Each kind gets its own black and white. Better: "
         "export all alike, or give window=(low, high)."),
        ("Mixed orientations", lambda f: f.orientation or "not stored", "Left and right, or front and back, are "
         "mixed, and nothing is turned here: bring all volumes to one orientation first."),
    )  # fmt: skip
    for title, key, remedy in keys:
        counts = Counter(map(key, images))
        if len(counts) > 1:
            usual, *odd_ones = [value for value, _ in counts.most_common()]
            odd = tuple(f"{v}: {_few([f.entry.name for f in images if key(f) == v])}" for v in odd_ones)
            found.append(Problem("warning", f"{title} (most are {usual}); the others", remedy, odd))
    return found


def _few(names: Sequence[str], limit: int = 3) -> str:
    """'51 images (a, b, c ...)'."""
    return f"{len(names)} image(s) ({', '.join(names[:limit])}{' ...' if len(names) > limit else ''})"


def _amount(listing: Listing, facts: Sequence[Facts], images: Sequence[Facts]) -> list[Problem]:
    """Too few images; label columns with one value."""
    found = []
    role = images[0].role if images else "image"
    if 0 < len(images) < FEW:
        found.append(Problem("warning", f"Only {len(images)} image(s)" + (f" in column '{role}'" if role != "image" else ""),
                             f"Generative models need hundreds; below {FEW} they copy. Good for a trial "
                             "only."))  # fmt: skip
    for column, values in label_counts(listing, images).items():
        filled = [v for v in values if v != "(empty)"]
        if len(filled) == 1 and len(images) > 1:
            severity = "warning" if column.lower() in LABEL_WORDS else "note"
            found.append(Problem(severity, f"Column '{column}' holds one class only ('{filled[0]}')",
                                 "It cannot steer a model: leave it out, or add other classes."))  # fmt: skip
    return found


def _dicom(listing: Listing, facts: Sequence[Facts], images: Sequence[Facts]) -> list[Problem]:
    """Order in space of each DICOM series; signs of personal data."""
    found = []
    named = tuple(f.entry.name for f in facts if not f.deidentified)
    if named:
        found.append(Problem("warning", "DICOM files not marked as de-identified",
                             "They may hold a patient's name (not shown here). De-identify before sharing.", named))  # fmt: skip
    for test, title in ((lambda f: f.burned_in, "DICOM files with texts burned into the picture"),
                        (lambda f: f.executable, "DICOM files whose preamble looks like a program")):  # fmt: skip
        hits = tuple(f.entry.name for f in facts if test(f))
        if hits:
            found.append(Problem("warning", title, "Look at them before use.", hits))
    stacks = _stacks(facts)
    bad = tuple(error for _, error in stacks if error)
    if bad:
        found.append(Problem("warning", "DICOM series that form no regular volume",
                             "Use them as single images, or repair the series first.", bad))  # fmt: skip
    good = tuple(text for text, error in stacks if not error)
    if good:
        found.append(Problem("note", "DICOM series that form a volume", "Ask for a size of three numbers to "
                             "train on volumes.", good))  # fmt: skip
    return found


def _stacks(facts: Sequence[Facts]) -> list[tuple[str, str]]:
    """(what, why not) for each DICOM series of at least two files."""
    folders: dict[Path, list[Path]] = defaultdict(list)
    for f in facts:
        if f.format == "DICOM" and f.entry.path.is_file():
            folders[f.entry.path.parent].append(f.entry.path)
    found = []
    for folder, files in sorted(folders.items()):
        for members in group_series(files).values():
            if len(members) > 1:
                try:
                    order_slices(members, folder)
                    found.append((f"{members[0].name} ... ({len(members)} slices)", ""))
                except DataError as error:
                    found.append(("", str(error)))
    return found


def _conversions(listing: Listing, facts: Sequence[Facts], images: Sequence[Facts]) -> list[Problem]:
    """What the readers assumed."""
    places: dict[str, list[str]] = defaultdict(list)
    for f in facts:
        for note in f.notes:
            places[note].append(f.entry.name)
    return [Problem("note", note[0].upper() + note[1:], "", tuple(names)) for note, names in places.items()]


FINDERS: tuple[Callable[[Listing, Sequence[Facts], Sequence[Facts]], list[Problem]], ...] = (
    _unreadable, _values, _rows, _patients, _duplicates, _mixed, _amount, _dicom, _conversions,
)  # fmt: skip

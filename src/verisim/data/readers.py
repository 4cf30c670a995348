"""read_image: any supported file as a RawImage, or one DataError that says what is wrong with which file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from verisim.data.dicom import read_dicom
from verisim.data.nifti import read_nifti
from verisim.data.npz import read_npz
from verisim.data.raster import read_pillow, read_tiff
from verisim.data.raw import RawImage, require_finite
from verisim.data.series import has_mark, read_series
from verisim.errors import DataError

READERS: dict[str, Callable[[Path], RawImage]] = {
    ".png": read_pillow,
    ".jpg": read_pillow,
    ".jpeg": read_pillow,
    ".tif": read_tiff,
    ".tiff": read_tiff,
    ".nii": read_nifti,
    ".nii.gz": read_nifti,
    ".dcm": read_dicom,
    ".dicom": read_dicom,
    ".ima": read_dicom,
    ".npz": read_npz,
}
MAGIC = {  # first bytes of a file -> suffixes that may carry them
    b"\x89PNG": (".png",),
    b"\xff\xd8\xff": (".jpg", ".jpeg"),
    b"II*\0": (".tif", ".tiff"),
    b"MM\0*": (".tif", ".tiff"),
    b"PK\x03\x04": (".npz",),
}


def suffix_of(path: Path | str) -> str:
    """'.png', '.nii.gz', ... in lower case; '' for none."""
    name = Path(path).name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def is_image(path: Path) -> bool:
    """Whether the name is one that read_image or an .npz set takes (or a DICOM file without a suffix)."""
    kind = suffix_of(path)
    return kind in READERS or (kind == "" and path.is_file() and has_mark(path) and path.name != "DICOMDIR")


def read_image(path: Path | str, *, finite: bool = True) -> RawImage:
    """One image in stored units; a folder is read as a DICOM series.

    path: .png .jpg .tif .nii .nii.gz .dcm .npz file, or a folder that holds one DICOM series.
    finite: refuse NaN and Inf (False: return them, for inspection).
    Errors: DataError naming the file, what is wrong with it and what to do.
    """
    path = Path(path)
    return guarded(path, lambda: read_series(path) if path.is_dir() else _reader(path)(path), finite)


def guarded(path: Path, read: Callable[[], RawImage], finite: bool = True) -> RawImage:
    """read(), with every failure turned into a DataError that names the file."""
    try:
        raw = read()
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file. Check the name and the folder.") from error
    except PermissionError as error:
        raise DataError(
            f"{path}: not readable (permission denied). Ask its owner for read access."
        ) from error
    except MemoryError as error:
        raise DataError(
            f"{path}: not enough memory to read it. Reduce the image or use a larger machine."
        ) from error
    except Exception as error:  # decoders on damaged bytes raise anything; all of it is one damaged file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: damaged or truncated ({reason}). Copy or export it again.") from error
    return require_finite(raw, path) if finite else raw


def _reader(path: Path) -> Callable[[Path], RawImage]:
    """The reader for a file, after comparing its first bytes with its name."""
    if path.stat().st_size == 0:
        raise DataError(f"{path}: empty file (0 bytes). Copy or export it again.")
    kind = suffix_of(path)
    if kind == "" and has_mark(path):
        return read_dicom
    if kind not in READERS:
        raise DataError(f"{path}: not an image format that is read here ('{kind or 'no suffix'}'). Known: "
                        f"{', '.join(READERS)}.")  # fmt: skip
    with path.open("rb") as file:
        head = file.read(8)
    for magic, suffixes in MAGIC.items():
        if (
            head.startswith(magic)
            and kind not in suffixes
            and not {kind, suffixes[0]} <= {".png", ".jpg", ".jpeg"}
        ):
            raise DataError(f"{path}: named {kind}, but its content is {suffixes[0][1:].upper()}. Rename it "
                            f"to end in {suffixes[0]}.")  # fmt: skip
    if kind in (".nii", ".nii.gz", ".png", ".jpg", ".jpeg", ".tif", ".tiff") and has_mark(path):
        raise DataError(f"{path}: named {kind}, but its content is DICOM. Rename it to end in .dcm.")
    return READERS[kind]

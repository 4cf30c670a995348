"""What a DICOM header may tell: everything but who the patient is.

Nothing that identifies a person is kept: no names, dates, identifiers or free texts. The patient is known
only by a hash, so that a split by patient stays possible.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from verisim.errors import DataError

PRIVATE_GROUP, PRIVATE_OWNER = 0x0011, "VERISIM"  # where the writer keeps its provenance

# pydicom's warnings quote header values, which may identify a person; what matters is checked here
logging.getLogger("pydicom").setLevel(logging.ERROR)
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


def open_dicom(path: Path, pixels: bool = True) -> Dataset:
    """The data set of a DICOM file that holds an image."""
    try:
        ds = pydicom.dcmread(path, stop_before_pixels=not pixels)
    except InvalidDicomError as error:
        raise DataError(
            f"{path}: not a DICOM file (the mark 'DICM' after the first 128 bytes is missing). If an old "
            "device wrote it, let the archive or dcmconv write it again with a file header."
        ) from error
    except Exception as error:  # a parser on damaged bytes can raise anything
        raise DataError(
            f"{path}: damaged DICOM ({type(error).__name__}: {error}). Export it again."
        ) from error
    if "Rows" not in ds or "Columns" not in ds or (pixels and "PixelData" not in ds):
        kind = getattr(ds.get("SOPClassUID"), "name", "unknown kind")
        raise DataError(f"{path}: DICOM without an image ({kind}). Leave it out of the folder.")
    return ds


def safe_meta(ds: Dataset) -> dict:
    """Facts that help and identify nobody. The patient appears as a hash."""
    patient = str(ds.get("PatientID", "") or "")
    removed = str(ds.get("PatientIdentityRemoved", "") or "").upper() == "YES"
    meta: dict = {
        "deidentified": removed or is_synthetic(ds),
        "synthetic": is_synthetic(ds),
        "series": short_hash(str(ds.get("SeriesInstanceUID", "") or "")),
        "burned_in": str(ds.get("BurnedInAnnotation", "") or "").upper() == "YES",
        "preamble": bytes(getattr(ds, "preamble", None) or b"").strip(b"\0")[:2] in (b"MZ", b"\x7fE"),
    }
    if patient:
        meta["patient"] = "dicom-" + short_hash(patient)
    return meta


def head_meta(path: Path) -> dict:
    """safe_meta of a file, from its header alone; DataError for a damaged one."""
    ds = open_dicom(path, pixels=False)
    try:
        return safe_meta(ds)
    except Exception as error:  # values are decoded when they are asked for, and can be anything
        raise DataError(f"{path}: damaged DICOM header ({type(error).__name__}). Export it again.") from error


def short_hash(text: str) -> str:
    """12 hexadecimal digits that stand for `text`, or ''."""
    return hashlib.sha256(text.encode()).hexdigest()[:12] if text else ""


def is_synthetic(ds: Dataset) -> bool:
    """Whether the file says of itself that it is synthetic (0008,001C)."""
    mark = ds.get((0x0008, 0x001C))
    return mark is not None and str(mark.value).upper() == "YES"


def provenance_of(ds: Dataset) -> dict:
    """The provenance that verisim wrote into this file, or {}."""
    try:
        block = ds.private_block(PRIVATE_GROUP, PRIVATE_OWNER)
        return json.loads(str(block[0x01].value))
    except KeyError:
        return {}

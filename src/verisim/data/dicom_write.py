"""A valid DICOM Secondary Capture that says of itself that it is synthetic (PS3.3 A.8)."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

import verisim
from verisim.data.dicom import LPS_TO_RAS
from verisim.data.dicom_header import PRIVATE_GROUP, PRIVATE_OWNER
from verisim.errors import DataError

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
MULTIFRAME_BYTE = SECONDARY_CAPTURE + ".2"
MULTIFRAME_WORD = SECONDARY_CAPTURE + ".3"


@dataclass(frozen=True)
class DicomPlace:
    """Where a file belongs: files that share study and series appear together in an archive."""

    study: str = field(default_factory=generate_uid)
    series: str = field(default_factory=generate_uid)
    number: int = 1  # instance number, from 1


def dicom_bytes(
    stored: np.ndarray,  # (H, W), (D, H, W) or (H, W, 3); uint8, or uint16 for grey
    affine: np.ndarray | None,  # (4, 4): (d, h, w, 1) -> mm RAS+
    spacing: tuple[float, ...] | None,  # mm per pixel, order of the size; used where affine is None
    provenance: Mapping,
    place: DicomPlace,
) -> bytes:
    """The bytes of a DICOM file with fresh UIDs, a zeroed preamble and no patient."""
    colour = stored.ndim == 3 and stored.shape[-1] == 3
    frames = 1 if colour or stored.ndim == 2 else len(stored)
    ds = Dataset()
    ds.SOPClassUID = (SECONDARY_CAPTURE if frames == 1
                      else MULTIFRAME_BYTE if stored.dtype == np.uint8 else MULTIFRAME_WORD)  # fmt: skip
    ds.SOPInstanceUID = generate_uid()
    _identity(ds, place)
    _origin(ds, provenance)
    _pixels(ds, stored, colour, frames)
    _geometry(ds, affine, spacing, frames)
    block = ds.private_block(PRIVATE_GROUP, PRIVATE_OWNER, create=True)
    block.add_new(0x01, "UT", json.dumps(dict(provenance), sort_keys=True))
    ds.preamble = b"\0" * 128
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    buffer = io.BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def _identity(ds: Dataset, place: DicomPlace) -> None:
    """Patient, study and series modules: nobody, and the present."""
    now = datetime.now()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientName = "SYNTHETIC^VERISIM"
    ds.PatientID = "SYNTHETIC-" + hashlib.sha256(place.study.encode()).hexdigest()[:12]
    ds.PatientBirthDate = ds.PatientSex = ""
    ds.PatientIdentityRemoved = "YES"
    ds.DeidentificationMethod = "Synthetic image: there is no patient"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = place.study, place.series
    ds.StudyID, ds.SeriesNumber, ds.InstanceNumber = "1", 1, place.number
    ds.StudyDate = ds.ContentDate = ds.InstanceCreationDate = now.strftime("%Y%m%d")
    ds.StudyTime = ds.ContentTime = ds.InstanceCreationTime = now.strftime("%H%M%S")
    ds.AccessionNumber = ds.ReferringPhysicianName = ds.PatientOrientation = ""
    ds.Modality = "OT"
    ds.SeriesDescription = "SYNTHETIC, not for diagnosis"


def _origin(ds: Dataset, provenance: Mapping) -> None:
    """What made this file; (0008,001C) SyntheticData says it to machines."""
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.SyntheticData = "YES"
    ds.ConversionType = "SYN"
    ds.BurnedInAnnotation = "NO"
    ds.Manufacturer = ds.SecondaryCaptureDeviceManufacturer = "verisim"
    ds.SoftwareVersions = verisim.__version__
    model, seed = provenance.get("model", "unknown"), provenance.get("seed", "unknown")
    ds.DerivationDescription = f"Synthetic image sampled by verisim; model {model}; seed {seed}"[:1024]
    tool = Dataset()
    tool.Manufacturer, tool.ManufacturerModelName = "verisim", str(model)[:64]
    tool.SoftwareVersions = verisim.__version__
    tool.ContributionDescription = "Generated the pixel data"
    tool.PurposeOfReferenceCodeSequence = Sequence([_code("109102", "DCM", "Processing Equipment")])
    ds.ContributingEquipmentSequence = Sequence([tool])


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _pixels(ds: Dataset, stored: np.ndarray, colour: bool, frames: int) -> None:
    """Image pixel module; grey levels are stored as they are (slope 1, intercept 0)."""
    bits = stored.dtype.itemsize * 8
    ds.SamplesPerPixel = 3 if colour else 1
    ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        ds.PlanarConfiguration = 0
    else:
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = "1", "0", "US"
        ds.PresentationLUTShape = "IDENTITY"
        ds.WindowCenter, ds.WindowWidth = str(2 ** (bits - 1)), str(2**bits)
    ds.Rows, ds.Columns = stored.shape[:2] if colour else stored.shape[-2:]
    if frames > 1:
        ds.NumberOfFrames = frames
    ds.BitsAllocated = ds.BitsStored = bits
    ds.HighBit, ds.PixelRepresentation = bits - 1, 0
    data = np.ascontiguousarray(stored.astype(stored.dtype.newbyteorder("<"))).tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OW" if bits == 16 else "OB"


def _geometry(ds: Dataset, affine: np.ndarray | None, spacing, frames: int) -> None:
    """Pixel size and, where known, position and orientation (of every frame)."""
    if affine is None:
        if spacing is not None:
            ds.PixelSpacing = [_ds(s) for s in spacing[-2:]]
        if frames > 1:
            ds.FrameIncrementPointer = 0x00182001  # Page Number Vector
            ds.PageNumberVector = list(range(1, frames + 1))
            if spacing is not None:
                ds.SpacingBetweenSlices = _ds(spacing[0])
        return
    lps = LPS_TO_RAS @ np.asarray(affine, dtype=np.float64)
    down, right = lps[:3, 1], lps[:3, 2]
    steps = np.linalg.norm(down), np.linalg.norm(right)
    if abs(down @ right) > 1e-2 * steps[0] * steps[1]:
        raise DataError("DICOM holds right-angled pixels only, and this affine is sheared within the slice. "
                        "Write .nii.gz, or resample first.")  # fmt: skip
    orientation = [_ds(v) for v in [*(right / steps[1]), *(down / steps[0])]]
    between = _ds(np.linalg.norm(lps[:3, 0]))
    if frames == 1:
        ds.ImagePositionPatient = [_ds(v) for v in lps[:3, 3]]
        ds.ImageOrientationPatient, ds.PixelSpacing = orientation, [_ds(s) for s in steps]
        ds.SliceThickness = ds.SpacingBetweenSlices = between
        ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = generate_uid(), ""
        return
    _functional_groups(ds, lps, orientation, [_ds(s) for s in steps], between, frames)


def _functional_groups(ds: Dataset, lps, orientation, steps, between: str, frames: int) -> None:
    """Multi-frame functional groups: shared orientation and spacing, a position for each frame."""
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = generate_uid(), ""
    organisation, index = Dataset(), Dataset()
    organisation.DimensionOrganizationUID = index.DimensionOrganizationUID = generate_uid()
    index.DimensionIndexPointer = 0x00200032  # Image Position (Patient)
    index.FunctionalGroupPointer = 0x00209113  # Plane Position Sequence
    ds.DimensionOrganizationSequence = Sequence([organisation])
    ds.DimensionIndexSequence = Sequence([index])
    measures, plane, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness, measures.SpacingBetweenSlices = steps, between, between
    plane.ImageOrientationPatient = orientation
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([plane])
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for d in range(frames):
        position, content, group = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [_ds(v) for v in lps[:3, 3] + d * lps[:3, 0]]
        content.DimensionIndexValues = [d + 1]
        group.PlanePositionSequence = Sequence([position])
        group.FrameContentSequence = Sequence([content])
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = Sequence(groups)
    ds.FrameIncrementPointer = 0x52009230  # Per-frame Functional Groups Sequence


def _ds(value: float | np.floating) -> str:
    """A decimal string of at most 16 characters (PS3.5, VR DS) with all the digits that fit."""
    for digits in range(17, 0, -1):
        text = f"{float(value) + 0.0:.{digits}g}"
        if len(text) <= 16:
            return text
    return "0"

"""Write generated images so that nobody can take them for real ones.

Every file says that it is synthetic and which model, seed and settings made it: PNG text, NIfTI header
extension and descrip, DICOM SyntheticData (0008,001C) and contributing equipment, npz text. Files are
written whole or not at all.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

import verisim
from verisim.data.atomic import atomic_write
from verisim.data.dicom_write import DicomPlace, dicom_bytes
from verisim.data.nifti import write_nifti
from verisim.data.readers import read_image, suffix_of
from verisim.data.spec import Images, ImageSpec
from verisim.errors import DataError

LEVELS = {8: np.uint8, 16: np.uint16}


@dataclass(frozen=True)
class _Job:
    """One image on its way into a file."""

    pixels: np.ndarray  # (C, *S) float32 in [spec.low, spec.high]
    spec: ImageSpec
    provenance: dict  # JSON values
    affine: np.ndarray | None  # (4, 4): (d, h, w, 1) -> mm RAS+
    bits: int  # 8 or 16, for PNG and DICOM
    place: DicomPlace  # study and series, for DICOM
    path: Path

    def grey_levels(self) -> np.ndarray:
        """(C, *S) unsigned integers: low -> 0, high -> 2^bits - 1."""
        low, high = self.spec.low, self.spec.high
        unit = (self.pixels.astype(np.float64).clip(low, high) - low) / (high - low)
        return np.rint(unit * (2**self.bits - 1)).astype(LEVELS[self.bits])


def write_image(
    path: Path | str,
    pixels: Tensor,  # (C, *S) within the spec's range
    spec: ImageSpec,
    provenance: Mapping,  # what made it: model, seed, settings ...; must be JSON
    affine: np.ndarray | None = None,  # (4, 4): (d, h, w, 1) -> mm RAS+
    *,
    bits: int = 8,  # grey levels of PNG and DICOM: 8 or 16
    place: DicomPlace | None = None,  # study and series of a DICOM file; fresh ones by default
) -> None:
    """Write one generated image; the suffix decides: .png, .nii, .nii.gz, .dcm or .npz.

    Errors: RangeError for pixels outside the spec; DataError for a suffix that cannot hold the image, for
    provenance that is not JSON, for a full disk.
    """
    path = Path(path)
    spec.check(pixels[None], where=str(path))
    kind = suffix_of(path)
    if kind not in WRITERS:
        raise DataError(f"{path}: cannot write '{kind}'. Known: {', '.join(WRITERS)}.")
    if bits not in LEVELS:
        raise DataError(f"bits={bits}: allowed are 8 and 16.")
    array = pixels.detach().to("cpu", torch.float32).numpy()
    facts = {
        **provenance,
        "synthetic": True,
        "software": f"verisim {verisim.__version__}",
        "range": [spec.low, spec.high],
        "bits": bits,
        "modality": spec.modality,
        "spacing": list(spec.spacing) if spec.spacing else None,
        "affine": None if affine is None else np.asarray(affine, dtype=np.float64).tolist(),
    }
    try:
        json.dumps(facts, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{path}: provenance must be JSON (texts, finite numbers, lists): {error}."
        ) from error
    job = _Job(array, spec, facts, affine, bits, place or DicomPlace(), path)
    atomic_write(path, WRITERS[kind](job))


def _png(job: _Job) -> bytes:
    """8-bit grey or RGB, 16-bit grey."""
    if job.spec.spatial_dims != 2:
        raise DataError(f"{job.path}: PNG holds 2D images; this one is {job.spec.size}. Write .nii.gz.")
    levels = job.grey_levels()
    if len(levels) == 3 and job.bits == 16:
        raise DataError(f"{job.path}: PNG is written with 16 bits for grey only. Use bits=8 for colour.")
    _require_channels(job, (1, 3))
    image = Image.fromarray(
        levels[0] if len(levels) == 1 else np.ascontiguousarray(np.moveaxis(levels, 0, -1))
    )
    info = PngInfo()
    info.add_text("Comment", f"synthetic image, not a patient; made by {job.provenance['software']}")
    info.add_text("Software", job.provenance["software"])
    info.add_text("verisim", json.dumps(job.provenance, sort_keys=True))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def _nifti(job: _Job, packed: bool) -> bytes:
    """One channel, float32, exact; a 2D image becomes one slice."""
    _require_channels(job, (1,))
    volume = job.pixels[0] if job.spec.spatial_dims == 3 else job.pixels[0][None]
    return write_nifti(volume, job.affine, job.spec.spacing, job.provenance, packed)


def _dicom(job: _Job) -> bytes:
    """Secondary Capture; a volume becomes one multi-frame file."""
    _require_channels(job, (1, 3) if job.spec.spatial_dims == 2 and job.bits == 8 else (1,))
    levels = job.grey_levels()
    stored = levels[0] if len(levels) == 1 else np.moveaxis(levels, 0, -1)
    return dicom_bytes(stored, job.affine, job.spec.spacing, job.provenance, job.place)


def _npz(job: _Job) -> bytes:
    """The numbers as they are."""
    arrays = {"image": job.pixels, "verisim": np.array(json.dumps(job.provenance, sort_keys=True))}
    if job.affine is not None:
        arrays["affine"] = np.asarray(job.affine, dtype=np.float64)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _require_channels(job: _Job, allowed: Sequence[int]) -> None:
    if len(job.pixels) not in allowed:
        names = " or ".join(map(str, allowed))
        raise DataError(f"{job.path}: {len(job.pixels)} channels; this format and depth takes {names}. Write "
                        "one file per channel, or .npz.")  # fmt: skip


WRITERS: dict[str, Callable[[_Job], bytes]] = {
    ".png": _png,
    ".nii": lambda job: _nifti(job, packed=False),
    ".nii.gz": lambda job: _nifti(job, packed=True),
    ".dcm": _dicom,
    ".npz": _npz,
}


def write_map(path: Path, values: Tensor, affine: np.ndarray | None, provenance: Mapping) -> Path:
    """A map computed from an image, values (1, *S), as NIfTI on the image's own grid; returns the path."""
    top = float(values.abs().max()) or 1.0
    spec = ImageSpec(tuple(values.shape[1:]), 1, -top, top, modality="map")
    write_image(path, values, spec, provenance, affine)
    return path


def read_provenance(path: Path | str) -> dict:
    """What made this file; DataError if it does not say."""
    found = read_image(path).meta.get("provenance", {})
    if not found:
        raise DataError(f"{path}: carries no provenance of verisim: a real image, another program's, or one "
                        "that lost its header on the way.")  # fmt: skip
    return found


def _columns(channels: int, contrasts: Sequence[str], suffix: str) -> dict[str, tuple[str, slice]]:
    """Manifest column -> ending of its files' names, and the channels that they hold."""
    if suffix == ".npz" or channels == 1 or (channels == 3 and not contrasts):
        return {"image": ("", slice(None))}
    names = contrasts or [f"c{c}" for c in range(channels)]
    return {name: ("_" + re.sub(r"[^\w-]", "_", name), slice(c, c + 1)) for c, name in enumerate(names)}


def write_samples(
    folder: Path | str,
    images: Images,
    provenance: Mapping,  # of all images; each file adds its index
    *,
    suffix: str | None = None,  # ".png", ".nii.gz", ".dcm", ".npz"; None: .png in 2D, .nii.gz in 3D
    class_names: Sequence[str] = (),  # name of class 0, 1, ...
    bits: int = 8,  # grey levels of PNG and DICOM
    affine: np.ndarray | None = None,  # (4, 4), the same for all
    contrasts: Sequence[str] = (),  # names of the channels, where each is to be a file of its own
    overwrite: bool = False,  # replace the samples of an earlier call
    places: Sequence[int] = (),  # of the images in a set of `total`, of which other calls write other parts
    total: int = 0,
) -> list[Path]:
    """Write all images, manifest.csv and provenance.json, so that load_images reads the folder again.

    The manifest has the columns image, label, synthetic, seed, index. Images of other than 1 or 3 channels, or with
    named contrasts, become one file per channel (except in .npz), whose column has the contrast's name or c0, c1, ...
    Parts of a set may be written at the same time: each adds its rows to one manifest.
    """
    folder = Path(folder)
    if (folder / "manifest.csv").exists() and not overwrite and not places:
        raise DataError(f"{folder}: holds a manifest.csv already. Choose another folder, or overwrite=True "
                        "(--overwrite).")  # fmt: skip
    suffix = suffix or (".png" if images.spec.spatial_dims == 2 else ".nii.gz")
    columns = _columns(images.spec.channels, contrasts, suffix)
    header = [*columns, "label", "synthetic", "seed", "index"]
    described = {**provenance, "synthetic": True, "images": total or len(images)}
    if places:
        _others(folder, header, described)  # refuses before anything is written
    spec = images.spec if len(columns) == 1 else replace(images.spec, channels=1)
    numbers = list(places) or list(range(len(images)))
    digits = max(4, len(str(max(total or len(images), 1) - 1)))
    place = DicomPlace()
    paths: list[Path] = []
    rows: list[list[str]] = []
    for i, number in enumerate(numbers):
        files = [f"sample_{number:0{digits}d}{ending}{suffix}" for ending, _ in columns.values()]
        label = "" if images.labels is None else str(int(images.labels[i]))
        label = class_names[int(label)] if label and class_names else label
        facts = {**provenance, "index": number, **({"label": label} if label else {})}
        for name, (_, part) in zip(files, columns.values()):
            write_image(folder / name, images.pixels[i, part], spec, facts, affine, bits=bits,
                        place=replace(place, number=len(paths) + 1))  # fmt: skip
            paths.append(folder / name)
        rows.append([*files, label, "yes", str(provenance.get("seed", "")), str(number)])
    with _held(folder) if places else nullcontext():
        if places:
            mine = {row[-1] for row in rows}
            rows += [row for row in _others(folder, header, described) if row[-1] not in mine]
            rows.sort(key=lambda row: int(row[-1]))
        atomic_write(folder / "provenance.json", json.dumps(described, indent=2, sort_keys=True).encode())
        table = io.StringIO()
        csv.writer(table).writerows([header, *rows])
        atomic_write(folder / "manifest.csv", table.getvalue().encode())
    return paths


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """One writer of the folder's manifest at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def _others(folder: Path, header: list[str], described: Mapping) -> list[list[str]]:
    """Rows of the parts that are written already. DataError if they are of another set."""
    if not (folder / "manifest.csv").exists():
        return []
    with open(folder / "manifest.csv", newline="") as f:
        known, *rows = list(csv.reader(f))
    if known != header or json.loads((folder / "provenance.json").read_text()) != json.loads(
        json.dumps(described)
    ):
        raise DataError(
            f"{folder}: holds samples that were made in another way (its provenance.json says how). Choose another folder."
        )
    return rows

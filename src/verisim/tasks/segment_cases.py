"""Segment a user's cases on their own grids, one after the other, so that a killed run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verisim.data.atomic import atomic_write
from verisim.data.cases import CaseFiles
from verisim.data.grids import as_codes, require_same_grid
from verisim.data.loading import file_digest
from verisim.data.nifti import write_nifti
from verisim.data.raw import RawImage, orientation, spacing_of
from verisim.data.readers import read_image
from verisim.data.regrid import onto_grid
from verisim.data.resample import fit_image
from verisim.data.single import Reading, load_single
from verisim.data.writers import write_map
from verisim.errors import DataError
from verisim.metrics.segmentation import dice, hd95
from verisim.models.segmentation.base import SegmentationModel
from verisim.reports.segmentation import overlay_png


@dataclass(frozen=True)
class CaseSettings:
    """How cases are read and what their files are told."""

    seed: int = 0
    orientations: tuple[str, ...] = ()  # of the training images, e.g. ("SAR",); () = unknown
    codes: tuple[int, ...] = ()  # label codes that are foreground; others but 0 are errors. () = all but 0
    identity: str = ""  # SHA-256 of the model's weights


def segment_case(
    model: SegmentationModel, case: CaseFiles, how: Reading, out: Path, settings: CaseSettings
) -> dict[str, Any]:
    """Write NAME.mask/mean/variance.nii.gz, NAME.png and NAME.json; returns what is in the JSON.

    A case whose NAME.json was made from the same files, weights and settings is not done again.
    DataError for what cannot be segmented: wrong grids, other orientation than in training, nothing but background.
    """
    key = _key(model, case, how, settings)
    done = out / f"{case.name}.json"
    if done.exists() and json.loads(done.read_text()).get("key") == key:
        return {**json.loads(done.read_text()), "again": False}
    raw = read_image(case.images[0])
    one = load_single(case.images, how)
    image, affine = one.pixels, one.affine
    _require_content(image, case, how)
    _require_orientation(raw, case, settings.orientations)
    truth = None if case.truth is None else _truth(case.truth, raw, case, settings.codes)
    size = raw.size if len(raw.size) == image.ndim - 1 else raw.size[-(image.ndim - 1) :]
    fit = how.fit or ("pad" if image.ndim == 3 else "stretch")  # as load_single has it
    back = fit_image(np.zeros((1, *size), np.float32), tuple(image.shape[1:]), fit)[1]
    found = model.predict(image[None], settings.seed)
    mean, variance = (onto_grid(m[0].cpu(), back, size) for m in (found.mean, found.variance))
    facts = {
        "case": case.name,
        "seed": settings.seed,
        "members": found.members,
        **_written(out, case.name, mean, variance, raw, settings, model),
    }
    if truth is not None:
        spacing = None if raw.affine is None else spacing_of(raw.affine, len(size))
        facts["dice"] = float(dice((mean > 0.5)[None], truth[None]))
        facts["hd95"] = float(hd95((mean > 0.5)[None], truth[None], spacing))
    seen = onto_grid(image, back, size)
    atomic_write(out / f"{case.name}.png", overlay_png(seen, mean, variance, case.name, truth))
    facts["notes"] = _notes(affine, image, how)
    atomic_write(done, (json.dumps({"key": key, **facts}, indent=1) + "\n").encode())
    return {**facts, "again": True}


def _written(
    out: Path, name: str, mean: Tensor, variance: Tensor, raw: RawImage, settings: CaseSettings, model: Any
) -> dict[str, Any]:
    """Write the three maps on the case's own grid; volume and mean variance as numbers."""
    facts = {
        "model": model.family,
        "weights": settings.identity,
        "seed": settings.seed,
        "options": repr(model.options),
    }
    for kind, values in (("mean", mean), ("variance", variance)):
        write_map(out / f"{name}.{kind}.nii.gz", values, raw.affine, {**facts, "map": kind})
    mask = (mean > 0.5).to(torch.uint8)
    volume = mask[0].numpy() if mask.ndim == 4 else mask[0].numpy()[None]
    data = write_nifti(volume, raw.affine, raw.spacing, {**facts, "map": "mask", "synthetic": True}, True)
    atomic_write(out / f"{name}.mask.nii.gz", data)
    pixels = int(mask.sum())
    row: dict[str, Any] = {"pixels": pixels, "mean_variance": float(variance.mean())}
    if raw.affine is not None and mask.ndim == 4:
        row["volume_ml"] = pixels * abs(float(np.linalg.det(raw.affine[:3, :3]))) / 1000
    return row


def _key(model: SegmentationModel, case: CaseFiles, how: Reading, settings: CaseSettings) -> str:
    """Hash of all that a case's result depends on."""
    files = [*case.images, *([case.truth] if case.truth else [])]
    for path in files:
        if not path.exists():
            raise DataError(f"case '{case.name}': {path} is not there. Check the manifest or the folder.")
    parts = [file_digest(p, p.stat().st_mtime_ns) for p in files if p.is_file()]
    return hashlib.sha256(repr((parts, how, settings, model.options)).encode()).hexdigest()


def _require_content(image: Tensor, case: CaseFiles, how: Reading) -> None:
    """DataError if a contrast has one value everywhere: nothing could be found in it."""
    names = how.contrasts or ("image",) * len(image)
    paths = case.images if how.contrasts else case.images * len(image)
    for name, channel, path in zip(names, image, paths):
        if float(channel.max()) == float(channel.min()):
            raise DataError(
                f"case '{case.name}': {path} ({name}) has the same brightness everywhere within the range that the "
                f"model was trained on, so there is nothing to segment. Check the file and its units."
            )


def _require_orientation(raw: RawImage, case: CaseFiles, turns: Sequence[str]) -> None:
    """DataError if the case lies otherwise in space than all training images."""
    if raw.affine is None or raw.meta.get("unplaced") or len(turns) != 1:
        return
    mine, theirs = orientation(raw.affine), turns[0]
    if mine != theirs:
        raise DataError(
            f"case '{case.name}' lies {mine} in space (depth, height, width grow that way), the training images "
            f"{theirs}. Bring it to their orientation first, e.g. with nibabel.as_closest_canonical."
        )


def _truth(path: Path, raw: RawImage, case: CaseFiles, codes: Sequence[int]) -> Tensor:
    """The label map as 0 and 1, (1, *S) uint8; DataError for another grid or unknown codes."""
    given = read_image(path)
    require_same_grid(raw, given, str(case.images[0]), str(path))
    labels = as_codes(given, str(path))
    odd = sorted(set(np.unique(labels).tolist()) - {0, *codes}) if codes else []
    if odd:
        raise DataError(
            f"{path}: the label map holds {', '.join(map(str, odd))}; known are 0 (background) and "
            f"{', '.join(map(str, codes))} (foreground). Name all foreground codes with --codes, or leave it out: all "
            f"but 0 is foreground then."
        )
    return torch.from_numpy((labels > 0).astype(np.uint8))


def _notes(affine: np.ndarray | None, image: Tensor, how: Reading) -> list[str]:
    """What may make the answer worse."""
    known = how.spec.spacing
    if affine is None or known is None:
        return []
    here = spacing_of(affine, image.ndim - 1)
    if all(0.8 < a / b < 1.25 for a, b in zip(here, known)):
        return []
    sides = (" x ".join(f"{s:.3g}" for s in v) for v in (here, known))
    return ["on the model's grid a pixel is {} mm where training images had {}".format(*sides)]

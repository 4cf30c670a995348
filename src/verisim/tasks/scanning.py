"""Maps, overlays and scores of many scans, one after the other; what is done already is not done again."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from verisim.data.align import carried
from verisim.data.atomic import atomic_write
from verisim.data.folder import Dataset, load_file
from verisim.data.listing import Entry, scan
from verisim.data.register import register_rigid
from verisim.data.spec import Images
from verisim.data.writers import write_map
from verisim.errors import DataError, VerisimError
from verisim.reports.anomaly import overlay_png
from verisim.roles import AnomalyDetector
from verisim.tasks.anomaly import Calibration, calibrate, scores
from verisim.tasks.detection import structure_scores
from verisim.tasks.head_parts import head_parts, left_is_right

MEMORY = "calibration.json"  # in the folder of the maps: what normal images look like, and by which model and settings
TABLE = "scores.csv"
PARTS: dict[str, Callable[[Tensor, float], dict[str, Tensor]]] = {"head_ct": head_parts}


@dataclass(frozen=True)
class Known:
    """What normal images look like: as a whole, and part by part."""

    whole: Calibration
    parts: dict[str, Calibration] = field(default_factory=dict)


@dataclass(frozen=True)
class Scanning:
    """How scans are read, searched and scored."""

    detector: AnomalyDetector
    dataset: Dataset  # the model's data: size and grey values of scans follow it
    reading: Mapping[str, Any]  # further arguments of load_file: window, fit, enlarge
    out: Path  # folder of maps, overlays and scores
    facts: Mapping[str, Any]  # model and settings, JSON; another folder is needed where they differ
    parts: str = ""  # key of PARTS, or none
    bone: float = 0.95  # grey value of bone, for head_ct
    reference: Tensor | None = (
        None  # (C, *S) scan that others are registered to; None = they lie alike already
    )


def list_scans(paths: Sequence[str], volumes: bool) -> list[Entry]:
    """Files as they are named, and every image of folders. DataError for a name that is not there, VerisimError if two
    would write one map.
    """
    found: list[Entry] = []
    for text in paths:
        path = Path(text)
        if path.is_dir():
            found += scan(path, volumes=volumes).entries
        elif not path.exists():
            raise DataError(f"{path}: no such file. Check the name and the folder.")
        else:
            found.append(Entry(path.name, path))
    names = [map_name(e) for e in found]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice:
        raise VerisimError(f"Two of the images would be written as '{twice}'. Name them in separate calls.")
    return found


def map_name(entry: Entry) -> str:
    """Name of an image's map without suffix; folders become part of it."""
    return entry.name.replace("/", "__").removesuffix(".gz").rsplit(".", 1)[0]


def known_normals(s: Scanning, normal: Images, rate: float) -> Known:
    """Calibration on held-out normal images, from the folder if it is there already.

    VerisimError if the folder holds maps of another model or other settings.
    """
    file = s.out / MEMORY
    if file.exists():
        stored = json.loads(file.read_text())
        if stored["facts"] != json.loads(json.dumps(dict(s.facts))):
            raise VerisimError(
                f"{s.out} holds maps of another model or other settings. Choose another --out."
            )
        return Known(*_from_json(stored))
    whole = calibrate(s.detector, normal, rate)
    parts = {}
    if s.parts:
        maps = torch.cat([s.detector.anomaly_map(p).cpu() for p in normal.pixels.split(16)])
        found = structure_scores(maps, PARTS[s.parts](normal.pixels, s.bone))
        parts = {k: Calibration(v, whole.pixel, rate) for k, v in found.items()}
    body = {
        "facts": dict(s.facts),
        "whole": _to_json(whole),
        "parts": {k: _to_json(c) for k, c in parts.items()},
    }
    atomic_write(file, (json.dumps(body) + "\n").encode())
    return Known(whole, parts)


def _to_json(c: Calibration) -> dict[str, Any]:
    return {"normal": c.normal.tolist(), "pixel": c.pixel, "rate": c.rate}


def _from_json(stored: Mapping[str, Any]) -> tuple[Calibration, dict[str, Calibration]]:
    def one(d: Mapping[str, Any]) -> Calibration:
        return Calibration(torch.tensor(d["normal"], dtype=torch.float64), d["pixel"], d["rate"])

    return one(stored["whole"]), {k: one(d) for k, d in stored["parts"].items()}


def search(
    s: Scanning, entries: Sequence[Entry], known: Known
) -> Iterator[tuple[Entry, dict[str, str] | DataError]]:
    """Each scan with its row of scores, or with why it cannot be read. Rows are on disk before they are given."""
    rows = _rows_so_far(s.out)
    for entry in entries:
        row = rows.get(str(entry.name))
        if row is None or not (s.out / row["map"]).exists():
            try:
                row = _search_one(s, entry, known)
            except DataError as error:
                yield entry, error
                continue
            rows[entry.name] = row
            _write(s.out / TABLE, rows)
        yield entry, row


def _search_one(s: Scanning, entry: Entry, known: Known) -> dict[str, str]:
    image, affine = load_file(entry, s.dataset, **s.reading)
    turn = np.eye(4)  # pixel of the searched image -> pixel of the scan as it was read
    sharp = image  # what structures are found in: interpolation would leave thin bone too dark to be bone
    if s.reference is not None:
        lain = register_rigid(image, s.reference, s.dataset["train"].spec.spacing)
        sharp, _ = carried(image, lain.matrix, tuple(lain.pixels.shape[1:]), nearest=True)
        image, turn = lain.pixels.clamp(-1, 1), lain.matrix
    found = s.detector.anomaly_map(image[None]).cpu()
    score = scores(found)
    share = float((found > known.whole.pixel).double().mean())
    row = {
        "image": entry.name,
        "score": f"{float(score):.5f}",
        "p_value": f"{float(known.whole.p_values(score)):.4f}",
        "share_above_threshold": f"{share:.4f}",
        "map": f"{map_name(entry)}.map.nii.gz",
    }
    if s.parts:
        for name, value in _part_scores(s, sharp, found, affine).items():
            row[f"score_{name}"] = f"{float(value):.5f}"
            row[f"p_{name}"] = f"{float(known.parts[name].p_values(value)):.4f}"
    values, place = on_own_grid(found[0], affine, entry, turn)
    facts = {"image": Path(entry.name).name, **{k: s.facts[k] for k in ("run",) if k in s.facts}}
    write_map(s.out / row["map"], values, place, facts)
    atomic_write(s.out / f"{map_name(entry)}.png", overlay_png(image, found[0], known.whole.pixel))
    return row


def _part_scores(s: Scanning, image: Tensor, found: Tensor, affine: np.ndarray | None) -> dict[str, Tensor]:
    """Scores by structure; left is the patient's left, as the scan's affine says."""
    masks = PARTS[s.parts](image[None], s.bone)
    if not left_is_right(affine):
        masks = {**masks, "left": masks["right"], "right": masks["left"]}
    return structure_scores(found, masks)


def on_own_grid(
    values: Tensor,  # (1, *S) map
    affine: np.ndarray | None,  # (4, 4) of the scan as it was read: (d, h, w, 1) -> mm
    entry: Entry,
    turn: np.ndarray
    | None = None,  # (4, 4) pixel of the map -> pixel of the scan as it was read; None = the same
) -> tuple[Tensor, np.ndarray | None]:
    """A map on the voxels of the scan that it was made from, and the scan's affine.

    Linear in between; 0 where the map does not reach. Images without an affine keep the size that they were read at.
    """
    to_map = np.eye(4) if turn is None else np.linalg.inv(turn)  # pixel of the scan -> pixel of the map
    size = tuple(values.shape[1:])
    if affine is not None and values.ndim == 4:
        raw = entry.read()
        if raw.affine is not None and raw.array.ndim == 4:
            to_map = to_map @ np.linalg.inv(affine) @ raw.affine
            size, affine = raw.array.shape[1:], raw.affine
    if size == tuple(values.shape[1:]) and np.allclose(to_map, np.eye(4)):
        return values, affine
    return _carried(values, to_map, size), affine


def _carried(values: Tensor, to_map: np.ndarray, size: tuple[int, ...]) -> Tensor:
    """values (1, *S) at the places to_map @ (d, h, w, 1) of all pixels of `size`; (1, *size)."""
    dims = len(size)
    axes = [torch.arange(n, dtype=torch.float64) for n in size]
    index = torch.stack([*torch.meshgrid(*axes, indexing="ij"), torch.ones(size, dtype=torch.float64)], -1)
    part = np.delete(to_map, range(3 - dims), 0)[:dims]  # rows of the axes there are
    part = np.delete(part, range(3 - dims), 1)
    at = index @ torch.from_numpy(part).T  # (*size, dims)
    last = torch.tensor([n - 1 for n in values.shape[1:]], dtype=torch.float64)
    scaled = (2 * at / last - 1).flip(-1).float()  # grid_sample wants (w, h, d)
    out = F.grid_sample(values[None].float(), scaled[None], "bilinear", "border", align_corners=True)[0]
    beyond = ((at < -0.5 - 1e-6) | (at > last + 0.5 + 1e-6)).any(-1)
    return out.masked_fill(beyond, 0.0)


def _rows_so_far(out: Path) -> dict[str, dict[str, str]]:
    file = out / TABLE
    if not file.exists() or not (out / MEMORY).exists():
        return {}
    with file.open(newline="") as lines:
        return {row["image"]: row for row in csv.DictReader(lines)}


def _write(path: Path, rows: Mapping[str, Mapping[str, str]]) -> None:
    text = io.StringIO()
    columns = list(dict.fromkeys(k for row in rows.values() for k in row))
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows.values())
    atomic_write(path, text.getvalue().encode())

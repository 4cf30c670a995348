"""Ages of a data set's images, from a column of its manifest."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import torch

from verisim.data.folder import Dataset
from verisim.data.listing import scan
from verisim.errors import DataError, nearest


def with_ages(dataset: Dataset, folder: Path | str, column: str, image: str = "image") -> Dataset:
    """The data set with Images.ages; DataError for a column that is missing or holds what is no age above 0.

    The fingerprint covers the ages: a run does not go on with others.
    """
    volumes = next(iter(dataset.values())).spec.spatial_dims == 3
    found = read_ages(folder, column, volumes, image)
    splits = {}
    for name, images in dataset.items():
        missing = [n for n in images.names or () if n not in found]
        if missing or images.names is None:
            raise DataError(f"{folder}: no age for {len(missing) or 'any'} image(s), e.g. {missing[:1]}.")
        splits[name] = replace(images, ages=torch.tensor([found[n] for n in images.names]))
    lines = "\n".join(f"{n} {a!r}" for n, a in sorted(found.items()))
    digest = hashlib.sha256(f"{dataset.fingerprint}\n{lines}".encode()).hexdigest()
    return replace(dataset, splits=splits, fingerprint=digest)


def read_ages(folder: Path | str, column: str, volumes: bool, image: str = "image") -> dict[str, float]:
    """Image name -> age, for every image of a folder with a manifest."""
    listing = scan(folder, image=image, volumes=volumes)
    columns = sorted({c for e in listing.entries for c in e.fields})
    if not all(column in e.fields for e in listing.entries):
        known = f" Columns: {', '.join(columns)}." if columns else " It has no manifest.csv."
        raise DataError(f"{folder}: no column '{column}' with ages.{nearest(column, columns)}{known}")
    return {
        e.name: _age(str(e.fields[column]), f"{folder}, {e.name}, column '{column}'") for e in listing.entries
    }


def _age(text: str, where: str) -> float:
    try:
        age = float(text)
    except ValueError:
        age = math.nan
    if not (math.isfinite(age) and age > 0):
        raise DataError(f"{where}: '{text}' is no age; a number above 0 is meant, e.g. 31.5 (weeks).")
    return age

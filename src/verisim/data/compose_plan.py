"""Which collections to put together, and what their columns mean: a YAML file.

labels: [effusion, cardiomegaly]
collections:
  nih:
    folder: /data/nih
    listed: {column: findings, separator: "|", names: {Effusion: effusion, Cardiomegaly: cardiomegaly}, others: absent}
  clinic:
    folder: /data/clinic
    columns: {Pleural Effusion: effusion}
    text: report
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from verisim.errors import DataError, nearest

RESERVED = ("image", "collection", "patient", "split", "text")  # columns of the result beside the labels


@dataclass(frozen=True)
class Collection:
    """One folder and how its columns are to be read."""

    name: str
    folder: str
    columns: Mapping[str, str] = field(
        default_factory=dict
    )  # manifest column -> label; cells 1, 0, or unknown
    listed: Mapping[str, Any] = field(default_factory=dict)  # a column that lists findings, see LISTED
    text: str = ""  # manifest column with reports
    image: str = "image"  # manifest column with file names
    where: Mapping[str, Any] = field(default_factory=dict)  # column -> values; other images are left out


LISTED = ("column", "separator", "names", "others")  # others: unknown (default) or absent
KEYS = ("folder", "columns", "listed", "text", "image", "where")


@dataclass(frozen=True)
class Plan:
    """What is to be put together."""

    collections: tuple[Collection, ...]
    labels: tuple[str, ...]
    near: bool = False  # also drop images that are nearly the same (thumbnail correlation 0.999)


def read_plan(path: Path | str) -> Plan:
    """The plan in a YAML file; folders relative to the file. DataError for what it should not hold."""
    where = Path(path)
    if not where.is_file():
        raise DataError(
            f"{where}: no such file. Write a YAML file with 'collections:' (see docs/text_to_image.md)."
        )
    try:
        raw = yaml.safe_load(where.read_text())
    except yaml.YAMLError as e:
        raise DataError(f"{where} is not plain YAML: {str(e).splitlines()[0]}.") from e
    if not isinstance(raw, dict) or not isinstance(raw.get("collections"), dict) or not raw["collections"]:
        raise DataError(f"{where}: it must hold 'collections:' with a name and a folder for each.")
    _known(raw, ("labels", "collections", "near"), str(where))
    found = []
    for name, settings in raw["collections"].items():
        here = f"{where}, {name}"
        if not isinstance(settings, dict) or "folder" not in settings:
            raise DataError(f"{here}: it needs 'folder:'.")
        _known(settings, KEYS, here)
        _known(settings.get("listed") or {}, LISTED, f"{here}, listed")
        if not str(name).replace("-", "").replace("_", "").isalnum():
            raise DataError(f"{here}: a name is letters, digits, - and _, since it becomes a folder.")
        folder = str((where.parent / str(settings["folder"])).resolve())
        found.append(Collection(str(name), **{**{k: v for k, v in settings.items() if v}, "folder": folder}))
    labels = tuple(map(str, raw.get("labels") or ())) or _all_labels(found)
    bad = sorted({n for c in found for n in _labels_of(c)} - set(labels)) or sorted(
        set(labels) & set(RESERVED)
    )
    if bad:
        raise DataError(f"{where}: label '{bad[0]}' is not possible here.{nearest(bad[0], labels)} labels: "
                        f"{', '.join(labels)}; not {', '.join(RESERVED)}.")  # fmt: skip
    return Plan(tuple(found), labels, bool(raw.get("near", False)))


def _labels_of(c: Collection) -> set[str]:
    return {*map(str, c.columns.values()), *map(str, (c.listed.get("names") or {}).values())}


def _all_labels(collections: list[Collection]) -> tuple[str, ...]:
    """All labels that the collections name, by how many name them, then by alphabet."""
    counts = Counter(n for c in collections for n in _labels_of(c))
    return tuple(sorted(counts, key=lambda n: (-counts[n], n)))


def _known(settings: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in settings:
        if key not in keys:
            raise DataError(
                f"{where}: unknown key '{key}'.{nearest(str(key), keys)} Known: {', '.join(keys)}."
            )
    if keys is LISTED and settings and not {"column", "names"} <= set(settings):
        raise DataError(f"{where}: it needs 'column:' and 'names:'.")

"""The catalogue: one YAML file per system of the literature, with the source's own settings.

A recipe holds what the system is (id, title, source, task, published result), its settings (model,
data, training) and variants that change some of them: `small` runs in minutes on two CPU cores, `full`
is meant for one big GPU. `extends: ID` takes everything from another recipe first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from verisim.errors import VerisimError, nearest, pick

KEYS = (
    "id", "title", "kind", "source", "task", "inputs", "outputs", "published", "status", "reproduction",
    "page", "extends", "model", "data", "training", "variants",
)  # fmt: skip
STATUSES = ("done", "partial", "planned")  # partial: it runs, but its results are not committed yet


@dataclass(frozen=True)
class Recipe:
    """One system of the catalogue; `model` is empty for all kinds but "model"."""

    id: str  # e.g. X-D-fix, unique over all sources
    title: str
    kind: str  # model | evaluation | phantom | library (used from Python; no command yet)
    source: str  # document, section, equation
    task: str
    inputs: str
    outputs: str
    published: str  # the result its source reports
    status: str  # done | partial | planned
    reproduction: str  # id for `verisim reproduce`, or empty
    page: str  # its page in docs/
    model: dict[str, Any] = field(default_factory=dict)  # name and constructor arguments
    data: dict[str, Any] = field(default_factory=dict)  # fields of DataSettings
    training: dict[str, Any] = field(default_factory=dict)  # fields of TrainSettings
    variants: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def settings(self, variant: str) -> dict[str, dict[str, Any]]:
        """{'model', 'data', 'training'} with the variant's changes; 'source' = the source's own."""
        if not self.model:
            raise VerisimError(
                f"{self.id} is of kind '{self.kind}' and cannot be trained; see 'verisim info {self.id}'."
            )
        base = {"model": self.model, "data": self.data, "training": self.training}
        change = {} if variant == "source" else pick({"source": {}, **self.variants}, variant, "variant")
        return {k: {**v, **change.get(k, {})} for k, v in base.items()}


def catalogue() -> dict[str, Recipe]:
    """All recipes that come with verisim, by id."""
    return {name: parse(file.read_text(), file.name) for name, file in _files().items()}


def _files() -> dict[str, Traversable]:
    """The catalogue's files by recipe id, which is their name."""
    found = sorted(files("verisim.recipes").iterdir(), key=lambda f: f.name)
    return {f.name.removesuffix(".yaml"): f for f in found if f.name.endswith(".yaml")}


def load_recipe(name: str) -> Recipe:
    """A recipe by its id in the catalogue (any case), or from a YAML file of the user's."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.exists():
            raise VerisimError(f"There is no recipe file {name}.")
        return parse(path.read_text(), name)
    known = _files()
    found = {k.lower(): f for k, f in known.items()}.get(name.lower())
    if found is None:
        raise VerisimError(f"No recipe '{name}'.{nearest(name, list(known))} 'verisim list' prints all.")
    return parse(found.read_text(), found.name)


def parse(text: str, where: str) -> Recipe:
    """Check and build a recipe from YAML text. Unknown keys are errors that suggest the nearest."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise VerisimError(f"{where} is not plain YAML: {str(e).splitlines()[0]}.") from e
    if not isinstance(raw, dict):
        raise VerisimError(f"{where} is not a recipe: it must hold 'key: value' lines.")
    for key in raw:
        if key not in KEYS:
            raise VerisimError(f"{where}: unknown key '{key}'.{nearest(str(key), KEYS)}")
    if "extends" in raw:
        raw = _merge(_raw(raw.pop("extends"), where), raw)
    missing = [k for k in ("id", "title") if k not in raw]
    if missing:
        raise VerisimError(f"{where}: the recipe lacks {' and '.join(missing)}.")
    texts: dict[str, Any] = {k: str(raw.get(k, "")) for k in KEYS[:11]}
    texts["kind"] = texts["kind"] or "model"
    if texts["status"] not in STATUSES:
        raise VerisimError(
            f"{where}: status is '{texts['status']}'; it must be one of {', '.join(STATUSES)}."
        )
    parts: dict[str, Any] = {k: raw.get(k) or {} for k in ("model", "data", "training", "variants")}
    return Recipe(**texts, **parts)


def _raw(name: str, where: str) -> dict[str, Any]:
    file = files("verisim.recipes") / f"{name}.yaml"
    if not file.is_file():
        raise VerisimError(f"{where} extends '{name}', which is not in the catalogue.")
    raw = yaml.safe_load(file.read_text())
    return _merge(_raw(raw.pop("extends"), name), raw) if "extends" in raw else raw


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`change` over `base`, section by section; variants of both are kept."""
    sections = ("model", "data", "training", "variants")
    merged = {**base, **change}
    for key in sections:
        merged[key] = {**(base.get(key) or {}), **(change.get(key) or {})}
    return merged

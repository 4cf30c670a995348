"""What a reproduction is asked and what it answers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.table import Table

from verisim.data.atomic import atomic_write
from verisim.errors import VerisimError
from verisim.training.run_folder import environment

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Scale = TypeVar("Scale", bound=DataclassInstance)

SCALES = ("smoke", "small", "full")


@dataclass(frozen=True)
class Options:
    """How to run a reproduction."""

    scale: str  # smoke: minutes, for tests; small: an hour on two cores; full: one big GPU
    out: Path  # folder for runs, samples and the report; may hold real images, is never committed
    results: Path  # folder for the JSON and figures that may be committed
    data: str = ""  # folder of images; empty = phantoms
    sizes: tuple[int, ...] = ()  # empty = as the scale says
    seeds: int = 0  # 0 = as the scale says
    count: int = 0  # images drawn per run; 0 = as the scale says
    minutes: float = 0.0  # processor minutes per trained model; 0 = as the scale says
    systems: tuple[str, ...] = ()  # recipe ids; empty = all of the reproduction

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise VerisimError(f"scale is '{self.scale}'; it must be one of {', '.join(SCALES)}.")

    def changed(self, scale: Scale) -> Scale:
        """The scale with the seeds, count and minutes that were asked for in place of its own."""
        asked = {k: v for k in ("seeds", "count", "minutes") if (v := getattr(self, k)) and hasattr(scale, k)}
        return replace(scale, **asked)

    def chosen(self, known: tuple[str, ...], what: str = "table") -> tuple[str, ...]:
        """The systems asked for, or all. VerisimError for one that is not known."""
        unknown = sorted(set(self.systems) - set(known))
        if unknown:
            raise VerisimError(f"{unknown[0]} is not part of this {what}. It has: {', '.join(known)}.")
        return self.systems or known


@dataclass(frozen=True)
class Claim:
    """A named statement of the source or of ours, and whether our numbers bear it out."""

    name: str
    statement: str
    source: str  # where it is claimed
    holds: bool | None  # None = the evidence does not decide
    evidence: str  # the numbers, in words


@dataclass
class Result:
    """What came out, ready to be written as results/ID.PART.SCALE.json."""

    id: str
    scale: str
    claims: list[Claim]
    numbers: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    report: Path | None = None
    part: str = ""  # which part of the reproduction, e.g. 32px; part of the file's name

    @property
    def name(self) -> str:
        """ID.PART.SCALE, or ID.SCALE: name of the JSON and of the folder of figures."""
        return ".".join(w for w in (self.id, self.part, self.scale) if w)

    def write(self, folder: Path) -> Path:
        path = folder / f"{self.name}.json"
        body = {
            "id": self.id,
            "scale": self.scale,
            "claims": [asdict(c) for c in self.claims],
            "notes": self.notes,
            "numbers": self.numbers,
            "environment": environment(),
        }
        atomic_write(path, (json.dumps(body, indent=1) + "\n").encode())
        return path

    def print(self) -> None:
        table = Table(title=f"{self.name}: claims")
        for column in ("claim", "holds", "evidence"):
            table.add_column(column)
        words = {True: "[green]yes[/]", False: "[red]no[/]", None: "[yellow]undecided[/]"}
        for c in self.claims:
            table.add_row(f"{c.statement} [dim]({c.source})[/]", words[c.holds], c.evidence)
        Console().print(table)

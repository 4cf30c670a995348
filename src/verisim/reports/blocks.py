"""What a report is made of: text, tables, pictures. Plain data; `html.py` alone knows how it looks."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Text:
    """A paragraph. tone: "", "verdict", "good", "warning" or "note"."""

    text: str
    tone: str = ""
    kind: str = "text"


@dataclass(frozen=True)
class Interval:
    """A number on a small scale: value with its interval [low, high], drawn between start and end."""

    value: float
    low: float
    high: float
    start: float
    end: float
    mark: float | None = None  # reference value, drawn as a dashed line

    def percent(self, x: float) -> float:
        """Place of x on the scale, 0 to 100, clipped."""
        return min(100.0, max(0.0, 100 * (x - self.start) / (self.end - self.start)))


@dataclass(frozen=True)
class Cell:
    """One table cell. tone: "", "good", "bad" or "missing"."""

    text: str
    detail: str = ""  # small print: the interval, or why a number is missing
    tone: str = ""
    interval: Interval | None = None
    shade: float | None = None  # 0 to 1: background strength, for matrices


@dataclass(frozen=True)
class Row:
    """The first cell names the row. kind: "", "control" (set apart) or "best"."""

    cells: Sequence[Cell]
    kind: str = ""


@dataclass(frozen=True)
class Column:
    title: str
    hint: str = ""  # how to read it: "0.5 is best"


@dataclass(frozen=True)
class Table:
    columns: Sequence[Column]
    rows: Sequence[Row]
    caption: str = ""
    kind: str = "table"


@dataclass(frozen=True)
class Picture:
    """A PNG with what it shows, in words."""

    png: bytes
    caption: str
    alt: str
    width: int = 0  # CSS pixels; 0 = natural
    pixelated: bool = False  # enlarge without smoothing: for images of 32 or 64 pixels
    kind: str = "picture"

    @property
    def data(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side, as many as fit."""

    pictures: Sequence[Picture]
    kind: str = "gallery"


@dataclass(frozen=True)
class Pairs:
    """Names and values: settings, environment, glossary."""

    items: Sequence[tuple[str, str]]
    kind: str = "pairs"


Block = Text | Table | Picture | Gallery | Pairs


@dataclass(frozen=True)
class Section:
    id: str  # anchor
    title: str
    blocks: Sequence[Block]
    folded: bool = False  # closed at first on the screen, open in print


@dataclass(frozen=True)
class Report:
    title: str
    subtitle: str
    sections: Sequence[Section]
    footer: str = ""
    language: str = field(default="en")

"""What a blinded reading consists of: items with a key, and answers. Needs no tensors, so that pages load fast."""

from __future__ import annotations

from dataclasses import dataclass

SIDES = ("left", "right")
GRADES = ("1", "2", "3", "4", "5")
FORMS = {"pair": SIDES, "rating": GRADES}  # form of an item -> answers that it allows


@dataclass(frozen=True)
class Item:
    """One line of the key."""

    id: str
    form: str  # "pair" or "rating"
    kind: str  # "generator" or "control"
    name: str  # the generator, or "real", "blurred", "noise"
    correct: str = ""  # pairs: the side of the real image


@dataclass(frozen=True)
class Answer:
    """What one reader said about one item."""

    reader: str
    item: str
    answer: str  # "left" or "right"; "1" to "5"
    seconds: float  # from seeing the item to answering it
    changes: int = 0  # corrections of a slip

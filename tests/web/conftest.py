"""A small study of random pictures."""

import pytest
import torch

from verisim.metrics.reading import Item
from verisim.tasks.reading import Sheet
from verisim.web.study import write_study


def make_sheets(pairs=6, ratings=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    picture = lambda: torch.randint(0, 256, (1, 8, 8), generator=g, dtype=torch.uint8)  # noqa: E731
    kinds = [("generator", "gan"), ("control", "noise")]
    sheets = [
        Sheet(Item(f"pair-{i:03d}", "pair", *kinds[i % 2], ("left", "right")[i % 2]), (picture(), picture()),
              ("secret real", "secret gan"))
        for i in range(pairs)
    ]  # fmt: skip
    return sheets + [
        Sheet(Item(f"rating-{i:03d}", "rating", *kinds[0]), (picture(),), ("secret gan",))
        for i in range(ratings)
    ]


@pytest.fixture
def sheets():
    return make_sheets()


@pytest.fixture
def study(tmp_path, sheets):
    return write_study(tmp_path / "study", sheets, "Real or not?", {"settings": {"seed": 7}})

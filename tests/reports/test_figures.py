"""Figures: right size, right content, and nothing breaks on odd input."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from verisim.data.spec import Images, ImageSpec
from verisim.reports.figures import curves_png, dots_png, grid_png, pairs_png, read_curves


def decoded(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))


def test_grid_shows_the_pixels(example):
    """Black stays black, white stays white, whatever the range of the images."""
    x = torch.cat([torch.zeros(1, 1, 16, 16), torch.full((1, 1, 16, 16), 255.0)])
    picture = decoded(grid_png(Images(x, ImageSpec((16, 16), low=0, high=255))))
    assert picture[5, 5] == 0 and picture[5, -5] == 255
    assert picture.shape[0] >= 96  # enlarged so that it can be seen


def test_pairs_are_above_each_other(example):
    """Upper row the first set, lower row the second."""
    picture = decoded(pairs_png(example.images(3, 0, 1.0), example.images(3, 0, -1.0)))
    assert picture[5, 5] == 255 and picture[-5, 5] == 0


@pytest.mark.parametrize("shape", [(1, 33, 17), (3, 16, 16), (1, 8, 16, 16)])
def test_other_shapes(shape):
    """Odd sizes, colour, and volumes (the middle slice)."""
    images = Images(torch.zeros(2, *shape), ImageSpec(shape[1:], channels=shape[0]))
    assert decoded(grid_png(images)).size


def test_labels_are_not_formulas():
    """Names with $ or _ are printed, not parsed as mathematics."""
    assert dots_png([("$\\frac{", 0.5, 0.4, 0.6, "generator"), ("_x", 1, 1, 1, "control")], "$x", best=0.5)
    assert curves_png("$\\frac{", {"_loss$": ([0, 1], [1, 2]), "b": ([0], [float("nan")])})


def test_same_input_same_png():
    """Reports of the same results can be compared byte by byte."""
    rows = [("a", 0.5, 0.4, 0.6, "generator")]
    assert dots_png(rows, "x") == dots_png(rows, "x")


def test_read_curves(tmp_path):
    """'loss' first, times are no losses, damaged lines are counted."""
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": s, "seconds": 1.0, "nll": 2.0, "loss": 3.0}) for s in (1, 2)]
    path.write_text("\n".join([*lines, "[1]", '{"step": 3, "lo']))
    curves, broken = read_curves(path)
    assert list(curves) == ["loss", "nll"] and curves["loss"] == ([1, 2], [3.0, 3.0]) and broken == 2

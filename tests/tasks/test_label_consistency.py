"""Grade consistency: who returns a knee of another grade is caught, per grade; empty grades are said to be empty."""

from dataclasses import replace

import pytest
import torch

from verisim.data.spec import Images, ImageSpec
from verisim.errors import VerisimError
from verisim.tasks.autoencoding import CONTROL, label_consistency

GRADES = ("none", "early", "severe")


def bars(label, seed):
    """16x16 images whose grade is told by the width of a dark gap, with noise; labels as given."""
    g = torch.Generator().manual_seed(seed)
    x = 0.6 + 0.1 * torch.randn(len(label), 1, 16, 16, generator=g)
    for i, c in enumerate(label.tolist()):
        x[i, :, 8 - 2 * (2 - c) : 8 + 2 * (2 - c)] -= 1.2
    people = tuple(str(i) for i in range(len(label)))
    return Images(x.clamp(-1, 1), ImageSpec((16, 16)), label, people)


@pytest.fixture(scope="module")
def sets():
    return bars(torch.arange(150) % 3, 0), bars(torch.arange(45) % 3, 1)


def test_perfect_reconstructions_agree_and_another_grade_is_caught(sets):
    """A model that answers 'severe' with a 'none' knee: caught in that grade alone, with the grade that came back."""
    train, test = sets
    same = label_consistency(train, test, test, GRADES)
    assert [same[g]["agreement"] for g in GRADES] == [1, 1, 1] and same["all"]["agreement"] == 1
    assert same["all"]["accuracy_on_originals"] > 0.9
    wrong = test.pixels.clone()
    wrong[test.labels == 2] = test.pixels[test.labels == 0]
    rows = label_consistency(train, test, replace(test, pixels=wrong), GRADES)
    assert rows["none"]["agreement"] == 1 and rows["early"]["agreement"] == 1
    assert rows["severe"]["agreement"] < 0.1 and rows["severe"]["toward"] == "none"
    assert rows["all"]["agreement"] == pytest.approx(2 / 3, abs=0.05)


def test_the_control_disagrees(sets):
    """Reconstructions of other grades do not pass; with pictures that hold no grade they do, and the row tells."""
    train, test = sets
    rows = label_consistency(train, test, test, GRADES)
    assert rows[CONTROL]["n"] == 45 and rows[CONTROL]["agreement"] < 0.1
    grey = replace(train, pixels=torch.zeros_like(train.pixels))
    still = replace(test, pixels=torch.zeros_like(test.pixels))  # constant images: all look the same
    blind = label_consistency(grey, still, still, GRADES)
    assert blind["all"]["agreement"] == 1 and blind[CONTROL]["agreement"] == 1
    assert blind["all"]["accuracy_on_originals"] == pytest.approx(1 / 3)


def test_a_grade_without_images(sets):
    """No test images: n = 0, no numbers. No training images: the classifier never answers with it."""
    train, test = sets
    no_severe = test.subset(test.labels < 2)
    rows = label_consistency(train, no_severe, no_severe, GRADES)
    assert rows["severe"] == {"n": 0, "accuracy_on_originals": None, "agreement": None, "toward": None}
    assert rows["early"]["n"] == 15
    rows = label_consistency(train.subset(train.labels != 1), test, test, GRADES)
    assert rows["early"]["toward"] != "early" and rows["early"]["accuracy_on_originals"] == 0
    assert rows["severe"]["agreement"] == 1 == rows["none"]["accuracy_on_originals"]


def test_without_labels_or_with_one_grade(sets):
    train, test = sets
    with pytest.raises(
        VerisimError, match=r"Grade consistency needs labels: name a column with --data\.label"
    ):
        label_consistency(replace(train, labels=None), test, test, GRADES)
    with pytest.raises(VerisimError, match="All training images are of class 'early'"):
        label_consistency(train.subset(train.labels == 1), test, test, GRADES)

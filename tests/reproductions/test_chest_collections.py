"""Two collections put together: what was planted is found, and the claims follow the numbers."""

import copy
import json

import pytest

from verisim.cli.main import main
from verisim.errors import VerisimError
from verisim.reproductions.chest_collections import claims, in_two_splits, label_errors, measure, run
from verisim.reproductions.result import Options


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    return measure(tmp_path_factory.mktemp("collections"), 30)


def test_what_was_planted(numbers):
    """A third of 30 people is shared, half of them in each form; every other image stays."""
    assert numbers["planted"] == {"exact": 5, "near": 5, "contradicting": 2}
    assert [numbers[k]["images"] for k in ("side by side", "composed", "composed, near")] == [70, 65, 60]
    assert all(c.holds for c in claims(numbers))


@pytest.mark.parametrize(
    ("row", "key", "claim"),
    [
        ("composed", "copies_missed", "copies"),
        ("composed", "others_dropped", "copies"),
        ("composed, near", "copies_missed", "near"),
        ("composed, near", "people_in_two_splits", "splits"),
        ("composed, near", "wrong_labels", "labels"),
        ("composed, near", "contradictions", "labels"),
    ],
)
def test_claims_follow_the_numbers(numbers, row, key, claim):
    worse = copy.deepcopy(numbers)
    worse[row][key] += 1
    assert {c.name for c in claims(worse) if not c.holds} == {claim}


def test_without_a_fault_to_avoid_nothing_is_shown(numbers):
    """A control that does not fail proves nothing."""
    easy = copy.deepcopy(numbers)
    easy["side by side"].update(people_in_two_splits=0, wrong_labels=0)
    assert {c.name for c in claims(easy) if not c.holds} == {"splits", "labels"}


def test_counts():
    assert in_two_splits([(1, "train"), (1, "test"), (2, "val"), (2, "val")]) == 1
    rows = [("first/00001.png", {"effusion": 1}), ("second/00000.tif", {"effusion": 1, "cardiomegaly": 0})]
    truth = {"effusion": [False, True], "cardiomegaly": [False, True]}
    assert label_errors(rows, truth) == {"labels": 3, "wrong_labels": 1}


def test_command(tmp_path, numbers):
    assert main(["reproduce", "000-C5a", "--scale", "smoke", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "000-C5a.smoke.json").read_text())["numbers"] == numbers
    with pytest.raises(VerisimError, match=r"runs on phantoms.*verisim data compose"):
        next(run(Options("smoke", tmp_path, tmp_path, data="x")))

"""Preprocessing with a planted truth: smoke run, closed forms of its parts, claims that follow the numbers."""

import copy
import importlib.util
import json

import numpy as np
import pytest
import torch

from verisim.cli.main import main
from verisim.data.register import Registered
from verisim.errors import VerisimError
from verisim.phantoms import moved_heads
from verisim.reproductions.preprocessing_claims import _reach, claims
from verisim.reproductions.preprocessing_grey import FULL, MIRRORED, mirrored, ranks, windows
from verisim.reproductions.preprocessing_readers import (
    MARGINS,
    READERS,
    expected,
    margins,
    possible_kappas,
    reads,
)
from verisim.reproductions.preprocessing_registration import (
    Plan,
    _residuals,
    methods,
    planted,
    planted_tilt,
)
from verisim.reproductions.preprocessing_study import run
from verisim.reproductions.result import Options
from verisim.tasks.detection import reader_table


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preprocessing")
    assert main(["reproduce", "002-preprocessing", "--scale", "smoke", "--out", str(folder)]) == 0
    figures = folder / "figures" / "002-preprocessing.smoke"
    assert {p.name for p in figures.iterdir()} == {"capture.png", "heads.png"}
    return json.loads((folder / "002-preprocessing.smoke.json").read_text())["numbers"]


def failing(numbers):
    return {c.name for c in claims(numbers) if c.holds is False}


def test_smoke(numbers):
    """What holds at any size does; nobody's data are read."""
    holding = {c.name for c in claims(numbers) if c.holds}
    assert holding >= {
        "recovered-2D-correlation", "other-2D-correlation", "noise-2D-correlation", "equalised-gain 1.2", "fixed",
        "mirrored", "ranks", "contrast", "outliers", "extremes", "outliers-many", "majority", "means", "table", "pieces",
        "pieces-gradient", "pieces-bytes", "points", "crops", "coordinates", "ensemble", "resuming", "orientations", "sides",
        "mirrored-sides",
    }  # fmt: skip
    with pytest.raises(VerisimError, match="Leave out --data"):
        next(run(Options("smoke", "", "", data="x")))


def test_without_the_optional_library(monkeypatch):
    """Where SimpleITK is missing, correlation alone is measured."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert set(methods()) == {"correlation"}


@pytest.mark.parametrize("size", [(20, 20), (16, 18, 20)])
def test_residuals(size):
    """The inverse of a planted motion leaves nothing, the identity leaves all of it, and turns are as large as asked for."""
    heads = moved_heads.make(1, 3, size)
    motion = planted(Plan(size, 1, (), (), ()), "turn", 12.0, 0)
    fixed = heads.scan(0)
    perfect = _residuals(Registered(fixed, np.linalg.inv(motion)), heads, 0, motion, fixed)
    nothing = _residuals(Registered(fixed, np.eye(4)), heads, 0, motion, fixed)
    assert perfect["degrees_before"] == nothing["degrees_after"] == pytest.approx(12.0)
    assert nothing["mm_after"] == pytest.approx(5.0) and nothing["recovered"] == 0
    assert perfect["most_mm_after"] < 1e-3 and perfect["recovered"] == 1 and perfect["correlation"] > 0.999
    tilt = planted_tilt(size, 10.0)
    assert np.allclose(tilt[0], [1, 0, 0, 0])  # slices stay slices


def test_reach_ends_at_the_first_loss():
    """What is found beyond a loss does not count."""
    levels = {
        f"turn {a}": {"recovered": {"value": v}} for a, v in ((5, 1.0), (10, 1.0), (20, 0.5), (45, 1.0))
    }
    assert _reach(levels, "turn") == 10.0 and _reach(levels, "shift") == 0.0


def test_readers_in_closed_form():
    """Perfect readers agree; guessing ones do so by chance; a majority of three guesses is right three times of four with each."""
    perfect = expected([(1.0, 1.0)] * 3, 0.3)
    assert perfect["kappa"] == pytest.approx(1) and perfect["auroc"] == pytest.approx([1, 1, 1])
    guess = expected([(0.5, 0.5)] * 3, 0.3)
    assert guess["kappa"] == pytest.approx(0) and guess["auroc"] == pytest.approx([0.75] * 3)
    pair = expected(
        [(0.9, 0.9), (1.0, 1.0), (1.0, 1.0)], 0.5
    )  # one scan of ten is split: agreement 1 - 2/30, chance 1/2
    assert pair["kappa"] == pytest.approx(1 - 4 / 30) and pair["auroc"] == pytest.approx([0.9, 1, 1])
    _, said = reads(READERS["three good readers"], 50, 0.45, 0)
    assert torch.equal(said, reads(READERS["three good readers"], 50, 0.45, 0)[1])


def test_possible_kappas_hold_those_of_real_reads():
    """Kappas of simulated readers lie within what their own AUROCs allow; one that is far off does not."""
    for seed in range(20):
        _, said = reads(READERS["three good readers"], 86, 0.45, seed)
        table = reader_table(said)
        abnormal = int((said.double().mean(1) > 0.5).sum())
        low, high = possible_kappas(table["auroc"], abnormal, 86)
        assert low - 2e-3 <= table["kappa"] <= high + 2e-3 and high < 0.99
    assert possible_kappas((1.0, 1.0, 1.0), 40, 86) == pytest.approx((1.0, 1.0))


def test_table_of_scans():
    """Its margins, by hand; the text's 47 is another margin."""
    found = margins()
    assert {k: found[k] for k in MARGINS} == MARGINS and found["without left"] == 47 != found["right"]


def test_grey_values():
    """Mirrored: the middle of its range stays, its ends change places, all else stays. Ranks tell a shuffle from a rise."""
    hu = torch.tensor([-1000.0, 10.0, 35.0, 60.0, 900.0])
    u = (hu - FULL[0]) / (FULL[1] - FULL[0])
    again = mirrored(u) * (FULL[1] - FULL[0]) + FULL[0]
    assert torch.allclose(again, torch.tensor([-1000.0, 60.0, 35.0, 10.0, 900.0]), atol=0.01)
    found = ranks((16, 16))
    assert found["monotone"]["ranks_identical"] and not found["shuffled"]["ranks_identical"]
    moved = windows(2, (32, 32))
    assert moved["0.001"]["percentiles"] < 0.05 < 1 < moved["0.02"]["percentiles"]


def first_level(n, **change):
    n["registration"]["2D"]["correlation"]["levels"]["turn 10"]["heads"][0].update(change)


CHANGES = {
    "recovered-2D-correlation": lambda n: first_level(n, recovered=0.0),
    "other-2D-correlation": lambda n: n["registration"]["2D"]["correlation"]["controls"]["another head"]["heads"][0].update(correlation=0.999),
    "noise-2D-correlation": lambda n: n["registration"]["2D"]["correlation"]["controls"]["noise"]["heads"][0].update(recovered=1.0),
    "equalised-gain 1.2": lambda n: n["changes"]["gain 1.2"]["pixels_own"].update(high=0.05),
    "fixed": lambda n: n["changes"]["gain 1.2"]["pixels_fixed"].update(value=0.0),
    "mirrored": lambda n: n["changes"][MIRRORED]["pixels_own"].update(low=0.0),
    "ranks": lambda n: n["ranks"]["monotone"].update(ranks_identical=False),
    "contrast": lambda n: n["contrast"].update(after=0.1),
    "outliers": lambda n: n["windows"]["0.001"].update(percentiles=0.06),
    "extremes": lambda n: n["windows"]["0.001"].update(extremes=0.1),
    "outliers-many": lambda n: n["windows"]["0.02"].update(percentiles=0.0),
    "majority": lambda n: n["readers"]["all guess"].update(auroc=[0.5, 0.5, 0.5]),
    "means": lambda n: n["published"]["fracture"].update(mean=0.93),
    "kappa-fracture": lambda n: n["published"]["fracture"].update(kappa=0.9),
    "table": lambda n: n["margins"].update(right=47),
    "pieces": lambda n: n["pieces"].update(image_apart=1e-7),
    "pieces-gradient": lambda n: n["pieces"].update(gradient_of_one_piece=0.0),
    "pieces-bytes": lambda n: n["pieces"]["bytes_drawn"].update(pieces=n["pieces"]["bytes_drawn"]["whole"]),
    "points": lambda n: n["points"].update(right=0),
    "crops": lambda n: n["crops"].update(trapezoid=2.0),
    "coordinates": lambda n: n["crops"].update(coordinates_equal=False),
    "ensemble": lambda n: n["ensemble"].update(variance_apart=0.1),
    "resuming": lambda n: n["resuming"].update(same=False),
    "orientations": lambda n: n["orientations"].update(equal=47),
    "sides": lambda n: n["orientations"].update(right=15),
    "mirrored-sides": lambda n: n["orientations"].update(right_without_affine=16),
}  # fmt: skip


@pytest.mark.parametrize("claim", sorted(CHANGES))
def test_claims_follow_the_numbers(numbers, claim):
    """Each claim that holds fails when its number is changed."""
    worse = copy.deepcopy(numbers)
    assert claim not in failing(worse)
    CHANGES[claim](worse)
    assert claim in failing(worse)


def test_claims_of_masks_and_of_the_end(numbers):
    """Halves that a tilt does not hurt, or registration does not mend, fail; so does a search that finds everything."""
    n = copy.deepcopy(numbers)
    level = n["registration"]["2D"]["correlation"]["levels"]
    level["turn 90"] = copy.deepcopy(level["turn 10"])
    rows = n["masks"]["2D"]["-1024 to 3071 HU"]
    for name, value in (
        ("as they lie", 0.9),
        ("tilted 20", 0.8),
        ("tilted 20, registered", 0.89),
        ("tilted 20, interpolated", 0.1),
    ):
        rows[name] = {
            k: {"value": value, "low": value, "high": value, "each": [value]}
            for k in ("left", "right", "skull")
        }
    names = {"masks-2D--1024..3071", "tilt-2D--1024..3071", "mended-2D--1024..3071"}
    assert not names & failing(n) and "range-2D-correlation" in failing(n)
    rows["as they lie"]["left"]["each"] = [0.8]
    rows["tilted 20"]["left"]["value"] = rows["tilted 20"]["right"]["value"] = 0.88
    rows["tilted 20, registered"]["left"]["value"] = 0.86
    assert names <= failing(n)

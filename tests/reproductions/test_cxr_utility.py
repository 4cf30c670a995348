"""Ten thousand images: labelled samples of every family, and claims that follow the numbers."""

import json

import pytest

from verisim.cli.main import main
from verisim.metrics.bootstrap import Estimate
from verisim.reproductions.cxr_utility import TASKS, claims
from verisim.tasks.downstream import DOWNSTREAM


def test_smoke(tmp_path):
    """Two families on phantoms, and a report."""
    call = ["reproduce", "004-utility", "--scale", "smoke", "--out", str(tmp_path), "--minutes", "0.02"]
    assert main([*call, "--systems", "X-V-fix,X-D-fix"]) == 0
    body = json.loads((tmp_path / "004-utility.32px.smoke.json").read_text())
    numbers = body["numbers"]["32"]
    assert set(numbers["rows"]) == {"X-V-fix@0", "X-D-fix@0"}
    assert all(r["n_synthetic"] == 120 and r["gains"] for r in numbers["rows"].values())
    assert body["claims"][0]["name"] == "controls"
    other = json.loads((tmp_path / "004-utility.32px-reconstruction.smoke.json").read_text())
    assert set(other["numbers"]["32"]["tasks"]) == {"reconstruction"}
    assert other["claims"][0]["name"] == "reconstruction: controls"
    assert (tmp_path / "utility.32px.html").exists() and (
        tmp_path / "utility.32px-reconstruction.html"
    ).exists()


def test_no_downstream_user_is_left_out():
    assert set(TASKS) == set(DOWNSTREAM)


def around(value: float, se: float = 0.01) -> dict:
    return Estimate(value, value - 2 * se, value + 2 * se, se).as_dict()


def results(chance=0.5, real=0.85, gain=0.05, alone=0.7) -> dict:
    gains = [{"n_synthetic": 600, "gain_auc": around(-0.2)}, {"n_synthetic": 9600, "gain_auc": around(gain)}]
    too_few = {"n_synthetic": 20_000, "value": None, "reason": "10000 images"}
    row = {"n_synthetic": 10_000, "tstr": {"auc": around(alone)}, "gains": [*gains, too_few]}
    return {
        "trtr": {"auc": around(real)},
        "shuffled": {"auc": around(chance)},
        "rows": {"X-D-fix@0": row, "X-A-fix@0": {"value": None, "reason": "one class"}},
    }


@pytest.mark.parametrize(
    "change, name, holds",
    [
        ({}, "controls", True),
        ({"chance": 0.6}, "controls", False),
        ({"real": 0.51}, "controls", False),
        ({"chance": 0.6}, "helps-X-D-fix", "not claimed"),
        ({}, "helps-X-D-fix", True),
        ({"gain": 0.0}, "helps-X-D-fix", None),
        ({"gain": -0.05}, "helps-X-D-fix", False),
        ({}, "alone-X-D-fix", False),
        ({"alone": 0.85}, "alone-X-D-fix", None),
        ({"alone": 0.95}, "alone-X-D-fix", True),
    ],
)
def test_claims_follow_the_numbers(change, name, holds):
    """The largest number of images decides; nothing is claimed of a generator without classes, or without control."""
    found = {c.name: c.holds for c in claims(results(**change))}
    assert found.get(name, "not claimed") is holds and "helps-X-A-fix" not in found


@pytest.mark.parametrize("more, holds", [(0.2, True), (0.0, False)])
def test_a_detector_must_beat_its_floor(more, holds):
    """Its control need not be at 0.5; and where it is no lower than real images, generators cannot be measured."""
    task = results(chance=0.65)
    control = {"auc": task.pop("shuffled")["auc"], "must_be": None, "real_minus_this": around(more)}
    found = {c.name: c.holds for c in claims({"tasks": {"reconstruction": {**task, "control": control}}})}
    assert found["reconstruction: controls"] is holds and ("reconstruction: helps-X-D-fix" in found) is holds

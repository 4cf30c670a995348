"""Ten thousand images: labelled samples of every family, and claims that follow the numbers."""

import json

import pytest

from verisim.cli.main import main
from verisim.metrics.bootstrap import Estimate
from verisim.reproductions.cxr_utility import claims


def test_smoke(tmp_path):
    """Two families on phantoms, and a report."""
    call = ["reproduce", "004-utility", "--scale", "smoke", "--out", str(tmp_path), "--minutes", "0.02"]
    assert main([*call, "--systems", "X-V-fix,X-D-fix"]) == 0
    body = json.loads((tmp_path / "004-utility.32px.smoke.json").read_text())
    numbers = body["numbers"]["32"]
    assert set(numbers["rows"]) == {"X-V-fix@0", "X-D-fix@0"}
    assert all(r["n_synthetic"] == 120 and r["gains"] for r in numbers["rows"].values())
    assert {c["name"] for c in body["claims"]} == {
        "controls", "helps-X-V-fix", "alone-X-V-fix", "helps-X-D-fix", "alone-X-D-fix"
    }  # fmt: skip
    assert (tmp_path / "utility.32.html").exists()


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
        ({}, "helps-X-D-fix", True),
        ({"gain": 0.0}, "helps-X-D-fix", None),
        ({"gain": -0.05}, "helps-X-D-fix", False),
        ({}, "alone-X-D-fix", False),
        ({"alone": 0.85}, "alone-X-D-fix", None),
        ({"alone": 0.95}, "alone-X-D-fix", True),
    ],
)
def test_claims_follow_the_numbers(change, name, holds):
    """The largest number of images that was tried decides; a generator without classes claims nothing."""
    found = {c.name: c.holds for c in claims(results(**change))}
    assert found[name] is holds and "helps-X-A-fix" not in found

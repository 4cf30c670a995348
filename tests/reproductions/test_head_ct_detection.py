"""The head CT comparison runs end to end at smoke scale, its claims follow its numbers, and its memory counts are exact."""

import json

import pytest
import torch

from verisim.cli.main import main
from verisim.metrics.bootstrap import Estimate
from verisim.models.anomaly.position_regression import PositionNet
from verisim.reproductions.head_ct_claims import claims, patch_claims, sweep_claims
from verisim.reproductions.head_ct_memory import memory_rows, saved_bytes


def test_smoke(tmp_path, capsys):
    """Models of seconds: every claim is judged, every control stands beside, a second call trains nothing."""
    call = ["reproduce", "002-detection", "--scale", "smoke", "--out", str(tmp_path)]
    assert main(call) == 0
    body = json.loads((tmp_path / "002-detection.24vox.smoke.json").read_text())
    rows = body["numbers"]["24"]
    assert set(rows) == {"B-A@0", "B-A:shuffled@0", "B-B@0", "B-S5@0"}
    assert {"parameters", "memory", "blood-shuffled", "fracture-shuffled", "kinds"} <= {
        c["name"] for c in body["claims"]
    }
    assert 0 <= rows["B-A@0"]["blood"]["low"] <= rows["B-A@0"]["blood"]["value"] <= 1
    assert set(rows["B-B@0"]["kinds"]) == {
        "epidural",
        "subdural",
        "intraparenchymal",
        "subarachnoid",
        "fracture",
    }
    assert rows["B-A@0"]["parameters"] * 10 < rows["B-B@0"]["parameters"]
    assert (tmp_path / "figures" / "002-detection.24vox.smoke" / "maps.png").exists()
    widths = json.loads((tmp_path / "002-detection.widths.smoke.json").read_text())["numbers"]
    assert set(widths["24"]) == {"B-A m=1", "B-A m=2", "B-B m=1", "B-B m=2"}
    patches = json.loads((tmp_path / "002-detection.patches.smoke.json").read_text())
    assert set(patches["numbers"]["24"]) == {"B-A:shuffled", "B-A 7", "B-A 9"}
    assert {c["name"] for c in patches["claims"]} == {"patch-auroc", "patch-position", "patch-control"}
    assert main(["reproduce", "002-detection", "--data", "x", "--out", str(tmp_path)]) == 2
    assert "runs on head CT phantoms" in capsys.readouterr().err


def around(value, se=0.01):
    return Estimate(value, value - 2 * se, value + 2 * se, se).as_dict()


def row(blood, fracture, parameters=100, saved=100, error=0.03):
    kinds = {"epidural": around(blood), "fracture": around(fracture)}
    return {"blood": around(blood), "fracture": around(fracture), "kinds": kinds, "parameters": parameters,
            "saved_bytes": saved, "position_error": error, "width": 1}  # fmt: skip


def test_claims_follow_the_numbers():
    """Better, worse and tied give yes, no and undecided; a control that finds something fails."""
    rows = {
        "B-A@0": row(0.8, 0.6),
        "B-A:shuffled@0": row(0.5, 0.7, error=0.4),
        "B-B@0": row(0.6, 0.61, parameters=1000, saved=150),
        "B-S5@0": row(0.9, 0.5),
    }
    found = {c.name: c.holds for c in claims(rows)}
    assert found == {
        "parameters": True, "memory": False, "position": True, "blood-autoencoder": True, "blood-threshold": False,
        "blood-chance": True, "blood-shuffled": True, "fracture-autoencoder": None, "fracture-threshold": True,
        "fracture-chance": True, "fracture-shuffled": False, "kinds": True,
    }  # fmt: skip


def test_selection_rule():
    """Only position regressions below the best autoencoder in parameters and in memory count."""
    rows = {
        "B-A m=1": row(0.7, 0.7, 10, 10),
        "B-A m=2": row(0.9, 0.9, 200, 10),  # better, but larger
        "B-B m=1": row(0.6, 0.9, 100, 100),
    }
    paper = {
        "B-A m=1": {"width": 1, "saved_bytes": {"256": 1}},
        "B-B m=1": {"width": 1, "saved_bytes": {"4": 3}},
    }
    found = {c.name: c.holds for c in sweep_claims(rows, paper)}
    assert found == {"best-blood": True, "best-fracture": False, "memory-at-scale": True}


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({}, (True, True, True)),
        ({"B-A 15": row(0.7, 0.5, error=0.02)}, (False, True, True)),  # one size finds fewer
        ({"B-A 7": row(0.8, 0.5, error=0.02)}, (True, False, True)),  # the smallest knows its place best
        ({"B-A:shuffled": row(0.8, 0.5, error=0.3)}, (True, True, False)),
    ],
)
def test_claims_on_patch_sizes(changes, holds):
    """Alike unless two intervals are apart; better placed only if in order of size; above the control, all of them."""
    rows = {
        "B-A:shuffled": row(0.5, 0.5, error=0.3),
        "B-A 7": row(0.80, 0.5, error=0.05),
        "B-A 11": row(0.81, 0.5, error=0.04),
        "B-A 15": row(0.80, 0.5, error=0.03),
    }
    found = [c.holds for c in patch_claims({**rows, **changes})]
    assert tuple(found) == holds


def test_memory_without_numbers_is_that_of_a_real_step():
    """What is counted on the meta device equals what a step on the CPU keeps; it grows with the patches and with the width."""

    def kept(device, n):
        with torch.device(device):
            net, x = PositionNet(3, 1, 7, 2, True), torch.zeros(n, 1, 7, 7, 7)
        return saved_bytes(net, lambda: net(x).abs().mean())

    assert kept("meta", 4) == kept("cpu", 4)
    per_patch = (kept("meta", 12) - kept("meta", 4)) / 8
    assert (kept("meta", 20) - kept("meta", 4)) / 16 == per_patch > 4 * 2 * 7**3
    rows = memory_rows((1, 2))
    for name in ("B-A", "B-B"):
        small, large = (rows[f"{name} m={m}"] for m in (1, 2))
        batch = "256" if name == "B-A" else "4"
        assert small["parameters"] < large["parameters"]
        assert large["saved_bytes"][batch] == pytest.approx(2 * small["saved_bytes"][batch], rel=0.2)

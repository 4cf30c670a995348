"""The reproduction of the diffusion core runs end to end, and its claims say what the numbers say."""

import copy
import json

import pytest

from verisim.cli.main import main
from verisim.reproductions import core_claims, core_truth


@pytest.fixture(scope="module")
def truth():
    return core_truth.measure_truth(256, (1, 2, 250), 2)


def test_everything_holds_where_the_denoiser_is_known(truth):
    """Every claim of the core holds, and there is one for each printed equation."""
    found = {c.name: c for c in core_truth.claims(truth)}
    assert [n for n, c in found.items() if not c.holds] == []
    assert sum(n.startswith("misprint") for n in found) == 4


@pytest.mark.parametrize("harm", ["sampler", "likelihood", "bound", "guidance", "misprint", "constants"])
def test_a_fault_of_the_core_is_told(truth, harm):
    """Each claim can fail: numbers of a faulty core are not let through."""
    bad = copy.deepcopy(truth)
    if harm == "sampler":
        next(iter(bad["samplers"].values()))["250"]["failed"] = "not finite"
    elif harm in ("likelihood", "bound"):
        bad["likelihood"]["ode" if harm == "likelihood" else "bound"]["own"] = 0.5
    elif harm == "guidance":
        bad["guidance"]["scale 1 to the class"] = 0.3
    elif harm == "misprint":
        bad["misprints"]["DDIM"] = {"mean": 0.1, "std": 0.2}
    else:
        bad["constants"]["linear"] = 4.1e-5
    failed = [c.name for c in core_truth.claims(bad) if not c.holds]
    assert len(failed) == 1 and harm in failed[0].lower()


def test_smoke(tmp_path, capsys):
    """Four models of seconds: rows for every way of drawing, bounds, classes, controls; a second call trains nothing."""
    command = ["reproduce", "core", "--scale", "smoke", "--out", str(tmp_path)]
    assert main(command) == 0
    body = json.loads((tmp_path / "core.16px.smoke.json").read_text())
    numbers = body["numbers"]["16"]
    assert {n.split("@")[0] for n in numbers["rows"]} == {
        "2-DDPM", "2-DDPM:50", "13-DDIM", "W-BG8", "dpmpp_2m:20", "dpmpp_2m_sde:20", "2-LearnedVar", "2-CFG:0", "2-CFG:1", "2-CFG:1.5",
        "2-CFG:3", "4-ReNoise",
    }  # fmt: skip
    assert set(numbers["bounds"]) == {"2-DDPM@0", "2-LearnedVar@0"}
    assert {"real", "shuffled"} <= set(numbers["classes"])
    assert {"learned-variance", "guidance", "renoise", "13-DDIM"} <= {c["name"] for c in body["claims"]}
    assert (tmp_path / "core.truth.smoke.json").exists()
    assert (tmp_path / "figures" / "core.16px.smoke" / "2-CFG-3.png").exists()
    capsys.readouterr()
    assert main(command) == 0
    again = json.loads((tmp_path / "core.16px.smoke.json").read_text())["numbers"]["16"]
    assert "trained" not in capsys.readouterr().err and again["rows"] == numbers["rows"]


def estimate(value, half=0.1):
    return {"value": value, "low": value - half, "high": value + half, "se": half / 2}


def test_claims_follow_the_numbers():
    """A better, a worse and an undecided row."""
    rows = {
        f"{s}@0": {"fd": {"FD": estimate(v)}} for s, v in (("2-DDPM", 5.0), ("13-DDIM", 5.5), ("W-BG8", 9.0))
    }
    numbers = {
        "rows": rows,
        "controls": {k: {"fd": {"FD": estimate(v)}} for k, v in (("real", 0.1), ("noise", 90.0))},
        "bounds": {"2-DDPM@0": estimate(4.0), "2-LearnedVar@0": estimate(3.0)},
        "classes": {},
    }
    found = {c.name: c.holds for c in core_claims.claims(numbers)}
    assert found == {
        "controls": True, "13-DDIM": False, "fifth-13-DDIM": True, "fifth-W-BG8": False, "learned-variance": True,
    }  # fmt: skip

"""Reproductions run end to end at smoke scale, and their claims say what the numbers say."""

import json

import pytest
import torch

from verisim.cli.main import main
from verisim.metrics.bootstrap import Estimate
from verisim.reproductions import REPRODUCTIONS, reproduction
from verisim.reproductions.cxr_claims import claims
from verisim.reproductions.result import Options
from verisim.reproductions.runs import Job, at_once, train_all


def test_smoke_comparison_and_artefact(tmp_path, capsys):
    """Two literal and two corrected systems, trained for seconds, judged, reported; then the artefact."""
    common = ["--scale", "smoke", "--out", str(tmp_path), "--minutes", "0.03"]
    systems = "X-V0,X-V-fix,X-G0,X-G-fix"
    assert main(["reproduce", "004", *common, "--systems", systems]) == 0
    body = json.loads((tmp_path / "004.16px.smoke.json").read_text())
    names = {c["name"] for c in body["claims"]}
    assert {"controls@16", "fix-VAE@16", "laterality@16"} <= names
    rows = body["numbers"]["16"]["rows"]
    assert set(rows) == {f"{s}@0" for s in systems.split(",")}
    assert not any("nearest" in space for r in rows.values() for space in r["memorisation"].values())
    assert (tmp_path / "report.16.html").exists()
    assert (tmp_path / "figures" / "004.16px.smoke" / "X-V-fix.png").exists()
    assert (tmp_path / "figures" / "004.16px.smoke" / "X-V-fix.curves.png").exists()
    assert "claims" in capsys.readouterr().out


def summary(**aucs):
    return {
        name.replace("_", "-"): {
            "kind": "generator",
            "c2st": Estimate(v, v - 0.02, v + 0.02, 0.01).as_dict(),
            "flags": {"laterality": 0, "memorisation": 0},
        }
        for name, v in aucs.items()
    }


def test_claims_follow_the_numbers():
    """Better, worse and tied pairs give yes, no and undecided."""
    table = summary(X_G_fix=0.7, X_G0=0.9, X_V_fix=0.9, X_V0=0.8, X_D_fix=0.6, X_D0=0.61)
    found = {c.name: c.holds for c in claims({"summary": table, "facts": {}}, 32)}
    assert found["fix-GAN@32"] is True and found["fix-VAE@32"] is False and found["fix-diffusion@32"] is None


def test_failed_runs_are_named_with_their_reason(tmp_path):
    """One run that cannot work does not hide among the others, and its log's last line is shown."""
    from verisim.errors import VerisimError

    job = Job("X-V-fix", "small", tmp_path / "bad", {"data.size": 4, "data.count": 20})
    with pytest.raises(VerisimError, match=r"1 of 1 runs failed(.|\n)*at least 8 pixels"):
        train_all([job])


def test_runs_share_the_cores_but_not_a_gpu(monkeypatch):
    """One run at a time on a GPU; on a CPU as many as there are cores for their threads, and never none."""
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setenv("VERISIM_DEVICE", "cpu")
    assert (at_once(), at_once(4), at_once(32)) == (16, 4, 1)
    monkeypatch.setattr("verisim.reproductions.runs.choose_device", lambda: torch.device("cuda"))
    assert at_once() == 1


def test_unknown_system(tmp_path):
    """A system that is not part of a comparison is refused with those that are."""
    from verisim.errors import VerisimError

    with pytest.raises(VerisimError, match="X-Z is not part"):
        next(reproduction("004")(Options("smoke", tmp_path, tmp_path, systems=("X-Z",))))


def test_registry_modules_exist():
    """Every registered reproduction has a run function."""
    assert all(callable(reproduction(name)) for name in REPRODUCTIONS)


def test_smoke_table_of_autoencoders(tmp_path, capsys):
    """Two autoencoders trained for a second: reconstruction, rate, both ways of sampling, controls, claims."""
    common = ["--scale", "smoke", "--out", str(tmp_path), "--minutes", "0.02"]
    assert main(["reproduce", "001", *common, "--systems", "K-S2,K-S7"]) == 0
    body = json.loads((tmp_path / "001.phantoms-16px-K-S2+K-S7.smoke.json").read_text())
    numbers = body["numbers"]["16"]
    assert set(numbers["sampling"]["rows"]) == {"K-S2@0", "K-S2:source@0", "K-S7@0", "K-S7:source@0"}
    row = numbers["reconstruction"]["K-S7@0"]
    assert row["test"]["rate_bits"]["value"] == pytest.approx(16 * 9) and row["train"]["n"] > row["test"]["n"]
    names = {"controls@16", "vq@16", "expost-vae@16", "bits-K-S7@16"}
    assert names <= {c["name"] for c in body["claims"]}
    assert [r["system"] for r in numbers["rate_distortion"] if r["bits"]["value"] == 144] == ["K-S7"]
    assert numbers["grades"]["K-S7"]["all"]["n"] == row["test"]["n"]
    made = {p.name for p in (tmp_path / "figures" / "001.phantoms-16px-K-S2+K-S7.smoke").iterdir()}
    assert {"K-S2.reconstructions.png", "K-S2.curves.png", "learning-curves.png"} <= made
    assert "rate-distortion.png" in made


def test_knee_claims_follow_the_numbers():
    """Lower, higher and overlapping numbers give yes, no and undecided; a model worse than the mean image fails."""
    from verisim.reproductions.knee_claims import claims as knee_claims

    def around(value, se):
        return Estimate(value, value - 2 * se, value + 2 * se, se).as_dict()

    error = {"K-S1": 50, "K-S2": 40, "K-S4": 30, "K-S7": 11, "K-S8": 110}
    distance = {
        "K-S1:source": 9.0,
        "K-S8:source": 3.0,
        "K-S2": 5.0,
        "K-S2:source": 4.9,
        "K-S4": 8.0,
        "K-S4:source": 2.0,
    }
    numbers = {
        "reconstruction": {f"{s}@0": {"test": {"mse_1e-5": around(v, 1)}} for s, v in error.items()},
        "trivial": {
            "mean image": {"mse_1e-5": around(100, 1)},
            "shuffled pixels": {"mse_1e-5": around(900, 1)},
        },
        "sampling": {"rows": {f"{s}@0": {"fd": {"domain": around(v, 0.2)}} for s, v in distance.items()}},
    }
    found = {c.name: c.holds for c in knee_claims(numbers, 64)}
    assert found == {
        "vq@64": True,
        "controls@64": False,
        "svae@64": True,
        "intro@64": True,
        "expost-vae@64": None,
        "expost-svae@64": False,
    }

"""The masked transformer: the reproduction runs end to end, its error is the closed form, its claims can fail."""

import json

import pytest
import torch

from verisim.cli.main import main
from verisim.metrics.bootstrap import Estimate
from verisim.reproductions.masked_transformer import LEVELS, claims, denoising_error


def test_smoke_run_and_again(tmp_path, monkeypatch, capsys):
    """The same network with half of its tokens and with all; the second call trains, draws and measures nothing."""
    call = ["reproduce", "16-masked", "--scale", "smoke", "--out", str(tmp_path), "--minutes", "0.02"]
    assert main(call) == 0
    path = tmp_path / "16-masked.16vox.smoke.json"
    numbers = json.loads(path.read_text())["numbers"]["16x16x16"]
    rows = numbers["rows"]
    assert set(rows) == {"16-I.2@0", "16-I.2:all@0"}
    masked, whole = rows["16-I.2@0"], rows["16-I.2:all@0"]
    token = 128  # what stands for those left out
    assert masked["facts"]["parameters"] == whole["facts"]["parameters"] + token
    assert masked["memory"] < 0.8 * whole["memory"]  # three of four blocks see half
    assert masked["error"]["value"] > 0 and numbers["controls"]["mean volume"]["error"]["value"] > 0
    assert (tmp_path / "figures" / "16-masked.16vox.smoke" / "16-I.2-all.png").exists()

    def nothing(*_, **__):
        raise AssertionError("trained, drawn or measured again")

    monkeypatch.setattr("verisim.reproductions.runs._start", nothing)
    monkeypatch.setattr("verisim.tasks.contestants._draw", nothing)
    assert main(call) == 0
    assert json.loads(path.read_text())["numbers"]["16x16x16"] == numbers
    capsys.readouterr()


def test_error_of_known_denoisers():
    """0 for the truth; for an answer that is off by d everywhere, d^2 times the mean weight."""
    x = torch.randn(5, 1, 4, 4, 4)
    assert torch.equal(denoising_error(lambda y, sigma: x, x), torch.zeros(5).double())
    weight = sum((s**2 + 0.25) / (s * 0.5) ** 2 for s in LEVELS) / len(LEVELS)
    found = denoising_error(lambda y, sigma: x + 0.1, x)
    torch.testing.assert_close(found, torch.full((5,), 0.01 * weight).double(), rtol=1e-5, atol=0)


def row(fd, error, speed, memory, se=0.05):
    estimates = [Estimate(v, v - 2 * se, v + 2 * se, se).as_dict() for v in (fd, error)]
    return {
        "fd": {"FD(random)": estimates[0]},
        "error": estimates[1],
        "steps_per_minute": speed,
        "memory": memory,
    }


def verdicts(masked, whole, flat=30.0):
    real, noise, mean = row(0.5, 0, 0, 0), row(90.0, 0, 0, 0), row(0, flat, 0, 0)
    controls = {"real": real, "noise": noise, "mean volume": {"error": mean["error"]}}
    return {
        c.name: c.holds
        for c in claims({"rows": {"16-I.2@0": masked, "16-I.2:all@0": whole}, "controls": controls})
    }


WHOLE = row(2.0, 10.0, 100, 8.0)


def test_claims_follow_the_numbers():
    names = ("controls", "speed", "error", "memory", "samples")
    assert verdicts(row(2.0, 10.9, 161, 5.0), WHOLE) == dict.fromkeys(names, True)


@pytest.mark.parametrize(
    ("name", "masked", "holds"),
    [
        ("speed", row(2.0, 10.0, 159, 5.0), False),
        ("error", row(2.0, 11.1, 170, 5.0), False),
        ("memory", row(2.0, 10.0, 170, 8.0), False),
        ("samples", row(2.15, 10.0, 170, 5.0), None),
        ("samples", row(3.0, 10.0, 170, 5.0), False),
        ("controls", row(0.4, 10.0, 170, 5.0), False),
    ],
)
def test_each_claim_can_fail(name, masked, holds):
    assert verdicts(masked, WHOLE)[name] is holds


def test_no_better_than_the_mean_volume_fails():
    assert verdicts(row(2.0, 10.0, 170, 5.0), WHOLE, flat=10.0)["error"] is False

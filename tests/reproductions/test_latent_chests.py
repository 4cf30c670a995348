"""Latent diffusion of chests: the reproduction runs end to end and goes on, and its claims say what its numbers say."""

import json

import pytest

from verisim.cli.main import main
from verisim.metrics.bootstrap import Estimate
from verisim.reproductions.latent_chests import claims


def test_smoke_run_and_again(tmp_path, monkeypatch, capsys):
    """Autoencoder, then diffusion of its latents and of pixels; the second call trains and draws nothing."""
    call = ["reproduce", "000-C5c", "--scale", "smoke", "--out", str(tmp_path), "--minutes", "0.02"]
    assert main(call) == 0
    path = tmp_path / "000-C5c.32px.smoke.json"
    numbers = json.loads(path.read_text())["numbers"]["32"]
    alone = {"W-C5b:normal@0", "W-C5b:gaussian@0"}
    assert set(numbers["rows"]) == {"W-C5c@0", "X-D-fix@0", "W-C5b:reconstructions@0", *alone}
    assert all(set(row["fd"]) == {"FD(random)"} and row["factors"] for row in numbers["rows"].values())
    assert set(numbers["memory"]) == {"W-C5b@0", "W-C5c@0", "X-D-fix@0"}
    assert (tmp_path / "figures" / "000-C5c.32px.smoke" / "W-C5b-reconstructions.png").exists()

    def nothing(*_, **__):
        raise AssertionError("trained or drawn again")

    monkeypatch.setattr("verisim.reproductions.runs._start", nothing)
    monkeypatch.setattr("verisim.tasks.contestants._draw", nothing)
    assert main(call) == 0
    assert json.loads(path.read_text())["numbers"]["32"] == numbers
    capsys.readouterr()


def row(fd, se=0.05):
    return {"fd": {"FD(random)": Estimate(fd, fd - 2 * se, fd + 2 * se, se).as_dict()}}


def table(**changes):
    rows = {
        "W-C5c@0": row(2.0),
        "X-D-fix@0": row(3.0),
        "W-C5b:normal@0": row(20.0),
        "W-C5b:gaussian@0": row(5.0),
        "W-C5b:reconstructions@0": row(1.0),
        **changes,
    }
    memory = {"W-C5b@0": 10.0, "W-C5c@0": 3.0, "X-D-fix@0": 9.0}
    return {"rows": rows, "controls": {"real": row(0.5), "noise": row(90.0)}, "memory": memory}


def verdicts(numbers):
    return {c.name: c.holds for c in claims(numbers)}


def test_claims_follow_the_numbers():
    assert verdicts(table()) == dict.fromkeys(("controls", "prior", "pixels", "ceiling", "memory"), True)


@pytest.mark.parametrize(
    ("name", "changes", "holds"),
    [
        ("prior", {"W-C5b:gaussian@0": row(1.5)}, False),  # nearer than N(0, I) is not enough
        ("pixels", {"X-D-fix@0": row(2.02)}, None),
        ("pixels", {"X-D-fix@0": row(1.2)}, False),
        ("ceiling", {"W-C5b:reconstructions@0": row(2.5)}, False),
        ("controls", {"W-C5c@0": row(0.4)}, False),
    ],
)
def test_each_claim_can_fail(name, changes, holds):
    assert verdicts(table(**changes))[name] is holds


def test_more_memory_than_pixels_fails():
    assert (
        verdicts({**table(), "memory": {"W-C5b@0": 1.0, "W-C5c@0": 9.5, "X-D-fix@0": 9.0}})["memory"] is False
    )

"""Coordinate networks compared: smoke run, the baseline by hand, claims that follow the numbers."""

import json
from dataclasses import replace

import pytest
import torch

from verisim.cli.main import main
from verisim.errors import VerisimError
from verisim.nets.implicit import CoordinateNet
from verisim.reproductions.coordinate_networks import (
    COUNTS,
    NEIGHBOURS,
    SCALES,
    SHUFFLED,
    SYSTEMS,
    _count,
    _fitted,
    _neighbours,
    _network,
    claims,
    run,
)
from verisim.reproductions.result import Options


def test_smoke(tmp_path):
    """Every network, the baseline and the control; the same numbers again."""
    command = ["reproduce", "002-coordinates", "--scale", "smoke", "--out", str(tmp_path)]
    assert main(command) == 0
    file = tmp_path / "002-coordinates.smoke.json"
    numbers = json.loads(file.read_text())["numbers"]
    assert set(numbers["rows"]) == {*SYSTEMS, SHUFFLED, NEIGHBOURS}
    assert all(len(row["others"]) == 2 for row in numbers["rows"].values())
    assert (tmp_path / "figures" / "002-coordinates.smoke" / "fits.png").exists()
    assert main([*command, "--systems", "sine"]) == 0
    assert json.loads(file.read_text())["numbers"]["rows"]["sine"] == numbers["rows"]["sine"]
    with pytest.raises(VerisimError, match="Leave out --data"):
        next(run(Options("smoke", tmp_path, tmp_path, data="x")))


def test_neighbours_by_hand():
    """Four in the middle, three at an edge, two in a corner; of a plane the middle is exact."""
    x = torch.arange(9.0).view(3, 3)
    assert _neighbours(x)[1, 1] == 4 and _neighbours(x)[0, 0] == 2 and _neighbours(x)[0, 1] == (0 + 2 + 4) / 3


@pytest.mark.parametrize("activation", ["relu", "sine", "complex_gabor", "real_gabor"])
def test_networks_are_as_large_as_allowed(activation):
    """One more of width would be too many."""
    net = _network(2, activation, 5000)
    width = net.body[1].state_dict()[next(iter(net.body[1].state_dict()))].shape[-1]
    wider = CoordinateNet(2, hidden=width + 1, layers=4, activation=activation)
    assert 0.8 * 5000 < _count(net) <= 5000 < _count(wider)


def test_a_linear_image_is_fitted():
    """What any network can draw: grey that rises from left to right, other pixels included."""
    side = 16
    x = torch.linspace(-0.5, 0.5, side).expand(side, side)
    points = torch.stack(torch.meshgrid(*[torch.linspace(-0.5, 0.5, side)] * 2, indexing="ij"), -1)
    known = torch.arange(side)[:, None].add(torch.arange(side)).remainder(2).eq(0)
    found = _fitted("relu", x, points, known, replace(SCALES["smoke"], steps=200), 0)
    assert found["learned"] > 25 and found["others"] > 25 and found["picture"].shape == (1, side, side)


def made_up():
    psnr = {"relu": 20.0, "relu, Fourier": 25.0, "sine": 30.0, "complex_gabor": 30.0, "real_gabor": 30.0}
    rows = {n: {"learned": [v, v + 1], "others": [v - 1, v]} for n, v in psnr.items()}
    rows[SHUFFLED], rows[NEIGHBOURS] = {"others": [12.0, 13.0]}, {"others": [23.0, 24.0]}
    return {"rows": rows, "counts": {f"{a}, {n} inputs": count for (a, n), count in COUNTS.items()}}


def test_claims_follow_the_numbers():
    assert {c.name for c in claims(made_up()) if not c.holds} == {"baseline-relu"}
    worse = made_up()
    worse["rows"]["sine"]["learned"] = [19.0, 19.5]
    worse["rows"][SHUFFLED]["others"] = [28.0, 28.0]
    worse["counts"]["sine, 132 inputs"] += 1
    assert {c.name for c in claims(worse) if c.holds is False} == {
        "baseline-relu",
        "bias-sine",
        "shuffled",
        "counts",
    }
    equal = made_up()
    equal["rows"]["sine"]["learned"] = [19.0, 22.0]
    assert {c.name for c in claims(equal) if c.holds is None} == {"bias-sine"}

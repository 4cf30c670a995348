"""Systems that source 004 mentions: the first stage is of the same data, and claims follow the numbers."""

import json

import pytest

from verisim.cli.main import main
from verisim.metrics.bootstrap import Estimate
from verisim.reproductions.cxr_background import claims


def test_smoke(tmp_path):
    """A GAN without batch statistics and a latent model with its first stage."""
    call = ["reproduce", "004-background", "--scale", "smoke", "--out", str(tmp_path), "--minutes", "0.02"]
    assert main([*call, "--systems", "X-B1,X-B1-fc,X-B2"]) == 0
    body = json.loads((tmp_path / "004-background.32px.smoke.json").read_text())
    assert set(body["numbers"]["32"]["rows"]) == {"X-B1@0", "X-B1-fc@0", "X-B2@0"}
    assert {c["name"] for c in body["claims"]} >= {"controls@32", "X-B1<X-B1-fc"}
    for run in ("X-B2.1@0", "X-B2@0"):
        config = (tmp_path / "runs" / "32" / run / "config.yaml").read_text()
        assert "size: 32" in config and "phantom: chest" in config, "not trained on what is judged"
    assert (tmp_path / "figures" / "004-background.32px.smoke" / "X-B2.png").exists()


def around(value: float, se: float = 0.1) -> dict:
    return Estimate(value, value - 2 * se, value + 2 * se, se).as_dict()


def numbers(**fd: float) -> dict:
    values = {"X-B1": 2.0, "X-B1-sn": 2.0, "X-B1-fc": 4.0, "X-G-fix": 3.0, "X-B2": 1.0, "X-D-fix": 2.0} | fd
    bits = {"X-B3@0": 4.0, "X-B3@1": 4.2, "X-V-fix@0": 5.0, "X-B3-flow@0": 6.0}
    return {
        "summary": {n: {"fd/random": around(v)} for n, v in values.items()},
        "facts": {n: {"likelihood": {"bits_per_dim": v, "se": 0.05}} for n, v in bits.items()},
    }


@pytest.mark.parametrize(
    "fd, name, holds",
    [
        ({}, "X-B1<X-B1-fc", True),
        ({"X-B1": 5.0}, "X-B1<X-B1-fc", False),
        ({"X-B1": 4.0}, "X-B1<X-B1-fc", None),
        ({}, "X-B1-sn<X-B1-fc", True),
        ({}, "X-B1<X-G-fix", True),
        ({}, "X-B2<X-D-fix", True),
        ({"X-B2": 9.0}, "X-B2<X-D-fix", False),
        ({}, "X-B3<X-V-fix", True),
        ({}, "X-B3-flow<X-V-fix", False),
    ],
)
def test_claims_follow_the_numbers(fd, name, holds):
    found = {c.name: c.holds for c in claims(numbers(**fd))}
    assert found[name] is holds and "X-B3-vamp<X-V-fix" not in found  # nothing is claimed of what was not run

"""The sweep of sizes: every size has its own controls, and the claims follow the numbers."""

import json

import pytest

from verisim.cli.main import main
from verisim.metrics.bootstrap import Estimate
from verisim.recipes import load_recipe
from verisim.reproductions.cxr_sizes import POINTS, claims, largest_rise


def test_smoke(tmp_path):
    """Two literal systems at two of their sizes, half as large."""
    call = ["reproduce", "004-sizes", "--scale", "smoke", "--out", str(tmp_path), "--minutes", "0.02"]
    assert main([*call, "--systems", "X-V0,X-A0", "--sizes", "32,64"]) == 0
    body = json.loads((tmp_path / "004-sizes.smoke.json").read_text())
    numbers = body["numbers"]
    assert set(numbers["sizes"]) == {"32", "64"} and set(numbers["likelihood"]) == {"X-A0-32px", "X-A0-64px"}
    assert set(numbers["sizes"]["64"]["rows"]) == {"X-V0-64px"} and "X-V0-32px" in numbers["stability"]
    assert all(
        r["left_neighbour"] > 0 and r["model"]["bits_per_dim"] > 0 for r in numbers["likelihood"].values()
    )
    assert "controls" in {c["name"] for c in body["claims"]}
    assert (tmp_path / "figures" / "004-sizes.smoke" / "X-V0-64px.png").exists()


def test_points_are_variants_of_their_recipes():
    """For small and for full scale."""
    for p in POINTS:
        known = load_recipe(p.recipe).variants
        assert p.variant in known and (
            p.system.endswith("-fix") or p.variant.replace("small", "full", 1) in known
        ), p


def around(value, se=0.01):
    return Estimate(value, value - 2 * se, value + 2 * se, se).as_dict()


def numbers(collapsed=0.2, at_64=0.9, only_32=True, rise=1.0, bits=(0.1, 0.5, 2.0), best=0.7):
    sizes = {
        str(s): {
            "summary": {
                "real": {"c2st": around(0.5)},
                "noise": {"c2st": around(1.0), "fd/random": around(100.0)},
                f"X-V0-{s}px": {"fd/random": around(5.0 if s != 32 or not only_32 else 50.0)},
            }
        }
        for s in (32, 64, 128, 256)
    }
    sizes["64"]["summary"]["X-G0-64px"] = {"diversity/image": around(at_64)}
    sizes["128"]["summary"] |= {
        "X-G0-128px": {"diversity/image": around(collapsed)},
        "X-D-fix-128px": {"c2st": around(best)},
        "X-G-fix-128px": {"c2st": around(0.9), "diversity/image": around(0.9)},
        "X-V-fix-128px": {"c2st": around(0.95)},
    }
    row = {
        n: {"model": {"bits_per_dim": 5 + b, "se": 0.01}, "left_neighbour": 5.0} for n, b in zip("abc", bits)
    }
    return {"sizes": sizes, "likelihood": row, "stability": {"X-V0-256px": {"rise": rise, "skipped": 0}}}


@pytest.mark.parametrize(
    "change, name, holds",
    [
        ({}, "controls", True),
        ({}, "gan-collapse", True),
        ({"collapsed": 0.9}, "gan-collapse", False),
        ({"at_64": 0.1}, "gan-collapse", False),
        ({"collapsed": 0.5}, "gan-collapse", None),
        ({}, "gan-stabilised", True),
        ({}, "vae-sizes", True),
        ({"only_32": False}, "vae-sizes", False),
        ({}, "vae-unstable", False),
        ({"rise": 3.0}, "vae-unstable", True),
        ({}, "pixelcnn-sizes", True),
        ({"bits": (0.1, 2.0, 0.5)}, "pixelcnn-sizes", False),
        ({}, "diffusion-128", True),
        ({"best": 0.99}, "diffusion-128", False),
        ({"best": 0.9}, "diffusion-128", None),
    ],
)
def test_claims_follow_the_numbers(change, name, holds):
    assert {c.name: c.holds for c in claims(numbers(**change))}[name] is holds


def test_rise_of_a_loss():
    """A loss that falls does not rise; one that triples does; one of both signs has no ratio."""
    falling = [100.0 / (k + 1) for k in range(100)]
    assert largest_rise(falling) < 1 and largest_rise([*falling, *[3.0] * 20]) > 2
    assert largest_rise([1.0]) is None and largest_rise([1.0, -1.0] * 20) is None

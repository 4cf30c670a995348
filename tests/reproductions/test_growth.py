"""The reproduction of implicit development: smoke run, resuming, claims that follow the numbers."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from verisim.cli.main import main
from verisim.errors import VerisimError
from verisim.phantoms import growing_brain
from verisim.reproductions import reproduction
from verisim.reproductions.growth_claims import GUIDED, SHUFFLED, SOURCE, claims
from verisim.reproductions.growth_guided import Choice, choose, guided_images
from verisim.reproductions.result import Options


def test_smoke_run(tmp_path, capsys):
    """Four combinations, the baseline, the control, averages, figures; a second run trains nothing and finds the same."""
    argv = ["reproduce", "002-growth", "--scale", "smoke", "--out", str(tmp_path)]
    assert main(argv) == 0
    file = tmp_path / "002-growth.16px.smoke.json"
    body = json.loads(file.read_text())
    numbers = body["numbers"]["16"]
    assert set(numbers["rows"]) == {"none", "SGLA", "SSL", "both", GUIDED, SHUFFLED}
    row = numbers["rows"]["both"][0]
    assert len(row["predicted"]) == len(row["ssim"]) == 6 and set(row["head"]) == {
        "sigma_mm",
        "r",
        "slope",
        "true_slope",
    }
    guided = numbers["rows"][GUIDED][0]
    assert len(guided["predicted"]) == len(guided["mae"]) == 6 and guided["chosen"]["level"] == 200
    took = [
        json.loads(p.read_text())["processor_seconds"] for p in (tmp_path / "runs" / "16px-60").glob("*.json")
    ]
    assert len(took) == 5 and guided["training"]["steps"] >= 1
    assert guided["training"]["seconds"] > 0.5 * min(took)  # stops at the first step beyond the others' time
    assert {
        "guided",
        "guided-copy",
        "guided-age",
        "sgla",
        "ssl",
        "both-ssl",
        "margin",
        "age",
        "copy",
        "shuffled",
        "sigma",
        "r",
        "atlas-zero",
        "sharper",
    } <= {c["name"] for c in body["claims"]}
    assert (tmp_path / "figures" / "002-growth.16px.smoke" / "predictions.png").exists()
    volumes = json.loads((tmp_path / "002-growth.16vox.smoke.json").read_text())["numbers"]["16x16x16"]
    assert set(volumes["rows"]) == {"none", "SGLA", "SSL", "both", SHUFFLED}
    assert volumes["rows"]["both"][0]["head"].keys() == row["head"].keys()
    assert (tmp_path / "figures" / "002-growth.16vox.smoke" / "predictions.png").exists()
    runs = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*.safetensors")}
    assert len([p for p in runs if p.parent.name == "16px-60"]) == 5
    assert len([p for p in runs if p.name == "weights.safetensors"]) == 1
    assert main(argv) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*.safetensors")} == runs
    assert json.loads(file.read_text())["numbers"] == body["numbers"]
    assert "claims" in capsys.readouterr().out


def test_guidance_is_chosen_by_the_training_pairs():
    """The setting that changes the first scans into the second ones best; a setting that breaks images loses."""
    scans = growing_brain.make(2, 0, 16).images
    before, after = torch.tensor([0]), torch.tensor([1])

    class Known:
        def at_age(self, x, ages, level, c, steps):
            assert steps == 5 and ages.tolist() == [40.0]
            if c > 2:
                raise VerisimError("overshoots")
            share = max(0.0, 1 - abs(c - 1) - abs(level - 400) / 1000)  # best at level 400, c = 1
            return x + share * (scans.pixels[1:] - x)

    found = choose(
        Known(), scans, torch.tensor([30.0, 40.0]), before, after, Choice((200, 400, 600), (0.0, 0.9, 3.0), 5)
    )
    assert (found.level, found.c) == (400, 0.9)
    broken = guided_images(Known(), scans.pixels[:1], torch.tensor([40.0]), replace(found, c=3.0))
    assert torch.equal(broken, torch.full_like(broken, -1.0))


def made_up():
    """Numbers in the source's order, with margins."""
    psnr = {"none": 18.0, "SGLA": 21.0, "SSL": 23.0, "both": 24.5, SHUFFLED: 15.0}
    noise = [-0.3, 0.1, 0.2, -0.1, 0.1, 0.0]
    rows = {
        n: [{"predicted": [v + e * (1 + 0.1 * k) for e in noise], "unchanged": [14.0] * 6, "copied": [13.0] * 6,
             "head": {"sigma_mm": 40 - v, "r": v / 25, "slope": 9.0, "true_slope": 10.0}}]
        for k, (n, v) in enumerate(psnr.items())
    }  # fmt: skip
    rows[GUIDED] = [{"predicted": [16 + e for e in noise], "unchanged": [14.0] * 6, "copied": [18.0] * 6}]
    curve = {"slope": 9.0, "true_slope": 10.0, "r": 0.99}
    return {
        "rows": rows,
        "atlas": {"zero": [{**curve, "sharpness": 0.1}], "mean": [{**curve, "sharpness": 0.2}]},
    }


def test_claims_follow_the_numbers():
    """The source's order: all hold. Turned around, equal, or not measurable: no, undecided."""
    numbers = made_up()
    assert {c.name: c.holds for c in claims(numbers)} == dict.fromkeys(
        ["sgla", "ssl", "ssl-sgla", "both-sgla", "both-ssl", "margin", "age", "copy", "shuffled", "r", "atlas-zero",
         "atlas-mean", "sharper", "guided", "guided-age"], True) | {"sigma": False, "guided-copy": False}  # fmt: skip
    worse = copy.deepcopy(numbers)
    worse["rows"]["both"], worse["rows"]["none"] = worse["rows"]["none"], worse["rows"]["both"]
    found = {c.name: c.holds for c in claims(worse)}
    assert not any(found[n] for n in ("sgla", "ssl", "both-sgla", "both-ssl", "margin"))
    equal = copy.deepcopy(numbers)
    values = equal["rows"]["SSL"][0]["predicted"]
    equal["rows"]["both"][0]["predicted"] = [v + e for v, e in zip(values, [1, -1, 1, -1, 1, -1])]
    assert {c.name: c.holds for c in claims(equal)}["both-ssl"] is None
    blind = copy.deepcopy(numbers)
    blind["rows"]["both"][0]["head"].update(sigma_mm=None, r=None)
    blind["atlas"]["zero"][0].update(slope=None, r=None)
    found = {c.name: c.holds for c in claims(blind)}
    assert found["sigma"] is None and found["r"] is None and found["atlas-zero"] is None
    flat = copy.deepcopy(numbers)
    flat["atlas"]["mean"][0]["slope"] = 7.9
    assert {c.name: c.holds for c in claims(flat)}["atlas-mean"] is False


def test_table_of_the_source():
    """In the source's table each measure helps, and both together most, in 2D and 3D."""
    for dims in ("2D", "3D"):
        psnr = [SOURCE[n][dims][0] for n in ("none", "SGLA", "SSL", "both")]
        assert psnr == sorted(psnr)
    assert SOURCE[GUIDED]["2D"][0] < SOURCE["none"]["2D"][0]


def test_refusals(tmp_path):
    """Real images, whose truth is unknown here, and unknown systems."""
    with pytest.raises(VerisimError, match="runs on phantoms"):
        next(reproduction("002-growth")(Options("smoke", tmp_path, tmp_path, data="x")))
    with pytest.raises(VerisimError, match="DDM is not part of this table"):
        next(reproduction("002-growth")(Options("smoke", tmp_path, tmp_path, systems=("DDM",))))
    with pytest.raises(VerisimError, match=r"for as long as the implicit systems take.*--minutes"):
        next(reproduction("002-growth")(Options("smoke", tmp_path, tmp_path, systems=(GUIDED,))))

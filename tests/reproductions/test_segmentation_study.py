"""The study of diffusion segmentation runs end to end at smoke scale, and its claims say what the numbers say."""

import json
from dataclasses import replace

import pytest
import torch

from verisim.cli.main import main
from verisim.data.spec import Images, ImageSpec
from verisim.errors import VerisimError
from verisim.recipes import load_recipe
from verisim.reproductions import reproduction
from verisim.reproductions.result import Options
from verisim.reproductions.segmentation_claims import claims
from verisim.reproductions.segmentation_study import SCALES, SYSTEMS, VARIANTS, _folds, threshold_baseline


def test_smoke_study(tmp_path):
    """Two systems and the control, trained for two seconds each: scores, study, claims, pictures; again costs nothing."""
    command = [
        "reproduce",
        "002-segmentation",
        "--scale",
        "smoke",
        "--out",
        str(tmp_path),
        "--systems",
        "B-D,B-J",
    ]
    command += ["--minutes", "0.03"]
    assert main(command) == 0
    body = json.loads((tmp_path / "002-segmentation.smoke.json").read_text())
    numbers = body["numbers"]
    assert set(numbers["systems"]) == {"B-D", "B-J", "B-D:shuffled", "threshold"}
    assert {len(rows) for rows in numbers["cases"].values()} == {8} and len(numbers["sweep"]) == 4
    assert len(numbers["reference"]) == 2 and numbers["facts"]["B-J"]["memory"] > 0
    assert {"control", "upper", "rescue", "works"} <= {c["name"] for c in body["claims"]}
    for name in ("B-D", "B-J", "B-D-shuffled", "sweep.dice", "sweep.hd95"):
        assert (tmp_path / "figures" / "002-segmentation.smoke" / f"{name}.png").exists(), name
    steps = numbers["facts"]["B-D"]["steps"]
    assert main(command) == 0
    again = json.loads((tmp_path / "002-segmentation.smoke.json").read_text())["numbers"]
    assert again["facts"]["B-D"]["steps"] == steps and again["cases"] == numbers["cases"]


def rows(*values, hd95=5.0):
    return [
        {"case": str(i), "dice": v, "hd95": hd95, "predicted": 1, "true": 1} for i, v in enumerate(values)
    ]


def test_claims_follow_the_numbers():
    """Better, worse and undecided pairs; a shuffled control that works is a claim that does not hold."""
    cases = {
        "B-D": rows(0.8, 0.82, 0.84, 0.81),
        "B-E": rows(0.7, 0.71, 0.72, 0.69),
        "B-F": rows(0.9, 0.74, 0.85, 0.8, hd95=9.0),
        "B-J": rows(0.95, 0.96, 0.94, 0.95),
        "B-D:shuffled": rows(0.9, 0.9, 0.9, 0.9),
        "threshold": [],
    }
    grid = [
        {"steps": s, "members": m, "dice": d}
        for s, m, d in ((3, 1, 0.1), (3, 9, 0.6), (20, 1, 0.80), (20, 9, 0.82), (50, 1, 0.81), (50, 9, 0.79))
    ]
    scale = {"judged": (20, 5), "reference": (1000, 4)}
    known = {"B-D": {"calibration": {"auroc": 0.9, "error_rate": [0.0, None, 0.3]}}}
    facts = {"B-D": {"memory": 1.0}, "B-E": {"memory": 7.4}, "B-H": {"memory": 1.2}}
    numbers = {
        "cases": cases,
        "sweep": grid,
        "systems": known,
        "scale": scale,
        "reference": rows(0.9, 0.8),
        "facts": facts,
    }
    found = {c.name: c.holds for c in claims(numbers)}
    assert found == {
        "patch-full": True, "patch-half": None, "half-hd95": False, "control": False, "upper": True,
        "rescue": True, "twenty": True, "ensemble": True, "works": False, "reference": False, "variance": True,
        "memory": True, "skips-memory": False,
    }  # fmt: skip
    gone = found.keys() - {c.name for c in claims({**numbers, "phantoms": False})}
    assert gone == {"works", "memory", "skips-memory"}  # say so of phantoms


@pytest.mark.parametrize("name", ["B-D", "B-E", "B-F", "B-G", "B-H", *VARIANTS])
def test_systems_differ_in_what_is_compared_alone(name):
    """Data, precision and layout are the same, so that equal time is a fair budget."""
    recipe, _, suffix = name.partition(":")
    theirs, ours = (
        load_recipe(r).settings(v)
        for r, v in (("B-C", "small"), (recipe, f"small-{suffix}" if suffix else "small"))
    )
    assert ours["data"] == theirs["data"]
    free = {"batch_size"}  # one volume at a time where they are whole
    assert {k: v for k, v in ours["training"].items() if k not in free} == {
        k: v for k, v in theirs["training"].items() if k not in free
    }


def test_variants_of_skips_are_recipes(tmp_path):
    """Not part of the study unless asked for; each has a recipe of its own at small scale."""
    assert not set(SYSTEMS) & set(VARIANTS)
    for name in VARIANTS:
        model = load_recipe("B-H").settings(f"small-{name.partition(':')[2]}")["model"]
        assert (
            model["attention"][-1] if name.endswith("attention") else model["skip"] == name.partition(":")[2]
        )
    with pytest.raises(VerisimError, match=r"B-H:none is not part of this study"):
        next(reproduction("002-segmentation")(Options("smoke", tmp_path, tmp_path, systems=("B-H:none",))))


def test_threshold_finds_what_brightness_tells():
    """Where the lesion is darkest in the second channel, the rule is perfect; in noise it is not."""
    g = torch.Generator().manual_seed(0)
    mask = (torch.rand(6, 1, 16, 16, generator=g) < 0.2).to(torch.uint8)
    noise = torch.rand(6, 2, 16, 16, generator=g) - 0.5
    clear = torch.cat([noise[:, :1], torch.where(mask > 0, -0.9, noise[:, 1:])], 1)
    for pixels, perfect in ((clear, True), (noise, False)):
        images = Images(pixels, ImageSpec((16, 16), 2), segmentation=mask)
        scores = threshold_baseline(images.subset(torch.arange(4)), images.subset(torch.arange(4, 6)))
        assert all((s.dice == 1.0) == perfect for s in scores)


def test_each_patient_is_held_out_once(tmp_path):
    """A folder of NIfTI: one fold per patient with a label map, nobody in both parts; one without is left out."""
    import nibabel as nib
    import numpy as np

    lines = ["patient,t1c,flair,seg"]
    for p in ("a", "b", "c", "d"):
        for kind in ("t1c", "flair", "seg"):
            volume = np.zeros((10, 9, 8), np.uint8)
            volume[2:6, 2:6, 2:6] = 3
            nib.save(nib.Nifti1Image(volume, np.diag([2.0, 2, 2, 1])), tmp_path / f"{p}_{kind}.nii.gz")
        lines.append(f"{p},{p}_t1c.nii.gz,{p}_flair.nii.gz," + ("" if p == "d" else f"{p}_seg.nii.gz"))
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    folds = _folds(str(tmp_path), replace(SCALES["smoke"], size="8x8x8"))
    assert list(folds) == ["a", "b", "c"]
    for person, (training, test) in folds.items():
        assert set(test.patients) == {person} and set(training.patients) == {"a", "b", "c"} - {person}
        assert int(test.segmentation.max()) == 3 and training.spec.channels == 2
    (tmp_path / "manifest.csv").write_text("\n".join(lines[:3]) + "\n")
    with pytest.raises(VerisimError, match="at least 3"):
        _folds(str(tmp_path), replace(SCALES["smoke"], size="8x8x8"))


def test_unknown_system(tmp_path):
    with pytest.raises(VerisimError, match="B-K is not part of this study"):
        next(reproduction("002-segmentation")(Options("smoke", tmp_path, tmp_path, systems=("B-K",))))

"""`verisim detect` on volumes: maps on the scans' own voxels, structures by side, folders, resuming."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
import torch

from verisim.cli.main import main
from verisim.data.align import carried
from verisim.data.listing import Entry
from verisim.data.nifti import write_nifti
from verisim.data.register import Registered
from verisim.data.resample import fit_image
from verisim.phantoms import head_ct
from verisim.tasks.scanning import on_own_grid

AFFINE = np.array([[0, 0, -3.0, 90], [0, 3.0, 0, -80], [4.0, 0, 0, -60], [0, 0, 0, 1]])  # (d, h, w, 1) -> mm


def scans(folder, n=2):
    """Heads of 20 x 18 x 16 voxels (d, h, w) as NIfTI with an affine."""
    made = head_ct.make(n, seed=9, size=(20, 18, 16), findings="epidural").images
    folder.mkdir()
    for i, volume in enumerate(made.pixels):
        facts = {"range": [-1.0, 1.0], "modality": "CT"}
        data = write_nifti(volume[0].numpy(), AFFINE, None, facts, True)
        (folder / f"head{i}.nii.gz").write_bytes(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "ppr"
    data = ["--data.count=480", "--data.size=16x16x16"]
    model = ["--model.width=1", "--model.patch=5", "--model.patches=8"]
    budget = ["--training.max_steps=2", "--training.max_minutes=0"]
    assert main(["train", "B-A", "--variant", "small", "--out", str(out), *data, *model, *budget]) == 0
    return out


def test_folder_of_scans(run, tmp_path, capsys):
    """Maps have shape and affine of the scan; every structure has a score; a second call repeats nothing but the damaged."""
    folder, out = tmp_path / "scans", tmp_path / "found"
    scans(folder)
    (folder / "broken.nii.gz").write_bytes(b"nothing")
    common = ["--parts", "head_ct", "--stride", "5", "--data.fit", "stretch", "--data.enlarge", "true"]
    call = ["detect", str(run), str(folder), "--out", str(out), *common]
    assert main(call) == 2
    said = capsys.readouterr()
    assert "1 of 3 images could not be read" in said.err and "broken.nii.gz" in said.err
    rows = {r["image"]: r for r in csv.DictReader((out / "scores.csv").open())}
    assert set(rows) == {"head0.nii.gz", "head1.nii.gz"}
    assert all(0 < float(rows["head0.nii.gz"][f"p_{k}"]) <= 1 for k in ("value", "left", "right", "skull"))
    for name in ("head0", "head1"):
        scan, found = nib.load(folder / f"{name}.nii.gz"), nib.load(out / f"{name}.map.nii.gz")
        assert found.shape == scan.shape and np.allclose(found.affine, scan.affine)
        assert (out / f"{name}.png").exists()
    before = (out / "head0.map.nii.gz").stat().st_mtime_ns
    (out / "head1.map.nii.gz").unlink()
    assert main(call) == 2
    assert (out / "head0.map.nii.gz").stat().st_mtime_ns == before and (out / "head1.map.nii.gz").exists()
    assert main([*call, "--rate", "0.1"]) == 2
    assert "another model or other settings" in capsys.readouterr().err
    assert len(json.loads((out / "calibration.json").read_text())["parts"]) == 3


def test_held_out_images_are_judged_by_kind(run, capsys):
    """The class that was trained on is the normal one without being named again; every other kind has its line."""
    assert main(["detect", str(run), "--stride", "5"]) == 0
    said = capsys.readouterr().out
    assert "AUROC" in said and "  epidural: AUROC" in said and "  fracture: AUROC" in said
    assert main(["detect", str(run), "--filter", "median"]) == 2
    assert "no sampling option 'filter'" in capsys.readouterr().err
    assert main(["detect", str(run), "x.nii.gz", "--parts", "knee"]) == 2
    assert "Unknown set of parts 'knee'" in capsys.readouterr().err
    assert main(["sample", str(run), "-n", "1"]) == 2
    assert "cannot sample" in capsys.readouterr().err


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_maps_return_to_the_scan(fit, tmp_path):
    """A map that is a linear function of place in mm is the same function on the scan's voxels, however it was resized."""
    scans(tmp_path / "s", 1)
    entry = Entry("head0.nii.gz", tmp_path / "s" / "head0.nii.gz")
    raw = entry.read()
    _, back = fit_image(raw.array, (12, 12, 12), fit)
    affine = raw.affine @ back

    def place(shape, matrix):  # left-right position in mm of every voxel
        index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], [1], indexing="ij"), -1)
        return (index.reshape(*shape, 4) @ matrix.T)[..., 0]

    values = torch.from_numpy(place((12, 12, 12), affine)).float()[None]
    found, own = on_own_grid(values, affine, entry)
    exact = torch.from_numpy(place(raw.array.shape[1:], raw.affine)).float()
    assert np.allclose(own, raw.affine) and found.shape == (1, 20, 18, 16)
    inner = (slice(6, -6),) * 3
    assert torch.allclose(found[0][inner], exact[inner], atol=1e-3)
    assert on_own_grid(values, None, entry)[1] is None


def test_registration_is_undone_in_the_map(run, tmp_path, capsys, monkeypatch):
    """A scan that was turned onto the reference gets its map turned back; without SimpleITK the sentence says so."""
    folder = tmp_path / "scans"
    scans(folder, 1)
    call = ["detect", str(run), str(folder / "head0.nii.gz"), "--stride", "5", "--data.fit", "stretch",
            "--data.enlarge", "true", "--register", "--out", str(tmp_path / "found")]  # fmt: skip
    moved = np.eye(4)
    moved[0, 3] = 2.0  # pixel d of the reference is pixel d + 2 of the scan

    def shifted(image, reference, spacing):
        assert reference.shape == image.shape and float(reference.std()) > 0.1
        return Registered(torch.roll(image, -2, 1), moved)

    how = []
    monkeypatch.setattr("verisim.tasks.scanning.register_rigid", shifted)
    monkeypatch.setattr("verisim.tasks.scanning.carried", lambda *a, **k: how.append(k) or carried(*a, **k))
    assert main(call) == 0
    assert how == [{"nearest": True}]  # structures are found in pixels that keep their grey values
    values = torch.arange(8.0).view(1, 8, 1, 1).expand(1, 8, 3, 3)
    entry = Entry("none", folder)
    assert on_own_grid(values, None, entry, moved)[0][0, :, 1, 1].tolist() == pytest.approx(
        [0, 0, 0, 1, 2, 3, 4, 5], abs=1e-5
    )
    flat = torch.arange(6.0).expand(1, 4, 6)
    aside = np.eye(4)
    aside[2, 3] = -1.0
    assert on_own_grid(flat, None, entry, aside)[0][0, 0].tolist() == pytest.approx(
        [1, 2, 3, 4, 5, 0], abs=1e-5
    )
    capsys.readouterr()
